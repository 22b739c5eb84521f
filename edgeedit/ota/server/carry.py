"""Repositories that travel: export to a stick with a long expiry, import on the other side of an air gap.

Guarantees: an export is a whole repository, signed by the export key and good for as long as asked; making one never leaves the online
repository with a version that a device would refuse.  An import takes nothing that the trusted root does not verify, and nothing older.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta

from edgeedit.errors import InputError, IntegrityError, MismatchError, UnreachableError
from edgeedit.ota.server.places import Place
from edgeedit.ota.server.repository import live_patches
from edgeedit.ota.server.signers import Keyring
from edgeedit.ota.server.tree import Clock, Tree, root_chain, sign_metadata, utc_now

MAX_EXPORT_DAYS = 90


@dataclass(frozen=True)
class Carried:
    """What an export or import copied: files, bytes, and when it ends to be accepted (ISO time)."""

    files: int
    bytes: int
    expires: str


def export(tree: Tree, stick: Place, keyring: Keyring, *, days: int, profiles: Iterable[str] = ()) -> Carried:
    """Copy the published tree to `stick`, with snapshot and timestamp signed anew by the export key for `days`; patches of `profiles`
    only, where given.  The online repository then goes two versions on, so that devices accept either in any order.

    Raises InputError when a key is lacking or a role would expire before the stick does.
    """
    if not 1 <= days <= MAX_EXPORT_DAYS:
        raise InputError(f"a stick cannot be good that long: expected 1 to {MAX_EXPORT_DAYS} days, got {days}")
    end = tree.clock() + timedelta(days=days)
    early = [n for n in ("targets", *tree.role_names()) if tree.role(n).signed.expires < end]
    if tree.root.signed.expires < end:
        early.append("root")
    if early:
        raise InputError(
            f"stick would be refused early: expected roles good until {end.date()}, got {', '.join(early)}", hint="sign them again"
        )
    root = tree.root.signed
    snapshot, timestamp = tree.snapshot, tree.timestamp
    snapshot.signed.version += 1
    snapshot.signed.expires = end
    exported = _without_online(keyring, tree)
    data = sign_metadata(snapshot, "snapshot", [root.roles["snapshot"]], exported)
    timestamp.signed.version += 1
    timestamp.signed.expires = end
    timestamp.signed.snapshot_meta = Tree.meta_of("snapshot", snapshot.signed.version, data)
    last = sign_metadata(timestamp, "timestamp", [root.roles["timestamp"]], exported)
    files = {f"metadata/{n}.root.json": tree.place.read(f"metadata/{n}.root.json") or b"" for n in range(1, root.version + 1)}
    files.update(_role_files(tree))
    files.update(_target_files(tree, frozenset(profiles)))
    files[f"metadata/{snapshot.signed.version}.snapshot.json"] = data
    files["metadata/timestamp.json"] = last
    tree.commit(keyring)  # first: a stick whose versions the online side might reuse must not exist
    _write(stick, files)
    return Carried(len(files), sum(map(len, files.values())), end.isoformat())


def _without_online(keyring: Keyring, tree: Tree) -> Keyring:
    export_only = frozenset(tree.root.signed.unrecognized_fields.get("export-keys", ()))
    held = {keyid: signer for keyid, signer in keyring.items() if keyid in export_only}
    if not held:
        raise InputError("cannot sign a stick: expected the export key, got none", hint="give it with --key; `repo rotate` can add one")
    return held


def _role_files(tree: Tree) -> dict[str, bytes]:
    files = {}
    for file, meta in tree.snapshot.signed.meta.items():
        data = tree.place.read(f"metadata/{meta.version}.{file}")
        if data is not None:
            files[f"metadata/{meta.version}.{file}"] = data
    return files


def _target_files(tree: Tree, profiles: frozenset[str]) -> dict[str, bytes]:
    files = {}
    for name in tree.role_names():
        kind, _, rest = name.partition("-")
        if kind == "patches" and profiles and rest not in profiles:
            continue
        targets = live_patches(tree, rest) if kind == "patches" else tree.role(name).signed.targets
        for target in targets.values():
            path = f"targets/{target.get_prefixed_paths()[0]}"
            data = tree.place.read(path)
            if data is None:
                raise IntegrityError(f"repository lacks {path}", hint="restore targets/ from a copy")
            files[path] = data
    return files


def _write(place: Place, files: dict[str, bytes]) -> None:
    """Targets, then metadata, then the timestamp: a stick pulled out half-way is an older one or none."""
    for name in sorted(files, key=lambda n: (not n.startswith("targets/"), n.endswith("timestamp.json"), n)):
        if name.endswith("timestamp.json"):
            if not place.swap(name, files[name], place.read(name)):
                raise UnreachableError(f"{place} was changed meanwhile", hint="run the command again")
        elif not place.create(name, files[name]) and place.read(name) != files[name]:
            raise MismatchError(f"{place} holds another repository: {name} differs", hint="use an empty folder")


def import_from(stick: Place, place: Place, *, trusted_root: bytes | None = None, clock: Clock = utc_now) -> Carried:
    """Bring a mirror up to what a stick holds, without any key.  An empty mirror needs `trusted_root`, the bytes of any root of the chain.

    Raises IntegrityError (exit 5) when the stick is of another root, changed or expired, MismatchError (exit 4) when it is older.
    """
    chain = [stick.read(f"metadata/{n}.root.json") for n in range(1, len(root_chain(stick)) + 1)]
    known = trusted_root or place.read("metadata/1.root.json")
    if known is None:
        raise InputError("nothing says whom to trust: expected the repository's root, got an empty mirror", hint="give --root root.json")
    if known not in chain:
        raise IntegrityError(
            "stick belongs to another repository: its roots do not hold the trusted one", hint="check the stick and --root"
        )
    tree = Tree(stick, clock)
    if tree.timestamp.signed.expires <= clock() or tree.snapshot.signed.expires <= clock():
        raise IntegrityError(f"stick has expired: {tree.timestamp.signed.expires.isoformat()}", hint="make a new one with `repo export`")
    present = place.read("metadata/timestamp.json")
    if present is not None:
        held = Tree(place, clock).timestamp.signed.version
        if tree.timestamp.signed.version < held:
            raise MismatchError(f"stick is older: expected version {held} or later, got {tree.timestamp.signed.version}")
    files = {f"metadata/{n}.root.json": data for n, data in enumerate(chain, 1) if data is not None}
    files.update(_role_files(tree))
    for name in tree.role_names():
        tree.role(name)
    files.update(_checked_targets(tree))
    number = tree.timestamp.signed.snapshot_meta.version
    files[f"metadata/{number}.snapshot.json"] = stick.read(f"metadata/{number}.snapshot.json") or b""
    files["metadata/timestamp.json"] = tree.timestamp_bytes
    _write(place, files)
    return Carried(len(files), sum(map(len, files.values())), tree.timestamp.signed.expires.isoformat())


def _checked_targets(tree: Tree) -> dict[str, bytes]:
    """Bytes of every target that the stick holds, each checked against its role; patches of other profiles may be absent."""
    files = {}
    for name in tree.role_names():
        kind, _, rest = name.partition("-")
        targets = live_patches(tree, rest) if kind == "patches" else tree.role(name).signed.targets
        for target in targets.values():
            path = f"targets/{target.get_prefixed_paths()[0]}"
            data = tree.place.read(path)
            if data is None and kind == "patches":
                continue
            if data is None or hashlib.sha256(data).hexdigest() != target.hashes["sha256"]:
                raise IntegrityError(f"stick holds a changed file: {path}", hint="make the stick again")
            files[path] = data
    return files
