"""`edgeedit repo`: the TUF repository that cameras read; a folder, a stick or an S3 bucket."""

from __future__ import annotations

from pathlib import Path

import click

from edgeedit.cli.output import emit, json_option

_PATH = click.Path(path_type=Path)
_REPO = click.argument("repo")
_KEY = click.option("--key", "keys", multiple=True, help="Private key: PEM file, folder of *.key, or signer URI,PUBLIC.pub. Repeatable.")


@click.group()
def repo() -> None:
    """Publish patches as a static TUF repository (folder or s3://bucket/prefix)."""


@repo.command("init")
@_REPO
@click.option("--keys", "folder", required=True, type=_PATH, help="Folder of keys; the pairs that it lacks are made.")
@click.option("--profile", "profiles", multiple=True, help="Device profile, or PROFILE=ml.pub. Repeatable.")
@click.option("--site", "sites", multiple=True, help="Site, or SITE=release.pub. Repeatable.")
@click.option("--threshold", default=2, show_default=True, help="How many of the three root keys must sign.")
@_KEY
@json_option
def repo_init(
    repo: str, folder: Path, profiles: tuple[str, ...], sites: tuple[str, ...], threshold: int, keys: tuple[str, ...], as_json: bool
) -> None:
    """Make a repository in REPO; afterwards keep the root keys offline and apart from each other."""
    from edgeedit.flows.release import init_repository

    roles = [f"patches-{name}" for name in profiles] + [f"rollouts-{name}" for name in sites]
    tree = init_repository(repo, folder, roles, keys, threshold=threshold)
    text = f"repository {repo} with {', '.join(tree.role_names()) or 'no roles yet'}\ntrust on devices: {repo}/metadata/1.root.json"
    emit({"repo": repo, "roles": tree.role_names(), "root": "metadata/1.root.json"}, text, as_json=as_json)


@repo.command("grant")
@_REPO
@click.argument("role")
@click.argument("public", nargs=-1, required=True, type=_PATH)
@click.option("--threshold", default=1, show_default=True, help="How many of these keys must sign.")
@_KEY
@json_option
def repo_grant(repo: str, role: str, public: tuple[Path, ...], threshold: int, keys: tuple[str, ...], as_json: bool) -> None:
    """Give ROLE (patches-PROFILE or rollouts-SITE) to PUBLIC keys, instead of whoever held it."""
    from edgeedit.ota.server.places import open_place
    from edgeedit.ota.server.repository import grant
    from edgeedit.ota.server.signers import load_keyring, load_public
    from edgeedit.ota.server.tree import Tree

    given = [load_public(path) for path in public]
    grant(Tree(open_place(repo)), role, given, load_keyring(keys), threshold)
    emit({"role": role, "keys": [key.keyid for key in given]}, f"{role} is held by {len(given)} keys", as_json=as_json)


@repo.command("add")
@_REPO
@click.argument("patches", nargs=-1, required=True, type=_PATH)
@click.option("--profile", required=True, help="Device profile that the patches are for.")
@click.option("--trust", multiple=True, type=_PATH, help="Who may have signed the files; by default the keys of the profile's role.")
@click.option("--offline", is_flag=True, help="Sign the role only; `repo resign --adopt` publishes it where the online key is.")
@_KEY
@json_option
def repo_add(
    repo: str, patches: tuple[Path, ...], profile: str, trust: tuple[Path, ...], offline: bool, keys: tuple[str, ...], as_json: bool
) -> None:
    """Verify PATCHES and publish them under their digest."""
    from edgeedit.flows.release import add_patch_files
    from edgeedit.ota.server.places import open_place
    from edgeedit.ota.server.signers import load_keyring

    paths = add_patch_files(open_place(repo), profile, patches, load_keyring(keys), trust=trust, online=not offline)
    emit({"targets": paths, "published": not offline}, "\n".join(paths), as_json=as_json)


@repo.command("resign")
@_REPO
@click.option("--adopt", is_flag=True, help="Also take in role versions that were signed elsewhere.")
@_KEY
@json_option
def repo_resign(repo: str, adopt: bool, keys: tuple[str, ...], as_json: bool) -> None:
    """Sign again what grows old; run it daily (devices/systemd/edgeedit-resign.timer)."""
    from edgeedit.ota.server.places import open_place
    from edgeedit.ota.server.repository import resign
    from edgeedit.ota.server.signers import load_keyring
    from edgeedit.ota.server.tree import Tree

    tree = Tree(open_place(repo))
    done = resign(tree, load_keyring(keys), adopt=adopt)
    expires = tree.timestamp.signed.expires.isoformat()
    emit({"signed": done, "timestamp_expires": expires}, f"signed {', '.join(done)}; timestamp good until {expires}", as_json=as_json)


@repo.command("status")
@_REPO
@click.option("--alarm", type=float, help="Exit 3 when something expires within this many days.")
@json_option
def repo_status(repo: str, alarm: float | None, as_json: bool) -> None:
    """Verify REPO from the root down and show every role, the soonest to expire first."""
    from edgeedit.errors import GateError
    from edgeedit.ota.server.places import open_place
    from edgeedit.ota.server.repository import as_json as rows_as_json
    from edgeedit.ota.server.repository import status
    from edgeedit.ota.server.tree import Tree

    rows = status(Tree(open_place(repo)))
    lines = [f"{'role':<28} {'version':>7} {'targets':>7} {'keys':>5}  {'days left':>9}  expires"]
    for row in rows:
        count = "" if row.targets is None else row.targets
        lines.append(f"{row.name:<28} {row.version:>7} {count:>7} {row.threshold}/{row.keys:<3}  {row.days_left:>9.1f}  {row.expires}")
    late = [row for row in rows if alarm is not None and row.days_left < alarm]
    emit({"repo": repo, "roles": rows_as_json(rows), "alarm": [row.name for row in late]}, "\n".join(lines), as_json=as_json)
    if late:
        worst = ", ".join(f"{row.name} in {row.days_left:.1f} days" for row in late)
        raise GateError(f"signatures expire soon: {worst}", hint="`edgeedit repo resign`; for root `edgeedit repo rotate`")


@repo.command("export")
@_REPO
@click.argument("stick")
@click.option("--days", default=60, show_default=True, help="How long the stick is good.")
@click.option("--profile", "profiles", multiple=True, help="Carry patches of this profile only. Repeatable.")
@_KEY
@json_option
def repo_export(repo: str, stick: str, days: int, profiles: tuple[str, ...], keys: tuple[str, ...], as_json: bool) -> None:
    """Write REPO to the folder STICK, good for DAYS; needs the export key and the online key."""
    from edgeedit.ota.server.carry import export
    from edgeedit.ota.server.places import open_place
    from edgeedit.ota.server.signers import load_keyring
    from edgeedit.ota.server.tree import Tree

    done = export(Tree(open_place(repo)), open_place(stick), load_keyring(keys), days=days, profiles=profiles)
    emit({"stick": stick, **done.__dict__}, f"{done.files} files, {done.bytes} bytes, good until {done.expires}", as_json=as_json)


@repo.command("import")
@click.argument("stick")
@_REPO
@click.option("--root", type=_PATH, help="Trusted root.json; needed when REPO is empty.")
@json_option
def repo_import(stick: str, repo: str, root: Path | None, as_json: bool) -> None:
    """Bring the mirror REPO up to what STICK holds; needs no key."""
    from edgeedit.ota.server.carry import import_from
    from edgeedit.ota.server.places import open_place

    done = import_from(open_place(stick), open_place(repo), trusted_root=None if root is None else root.read_bytes())
    emit({"repo": repo, **done.__dict__}, f"{done.files} files, {done.bytes} bytes, good until {done.expires}", as_json=as_json)


@repo.command("rotate")
@_REPO
@click.option("--root-key", "root", multiple=True, type=_PATH, help="New root public keys (all of them). Repeatable.")
@click.option("--targets-key", "targets", multiple=True, type=_PATH, help="New targets public keys. Repeatable.")
@click.option("--export-key", "exports", multiple=True, type=_PATH, help="New export public keys. Repeatable.")
@_KEY
@json_option
def repo_rotate(
    repo: str, root: tuple[Path, ...], targets: tuple[Path, ...], exports: tuple[Path, ...], keys: tuple[str, ...], as_json: bool
) -> None:
    """Make the next root: other keys, or the same for another year.  Needs old and new root keys and the online key."""
    from edgeedit.ota.server.places import open_place
    from edgeedit.ota.server.rotate import rotate
    from edgeedit.ota.server.signers import load_keyring, load_public

    new = [load_public(path) for path in exports] if exports else None
    tree = rotate(open_place(repo), load_keyring(keys), root=[*map(load_public, root)], targets=[*map(load_public, targets)], export=new)
    version = tree.root.signed.version
    emit({"root_version": version}, f"root is version {version}", as_json=as_json)


@repo.command("recover")
@_REPO
@click.option("--online-key", "online", multiple=True, required=True, type=_PATH, help="New online public keys. Repeatable.")
@_KEY
@json_option
def repo_recover(repo: str, online: tuple[Path, ...], keys: tuple[str, ...], as_json: bool) -> None:
    """After a stolen online key or a fast-forward: new online keys, snapshot and timestamp from what offline keys signed."""
    from edgeedit.ota.server.places import open_place
    from edgeedit.ota.server.rotate import recover
    from edgeedit.ota.server.signers import load_keyring, load_public

    tree = recover(open_place(repo), [load_public(path) for path in online], load_keyring(keys))
    value = {"root_version": tree.root.signed.version, "timestamp_version": tree.timestamp.signed.version}
    emit(value, f"root is version {value['root_version']}, timestamp version {value['timestamp_version']}", as_json=as_json)


@repo.command("prune")
@_REPO
@click.option("--profile", required=True, help="Device profile whose patches are thinned out.")
@click.option("--keep", multiple=True, help="Digest of a patch to keep. Repeatable.")
@click.option("--keep-newest", default=16, show_default=True, help="Newest patches to keep, beside all that a rollout names.")
@_KEY
@json_option
def repo_prune(repo: str, profile: str, keep: tuple[str, ...], keep_newest: int, keys: tuple[str, ...], as_json: bool) -> None:
    """Take out patches that no rollout names any more, and metadata that nobody reads."""
    from edgeedit.ota.server.places import open_place
    from edgeedit.ota.server.release import needed_patches
    from edgeedit.ota.server.repository import prune
    from edgeedit.ota.server.signers import load_keyring
    from edgeedit.ota.server.tree import Tree

    tree = Tree(open_place(repo))
    gone = prune(tree, profile, {*keep, *needed_patches(tree, profile, keep_newest)}, load_keyring(keys))
    emit({"removed": gone}, "\n".join(gone) or "nothing to remove", as_json=as_json)
