"""The agreement part of `drift.py`: the monitor's statistics of real windows beside scipy's and river's on the same data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from drift_frames import COUNT, Camera, cells
from drift_line import ORDERS, Line, calls
from river.drift import PageHinkley
from scipy.spatial.distance import cdist, pdist
from scipy.stats import entropy, ks_2samp

from edgeedit.device.monitor.detector import Detector
from edgeedit.device.monitor.signals import Expected
from edgeedit.device.monitor.statistics import Cusum, bin_edges, bin_shares, ks, psi
from edgeedit.edit.readers import Reader
from edgeedit.mmd import kernel_scale, mmd

Array = np.ndarray[Any, Any]
ALLOWANCE, THRESHOLD = 0.5, 8.0


def _cusum(values: Array) -> float:
    """Frames between the first alarms of our CUSUM and of river's Page-Hinkley on the same stream; infinite where one never calls."""
    theirs = PageHinkley(min_instances=1, delta=ALLOWANCE, threshold=THRESHOLD, alpha=1.0, mode="up")
    ours, total = Cusum(1, ALLOWANCE), 0.0
    found: list[int | None] = [None, None]
    for number, value in enumerate(values, start=1):
        total += value
        # River subtracts the running mean itself.
        if ours.step(np.array([value - total / number]))[0] > THRESHOLD and found[0] is None:
            found[0] = number
        theirs.update(float(value))
        if theirs.drift_detected and found[1] is None:
            found[1] = number
    return float("inf") if None in found else float(abs(found[0] - found[1]))  # type: ignore[operator]


def _months(camera: Camera, reader: Reader, count: int) -> float:
    """Greatest difference between what the monitor finds, learns and calls and what a Line says of many windows at once."""
    pool, other = camera.pool(cells("mono", development=False, count=count)), camera.pool(cells("mono", development=True, count=count))
    worst = 0.0
    for order in ORDERS:
        one, many = (Line(pool, reader, order, 7) for _ in range(2))
        baseline, same = one.learn_slowly(), many.learn()
        worst = max(worst, float(np.abs(baseline.calibration.alarm - same.calibration.alarm).max()))
        for world in (pool, other):
            one.change(world), many.change(world)
            detector, found, alarm, warned = Detector(baseline.calibration), [], "", False
            for signals in many.month(same, 60):
                wanted = baseline.signals(one.window())
                worst = max(worst, *(abs(wanted[name] - signals[name]) for name in wanted))
                heard = detector.step(wanted)
                warned = warned or bool(heard)
                alarm = alarm or next((call.signal for call in heard if call.level == "alarm"), "")
                found.append(signals)
            worst = max(worst, float(calls(same.calibration, found) != (alarm, warned)))
    return worst


def agree_row(camera: Camera, reader: Reader, quick: bool) -> Iterator[dict[str, Any]]:
    """The greatest differences over windows of clean cells and of the new product."""
    count = 60 if quick else 0
    line = Line(camera.pool(cells("mono", development=False, count=count)), reader, ORDERS[0], 0)
    clean = np.concatenate([line.window().rows for _ in range(6)]).astype(np.float64)
    windows = [line.window().rows for _ in range(4 if quick else 40)]
    line.change(camera.pool(cells("poly", development=False, count=24 if quick else COUNT)))
    windows += [line.window().rows for _ in range(4 if quick else 40)]
    mean, std = clean.mean(axis=0), clean.std(axis=0)
    clean, windows = (clean - mean) / std, [(window - mean) / std for window in windows]
    edges, scale = bin_edges(clean), kernel_scale(clean)
    shares = bin_shares(clean, edges)
    found = {"scipy PSI": 0.0, "scipy KS": 0.0, "scipy MMD^2": 0.0}
    for rows in windows:
        got = bin_shares(rows, edges)
        columns = range(rows.shape[1])
        kxx, kyy = (2 * np.exp(-scale * pdist(a, "sqeuclidean")).sum() / (len(a) * (len(a) - 1)) for a in (clean, rows))
        wanted = {
            "scipy PSI": np.abs(psi(shares, got) - entropy(shares, got) - entropy(got, shares)).max(),
            "scipy KS": np.abs(ks(clean, rows) - [ks_2samp(clean[:, c], rows[:, c]).statistic for c in columns]).max(),
            "scipy MMD^2": abs(mmd(clean, rows, scale) - (kxx + kyy - 2 * np.exp(-scale * cdist(clean, rows, "sqeuclidean")).mean())),
        }
        found = {name: max(value, float(wanted[name])) for name, value in found.items()}
    expected = Expected(clean)
    stream = np.array([expected.signals(window)["mmd"] for window in windows])
    before = stream[: len(stream) // 2]
    found["river Page-Hinkley (windows)"] = _cusum((stream - before.mean()) / before.std())
    found["the monitor itself (signals, thresholds, calls)"] = _months(camera, reader, count)
    yield {"part": "agree", "windows": len(windows), "differences": found}
