"""Changing the root: new keys for a role, and the way back from a stolen online key (fast-forward).

Guarantees: a new root reaches the threshold of the old keys and of its own; nothing is written before both do.  `recover` trusts only
what offline keys signed: every role's newest version is found again by its own signature, and the online keys are replaced.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

from securesystemslib.signer import SSlibKey
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, Targets, Timestamp

from edgeedit.errors import EdgeEditError, InputError, IntegrityError, UnreachableError
from edgeedit.ota.server.places import Place
from edgeedit.ota.server.repository import RootKeys, make_root
from edgeedit.ota.server.signers import Keyring
from edgeedit.ota.server.tree import Clock, Tree, check_signature, days_of, is_bin, parse_metadata, root_chain, sign_metadata, utc_now

_GAP = 1000  # a version that jumps further than this was not made by this software


def root_keys(root: Root) -> RootKeys:
    """The keys that a root names now."""
    by_role = {name: tuple(_sslib(root, keyid) for keyid in role.keyids) for name, role in root.roles.items()}
    shared = frozenset(root.unrecognized_fields.get("export-keys", ()))
    online = tuple(key for key in by_role["snapshot"] if key.keyid not in shared)
    export = tuple(key for key in by_role["snapshot"] if key.keyid in shared)
    return RootKeys(by_role["root"], by_role["targets"], online, export, root.roles["root"].threshold)


def _sslib(root: Root, keyid: str) -> SSlibKey:
    key = root.keys[keyid]
    if not isinstance(key, SSlibKey):
        raise InputError(f"key {keyid[:12]} is of a kind that cannot be carried over: got {key.keytype}")
    return key


def new_root(place: Place, keys: RootKeys, keyring: Keyring, clock: Clock) -> bytes:
    """The signed next root (by the old and by the new threshold), not yet written."""
    old = root_chain(place)[-1].signed
    metadata = Metadata(make_root(keys, old.version + 1, clock() + timedelta(days=days_of("root"))))
    return sign_metadata(metadata, "root", [old.roles["root"], metadata.signed.roles["root"]], keyring)


def rotate(
    place: Place,
    keyring: Keyring,
    *,
    root: Sequence[SSlibKey] = (),
    targets: Sequence[SSlibKey] = (),
    export: Sequence[SSlibKey] | None = None,
    clock: Clock = utc_now,
) -> Tree:
    """A new root: other root, targets or export keys, or the same ones for another year; raises InputError when a threshold is not met."""
    tree = Tree(place, clock)
    keys = root_keys(tree.root.signed)
    keys = replace(keys, root=tuple(root) or keys.root, targets=tuple(targets) or keys.targets)
    if export is not None:
        keys = replace(keys, export=tuple(export))
    if targets:
        # Signed before the new root is there, so that no device meets targets.json of a key that its root does not name.
        tree.root.signed.roles["targets"].keyids[:] = [key.keyid for key in targets]
        tree.root.signed.keys.update({key.keyid: key for key in targets})
    data = new_root(place, keys, keyring, clock)
    if targets:
        tree.touch(Targets.type)
    _write_root(place, data)
    tree.commit(keyring)
    return Tree(place, clock)


def _write_root(place: Place, data: bytes) -> None:
    version = parse_metadata(data, Root, "root.json").signed.version
    if not place.create(f"metadata/{version}.root.json", data):
        raise UnreachableError(f"{version}.root.json was written by another publisher meanwhile", hint="run the command again")


def recover(place: Place, online: Sequence[SSlibKey], keyring: Keyring, clock: Clock = utc_now) -> Tree:
    """After a fast-forward or the theft of the online key: a root with other online keys, and snapshot and timestamp made anew from
    what the offline keys signed.  Devices drop their trusted timestamp and snapshot when they see keys of these roles change."""
    old = root_chain(place)[-1].signed
    kept = root_keys(old)
    if {key.keyid for key in online} & {key.keyid for key in (*kept.online, *kept.export)}:
        raise InputError("cannot recover with a key that may be stolen: expected new online keys", hint="make one with `edgeedit keys new`")
    keys = replace(kept, online=tuple(online), export=())
    data = new_root(place, keys, keyring, clock)
    root = parse_metadata(data, Root, "root.json")
    meta = _found_roles(place, root.signed)
    number = _next_version(place, "snapshot")
    snapshot = Metadata(Snapshot(version=number, expires=clock() + timedelta(days=days_of("snapshot")), meta=meta))
    snapshot_bytes = sign_metadata(snapshot, "snapshot", [root.signed.roles["snapshot"]], keyring)
    timestamp = Metadata(Timestamp(version=number, expires=clock() + timedelta(days=days_of("timestamp"))))
    timestamp.signed.snapshot_meta = Tree.meta_of("snapshot", number, snapshot_bytes)
    timestamp_bytes = sign_metadata(timestamp, "timestamp", [root.signed.roles["timestamp"]], keyring)
    place.delete(f"metadata/{number}.snapshot.json")
    place.create(f"metadata/{number}.snapshot.json", snapshot_bytes)
    _write_root(place, data)
    if not place.swap("metadata/timestamp.json", timestamp_bytes, place.read("metadata/timestamp.json")):
        raise UnreachableError("timestamp was changed by another publisher meanwhile", hint="stop the other publisher, then run it again")
    return Tree(place, clock)


def _found_roles(place: Place, root: Root) -> dict[str, MetaFile]:
    """The newest version of every role that verifies under its own keys, found from the top without snapshot or timestamp."""
    meta: dict[str, MetaFile] = {}
    waiting: list[tuple[str, Root | Targets]] = [("targets", root)]
    while waiting:
        name, delegator = waiting.pop()
        signed, version, data = _newest(place, name, delegator)
        meta[f"{name}.json"] = Tree.meta_of(name, version, data)
        below = signed.delegations
        if below is not None:
            names = list(below.roles or ()) + (list(below.succinct_roles.get_roles()) if below.succinct_roles else [])
            waiting += [(child, signed) for child in names]
    for name in {n for file in place.names("metadata/") if is_bin(n := file.partition(".")[2].removesuffix(".json"))}:
        # Bins of a former tier: no role delegates to them any more, but a snapshot never drops a name.
        if f"{name}.json" not in meta:
            meta[f"{name}.json"] = MetaFile(max(_versions(place, name)))
    return meta


def _versions(place: Place, name: str) -> list[int]:
    pattern = re.compile(rf"metadata/([0-9]+)\.{re.escape(name)}\.json")
    return sorted(int(match[1]) for file in place.names("metadata/") if (match := pattern.fullmatch(file)))


def _newest(place: Place, name: str, delegator: Root | Targets) -> tuple[Targets, int, bytes]:
    for version in reversed(_versions(place, name)):
        data = place.read(f"metadata/{version}.{name}.json") or b""
        try:
            metadata = parse_metadata(data, Targets, f"{name}.json")
            check_signature(delegator, name, metadata)
        except EdgeEditError:
            continue
        if metadata.signed.version == version:
            return metadata.signed, version, data
    raise IntegrityError(f"no version of {name} verifies", hint="bring the role's metadata back from a copy")


def _next_version(place: Place, name: str) -> int:
    """One above the last version that grew step by step; what an attacker flung far ahead is passed over."""
    last = 0
    for version in _versions(place, name):
        if version > last + _GAP:
            break
        last = version
    return last + 1
