"""Verbs on a repository: make it, delegate, add patches, publish rollouts, sign again, prune, tell when what expires.

Guarantees: a patch enters only under its own profile's role and under the name of its digest; a role stays small (the newest patches in
the role itself, older ones in hashed bins below it), so a camera learns of a new patch in a few kB whatever the repository holds.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any

from securesystemslib.signer import SSlibKey
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Role,
    Root,
    Snapshot,
    SuccinctRoles,
    TargetFile,
    Targets,
    Timestamp,
)

from edgeedit.errors import InputError, MismatchError
from edgeedit.ota.server.places import Place
from edgeedit.ota.server.signers import Keyring
from edgeedit.ota.server.tree import Clock, Tree, days_of, is_bin, sign_metadata, utc_now

WINDOW = 16  # newest patches that stay in the role itself once it has bins
ROLE_LIMIT = 48  # live patches from which a role gets bins
_BIN_BITS = (4, 7)  # 16 bins, then 128; names of bins stay in the snapshot for ever, so there are few tiers
_BIN_FILL = 100  # mean patches of a bin at which the next tier is taken
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class RootKeys:
    """Keys of the top roles.  Snapshot and timestamp are signed by `online` keys, on sticks by `export` keys; `threshold` is the root's."""

    root: tuple[SSlibKey, ...]
    targets: tuple[SSlibKey, ...]
    online: tuple[SSlibKey, ...]
    export: tuple[SSlibKey, ...] = ()
    threshold: int = 2

    def __post_init__(self) -> None:
        if not 1 <= self.threshold <= len(self.root):
            raise InputError(f"root threshold cannot be met: expected at most {len(self.root)}, got {self.threshold}")


def word(text: str, what: str) -> str:
    """A profile, site or release name: letters, digits, `._-`; raises InputError (exit 2)."""
    if not _WORD.fullmatch(text) or ".." in text:
        raise InputError(f"{what} is not usable in a role: expected letters, digits and ._- without a slash, got {text!r}")
    return text


def make_root(keys: RootKeys, version: int, expires: datetime) -> Root:
    """An unsigned root with consistent snapshots."""
    root = Root(version=version, expires=expires, consistent_snapshot=True)
    groups = {
        "root": keys.root,
        "targets": keys.targets,
        "snapshot": (*keys.online, *keys.export),
        "timestamp": (*keys.online, *keys.export),
    }
    for name, group in groups.items():
        root.roles[name] = Role([], keys.threshold if name == "root" else 1)
        for key in group:
            root.add_key(key, name)
    # TUF has one list of keys for a role; this field says which of them sign sticks only.
    root.unrecognized_fields["export-keys"] = sorted(key.keyid for key in keys.export)
    return root


def init(place: Place, keys: RootKeys, delegations: Mapping[str, Sequence[SSlibKey]], keyring: Keyring, clock: Clock = utc_now) -> Tree:
    """A new repository with its delegated roles (`patches-<profile>`, `rollouts-<site>`); raises InputError when one exists already
    or a key is lacking, and then writes nothing."""
    if place.read("metadata/1.root.json") is not None or place.read("metadata/timestamp.json") is not None:
        raise InputError(f"cannot make a repository in {place}: there is one already", hint="choose another place")
    now = clock()
    root = Metadata(make_root(keys, 1, now + timedelta(days=days_of("root"))))
    files: dict[str, bytes] = {"1.root.json": sign_metadata(root, "root", [root.signed.roles["root"]], keyring)}
    targets = Metadata(Targets(version=1, expires=now + timedelta(days=days_of("targets")), delegations=Delegations({}, {})))
    meta = {}
    for name, group in delegations.items():
        delegate(targets.signed, name, group)
        role = Metadata(Targets(version=1, expires=now + timedelta(days=days_of(name))))
        files[f"1.{name}.json"] = sign_metadata(role, name, [targets.signed.get_delegated_role(name)], keyring)
        meta[f"{name}.json"] = _meta_of(files[f"1.{name}.json"])
    files["1.targets.json"] = sign_metadata(targets, "targets", [root.signed.roles["targets"]], keyring)
    meta["targets.json"] = _meta_of(files["1.targets.json"])
    snapshot = Metadata(Snapshot(version=1, expires=now + timedelta(days=days_of("snapshot")), meta=meta))
    files["1.snapshot.json"] = sign_metadata(snapshot, "snapshot", [root.signed.roles["snapshot"]], keyring)
    timestamp = Metadata(Timestamp(version=1, expires=now + timedelta(days=days_of("timestamp"))))
    timestamp.signed.snapshot_meta = _meta_of(files["1.snapshot.json"])
    last = sign_metadata(timestamp, "timestamp", [root.signed.roles["timestamp"]], keyring)
    for name, data in files.items():
        place.create(f"metadata/{name}", data)
    place.create("metadata/timestamp.json", last)
    return Tree(place, clock)


def _meta_of(data: bytes) -> MetaFile:
    return MetaFile(1, len(data), {"sha256": hashlib.sha256(data).hexdigest()})


def delegate(targets: Targets, name: str, keys: Sequence[SSlibKey], threshold: int = 1) -> None:
    """Delegate `patches-<profile>` or `rollouts-<site>` to `keys`, instead of whoever held it."""
    kind, _, rest = name.partition("-")
    if kind not in ("patches", "rollouts") or is_bin(name):
        raise InputError(f"role is unknown: expected patches-<profile> or rollouts-<site>, got {name}")
    if not 1 <= threshold <= len(keys):
        raise InputError(f"threshold of {name} cannot be met: expected 1 to {len(keys)}, got {threshold}")
    paths = [f"{kind}/{word(rest, kind)}/*"]
    delegations = targets.delegations or Delegations({}, {})
    roles = dict(delegations.roles or {})
    roles[name] = DelegatedRole(name, [key.keyid for key in keys], threshold, terminating=True, paths=paths)
    used = {keyid for role in roles.values() for keyid in role.keyids}
    known = {**delegations.keys, **{key.keyid: key for key in keys}}
    targets.delegations = Delegations({keyid: known[keyid] for keyid in sorted(used)}, roles)


def grant(tree: Tree, name: str, keys: Sequence[SSlibKey], keyring: Keyring, threshold: int = 1) -> None:
    """Delegate a role to `keys` (a new role, or other keys for an old one, whose content is then signed again)."""
    exists = name in tree.role_names()
    if exists:
        tree.role(name)
        for held in [n.removesuffix(".json") for n in tree.snapshot.signed.meta if is_bin(n.removesuffix(".json"))]:
            if held.startswith(f"{name}-"):
                tree.role(held)
                tree.touch(held)
    delegate(tree.targets.signed, name, keys, threshold)
    if exists:
        _rekey_bins(tree, name, keys, threshold)
    tree.touch(Targets.type)
    tree.touch(name)
    tree.role(name)
    tree.commit(keyring)


def _rekey_bins(tree: Tree, name: str, keys: Sequence[SSlibKey], threshold: int) -> None:
    below = tree.role(name).signed.delegations
    if below is not None and below.succinct_roles is not None:
        old = below.succinct_roles
        bins = SuccinctRoles([key.keyid for key in keys], threshold, old.bit_length, old.name_prefix)
        tree.role(name).signed.delegations = Delegations({key.keyid: key for key in keys}, succinct_roles=bins)


def patch_path(profile: str, digest: str) -> str:
    """The target path of a patch."""
    if not _DIGEST.fullmatch(digest):
        raise InputError(f"not a digest: expected 64 hexadecimal digits, got {digest!r}")
    return f"patches/{word(profile, 'profile')}/{digest}.eep"


def add_patches(tree: Tree, profile: str, files: Sequence[bytes], keyring: Keyring, *, online: bool = True) -> list[str]:
    """Publish verified patch files; returns their target paths.  A patch that is there already stays as it is."""
    name = f"patches-{word(profile, 'profile')}"
    role = tree.role(name).signed
    paths = []
    number = max((int((t.custom or {}).get("added", 0)) for t in role.targets.values()), default=0)
    for data in files:
        path = patch_path(profile, hashlib.sha256(data).hexdigest())
        if find_target(tree, path) is None:
            target = tree.store_target(path, data)
            number += 1
            target.unrecognized_fields["custom"] = {"added": number}
            role.targets[path] = target
            tree.touch(name)
        paths.append(path)
    _archive(tree, name)
    tree.commit(keyring, online=online)
    return paths


def find_target(tree: Tree, path: str) -> TargetFile | None:
    """The target of that path in the role that owns it, or None."""
    name = "-".join(path.split("/")[:2])
    role = tree.role(name).signed
    if path in role.targets:
        return role.targets[path]
    bins = role.delegations.succinct_roles if role.delegations else None
    return tree.role(bins.get_role_for_target(path)).signed.targets.get(path) if bins else None


def live_patches(tree: Tree, profile: str) -> dict[str, TargetFile]:
    """Every patch that the role of a profile names, with those in bins."""
    role = tree.role(f"patches-{profile}").signed
    found = dict(role.targets)
    bins = role.delegations.succinct_roles if role.delegations else None
    for name in bins.get_roles() if bins else ():
        found.update(tree.role(name).signed.targets)
    return found


def _archive(tree: Tree, name: str) -> None:
    """Move all but the newest WINDOW patches into hashed bins, where the role has more than ROLE_LIMIT (or WINDOW + 8, with bins)."""
    role = tree.role(name).signed
    bins = role.delegations.succinct_roles if role.delegations else None
    if len(role.targets) <= (WINDOW + 8 if bins else ROLE_LIMIT):
        return
    newest = sorted(role.targets.values(), key=lambda t: -int((t.custom or {}).get("added", 0)))
    moving = {target.path: target for target in newest[WINDOW:]}
    held = {p: t for p, t in live_patches(tree, name.partition("-")[2]).items() if p not in role.targets} if bins else {}
    bits = next((b for b in _BIN_BITS if len(held) + len(moving) <= _BIN_FILL << b), _BIN_BITS[-1])
    if bins is None or bins.bit_length < bits:
        moving.update(held)  # bins of the former tier stay as they are: nobody delegates to them, and a snapshot never drops a name
        parent = tree.targets.signed.get_delegated_role(name)
        keys = (tree.targets.signed.delegations or Delegations({}, {})).keys
        bins = SuccinctRoles(list(parent.keyids), parent.threshold, bits, f"{name}-{bits}")
        role.delegations = Delegations({keyid: keys[keyid] for keyid in parent.keyids}, succinct_roles=bins)
        for new in bins.get_roles():
            tree.role(new)
    for path, target in moving.items():
        role.targets.pop(path, None)
        # Its age tells nothing there any more.
        target.unrecognized_fields.pop("custom", None)
        bin_name = bins.get_role_for_target(path)
        tree.role(bin_name).signed.targets[path] = target
        tree.touch(bin_name)
    tree.touch(name)


def publish_rollout(tree: Tree, site: str, release: str, document: bytes, custom: Mapping[str, Any], keyring: Keyring) -> str:
    """Publish the present document of a release; the older one of the same release is replaced.  Returns the target path."""
    name = f"rollouts-{word(site, 'site')}"
    path = f"rollouts/{site}/{word(release, 'release')}.json"
    target = tree.store_target(path, document)
    if custom:
        target.unrecognized_fields["custom"] = dict(custom)
    tree.role(name).signed.targets[path] = target
    tree.touch(name)
    tree.commit(keyring)
    return path


def target_bytes(tree: Tree, path: str) -> bytes | None:
    """The verified bytes of a target, or None when no role names it."""
    target = find_target(tree, path)
    if target is None:
        return None
    data = tree.place.read(f"targets/{target.get_prefixed_paths()[0]}")
    if data is None or hashlib.sha256(data).hexdigest() != target.hashes["sha256"]:
        raise MismatchError(f"repository lacks the bytes of {path}", hint="restore targets/ from a copy")
    return data


def prune(tree: Tree, profile: str, keep: Collection[str], keyring: Keyring) -> list[str]:
    """Take every patch of a profile out except those whose digest is in `keep`; removes its bytes and metadata versions that nobody
    reads any more.  Returns the paths taken out."""
    name = f"patches-{word(profile, 'profile')}"
    gone = [path for path in live_patches(tree, profile) if path.rpartition("/")[2].removesuffix(".eep") not in keep]
    role = tree.role(name).signed
    bins = role.delegations.succinct_roles if role.delegations else None
    for path in gone:
        owner = name if path in role.targets else bins.get_role_for_target(path) if bins else name
        del tree.role(owner).signed.targets[path]
        tree.touch(owner)
    if gone:
        tree.commit(keyring)
    for path in gone:
        digest = path.rpartition("/")[2].removesuffix(".eep")
        tree.place.delete(f"targets/{path.rpartition('/')[0]}/{digest}.{digest}.eep")
    _drop_old_metadata(tree)
    return gone


def _drop_old_metadata(tree: Tree, keep: int = 3) -> None:
    """Remove metadata versions more than `keep` behind the published one; roots stay, devices walk them one by one."""
    present = {f"{name.removesuffix('.json')}": meta.version for name, meta in tree.snapshot.signed.meta.items()}
    present["snapshot"] = tree.snapshot.signed.version
    for file in tree.place.names("metadata/"):
        version, _, rest = file.removeprefix("metadata/").partition(".")
        name = rest.removesuffix(".json")
        if version.isdigit() and name in present and int(version) < present[name] - keep:
            tree.place.delete(file)


@dataclass(frozen=True)
class RoleState:
    """One role of `repo status`: when it expires, in how many days, how many targets it names."""

    name: str
    version: int
    expires: str
    days_left: float
    targets: int | None
    keys: int
    threshold: int


def status(tree: Tree) -> list[RoleState]:
    """Every role with its expiry, the soonest first; bins are counted in their parent."""
    rows = [
        (n, m.signed, tree.root.signed.roles[n], None)
        for n, m in (("root", tree.root), ("timestamp", tree.timestamp), ("snapshot", tree.snapshot))
    ]
    found = [_state(tree, name, signed, role, None) for name, signed, role, _ in rows]
    for name in ("targets", *tree.role_names()):
        count = len(live_patches(tree, name.partition("-")[2])) if name.startswith("patches-") else len(tree.role(name).signed.targets)
        found.append(_state(tree, name, tree.role(name).signed, tree.delegator(name).get_delegated_role(name), count))
    return sorted(found, key=lambda row: row.days_left)


def _state(tree: Tree, name: str, signed: Root | Timestamp | Snapshot | Targets, role: Role, count: int | None) -> RoleState:
    left = (signed.expires - tree.clock()) / timedelta(days=1)
    return RoleState(name, signed.version, signed.expires.isoformat(), round(left, 2), count, len(role.keyids), role.threshold)


def resign(tree: Tree, keyring: Keyring, *, adopt: bool = False) -> list[str]:
    """The daily signature: timestamp always, snapshot and delegated roles when half of their time is gone and their keys are given.
    With `adopt`, role versions signed elsewhere (`--offline`) are taken in.  Returns the roles signed again or taken in."""
    done = []
    for name in tree.role_names():
        if adopt and tree.adopt(name):
            done.append(name)
    for name in ("targets", *tree.role_names()):
        role = tree.delegator(name).get_delegated_role(name)
        old = tree.role(name).signed.expires - tree.clock() < timedelta(days=days_of(name) / 2)
        if old and sum(keyid in keyring for keyid in role.keyids) >= role.threshold:
            tree.touch(name)
            done.append(name)
    if done:
        tree.commit(keyring)
    else:
        tree.resign(keyring)
    return [*done, "timestamp"]


def as_json(rows: Sequence[RoleState]) -> list[dict[str, Any]]:
    """Rows of `status` for `--json`."""
    return [asdict(row) for row in rows]
