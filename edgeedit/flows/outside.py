"""From outside into a judged Delta, and the search over settings: what `import-peft`, `import-checkpoint` and `tune` do.

Guarantees: an imported Delta passes the same gate as an edit; one that fails is not written (see `save_judged`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgeedit import __version__
from edgeedit.bundle import load_bundle
from edgeedit.delta import Delta
from edgeedit.edit.importers import Imported, from_checkpoints, from_peft, read_tensors
from edgeedit.edit.judging import judge_tensors
from edgeedit.edit.readers import load_reader
from edgeedit.edit.saving import save_judged
from edgeedit.edit.shots import load_shots
from edgeedit.edit.tune import Point, Search, save_plot, tune
from edgeedit.encoder.values import check_precision
from edgeedit.files import write_json
from edgeedit.flows.server import encoder_of, in_codes, named_by
from edgeedit.metrics import EditMetrics


@dataclass(frozen=True)
class ImportRequest:
    """An adapter or checkpoint, the Bundle it is for, and the labelled held-out images that judge it."""

    source: Path
    bundle: Path
    reader_path: Path
    heldout: Path
    heldout_control: Path
    bits: int = 4
    ignore: tuple[str, ...] = ()
    limit: float = 0.02


def run_import(request: ImportRequest, kind: str, out: Path) -> tuple[Imported, EditMetrics]:
    """`kind` is `peft` or `checkpoint`; writes the Delta unless its gate fails."""
    bundle = load_bundle(request.bundle)
    encoder = encoder_of(bundle)
    if kind == "peft":
        found = from_peft(encoder, request.source, bits=request.bits, ignore=request.ignore)
    else:
        found = from_checkpoints(encoder, read_tensors(request.source), bits=request.bits, ignore=request.ignore)
    reader, target = load_reader(request.reader_path), load_shots(request.heldout)
    control = load_shots(request.heldout_control)
    metrics = judge_tensors(
        encoder, found.tensors, reader, target, control, precision=bundle.precision, limit=request.limit, deployed=in_codes(bundle)
    )
    info = {
        "encoder": {
            "recipe": bundle.recipe,
            "source_digest": bundle.source_digest,
            "precision": bundle.precision,
            "blocks": encoder.blocks,
            "heads": encoder.heads,
            "size": encoder.preprocess.size,
        },
        "reader": {"kind": reader.kind, "digest": reader.digest(), "classes": list(reader.classes)},
        "shots": {"digest": target.digest, "n": 0, "classes": list(target.classes)},
        "control": {"digest": control.digest, "n": 0},
        "method": {"name": f"import-{kind}", "source": request.source.name, "bits": request.bits},
        "import": found.to_json(),
        "seed": 0,
        "versions": {"edgeedit": __version__},
        "metrics": metrics.to_json(),
        "survival": dict(found.survival),
        "verdicts": [],
        "locality": {"blocks": []},
        "licence_notes": [],
    }
    save_judged(Delta(found.tensors, named_by(bundle, info)), metrics, out)
    return found, metrics


def run_tune(
    shots: Path, control: Path, bundle: Path, reader: Path, search: Search, out: Path, progress: Callable[[int, int, str], None]
) -> tuple[list[Point], list[Point]]:
    """Search, then write `pareto.json` and `pareto.png` into `out`."""
    made = load_bundle(bundle)
    check_precision(made.precision)
    out.mkdir(parents=True, exist_ok=True)
    if not search.storage:
        search = Search(search.trials, f"sqlite:///{(out / 'study.db').resolve()}", search.name, search.seed, search.steps)
    front, points = tune(
        encoder_of(made), load_shots(shots), load_shots(control), load_reader(reader), search, precision=made.precision, progress=progress
    )
    write_json(out / "pareto.json", {"schema_version": 1, "front": [p.to_json() for p in front], "trials": [p.to_json() for p in points]})
    save_plot(front, points, out / "pareto.png")
    return front, points
