"""Commands that compute with patch files: diff, conflicts, squash, materialize; no torch, no onnx."""

from __future__ import annotations

from pathlib import Path

import click

from edgeedit.cli.output import emit, json_option

_PATH = click.Path(path_type=Path)
_TRUST = click.option("--trust", multiple=True, required=True, type=_PATH, help="Trusted public key or folder of keys.")
_BUNDLE = click.option("--bundle", required=True, type=_PATH, help="Bundle that the first patch was made on.")


@click.command()
@click.argument("first", metavar="A", type=_PATH)
@click.argument("second", metavar="B", type=_PATH)
@_TRUST
@json_option
def diff(first: Path, second: Path, trust: tuple[Path, ...], as_json: bool) -> None:
    """Verify patches A and B and show, tensor by tensor, in what they differ."""
    from edgeedit.patch.algebra_compare import diff as compute
    from edgeedit.patch.keys import load_trust
    from edgeedit.patch.read import load_patch

    keys = load_trust(list(trust))
    value = compute(load_patch(first, keys), load_patch(second, keys))
    lines = [f"{key:>15}  {item}" for key, item in value.items() if key != "tensors"]
    lines += [
        f"  {row['name']}  in {row['in']}  only A {row['only_in_a']}  only B {row['only_in_b']}  same {row['same']}  "
        f"different {row['different']}  steps {row['step_a']} {row['step_b']}"
        for row in value["tensors"]
    ]
    emit(value, "\n".join(lines), as_json=as_json)


@click.command()
@click.argument("first", metavar="A", type=_PATH)
@click.argument("second", metavar="B", type=_PATH)
@_TRUST
@json_option
def conflicts(first: Path, second: Path, trust: tuple[Path, ...], as_json: bool) -> None:
    """Verify patches A and B and show where both change the same elements, and where in opposite directions."""
    from edgeedit.patch.algebra_compare import conflicts as compute
    from edgeedit.patch.keys import load_trust
    from edgeedit.patch.read import load_patch

    keys = load_trust(list(trust))
    value = compute(load_patch(first, keys), load_patch(second, keys))
    lines = [f"{key:>15}  {item}" for key, item in value.items() if key != "tensors"]
    lines += [
        f"  {row['name']}  both {row['both']} ({row['share_of_smaller']:.1%} of the smaller)  opposing {row['opposing']}  "
        f"low-rank rows {row['low_rank_rows']}"
        for row in value["tensors"]
    ]
    emit(value, "\n".join(lines), as_json=as_json)


@click.command()
@click.argument("patches", nargs=-1, required=True, type=_PATH)
@_BUNDLE
@click.option("--after", multiple=True, type=_PATH, help="Patch between the Bundle and the chain, in order; may be repeated.")
@_TRUST
@click.option("--key", required=True, type=_PATH, help="Private key that signs the squash.")
@click.option("-o", "--out", required=True, type=_PATH, help="New patch file.")
@json_option
def squash(
    patches: tuple[Path, ...], bundle: Path, after: tuple[Path, ...], trust: tuple[Path, ...], key: Path, out: Path, as_json: bool
) -> None:
    """Make one patch of the chain PATCHES, with the same parent and result; refused when it would not be smaller."""
    from edgeedit.bundle import load_bundle
    from edgeedit.patch.algebra_chain import load_chain
    from edgeedit.patch.algebra_squash import squash as compute
    from edgeedit.patch.algebra_squash import write_squash
    from edgeedit.patch.keys import load_private_key, load_trust

    chain = load_chain([*after, *patches], load_trust(list(trust)))
    made = compute(load_bundle(bundle), chain[: len(after)], chain[len(after) :], [load_private_key(key)])
    write_squash(out, made)
    text = f"squash {out}: {len(made.data)} bytes instead of {made.chain_bytes}\nparent {made.parent}\nresult {made.result}"
    emit({"patch": str(out), **made.to_json()}, text, as_json=as_json)


@click.command()
@click.argument("patches", nargs=-1, required=True, type=_PATH)
@_BUNDLE
@_TRUST
@click.option("-o", "--out", required=True, type=_PATH, help="A new weights file ending in .bin, or else a new Bundle folder.")
@json_option
def materialize(patches: tuple[Path, ...], bundle: Path, trust: tuple[Path, ...], out: Path, as_json: bool) -> None:
    """Write the weights of BUNDLE with PATCHES applied, for a runtime that takes whole files."""
    from edgeedit.bundle import load_bundle
    from edgeedit.patch.algebra_chain import load_chain
    from edgeedit.patch.algebra_materialize import materialize_bundle, materialize_weights
    from edgeedit.patch.keys import load_trust

    chain = load_chain(patches, load_trust(list(trust)))
    base = load_bundle(bundle)
    if out.suffix == ".bin":
        materialize_weights(base, chain, out)
    else:
        materialize_bundle(base, chain, out)
    result = chain[-1].manifest.result
    emit({"out": str(out), "fingerprint": result, "patches": len(chain)}, f"wrote {out}\nfingerprint {result}", as_json=as_json)
