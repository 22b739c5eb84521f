"""A generation in shadow: what it says of kept pictures, in an engine of its own that is gone afterwards.

Guarantees: the frames being served are not touched; refused where memory is short (RefusedError, exit 6); one engine at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from edgeedit.bundle import Bundle
from edgeedit.device.engines.choose import open_engine
from edgeedit.device.engines.protocol import Engine
from edgeedit.device.memory import start_memory
from edgeedit.device.monitor.projection import to_pixels
from edgeedit.device.monitor.reservoir import unpack
from edgeedit.device.prepare import check_memory, replay
from edgeedit.device.store import Store

Array = np.ndarray[Any, Any]
Make = Callable[[Bundle, Mapping[str, Array]], Engine]


class Shadow:
    """Generations of a `store`; `make` is the application's own engine, None the Bundle's with one thread."""

    def __init__(self, store: Store, make: Make | None) -> None:
        self._store, self._bundle = store, store.bundle
        self._make: Make = make or (lambda bundle, weights: open_engine(bundle, weights, threads=1))

    def features(self, number: int, pictures: Sequence[bytes]) -> Array:
        """Features float32 (n, width) that generation `number` gives of packed pictures."""
        check_memory(start_memory(self._bundle))
        weights, _ = replay(self._bundle, [self._store.patch(g.patch) for g in self._store.chain(number)])
        engine = self._make(self._bundle, weights)
        side = self._bundle.preprocess.size
        # One picture at a time: memory stays that of one frame.
        return np.concatenate([engine.run(to_pixels(unpack(p, side)[None], self._bundle.preprocess)) for p in pictures])

    def parent(self, number: int) -> int | None:
        """The generation that `number` was built on, None for the base."""
        chain = self._store.chain(number)
        return chain[-1].parent if chain else None

    def allowed(self, number: int) -> float:
        """Share of the usual verdicts that the patch behind generation `number` may change (FORMAT 4)."""
        return self._store.patch(self._store.chain(number)[-1].patch).manifest.max_flips
