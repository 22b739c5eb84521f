"""Judges the field monitor on real images: false alarms of clean months, delays until a change is called, causes, cost beside the engine.

    python benchmarks/drift.py [--quick] [--only clean,changes,cause,cost] [--json FILE]

Frames: solar cells that no setting was chosen on, through the real ViT-S/14 in ONNX Runtime (`drift_frames.py`; the new product is real,
the other changes are made on real pictures); a linear reader fitted on development cells.  A frame every 10 s, 32 frames a window, 512
windows of clean days, a stated rate of one false alarm in ten camera months.  Two orders of frames: drawn one by one, and by module (runs
of neighbouring cells, as a line that inspects whole modules sees them).

clean    camera months without a change (8,100 windows each); the alarms must be as rare as stated (exact 95 % binomial interval)
changes  delay in frames until the first alarm, by change and strength, and the chart that called; 20 cameras each
cause    20 bad patches (noise in the first FFN of a third of the blocks, as weak as flips an eighth of development verdicts), each
         reverted?  A real edit in 20 unchanged worlds and under 20 new lamps, each kept?  A Monitor decides, with its answers cached.
cost     a Runtime with and without the monitor in turn in one run: p99 of frames; CPU share of the monitor; memory

Not tested: slow wear over months, several products in turn, overrides that follow a change.  A month's frames are drawn from 574 cells
again and again, so clean days are as stationary as can be.  What the encoder gives is computed once (some 20 minutes on one core) and
kept; after that a full run takes some 40 minutes, --quick less than one.  --quick is too small for its causes to mean anything.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from drift_cause import cause_rows
from drift_cost import cost_rows
from drift_frames import CHANGES, Camera, Pool, cells
from drift_line import FRAMES, MONTH, ORDERS, RATE, Line

from edgeedit.device.monitor.detector import Detector
from edgeedit.device.monitor.statistics import binomial_tail
from edgeedit.edit.readers import Reader, fit_linear

SUBTLE = {"lamp": (0.95,), "defocus": (0.5,), "rotation": (2.0,)}  # printed, no goal
PATIENCE = 200  # windows after which a change counts as missed
P99, CPU, MEMORY_MB, RIGHT = 1.02, 0.02, 50.0, 0.95


def clean_row(order: str, make: Callable[[int], Line], cameras: int, month: int) -> dict[str, Any]:
    """Months without a change: how many cameras called, and why."""
    called, warned, why = 0, 0, Counter[str]()
    for seed in range(cameras):
        line = make(seed)
        baseline = line.learn()
        detector = Detector(baseline.calibration)
        calls = [call for _ in range(month) for call in detector.step(baseline.signals(line.window()))]
        alarms = [call.signal for call in calls if call.level == "alarm"]
        called, warned = called + bool(alarms), warned + bool(calls)
        why.update(alarms[:1])
    # Within what chance allows on both sides, 2.5 % each.
    few, many = binomial_tail(called, cameras, RATE), 1 - binomial_tail(called + 1, cameras, RATE)
    row = {"part": "clean", "order": order, "cameras": cameras, "windows": month, "alarmed": called, "warned": warned, "first": dict(why)}
    return row | {"stated": RATE, "p_more": few, "p_fewer": many}


def change_row(order: str, name: str, strength: float, pool: Pool, make: Callable[[int], Line], cameras: int) -> dict[str, Any]:
    """Frames until the first alarm after a change, over cameras."""
    delays, first = [], Counter[str]()
    for seed in range(cameras):
        line = make(seed)
        baseline = line.learn()
        detector = Detector(baseline.calibration)
        line.change(pool)
        for number in range(1, PATIENCE + 1):
            alarms = [call.signal for call in detector.step(baseline.signals(line.window())) if call.level == "alarm"]
            if alarms:
                delays.append(number * FRAMES)
                first.update([alarms[0]])
                break
    row: dict[str, Any] = {"part": "changes", "order": order, "change": name, "strength": strength, "cameras": cameras}
    row |= {
        "seen": len(delays),
        "first": dict(first),
        "subtle": strength in SUBTLE.get(name, ()),
        "median_frames": None,
        "worst_frames": None,
    }
    return row | ({"median_frames": float(np.median(delays)), "worst_frames": max(delays)} if delays else {})


def study(camera: Camera, reader: Reader, parts: set[str], quick: bool) -> list[dict[str, Any]]:
    """Rows of the parts about clean and changed worlds."""
    rows: list[dict[str, Any]] = []
    mono = cells("mono", development=False, count=60 if quick else 0)
    clean = camera.pool(mono)

    def line(order: str) -> Callable[[int], Line]:
        return lambda seed: Line(clean, reader, order, seed)

    for order in ORDERS:
        if "clean" in parts:
            rows.append(clean_row(order, line(order), 2 if quick else 100, 500 if quick else MONTH))
            show(rows[-1])
    if "changes" in parts:
        pools = {("new product", 0.0): camera.pool(cells("poly", development=False, count=40 if quick else 300))}
        some = mono[:: max(1, len(mono) // (24 if quick else 300))]
        for name, (_, strengths) in CHANGES.items():
            for strength in strengths[-1:] if quick else strengths:
                pools[name, strength] = camera.pool(some, name, strength)
        for order in ORDERS[: 1 if quick else 2]:
            for (name, strength), pool in pools.items():
                rows.append(change_row(order, name, strength, pool, line(order), 1 if quick else 20))
                show(rows[-1])
    return rows


def show(row: dict[str, Any]) -> None:
    """Print one row."""
    print({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items() if not isinstance(v, list)}, flush=True)


def goals_of(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The goals with what was measured; a goal whose row was not run is absent."""
    found: list[tuple[str, float, float, bool]] = []
    for row in rows:
        if row["part"] == "clean":
            within = row["p_more"] > 0.025 and row["p_fewer"] > 0.025
            found.append((f"share of clean months with an alarm, {row['order']}", RATE, row["alarmed"] / row["cameras"], within))
        elif row["part"] == "changes" and not row["subtle"]:
            share = row["seen"] / row["cameras"]
            found.append((f"cameras that call {row['change']} {row['strength']:g}, {row['order']}", 1.0, share, share == 1.0))
        elif row["part"] == "cause":
            share = row["right"] / row["seeds"]
            found.append((f"right causes, {row['what']}", RIGHT, share, share >= RIGHT))
        elif row["part"] == "cost":
            limits = (("p99_ratio", P99), ("cpu_share", CPU), ("memory_mb", MEMORY_MB))
            found += [(f"monitor: {name}", limit, row[name], row[name] <= limit) for name, limit in limits]
    return [{"name": name, "goal": goal, "value": value, "met": met} for name, goal, value, met in found]


def main() -> None:
    """Run and print; --json writes machine, commit, rows and goals."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few frames and cameras; proves only that the benchmark runs")
    parser.add_argument("--only", default="clean,changes,cause,cost")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    start, parts = time.perf_counter(), set(options.only.split(","))
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    camera = Camera()
    development = camera.pool(cells("mono", development=True, count=60 if options.quick else 0))
    reader = fit_linear(development.features, development.labels, ("intact", "defective"))
    rows = study(camera, reader, parts, options.quick)
    for part, make in (("cause", cause_rows), ("cost", cost_rows)):
        if part in parts:
            for row in make(camera, reader, quick=options.quick):
                rows.append(row)
                show(row)
    for goal in goals_of(rows):
        print(f"{'met ' if goal['met'] else 'LOST'}  {goal['name']}: goal {goal['goal']:g}, got {goal['value']:.4g}")
    if options.json:
        machine = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(), "numpy": np.__version__}
        value = {"machine": machine, "commit": commit, "quick": options.quick, "seconds": time.perf_counter() - start}
        options.json.write_text(json.dumps({**value, "rows": rows, "goals": goals_of(rows)}, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
