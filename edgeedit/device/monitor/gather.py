"""Which frames a Monitor puts into its Collection: those that an operator changed, those of a low margin, more once the world has changed.

Guarantees: `override` only copies; pictures are made and written by the monitor's own thread.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np

from edgeedit.bundle import Preprocess
from edgeedit.device.monitor.baseline import Baseline
from edgeedit.device.monitor.collect import Collection, Taken, group_of
from edgeedit.device.monitor.projection import to_picture
from edgeedit.device.monitor.reservoir import unpack
from edgeedit.device.monitor.signals import Window

Array = np.ndarray[Any, Any]
LOW = 0.05  # share of clean frames whose margin is lower than that of a low one
EAGER = 8  # windows after a change of the world from which more is kept
_EACH = 4  # frames of each such window; else one
_WAITING = 16  # overridden frames that wait


class Gatherer:
    """Of one Monitor.  A verdict and a group are cut to 200 characters."""

    def __init__(self, collection: Collection) -> None:
        self._collection = collection
        self._given: deque[tuple[Array, str, str, int]] = deque(maxlen=_WAITING)
        self._eager = 0

    def override(self, pixels: Array, verdict: str, group: str, generation: int) -> None:
        """An operator's `verdict` on a frame float32 (1, 3, s, s), from the application's thread."""
        self._given.append((pixels[:1].copy(), verdict[:200], group[:200], generation))

    def world_changed(self) -> None:
        """Keep more for a while."""
        self._eager = EAGER

    def overridden(self, preprocess: Preprocess) -> None:
        """Write what operators changed; raises RefusedError when the disk refuses."""
        while self._given:
            pixels, verdict, group, generation = self._given.popleft()
            now = time.time()
            taken = Taken("overridden", verdict, -1, None, generation, group_of(group, now), now)
            self._collection.add(to_picture(pixels, preprocess)[0], taken)

    def window(self, packed: Sequence[bytes], side: int, window: Window, generation: int, baseline: Baseline | None) -> None:
        """Write the frames of the lowest margins of a window, `packed` pictures of `side` pixels; raises RefusedError when the disk
        refuses."""
        if baseline is None or not np.isfinite(window.margins).all() or not np.isfinite(baseline.clean.margins).all():
            return
        count, limit = (_EACH, np.inf) if self._eager else (1, float(np.quantile(baseline.clean.margins, LOW)))
        self._eager = max(0, self._eager - 1)
        now = time.time()
        for place in np.argsort(window.margins)[:count]:
            margin = float(window.margins[place])
            if margin < limit:
                taken = Taken("low_margin", "", int(window.verdicts[place]), margin, generation, group_of("", now), now)
                self._collection.add(unpack(packed[place], side), taken)
