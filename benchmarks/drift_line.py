"""A simulated line of `drift.py`: windows of real frames, drawn one by one or by module."""

from __future__ import annotations

from typing import Any

import numpy as np
from drift_frames import Pool

from edgeedit.device.monitor.baseline import Baseline, Clean, learn
from edgeedit.device.monitor.detector import Rate
from edgeedit.device.monitor.monitor import KEPT, MONTH_SECONDS
from edgeedit.device.monitor.projection import Projection
from edgeedit.device.monitor.signals import Window
from edgeedit.edit.readers import Reader

Array = np.ndarray[Any, Any]
FRAMES, LEARN, EVERY, RATE = 32, 512, 10.0, 0.1
MONTH = int(MONTH_SECONDS / (EVERY * FRAMES))
OVERRIDES = 0.02  # of clean frames
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

    def window(self) -> Window:
        """The next one; frame times are those measured, in any order."""
        self.at = at = self._next()
        seconds = self._seconds[self._rng.integers(0, len(self._seconds), FRAMES)]
        overridden = self._rng.random(FRAMES) < OVERRIDES
        return Window(self._rows[at], self._images[at], seconds, self._verdicts[at], self._margins[at], overridden)

    def learn(self) -> Baseline:
        """Clean days, and the frames kept of them, whose places in the pool are `kept`."""
        windows, places = [], []
        for _ in range(LEARN):
            windows.append(self.window())
            places.append(self.at)
        self.kept = np.concatenate(places)[self._rng.choice(LEARN * FRAMES, KEPT, replace=False)]
        clean = Clean(self._rows[self.kept], self._verdicts[self.kept], self._margins[self.kept])
        return learn(windows, clean, Rate(MONTH, RATE, 0.5))
