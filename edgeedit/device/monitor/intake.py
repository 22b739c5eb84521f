"""Sampled frames on their way from the frame path to a window.

Guarantees: the frame path copies one frame where one is due and returns; at most QUEUE frames wait as float32, everything later holds
them as packed pictures.  The work of a window is done frame by frame, so that no burst of it meets the frames being served.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgeedit.bundle import Preprocess
from edgeedit.device.monitor.projection import image_signals, to_picture
from edgeedit.device.monitor.reservoir import pack

Array = np.ndarray[Any, Any]
QUEUE = 16  # at 224 x 224 pixels 10 MB


@dataclass(frozen=True)
class Frame:
    """One sampled answer: `pixels` float32 (1, 3, s, s), `output` float32 (1, width), `seconds` of the engine."""

    generation: int
    pixels: Array
    output: Array
    seconds: float


@dataclass(frozen=True)
class Batch:
    """The frames of a window in their order: `features` float32 (n, width), `images` float32 (n, 4), `seconds` (n,), packed pictures."""

    features: Array
    images: Array
    seconds: Array
    pictures: list[bytes]


class Intake:
    """A frame is taken every `every` seconds, `frames` make a window."""

    def __init__(self, every: float, frames: int) -> None:
        self._every, self._frames, self._due = every, frames, 0.0
        self._queue: deque[Frame] = deque(maxlen=QUEUE)
        self._seen: list[tuple[Array, Array, float, bytes]] = []
        self.skipped = 0

    def offer(self, generation: int, pixels: Array, output: Array, seconds: float) -> bool:
        """From the frame path: True where the frame was due and is copied."""
        now = time.monotonic()
        if now < self._due:
            return False
        self._due = now + self._every
        self.skipped += len(self._queue) == QUEUE
        self._queue.append(Frame(generation, pixels[:1].copy(), output[:1].copy(), seconds / len(output)))
        return True

    def next(self) -> Frame | None:
        """The frame that waits longest."""
        return self._queue.popleft() if self._queue else None

    def clear(self) -> None:
        """Begin the window anew."""
        self._seen = []

    def add(self, frame: Frame, preprocess: Preprocess) -> Batch | None:
        """Put a frame into the window; the whole window when it was the last of it."""
        picture = to_picture(frame.pixels, preprocess)
        self._seen.append((frame.output, image_signals(picture), frame.seconds, pack(picture[0])))
        if len(self._seen) < self._frames:
            return None
        features, images, seconds, pictures = zip(*self._seen, strict=True)
        self._seen = []
        return Batch(np.concatenate(features), np.concatenate(images), np.array(seconds), list(pictures))
