"""A camera that trusts an honest repository, and what must hold after an attack on it was refused."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata
from update_repository import NOW, PROFILE, SITE, MemoryFloors, Repository, make_config

from edgeedit.errors import EdgeEditError
from edgeedit.ota.client.session import Offer, fetch, poll

PATCH = bytes(range(256)) * 40
ML, RELEASE = f"patches-{PROFILE}", f"rollouts-{SITE}"


def picture(folder: Path) -> dict[str, bytes | str]:
    """Every file of a folder by content, every link by target; the lock apart."""
    found: dict[str, bytes | str] = {}
    for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = os.readlink(path)
        elif path.is_file() and path.name != ".lock":
            found[name] = path.read_bytes()
    return found


class Victim:
    """A camera that has polled `repository` once, with its cache, floors and the folder that patches come to.

    Attacks change `repository` (all its keys are at hand) or the folder that `publish` made of it."""

    def __init__(self, folder: Path, repository: Repository | None = None) -> None:
        self.folder, self.cache, self.new = folder, folder / "cache", folder / "new"
        self.repository = repository or Repository()
        self.root = self.repository.root_bytes()
        self.floors, self.now, self._count = MemoryFloors(), NOW, 0
        self.rollout = self.repository.ship(PATCH)
        self.offer = self.trust()

    def publish(self) -> Path:
        """The present state of the repository in a folder of its own."""
        self._count += 1
        return self.repository.write(self.folder / f"source-{self._count}")

    def poll(self, source: object = None, **changes: object) -> Offer | None:
        settings = {"root": self.root, **changes}
        return poll(make_config(source or self.publish(), self.cache, self.repository, **settings), self.floors, self.now)

    def trust(self) -> Offer:
        """Poll what is honest, and remember it."""
        offer = self.poll()
        assert offer is not None
        self.honest = dict(self.repository.files)
        return offer

    def move_on(self) -> dict[str, bytes]:
        """Every role in a newer version, which the camera learns; returns the files from before."""
        old = dict(self.repository.files)
        self.repository.targets.version += 1
        self.repository.publish(*self.repository.roles)
        self.trust()
        return old

    def lose_cache(self) -> None:
        shutil.rmtree(self.cache)

    def refuses(
        self,
        error: type[EdgeEditError],
        match: str,
        source: object = None,
        *,
        takes: Iterable[str] = (),
        again: bool = True,
        **changes: object,
    ) -> None:
        """The poll ends with exactly this error; floors, trusted metadata and the patch folder are as before.

        `takes` are metadata files that were rightly signed and newer, so that they may be kept.  Unless `again` is false, the honest
        repository is accepted afterwards: the attack locked nobody out."""
        self._unharmed(error, match, lambda: self.poll(source, **changes), frozenset(f"metadata/{name}" for name in takes))
        if again:
            self.repository.files = dict(self.honest)
            assert self.poll() is not None

    def fetch_refuses(self, error: type[EdgeEditError], match: str, offer: Offer, *, kept: bool = False) -> None:
        """The fetch ends with exactly this error and no patch appears; `kept` where the part may wait for the next time."""
        allowed = frozenset(f"{offer.rollout.patch.sha256}.eep.{end}" for end in ("part", "etag")) if kept else frozenset()
        self._unharmed(error, match, lambda: fetch(offer, self.new), allowed)

    def ignores(self, source: object = None, **changes: object) -> None:
        """The poll offers nothing."""
        assert self.poll(source, **changes) is None

    def _unharmed(self, error: type[EdgeEditError], match: str, act: Callable[[], object], takes: frozenset[str]) -> None:
        floors, writes = dict(self.floors.values), self.floors.writes
        cold = not self.cache.exists()
        before = {**picture(self.cache), **picture(self.new)}
        with pytest.raises(EdgeEditError, match=match) as caught:
            act()
        assert type(caught.value).exit_code == error.exit_code and isinstance(caught.value, error), repr(caught.value)
        after = {**picture(self.cache), **picture(self.new)}
        assert self.floors.values == floors and self.floors.writes == writes
        # A cache that was lost holds no trust yet: what it learns is judged by the floors at every poll.  A signed document may be
        # kept under its own digest; it is read again, and refused again, only when a role names it.
        changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name) and not _by_digest(name, after)}
        assert cold or changed <= takes, changed
        assert not any(name.endswith(".eep") for name in after)


def resigned(repository: Repository, role: str, data: bytes, *signers: CryptoSigner, **changes: object) -> bytes:
    """Metadata with other fields, signed anew; what a thief of the key can make."""
    metadata = Metadata.from_bytes(data)
    for name, value in changes.items():
        setattr(metadata.signed, name, value)
    metadata.signatures.clear()
    for signer in signers or (repository.signer(role),):
        metadata.sign(signer, append=True)
    return metadata.to_bytes()


def _by_digest(name: str, files: dict[str, bytes | str]) -> bool:
    content = files.get(name, b"")
    return name.startswith("rollouts/") and (not content or hashlib.sha256(bytes(content)).hexdigest() in name)  # type: ignore[arg-type]
