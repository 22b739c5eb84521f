"""Judges the field monitor on real images: false alarms of clean months, delays until a change is called, causes, cost beside the engine.

    python benchmarks/drift.py [--quick] [--only agree,clean,changes,cause,cost] [--json FILE]

Frames: solar cells that no setting was chosen on, through the real ViT-S/14 in ONNX Runtime (`drift_frames.py`; the new product is real,
the other changes are made on real pictures); a linear reader fitted on development cells.  A frame every 10 s, 32 frames a window, 512
windows of clean days, a stated rate of one false alarm in ten camera months.  Two orders of frames: drawn one by one, and by module (runs
of neighbouring cells, as a line that inspects whole modules sees them).

agree    PSI, KS, MMD and CUSUM of real windows beside scipy and river (Python 3.11 or later)
clean    camera months without a change (8,100 windows each), under the weights that were learnt and under a real edit of them; the alarms
         must be as rare as stated (exact 95 % binomial interval).
         Printed beside it, no goal: clean days and month from different modules, which a camera that learns 16,384 parts never meets
changes  delay in frames until the first alarm, by change and strength, and the chart that called; 20 cameras each.  Changed worlds
         show a sixth of the cells, so those cells unchanged are a row of their own
cause    20 bad patches (noise in the first FFN of a third of the blocks, as weak as flips an eighth of development verdicts), each
         reverted?  A real edit in 20 unchanged worlds and under 20 new lamps, each kept?  A Monitor decides, with its answers cached.
cost     a Runtime with and without the monitor in turn in one run: p99 of frames; CPU share of the monitor; memory

Not tested: slow wear over months, several products in turn, overrides that follow a change.  A month's frames are drawn from 574 cells
again and again, so clean days are as stationary as can be.  What the encoder gives is computed once and kept; an answer takes 70 ms on
one core, some 6,000 are needed.  --quick is too small for its causes to mean anything.  With --only, FILE keeps the rows of the other
parts; each row names the commit it was made at.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from drift_agree import agree_row
from drift_cause import cause_rows, good_pool
from drift_cost import cost_rows
from drift_frames import CHANGES, COUNT, Camera, Pool, cells
from drift_line import FRAMES, MONTH, ORDERS, RATE, Line, calls
from scipy.stats import binomtest

from edgeedit.device.monitor.baseline import Baseline, moved
from edgeedit.device.monitor.detector import Detector
from edgeedit.edit.readers import Reader, fit_linear

PARTS = ("agree", "clean", "changes", "cause", "cost")

SUBTLE = {"lamp": (0.95,), "defocus": (0.5,), "rotation": (2.0,)}  # printed, no goal
JUDGED_CLEAN = ("clean", "clean, under a good patch")
PATIENCE = 200  # windows after which a change counts as missed
NOTHING = "nothing"  # the cells of the changed worlds as they are
P99, CPU, MEMORY_MB, RIGHT, AGREE = 1.02, 0.02, 50.0, 0.95, 1e-9


def clean_row(order: str, make: Callable[[int], tuple[Line, Pool]], cameras: int, month: int, *, patched: bool = False) -> dict[str, Any]:
    """Months without a change: how many cameras called, and why; `make` gives a line and the pool of its month, which is another
    generation's of the same cells where it is `patched`."""
    called, warned, why = 0, 0, Counter[str]()
    for seed in range(cameras):
        line, pool = make(seed)
        baseline = line.learn()
        line.change(pool)
        if patched:
            baseline = moved(baseline, line.clean())
        alarm, warning = calls(baseline.calibration, list(line.month(baseline, month)))
        called, warned = called + bool(alarm), warned + warning
        why.update([alarm] if alarm else [])
    interval = binomtest(called, cameras).proportion_ci(0.95, "exact")
    row = {"part": "clean", "order": order, "cameras": cameras, "windows": month, "alarmed": called, "warned": warned, "first": dict(why)}
    return row | {"stated": RATE, "low": float(interval.low), "high": float(interval.high)}


def change_row(order: str, name: str, strength: float, pool: Pool, learnt: list[tuple[Line, Baseline]]) -> dict[str, Any]:
    """Frames until the first alarm after a change, over cameras that have learnt their clean days."""
    delays, first = [], Counter[str]()
    for learnt_line, baseline in learnt:
        line, detector = copy.deepcopy(learnt_line), Detector(baseline.calibration)
        line.change(pool)
        for number, signals in enumerate(line.month(baseline, PATIENCE), start=1):
            alarms = [call.signal for call in detector.step(signals) if call.level == "alarm"]
            if alarms:
                delays.append(number * FRAMES)
                first.update([alarms[0]])
                break
    row: dict[str, Any] = {"part": "changes", "order": order, "change": name, "strength": strength, "cameras": len(learnt)}
    row |= {"seen": len(delays), "first": dict(first), "judged": name != NOTHING and strength not in SUBTLE.get(name, ())}
    return row | {
        "median_frames": float(np.median(delays)) if delays else None,
        "worst_frames": max(delays) if delays else None,
    }


def clean_rows(camera: Camera, reader: Reader, quick: bool) -> Iterator[dict[str, Any]]:
    """Clean days and months of the same modules, the same under a good patch, then of different modules."""
    mono = cells("mono", development=False, count=60 if quick else 0)
    clean, good = camera.pool(mono), good_pool(camera, mono)
    modules = np.array(list(dict.fromkeys(clean.groups)))

    def apart(order: str, seed: int) -> tuple[Line, Pool]:
        half = np.random.default_rng(seed).permutation(modules)[: len(modules) // 2]
        learnt = np.isin(clean.groups, half)
        return Line(clean.take(np.flatnonzero(learnt)), reader, order, seed), clean.take(np.flatnonzero(~learnt))

    for order in ORDERS:
        cameras, month = (2, 500) if quick else (60, MONTH)
        yield clean_row(order, lambda seed, order=order: (Line(clean, reader, order, seed), clean), cameras, month)  # type: ignore[misc]
        under = clean_row(order, lambda seed, order=order: (Line(clean, reader, order, seed), good), cameras, month, patched=True)  # type: ignore[misc]
        yield under | {"part": "clean, under a good patch"}
        other = clean_row(order, lambda seed, order=order: apart(order, seed), 2 if quick else 5, month)  # type: ignore[misc]
        yield other | {"part": "clean, other modules"}


def change_rows(camera: Camera, reader: Reader, quick: bool) -> Iterator[dict[str, Any]]:
    """Every change and strength, in both orders."""
    mono = cells("mono", development=False, count=60 if quick else 0)
    clean = camera.pool(mono)
    some = cells("mono", development=False, count=24 if quick else COUNT)
    pools = {(NOTHING, 0.0): camera.pool(some), ("new product", 0.0): camera.pool(cells("poly", development=False, count=len(some)))}
    for name, (_, strengths) in CHANGES.items():
        for strength in strengths[-1:] if quick else strengths:
            pools[name, strength] = camera.pool(some, name, strength)
    for order in ORDERS[: 1 if quick else 2]:
        lines = [Line(clean, reader, order, seed) for seed in range(1 if quick else 20)]
        learnt = [(line, line.learn()) for line in lines]
        for (name, strength), pool in pools.items():
            yield change_row(order, name, strength, pool, learnt)


def show(row: dict[str, Any]) -> None:
    """Print one row."""
    print({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items() if not isinstance(v, list)}, flush=True)


def goals_of(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The goals with what was measured; a goal whose row was not run is absent."""
    found: list[tuple[str, float, float, bool]] = []
    for row in rows:
        if row["part"] == "agree":
            found += [(f"difference to {name}", AGREE, value, value <= AGREE) for name, value in row["differences"].items()]
        elif row["part"] in JUDGED_CLEAN:
            within = row["low"] <= RATE <= row["high"]
            name = row["part"].replace("clean", "share of clean months with an alarm", 1)
            found.append((f"{name}, {row['order']}", RATE, row["alarmed"] / row["cameras"], within))
        elif row["part"] == "changes" and row["judged"]:
            share = row["seen"] / row["cameras"]
            found.append((f"cameras that call {row['change']} {row['strength']:g}, {row['order']}", 1.0, share, share == 1.0))
        elif row["part"] == "cause":
            share = row["right"] / row["seeds"]
            found.append((f"right causes, {row['what']}", RIGHT, share, share >= RIGHT))
        elif row["part"] == "cost":
            limits = (("p99_ratio", P99), ("cpu_share", CPU), ("memory_mb", MEMORY_MB))
            every = f"a frame every {row['every']:g} s"
            found += [(f"monitor, {every}: {name}", limit, row[name], row[name] <= limit) for name, limit in limits]
    return [{"name": name, "goal": goal, "value": value, "met": met} for name, goal, value, met in found]


def rows_of(parts: set[str], quick: bool) -> Iterator[dict[str, Any]]:
    """Rows of the chosen parts in their order."""
    camera = Camera()
    development = camera.pool(cells("mono", development=True, count=60 if quick else 0))
    reader = fit_linear(development.features, development.labels, ("intact", "defective"))
    makers = dict(zip(PARTS, (agree_row, clean_rows, change_rows, cause_rows, cost_rows), strict=True))
    for part in PARTS:
        if part in parts:
            yield from makers[part](camera, reader, quick)


def main() -> None:
    """Run and print; --json writes machine, commit, rows and goals."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few frames and cameras; proves only that the benchmark runs")
    parser.add_argument("--only", default=",".join(PARTS))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    parts = set(options.only.split(","))
    if wrong := parts - set(PARTS):
        parser.error(f"expected parts of {', '.join(PARTS)}, got {', '.join(sorted(wrong))}")
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    machine = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(), "numpy": np.__version__}
    rows, start = [], time.perf_counter()
    for row in rows_of(parts, options.quick):
        rows.append(row | {"commit": commit, "seconds": time.perf_counter() - start})
        start = time.perf_counter()
        show(rows[-1])
    for goal in goals_of(rows):
        print(f"{'met ' if goal['met'] else 'LOST'}  {goal['name']}: goal {goal['goal']:g}, got {goal['value']:.4g}")
    if options.json:
        former = json.loads(options.json.read_text("utf-8"))["rows"] if options.json.exists() else []
        kept = [row for row in former if row["part"].split(",")[0] not in parts]
        rows = sorted(kept + rows, key=lambda row: PARTS.index(row["part"].split(",")[0]))
        value = {"machine": machine, "commit": commit, "quick": options.quick, "rows": rows, "goals": goals_of(rows)}
        options.json.write_text(json.dumps(value, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
