"""A simulated line of `drift.py`: windows of real frames, drawn one by one or by module."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from drift_frames import Pool

from edgeedit.device.monitor.baseline import KEPT, Baseline, Clean, learn
from edgeedit.device.monitor.detector import Calibration, Rate, calibrate
from edgeedit.device.monitor.monitor import MONTH_SECONDS
from edgeedit.device.monitor.projection import IMAGE_SIGNALS, Projection
from edgeedit.device.monitor.signals import Window
from edgeedit.device.monitor.statistics import BINS
from edgeedit.edit.readers import Reader
from edgeedit.mmd import squared_distances

Array = np.ndarray[Any, Any]
FRAMES, LEARN, EVERY, RATE = 32, 512, 10.0, 0.1
MONTH = int(MONTH_SECONDS / (EVERY * FRAMES))
OVERRIDES = 0.02  # of clean frames
CHUNK = 256  # windows judged at once
ORDERS = ("one by one", "by module")


class Line:
    """A camera's line: windows drawn from pools; `order` is one of ORDERS."""

    def __init__(self, pool: Pool, reader: Reader, order: str, seed: int) -> None:
        self._rng, self._order = np.random.default_rng(seed), order
        self._project = Projection(pool.features.shape[1])
        self._reader = reader
        self._seconds = pool.seconds  # of the clean pool always: another one was measured at another hour of a busy machine
        self.change(pool)
        self._ahead: list[int] = []

    def change(self, pool: Pool) -> None:
        """From now on frames come from `pool`."""
        logits = self._reader.logits_numpy(pool.features)
        top = np.sort(logits, axis=1)
        self._rows, self._images = self._project(pool.features), pool.images
        self._verdicts, self._margins = logits.argmax(axis=1).astype(np.int64), (top[:, -1] - top[:, -2]).astype(np.float32)
        self._modules = [np.flatnonzero(pool.groups == name) for name in dict.fromkeys(pool.groups)]
        self._ahead = []

    def _next(self) -> Array:
        if self._order == ORDERS[0]:
            return self._rng.integers(0, len(self._rows), FRAMES)
        while len(self._ahead) < FRAMES:
            self._ahead += self._modules[self._rng.integers(len(self._modules))].tolist()
        taken, self._ahead = self._ahead[:FRAMES], self._ahead[FRAMES:]
        return np.array(taken)

    def _draw(self) -> tuple[Array, Array, Array]:
        """Places in the pool, frame times (those measured, in any order) and overrides of the next window."""
        at = self._next()
        seconds = self._seconds[self._rng.integers(0, len(self._seconds), FRAMES)]
        return at, seconds, self._rng.random(FRAMES) < OVERRIDES

    def window(self) -> Window:
        """The next one."""
        self.at, seconds, overridden = self._draw()
        at = self.at
        return Window(self._rows[at], self._images[at], seconds, self._verdicts[at], self._margins[at], overridden)

    def month(self, baseline: Baseline, count: int) -> Iterator[dict[str, float]]:
        """The signals of the next `count` windows as the monitor finds them (`agree` compares), many windows at once."""
        judge = _Judge(baseline, self._rows)
        for start in range(0, count, CHUNK):
            yield from self._judged(judge, baseline, [self._draw() for _ in range(min(CHUNK, count - start))])

    def _judged(self, judge: _Judge, baseline: Baseline, drawn: list[tuple[Array, Array, Array]]) -> Iterator[dict[str, float]]:
        at, seconds, overridden = (np.stack(column) for column in zip(*drawn, strict=True))
        found = judge.embedding(at)
        if baseline.shares is not None:
            shares = np.stack([(self._verdicts[at] == k).mean(axis=1) for k in range(len(baseline.shares))], axis=1)
            found["mix"] = 0.5 * np.abs(shares - baseline.shares).sum(axis=1)
        found |= {"margin": self._margins[at].mean(axis=1), "overrides": overridden.mean(axis=1)}
        found["latency"] = np.log(np.median(seconds, axis=1))
        found |= dict(zip(IMAGE_SIGNALS, self._images[at].mean(axis=1).T, strict=True))
        names = list(found)
        yield from (dict(zip(names, row, strict=True)) for row in np.stack([found[name] for name in names], axis=1).tolist())

    def learn(self) -> Baseline:
        """Clean days, and the frames kept of them, whose places in the pool are `kept`; what `learn` of the monitor gives of the windows
        themselves (`agree` compares)."""
        drawn = [self._draw() for _ in range(LEARN)]
        self.kept = np.concatenate([at for at, _, _ in drawn])[self._rng.choice(LEARN * FRAMES, KEPT, replace=False)]
        clean = self.clean()
        known = np.concatenate([self._verdicts[at] for at, _, _ in drawn])
        empty = Baseline(clean, np.bincount(known) / len(known), None)  # type: ignore[arg-type]
        signals = list(self._judged(_Judge(empty, self._rows), empty, drawn))
        return Baseline(clean, empty.shares, calibrate(signals, Rate(MONTH, RATE, 0.5), frames=FRAMES))

    def learn_slowly(self) -> Baseline:
        """The same by the monitor's own way."""
        windows, places = [], []
        for _ in range(LEARN):
            windows.append(self.window())
            places.append(self.at)
        self.kept = np.concatenate(places)[self._rng.choice(LEARN * FRAMES, KEPT, replace=False)]
        return learn(windows, self.clean(), Rate(MONTH, RATE, 0.5))

    def clean(self) -> Clean:
        """What the present pool, which holds the same cells, says of the frames kept of clean days."""
        return Clean(self._rows[self.kept], self._verdicts[self.kept], self._margins[self.kept])


class _Judge:
    """PSI, KS and MMD of windows whose frames all come from one pool, so that each row of it is compared with clean days once."""

    def __init__(self, baseline: Baseline, rows: Array) -> None:
        of = self._of = baseline.expected
        scaled = ((rows - of._mean) / of._spread).astype(np.float64)
        places = (scaled[:, None, :] >= of._edges[None]).sum(axis=1)
        self._bins = (places[:, None, :] == np.arange(BINS)[None, :, None]).reshape(len(rows), -1).astype(np.float32)
        clean = np.sort(of._clean, axis=0)
        self._ranks = [
            np.stack([np.searchsorted(clean[:, c], scaled[:, c], side) for c in range(scaled.shape[1])], axis=1) / len(clean)
            for side in ("right", "left")
        ]
        self._across = np.exp(-of._scale * squared_distances(scaled, of._clean)).mean(axis=1)
        self._kernel = np.exp(-of._scale * squared_distances(scaled, scaled))
        np.fill_diagonal(self._kernel, 1.0)

    def embedding(self, at: Array) -> dict[str, Array]:
        """Signals of windows of places `at` (windows, FRAMES)."""
        counts = self._bins[at].sum(axis=1, dtype=np.float64).reshape(len(at), BINS, -1)
        got, expected = (counts + 0.5) / (FRAMES + 0.5 * BINS), self._of._shares[None]
        inside = (self._kernel[at[:, :, None], at[:, None, :]].sum(axis=(1, 2)) - FRAMES) / (FRAMES * (FRAMES - 1))
        steps = np.arange(FRAMES + 1) / FRAMES
        right, left = (np.sort(ranks.T[:, at], axis=2) for ranks in self._ranks)
        apart = np.maximum((steps[1:] - right).max(axis=2), (left - steps[:-1]).max(axis=2))
        return {
            "psi": ((got - expected) * np.log(got / expected)).sum(axis=1).mean(axis=1),
            "ks": apart.mean(axis=0),
            "mmd": self._of._within + inside - 2.0 * self._across[at].mean(axis=1),
        }


def calls(calibration: Calibration, signals: Sequence[Mapping[str, float]]) -> tuple[str, bool]:
    """(signal of the first alarm or "", whether anything was called) of a Detector in these windows (`agree` compares)."""
    values = np.array([[window[name] for name in calibration.names] for window in signals])
    walk = np.cumsum(calibration.charts(values) - calibration.allowances, axis=0)
    # A sum that is never below zero is the walk above its own least value so far.
    sums = walk - np.minimum(np.minimum.accumulate(walk, axis=0), 0.0)
    over = sums > calibration.alarm
    warned = bool((sums > np.minimum(calibration.warn, calibration.alarm)).any())
    if not over.any():
        return "", warned
    chart = int(np.argmax(over[np.argmax(over.any(axis=1))]))
    return calibration.sides[chart][0], warned
