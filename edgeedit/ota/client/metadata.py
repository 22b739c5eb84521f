"""TUF metadata of one source: refresh, the two roles that must agree, and the durable floors.

python-tuf does the client workflow; this adds what it leaves to its caller (research: traps T1 to T4, T8, T9): the provisioned root
as the only anchor, time from outside, floors that a lost cache cannot lower, files synced, nothing written when nothing is new.
Private parts of python-tuf's Updater are used in `_Updater` alone; hence the bound `tuf<8`.

Guarantees: what `Metadata` returns was signed by the role it is asked of, is not expired at the time given and not older than any
floor.  Every error is one of ours: IntegrityError (5), UnreachableError (8), RefusedError (6), MismatchError (4).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path

from tuf.api.exceptions import DownloadError, DownloadHTTPError, DownloadLengthMismatchError, ExpiredMetadataError, RepositoryError
from tuf.api.metadata import DelegatedRole, Role, TargetFile, Targets
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig

from edgeedit.digest import digest_bytes
from edgeedit.errors import IntegrityError, MismatchError, RefusedError, UnreachableError
from edgeedit.files import fsync_dir
from edgeedit.limits import MAX_ROOT_BYTES, MAX_ROOT_ROTATIONS, MAX_SNAPSHOT_BYTES, MAX_TARGETS_BYTES, MAX_TIMESTAMP_BYTES
from edgeedit.ota.client.floors import Floors
from edgeedit.ota.client.transport import MissingError, Transport

FOLDER, HISTORY = "metadata", "root_history"
_TOP = ("timestamp", "snapshot", "targets")
_EPOCH_DIGITS = 16


class TransportFetcher(FetcherInterface):
    """python-tuf's way to our transports; never goes through a temporary file."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def download_bytes(self, url: str, max_length: int) -> bytes:
        """The file of at most `max_length` bytes; a missing one as python-tuf wants to hear of it."""
        try:
            return self._transport.read(url.lstrip("/"), max_length)
        except MissingError as error:
            raise DownloadHTTPError(error.message, 404) from error

    def _fetch(self, url: str) -> Iterator[bytes]:
        return iter([self.download_bytes(url, MAX_TARGETS_BYTES)])


class _Updater(Updater):
    """python-tuf's client with time from outside, and without a write where nothing changed."""

    def __init__(self, folder: Path, transport: Transport, root: bytes, now: int, base: str) -> None:
        config = UpdaterConfig(
            max_root_rotations=MAX_ROOT_ROTATIONS,
            root_max_length=MAX_ROOT_BYTES,
            timestamp_max_length=MAX_TIMESTAMP_BYTES,
            snapshot_max_length=MAX_SNAPSHOT_BYTES,
            targets_max_length=MAX_TARGETS_BYTES,
        )
        super().__init__(str(folder), f"{base}/", fetcher=TransportFetcher(transport), config=config, bootstrap=root)
        self._trusted_set.reference_time = datetime.fromtimestamp(now, timezone.utc)

    def _persist_root(self, version: int, data: bytes) -> None:
        with suppress(OSError):
            if Path(self._dir, HISTORY, f"{version}.root.json").read_bytes() == data:
                return
        super()._persist_root(version, data)

    def _update_root_symlink(self) -> None:
        with suppress(OSError):
            if os.readlink(Path(self._dir, "root.json")) == f"{HISTORY}/{self._trusted_set.root.version}.root.json":
                return
        super()._update_root_symlink()

    def delegated(self, role: str, parent: str) -> Targets:
        return self._load_targets(role, parent)

    def consistent(self) -> bool:
        return bool(self._trusted_set.root.consistent_snapshot)

    def top(self) -> Targets:
        return self._trusted_set.targets

    def versions(self) -> dict[str, int]:
        """Versions by floor name; the epoch is that of the keys that a role has now, so that a version which a thief raised is
        forgotten together with the stolen key."""
        trusted = self._trusted_set
        found = {"tuf:root": trusted.root.version}
        for role in _TOP:
            found[f"tuf:{role}@{epoch(trusted.root.roles[role])}"] = trusted[role].version
        return found


class Metadata:
    """Refreshed metadata.  Make one with `refreshed`."""

    def __init__(self, updater: _Updater) -> None:
        self._updater = updater
        self.versions = updater.versions()

    def delegation(self, role: str) -> DelegatedRole:
        """The delegation of a role by the top-level targets; raises MismatchError (exit 4) when there is none."""
        delegations = self._updater.top().delegations
        found = (delegations.roles or {}).get(role) if delegations else None
        if found is None:
            raise MismatchError(f"source has no role {role}", hint="check the site and the device profile, or add them to the repository")
        return found

    def role(self, role: str) -> Targets:
        """The targets of a delegated role."""
        keys = self.delegation(role)
        with _translated():
            targets = self._updater.delegated(role, "targets")
        self.versions[f"tuf:{role}@{epoch(keys)}"] = targets.version
        return targets

    def target(self, role: str, path: str) -> TargetFile | None:
        """What this role says of a path, itself or through the hashed bins below it; None when it does not name it."""
        delegation = self.delegation(role)
        if not delegation.is_delegated_path(path):
            return None
        targets = self.role(role)
        if path in targets.targets or targets.delegations is None:
            return targets.targets.get(path)
        for child, _ in targets.delegations.get_roles_for_target(path):
            with _translated():
                below = self._updater.delegated(child, role)
            parent = targets.delegations.succinct_roles or (targets.delegations.roles or {})[child]
            self.versions[f"tuf:{child}@{epoch(parent)}"] = below.version
            if path in below.targets:
                return below.targets[path]
        return None

    def check_floors(self, floors: Floors) -> dict[str, int]:
        """The versions that are news for the floors; raises IntegrityError (exit 5) when one is below its floor."""
        news = {}
        for name, version in self.versions.items():
            floor = floors.floor(name)
            if version < floor:
                raise IntegrityError(
                    f"{name.partition('@')[0].removeprefix('tuf:')} metadata is old: expected version {floor} or later, got {version}",
                    hint="the source was rolled back, or a mirror is stale",
                )
            if version > floor:
                news[name] = version
        return news

    def expires(self) -> int:
        """When the timestamp expires, in Unix seconds."""
        return int(self._updater._trusted_set.timestamp.expires.timestamp())


def refreshed(folder: Path, transport: Transport, root: bytes, now: int) -> Metadata:
    """Metadata of the source at `now` (Unix seconds), which floors have not been asked about yet."""
    cache = folder / FOLDER
    try:
        (cache / HISTORY).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RefusedError(f"cannot write {cache}: {error.strerror}", hint="check disk and permissions") from error
    with _translated():
        updater = _Updater(cache, transport, root, now, FOLDER)
        updater.refresh()
        return Metadata(updater)


@contextmanager
def client_of(folder: Path, transport: Transport, root: bytes, now: int, *, base: str) -> Iterator[_Updater]:
    """The bare TUF client, whose errors are ours inside the body; `base` is where metadata lies below the transport."""
    with _translated():
        yield _Updater(folder, transport, root, now, base)


def epoch(role: Role) -> str:
    """A short name of the keys and the threshold of a role."""
    return digest_bytes(" ".join([str(role.threshold), *sorted(role.keyids)]).encode())[:_EPOCH_DIGITS]


def sync(folder: Path, since: float) -> None:
    """Flush the metadata files that are newer than `since` (Unix seconds), then their folders; python-tuf never does."""
    for place in (folder / FOLDER / HISTORY, folder / FOLDER):
        fresh = [path for path in place.iterdir() if path.is_file() and not path.is_symlink() and path.stat().st_mtime >= since]
        for path in fresh:
            with path.open("rb") as handle:
                os.fsync(handle.fileno())
        if fresh:
            fsync_dir(place)


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except DownloadHTTPError as error:
        raise UnreachableError(str(error), hint="publish again, or wait until the mirror is complete") from error
    except DownloadLengthMismatchError as error:
        raise IntegrityError(f"metadata is too long: {error}", hint="the source, or something on the way, is not honest") from error
    except ExpiredMetadataError as error:
        raise IntegrityError(
            f"metadata is expired: {error}", hint="run `edgeedit repo resign` at the publisher; check this device's clock"
        ) from error
    except (RepositoryError, ValueError, KeyError, RecursionError) as error:
        raise IntegrityError(f"metadata is refused: {error}", hint="the source, or something on the way, is not honest") from error
    except DownloadError as error:
        raise UnreachableError(f"metadata cannot be fetched: {error}", hint="try again later") from error
    except OSError as error:
        raise RefusedError(f"metadata cannot be written: {error.strerror or error}", hint="free disk space; check permissions") from error
