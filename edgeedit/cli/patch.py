"""Commands about keys and patch files; no torch, no onnx."""

from __future__ import annotations

from pathlib import Path

import click

from edgeedit.cli.output import emit, json_option

_TRUST = click.option(
    "--trust", "trust", multiple=True, required=True, type=click.Path(path_type=Path), help="Trusted public key or folder of keys."
)


@click.group()
def keys() -> None:
    """Make signing keys."""


@keys.command("new")
@click.argument("private", type=click.Path(path_type=Path))
@json_option
def keys_new(private: Path, as_json: bool) -> None:
    """Write a new Ed25519 key to PRIVATE (mode 0600) and its public half beside it (.pub); never overwrites."""
    from edgeedit.patch.keys import new_key

    public = private.with_suffix(".pub")
    key_id = new_key(private, public)
    emit(
        {"key_id": key_id, "private": str(private), "public": str(public)},
        f"key {key_id}\nprivate {private}\npublic  {public}",
        as_json=as_json,
    )


@click.command()
@click.argument("patch", type=click.Path(path_type=Path))
@_TRUST
@json_option
def verify(patch: Path, trust: tuple[Path, ...], as_json: bool) -> None:
    """Verify PATCH: signature by a trusted key, table, section digests.  Exit 5 when anything is wrong."""
    from edgeedit.patch.keys import load_trust
    from edgeedit.patch.read import load_patch

    checked = load_patch(patch, load_trust(list(trust)))
    text = f"ok: {patch} signed by {', '.join(checked.signers)}"
    emit({"ok": True, "digest": checked.digest, "signers": list(checked.signers)}, text, as_json=as_json)


@click.command()
@click.argument("patch", type=click.Path(path_type=Path))
@_TRUST
@json_option
def inspect(patch: Path, trust: tuple[Path, ...], as_json: bool) -> None:
    """Verify PATCH and show what it changes, what it was made from and what it expects.  Nothing unsigned is parsed."""
    from edgeedit.patch.describe import describe
    from edgeedit.patch.keys import load_trust
    from edgeedit.patch.read import load_patch

    summary = describe(load_patch(patch, load_trust(list(trust))))
    lines = [f"{key:>12}  {value}" for key, value in summary.items() if not isinstance(value, (list, dict))]
    for tensor in summary["tensors"]:
        lines.append("  " + "  ".join(f"{key}={value}" for key, value in tensor.items() if key not in ("before", "after")))
    emit(summary, "\n".join(lines), as_json=as_json)
