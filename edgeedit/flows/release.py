"""The release desk: what crosses repository and patch: make a repository with its keys, admit only verified patches.

Guarantees: a patch file enters a repository only when a key of its profile's role (or one given as trusted) signed the file itself; keys
that exist are used as they are, never made anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from securesystemslib.signer import SSlibKey

from edgeedit.errors import InputError, MismatchError
from edgeedit.ota.client.rollout import Conditions, PatchTarget, Rollout, Window
from edgeedit.ota.server.ledger import Ledger
from edgeedit.ota.server.places import Place, open_place
from edgeedit.ota.server.release import Wanted, new_seed, plan_stages
from edgeedit.ota.server.repository import RootKeys, add_patches, init, patch_path, target_bytes
from edgeedit.ota.server.signers import Keyring, load_keyring, load_public
from edgeedit.ota.server.tree import Clock, Tree, utc_now
from edgeedit.patch.keys import PublicKey, load_trust, new_key
from edgeedit.patch.read import load_patch, read_unverified

ROOT_KEYS = 3


def _key(folder: Path, name: str) -> SSlibKey:
    """The public key of that name in the folder; a new pair when there is none."""
    public = folder / f"{name}.pub"
    if not public.exists():
        folder.mkdir(parents=True, exist_ok=True)
        new_key(folder / f"{name}.key", public)
    return load_public(public)


def init_repository(
    where: str, keys: Path, roles: Sequence[str], references: Sequence[str] = (), *, threshold: int = 2, clock: Clock = utc_now
) -> Tree:
    """A new repository with keys of the folder `keys`: `root-1` to `root-3`, `targets`, `online`, `export`, and one for each role
    (`NAME` or `NAME=FILE.pub`).  Pairs that are missing are made; `references` sign beside the folder's private keys."""
    place = open_place(where)
    if place.read("metadata/1.root.json") is not None:
        raise InputError(f"cannot make a repository in {place}: there is one already", hint="choose another place")
    top = RootKeys(
        tuple(_key(keys, f"root-{number}") for number in range(1, ROOT_KEYS + 1)),
        (_key(keys, "targets"),),
        (_key(keys, "online"),),
        (_key(keys, "export"),),
        threshold,
    )
    delegations: dict[str, list[SSlibKey]] = {}
    for role in roles:
        name, _, file = role.partition("=")
        delegations.setdefault(name, []).append(load_public(Path(file)) if file else _key(keys, name))
    return init(place, top, delegations, load_keyring([str(keys), *references]), clock)


def role_trust(tree: Tree, name: str) -> tuple[PublicKey, ...]:
    """The Ed25519 keys of a role, as keys that may sign patch files."""
    role = tree.delegator(name).get_delegated_role(name)
    keys = [tree.delegator(name).get_key(keyid) for keyid in role.keyids]
    return tuple(PublicKey(bytes.fromhex(key.keyval["public"])) for key in keys if key.keytype == "ed25519")


def add_patch_files(
    place: Place,
    profile: str,
    files: Sequence[Path],
    keyring: Keyring,
    *,
    trust: Sequence[Path] = (),
    online: bool = True,
    clock: Clock = utc_now,
) -> list[str]:
    """Verify patch files and publish them under a profile; returns their target paths.  Raises IntegrityError (exit 5) when no key of
    the role, or none of `trust`, signed one of them; then none is published."""
    tree = Tree(place, clock)
    trusted = load_trust(list(trust)) if trust else role_trust(tree, f"patches-{profile}")
    contents = [load_patch(file, trusted).data[:] for file in files]
    return add_patches(tree, profile, contents, keyring, online=online)


@dataclass(frozen=True)
class ReleasePlan:
    """What a person asks of a release: its name, site, profile, patch digest, stages, conditions and windows."""

    release: str
    site: str
    profile: str
    digest: str
    stages: tuple[Wanted, ...]
    conditions: Conditions
    windows: tuple[Window, ...] = ()
    supersedes: str = ""


def plan_release(tree: Tree, ledger: Ledger, plan: ReleasePlan) -> Rollout:
    """The unpublished document of a release: parent and result from the verified patch, exact counts from the enrolled fleet."""
    path = patch_path(plan.profile, plan.digest)
    data = target_bytes(tree, path)
    if data is None:
        raise MismatchError(f"repository does not name the patch: expected {path}", hint="`edgeedit repo add` first")
    manifest = read_unverified(data).verify(role_trust(tree, f"patches-{plan.profile}")).manifest
    seed = new_seed()
    fleet = [row.device for row in ledger.fleet(plan.site, plan.profile)]
    return Rollout(
        release=plan.release,
        site=plan.site,
        profile=plan.profile,
        sequence=1,
        issued=ledger.now(),
        state="running",
        patch=PatchTarget(path, plan.digest, len(data)),
        parent=manifest.parent,
        result=manifest.result,
        seed=seed,
        stages=plan_stages(plan.stages, fleet, seed),
        opened=0,
        conditions=plan.conditions,
        windows=plan.windows,
        supersedes=plan.supersedes,
    )
