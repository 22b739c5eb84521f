"""Commands that bring a change in from outside, or search for settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgeedit.cli.output import emit, json_option, progress

_PATH = click.Path(path_type=Path)
_BUNDLE = click.option("--bundle", required=True, type=_PATH, help="Bundle folder made by `edgeedit export`.")
_READER = click.option("--reader", "reader_path", required=True, type=_PATH, help="Frozen reader (.npz).")


def _import_options(command: Any) -> Any:
    for option in reversed(
        (
            _BUNDLE,
            _READER,
            click.option("--heldout", required=True, type=_PATH, help="Labelled target images to judge by."),
            click.option("--heldout-control", required=True, type=_PATH, help="Control images to judge by."),
            click.option("--bits", type=click.IntRange(2, 8), default=4, show_default=True, help="Bits of sparse integers."),
            click.option("--ignore", multiple=True, metavar="PATTERN", help="Tensors to leave out; may be given several times."),
            click.option("--limit", default=0.02, show_default=True, help="Largest allowed rise of the control error (0..1)."),
            click.option("-o", "--out", required=True, type=_PATH, help="The .delta to write."),
            json_option,
        )
    ):
        command = option(command)
    return command


def _import(kind: str, source: Path, out: Path, as_json: bool, options: dict[str, Any]) -> None:
    from edgeedit.cli.figures import judged_lines
    from edgeedit.errors import GateError
    from edgeedit.flows.outside import ImportRequest, run_import

    found, metrics = run_import(ImportRequest(source, **options), kind, out)
    shares = ", ".join(f"{kind_} {share:.1%}" for kind_, share in found.survival.items())
    lines = [
        f"{len(found.tensors)} tensors; the integer form keeps {found.kept:.1%} of the change; survives {shares}",
        *(f"left out: {name}" for name in found.ignored),
        *judged_lines(metrics),
        f"gate: {metrics.gate.verdict}" + "".join(f"\n  - {r}" for r in metrics.gate.reasons),
    ]
    written = str(out) if metrics.gate.verdict != "fail" else None
    emit({"delta": written, "import": found.to_json(), "metrics": metrics.to_json()}, "\n".join(lines), as_json=as_json)
    if metrics.gate.verdict != "pass":
        raise GateError(f"gate did not pass: expected pass, got {metrics.gate.verdict}", hint="see the reasons above")


@click.command("import-peft")
@click.argument("adapter", type=_PATH)
@_import_options
def import_peft(adapter: Path, out: Path, as_json: bool, **options: Any) -> None:
    """Turn a saved PEFT LoRA ADAPTER (folder) into a judged delta."""
    _import("peft", adapter, out, as_json, options)


@click.command("import-checkpoint")
@click.argument("checkpoint", type=_PATH)
@_import_options
def import_checkpoint(checkpoint: Path, out: Path, as_json: bool, **options: Any) -> None:
    """Turn a fine-tuned CHECKPOINT (.safetensors) minus the Bundle's encoder into a judged delta."""
    _import("checkpoint", checkpoint, out, as_json, options)


@click.command()
@click.argument("shots", type=_PATH)
@_BUNDLE
@_READER
@click.option("--control", required=True, type=_PATH, help="Labelled images that must stay as they are.")
@click.option("--trials", type=click.IntRange(1), default=30, show_default=True, help="Trials to add to the study.")
@click.option("--storage", default="", help="SQLAlchemy URL for many workers; a SQLite file in --out when not given.")
@click.option("--study", default="edgeedit", show_default=True, help="Study name.")
@click.option("--max-steps", type=click.IntRange(2), default=60, show_default=True, help="Most optimiser steps of a trial.")
@click.option("--seed", default=0, show_default=True)
@click.option("-o", "--out", required=True, type=_PATH, help="Folder for pareto.json, pareto.png and the study.")
@json_option
def tune(
    shots: Path, bundle: Path, reader_path: Path, control: Path, trials: int, storage: str, study: str, max_steps: int, seed: int,
    out: Path, as_json: bool,
) -> None:  # fmt: skip
    """Search locality settings for SHOTS: target error, control rise and bytes, on a validation split of what is given."""
    from edgeedit.edit.tune import Search
    from edgeedit.flows.outside import run_tune

    search = Search(trials, storage, study, seed, (min(10, max_steps - 1), max_steps))
    front, points = run_tune(shots, control, bundle, reader_path, search, out, progress())
    lines = [f"{len(front)} of {len(points)} trials on the Pareto front (validation images, not held out)"]
    lines.append(f"{'trial':>5} {'target':>8} {'control':>8} {'kB':>7}  settings")
    for point in front:
        settings = ", ".join(f"{k} {v:.4g}" for k, v in point.settings.items())
        lines.append(f"{point.number:5d} {point.target_error:8.3f} {point.control_rise:+8.3f} {point.bytes / 1000:7.0f}  {settings}")
    emit({"front": [p.to_json() for p in front], "trials": len(points), "out": str(out)}, "\n".join(lines), as_json=as_json)
