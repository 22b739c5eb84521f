"""A TUF tree as the publisher sees it: the verified present state, and one change that becomes the next one.

Guarantees: everything read is verified from the root down before it is signed over; a published metadata file is never overwritten
except `timestamp.json`, which is the one commit point (compare-and-swap); a change that loses the race, or lacks a key, publishes nothing.
Layout: `metadata/` with consistent snapshots, `targets/` with hash-prefixed names.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta, timezone
from typing import Any, TypeVar

from securesystemslib.exceptions import Error as SignerLibraryError
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, MetaFile, Role, Root, Snapshot, TargetFile, Targets, Timestamp
from tuf.api.serialization import DeserializationError
from tuf.api.serialization.json import JSONSerializer

from edgeedit.errors import InputError, IntegrityError, RefusedError, UnreachableError
from edgeedit.ota.server.places import Place
from edgeedit.ota.server.signers import Keyring

Clock = Callable[[], datetime]
# Days that a signature of each role is good for.  The timestamp is signed again every day, so a broken timer shows within three.
DAYS = {"root": 365, "targets": 365, "patches": 365, "rollouts": 365, "snapshot": 30, "timestamp": 3}
_BIN = re.compile(r"(?P<parent>.+)-(?P<bits>[0-9]+)-[0-9a-f]+")
_HINT = "restore the repository from a copy, or run `edgeedit repo recover`"
Kind = TypeVar("Kind", Root, Timestamp, Snapshot, Targets)


def utc_now() -> datetime:
    """The clock, to whole seconds (TUF knows no fractions)."""
    return datetime.now(timezone.utc).replace(microsecond=0)


def days_of(name: str) -> int:
    """How long a signature of this role lasts, in days."""
    return DAYS.get(name) or DAYS[name.split("-", 1)[0]]


def is_bin(name: str) -> bool:
    """Whether the role is a hashed bin of another one."""
    return _BIN.fullmatch(name) is not None


def sign_metadata(metadata: Metadata[Kind], name: str, roles: Iterable[Role], keyring: Keyring) -> bytes:
    """The signed bytes; each of `roles` must reach its threshold, else InputError (exit 2) names the lacking keys."""
    metadata.signatures.clear()
    for role in roles:
        held = [keyid for keyid in role.keyids if keyid in keyring]
        if len(held) < role.threshold:
            lacking = ", ".join(keyid[:12] for keyid in role.keyids if keyid not in keyring)
            raise InputError(
                f"cannot sign {name}: expected {role.threshold} of its keys, got {len(held)}; not given: {lacking}",
                hint="give the private keys with --key",
            )
        for keyid in held:
            if keyid not in metadata.signatures:
                try:
                    metadata.sign(keyring[keyid], append=True)
                except (SignerLibraryError, RepositoryError, ValueError, OSError) as error:
                    # A token's own error is the cause, and often a name without a text: PinIncorrect.
                    why = f"{type(error.__cause__).__name__} {error.__cause__}".strip() if error.__cause__ else str(error)
                    raise RefusedError(f"cannot sign {name} with key {keyid[:12]}: {why}", hint="check the token and its PIN") from error
    return metadata.to_bytes(JSONSerializer(compact=True))


def parse_metadata(data: bytes, kind: type[Kind], name: str) -> Metadata[Kind]:
    """Metadata of the expected kind; raises IntegrityError (exit 5)."""
    try:
        metadata = Metadata[kind].from_bytes(data)  # type: ignore[valid-type]
    except DeserializationError as error:
        raise IntegrityError(f"{name} is no TUF metadata: {error}", hint=_HINT) from error
    if not isinstance(metadata.signed, kind):
        raise IntegrityError(f"{name} is of another kind: expected {kind.__name__.lower()}, got {metadata.signed.type}", hint=_HINT)
    return metadata


def root_chain(place: Place) -> list[Metadata[Root]]:
    """Every root from 1 up, each verified by its predecessor and by itself; raises InputError when there is no repository."""
    chain: list[Metadata[Root]] = []
    while (data := place.read(f"metadata/{len(chain) + 1}.root.json")) is not None:
        root = parse_metadata(data, Root, f"{len(chain) + 1}.root.json")
        for judge in (*(c.signed for c in chain[-1:]), root.signed):
            check_signature(judge, Root.type, root)
        if root.signed.version != len(chain) + 1:
            raise IntegrityError(f"{len(chain) + 1}.root.json has version {root.signed.version}", hint=_HINT)
        chain.append(root)
    if not chain:
        raise InputError(f"no repository in {place}: expected metadata/1.root.json", hint="make one with `edgeedit repo init`")
    return chain


def check_signature(delegator: Root | Targets, name: str, metadata: Metadata[Any]) -> None:
    """Raise IntegrityError (exit 5) unless `delegator` names enough of the keys that signed."""
    try:
        delegator.verify_delegate(name, metadata.signed_bytes, metadata.signatures)
    except (RepositoryError, ValueError) as error:
        raise IntegrityError(f"signature of {name} is wrong: {error}", hint=_HINT) from error


class Tree:
    """The present state of a repository and the change being made to it.  Not for use by several threads."""

    def __init__(self, place: Place, clock: Clock = utc_now) -> None:
        """Read and verify root, timestamp, snapshot and top targets; raises InputError, IntegrityError or UnreachableError."""
        self.place, self.clock = place, clock
        self.root = root_chain(place)[-1]
        self.timestamp_bytes = self._need("timestamp.json")
        self.timestamp = parse_metadata(self.timestamp_bytes, Timestamp, "timestamp.json")
        check_signature(self.root.signed, Timestamp.type, self.timestamp)
        meta = self.timestamp.signed.snapshot_meta
        data = self._need(f"{meta.version}.snapshot.json")
        self._check(meta, data, "snapshot.json")
        self.snapshot = parse_metadata(data, Snapshot, "snapshot.json")
        check_signature(self.root.signed, Snapshot.type, self.snapshot)
        self._roles: dict[str, Metadata[Targets]] = {}
        self._dirty: set[str] = set()
        self.targets = self.role(Targets.type)

    def _need(self, file: str) -> bytes:
        data = self.place.read(f"metadata/{file}")
        if data is None:
            raise IntegrityError(f"repository lacks metadata/{file}", hint=_HINT)
        return data

    @staticmethod
    def _check(meta: MetaFile, data: bytes, name: str) -> None:
        try:
            meta.verify_length_and_hashes(data)
        except RepositoryError as error:
            raise IntegrityError(f"{name} was changed: {error}", hint=_HINT) from error

    def role_names(self) -> list[str]:
        """Names of the delegated roles, without bins."""
        delegations = self.targets.signed.delegations
        return sorted(delegations.roles or {}) if delegations else []

    def delegator(self, name: str) -> Root | Targets:
        """Who names the keys of a role; raises InputError for a role that nobody delegates to."""
        if name == Targets.type:
            return self.root.signed
        if name in self.role_names():
            return self.targets.signed
        match = _BIN.fullmatch(name)
        if match and match["parent"] in self.role_names():
            return self.role(match["parent"]).signed
        raise InputError(f"no such role: got {name}", hint=f"there is {', '.join(self.role_names()) or 'none'}; add one with `repo grant`")

    def role(self, name: str) -> Metadata[Targets]:
        """One targets role, verified; the same object each time, so that a change to it is kept until `commit`."""
        if name not in self._roles:
            delegator = self.delegator(name)
            meta = self.snapshot.signed.meta.get(f"{name}.json")
            if meta is None:
                return self.add_role(name)
            data = self._need(f"{meta.version}.{name}.json")
            self._check(meta, data, f"{name}.json")
            metadata = parse_metadata(data, Targets, f"{name}.json")
            check_signature(delegator, name, metadata)
            if metadata.signed.version != meta.version:
                raise IntegrityError(f"{name}.json has version {metadata.signed.version}: expected {meta.version}", hint=_HINT)
            self._roles[name] = metadata
        return self._roles[name]

    def add_role(self, name: str) -> Metadata[Targets]:
        """A new empty role, published at the next commit."""
        self._roles[name] = Metadata(Targets(expires=self._expiry(name)))
        self._roles[name].signed.version = 0  # the commit makes it 1
        self._dirty.add(name)
        return self._roles[name]

    def touch(self, name: str) -> None:
        """Sign this role again at the next commit."""
        self._dirty.add(name)

    def adopt(self, name: str) -> bool:
        """Take the newest version of a role that lies in the place and verifies, if it is newer than the snapshot's."""
        known = self.role(name).signed.version
        for version in sorted(self._versions(name), reverse=True):
            if version <= known:
                return False
            metadata = parse_metadata(self._need(f"{version}.{name}.json"), Targets, f"{name}.json")
            check_signature(self.delegator(name), name, metadata)
            self._roles[name] = metadata
            self.snapshot.signed.meta[f"{name}.json"] = self.meta_of(name, version, metadata.to_bytes())
            return True
        return False

    def _versions(self, name: str) -> list[int]:
        pattern = re.compile(rf"metadata/([0-9]+)\.{re.escape(name)}\.json")
        return [int(match[1]) for file in self.place.names("metadata/") if (match := pattern.fullmatch(file))]

    def _expiry(self, name: str) -> datetime:
        return self.clock() + timedelta(days=days_of(name))

    @staticmethod
    def meta_of(name: str, version: int, data: bytes) -> MetaFile:
        """How snapshot and timestamp name a file."""
        # A bin is named by its version only: length and digest of a hundred bins would be most of what every camera downloads.
        return MetaFile(version) if is_bin(name) else MetaFile(version, len(data), {"sha256": hashlib.sha256(data).hexdigest()})

    def commit(self, keyring: Keyring, *, timestamp_days: int | None = None, online: bool = True) -> None:
        """Sign what was touched, then snapshot and timestamp, and publish; with `online=False` only the touched roles.

        Raises InputError when a key is lacking and UnreachableError (exit 8) when another publisher was faster; then the published state
        is what it was.
        """
        made: list[str] = []
        try:
            for name in sorted(self._dirty, key=lambda n: (n == Targets.type, n)):
                self._publish_role(name, keyring, made)
            if online:
                self._publish_snapshot(keyring, made)
                self._publish_timestamp(keyring, timestamp_days)
        except BaseException:
            for file in made:
                self.place.delete(file)
            raise
        self._dirty.clear()

    def _publish_role(self, name: str, keyring: Keyring, made: list[str]) -> None:
        metadata = self.role(name)
        metadata.signed.version += 1
        metadata.signed.expires = self._expiry(name)
        delegator = self.delegator(name)
        data = self._create(name, metadata, delegator.get_delegated_role(name), keyring, made)
        self.snapshot.signed.meta[f"{name}.json"] = self.meta_of(name, metadata.signed.version, data)

    def _publish_snapshot(self, keyring: Keyring, made: list[str]) -> None:
        self.snapshot.signed.version += 1
        self.snapshot.signed.expires = self._expiry("snapshot")
        data = self._create("snapshot", self.snapshot, self.root.signed.roles["snapshot"], keyring, made)
        self.timestamp.signed.snapshot_meta = MetaFile(
            self.snapshot.signed.version, len(data), {"sha256": hashlib.sha256(data).hexdigest()}
        )

    def _publish_timestamp(self, keyring: Keyring, days: int | None) -> None:
        self.timestamp.signed.version += 1
        self.timestamp.signed.expires = self.clock() + timedelta(days=days or DAYS["timestamp"])
        data = sign_metadata(self.timestamp, "timestamp", [self.root.signed.roles["timestamp"]], keyring)
        if not self.place.swap("metadata/timestamp.json", data, self.timestamp_bytes):
            raise UnreachableError("repository was changed by another publisher meanwhile", hint="run the command again")
        self.timestamp_bytes = data

    def _create(self, name: str, metadata: Metadata[Any], role: Role, keyring: Keyring, made: list[str]) -> bytes:
        """Publish under the next free version; a version that a broken run left behind is skipped, never overwritten."""
        for _ in range(1000):
            data = sign_metadata(metadata, name, [role], keyring)
            file = f"metadata/{metadata.signed.version}.{name}.json"
            if self.place.create(file, data):
                made.append(file)
                return data
            metadata.signed.version += 1
        raise IntegrityError(f"repository has a thousand unpublished versions of {name}", hint="remove them with `edgeedit repo prune`")

    def resign(self, keyring: Keyring, *, days: int | None = None) -> None:
        """A fresh timestamp, and a fresh snapshot where less than half of its time is left."""
        made: list[str] = []
        try:
            if self.snapshot.signed.expires - self.clock() < timedelta(days=DAYS["snapshot"] / 2):
                self._publish_snapshot(keyring, made)
            self._publish_timestamp(keyring, days)
        except BaseException:
            for file in made:
                self.place.delete(file)
            raise

    def store_target(self, path: str, data: bytes) -> TargetFile:
        """Write a target's bytes under its hash-prefixed name (they are inert until a role names them)."""
        target = TargetFile.from_data(path, data, ["sha256"])
        for name in target.get_prefixed_paths():
            self.place.create(f"targets/{name}", data)
        return target
