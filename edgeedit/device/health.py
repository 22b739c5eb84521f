"""The health gate of a trial: what a new generation must show on live frames before it is confirmed.

Guarantees: judges only what this process can see (finite outputs, frame times against those of the generation before, its own
memory), so it needs no network and no labels.  Extra probe frames stand in for a camera that is idle.  Thread-safe.
"""

from __future__ import annotations

import resource
import threading
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from edgeedit.bundle import Bundle
from edgeedit.device.prepare import RESERVE, available_memory

Array = np.ndarray[Any, Any]
_WINDOW = 64  # frames of the proven generation that a trial is compared with
_LEAST = 4  # frames on either side before times are compared


@dataclass(frozen=True)
class Health:
    """The gate's settings.  A trial is watched for `frames` frames; live ones count for `seconds`, then probe frames make up the rest.

    `slowdown`: the trial's fastest frame may take at most so many times the median of the generation before, and `slack_ms` more.
    The fastest, because a busy machine slows some frames and weights that are slow (subnormal values) slow all of them.
    `growth_mb`: mebibytes by which this process may grow meanwhile; 0 sets no limit."""

    frames: int = 0
    seconds: float = 0.0
    slowdown: float = 3.0
    slack_ms: float = 5.0
    growth_mb: int = 0

    @staticmethod
    def of(bundle: Bundle) -> Health:
        """The settings that the device profile gave the Bundle."""
        return Health(bundle.soak_frames, bundle.soak_seconds, bundle.max_slowdown, growth_mb=bundle.max_growth_mb)


class Watch:
    """Frame times of the proven generation, and the watch over a trial while there is one."""

    def __init__(self, health: Health) -> None:
        self._health = health
        self._usual: deque[float] = deque(maxlen=_WINDOW)
        self._trial: list[float] = []
        self._reason, self._generation, self._resident = "", -1, 0
        self._changed = threading.Condition()

    def begin(self, generation: int) -> None:
        """A trial runs from now on."""
        with self._changed:
            self._trial, self._reason, self._generation, self._resident = [], "", generation, resident_bytes()

    def end(self, *, proven: bool) -> None:
        """The trial is over; the frame times of a proven one are what is usual from now on."""
        with self._changed:
            if proven and self._trial:
                self._usual.clear()
                self._usual.extend(self._trial[-_WINDOW:])
            self._trial, self._reason, self._generation = [], "", -1

    def note(self, generation: int, output: Array, seconds: float) -> None:
        """One answer: `output` float32 (n, width) took `seconds`."""
        frame = seconds / max(1, len(output))
        with self._changed:
            if generation != self._generation:
                if self._generation == -1:
                    self._usual.append(frame)
                return
            self._trial.append(frame)
            if not self._reason and not np.isfinite(output).all():
                self._reason = "an output is not finite"
            self._changed.notify_all()

    def fail(self, generation: int, reason: str) -> None:
        """The engine refused a frame of the trial."""
        with self._changed:
            if generation == self._generation:
                self._reason = self._reason or reason
                self._changed.notify_all()

    def wait(self, until: float, patience: float) -> bool:
        """Wait up to `patience` seconds for frames; True when the watch is over, or when `until` (time.monotonic) has passed."""
        with self._changed:
            self._changed.wait_for(self._over, min(patience, max(0.0, until - time.monotonic())))
            return self._over() or time.monotonic() >= until

    def _over(self) -> bool:
        return bool(self._reason) or len(self._trial) >= self._health.frames

    def missing(self) -> int:
        """Frames that the trial has yet to answer."""
        with self._changed:
            return 0 if self._reason else max(0, self._health.frames - len(self._trial))

    def verdict(self) -> str:
        """Why the trial is not healthy, "" when it is."""
        health = self._health
        with self._changed:
            if self._reason:
                return f"health: {self._reason}"
            if min(len(self._trial), len(self._usual)) >= _LEAST:
                fastest, usual = min(self._trial) * 1e3, median(self._usual) * 1e3
                ceiling = health.slowdown * usual + health.slack_ms
                if fastest > ceiling:
                    return f"health: frames are slow: expected at most {ceiling:.1f} ms, got {fastest:.1f} ms"
            grown = (resident_bytes() - self._resident) >> 20
            if health.growth_mb and grown > health.growth_mb:
                return f"health: memory grew: expected at most {health.growth_mb} MiB, got {grown} MiB"
        free = available_memory()
        if health.frames and free is not None and free < RESERVE:
            return f"health: memory is short: expected {RESERVE >> 20} MiB free, got {free >> 20} MiB"
        return ""


def resident_bytes() -> int:
    """Memory that this process occupies now, in bytes; 0 where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * resource.getpagesize()
    except OSError:
        return 0
