"""Windows drawn from clean days: each on its own, or one after the other as clean windows followed each other.

Source of the second: the local bootstrap of Paparoditis and Politis (2002), "The local bootstrap for Markov processes", J. Statist.
Plann. Inference 108: the next window is what followed one of the nearest clean windows.  Theirs draws some windows far more often
than others, mostly not those of the tails, which thresholds live on; the chances of the neighbours are therefore balanced until
each clean window comes equally often (Sinkhorn and Knopp 1967).
Guarantees: numpy only; memory grows with the square of the clean windows (some 10 MB for 512).
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

Array = np.ndarray[Any, Any]
NEIGHBOURS = 16  # chosen on development cells among 8, 16, 32 and 64; 16 to 64 hardly differ
BALANCED = 200  # rounds of balancing


class Draw(Protocol):
    """Where the next windows come from."""

    def after(self, places: Array, rng: np.random.Generator) -> Array:
        """Clean windows that may follow those at `places` int64 (cameras,), in the same form."""


class Alone:
    """Windows that know nothing of each other."""

    def __init__(self, count: int) -> None:
        self._count = count

    def after(self, places: Array, rng: np.random.Generator) -> Array:
        """Any window."""
        found: Array = rng.integers(0, self._count, len(places))
        return found


class Following:
    """Windows that follow each other as those of `values` (windows, signals) did."""

    def __init__(self, values: Array) -> None:
        self._count = count = len(values)
        near = np.argsort(_distances(values), axis=1, kind="stable")[:, :NEIGHBOURS]
        joined = np.zeros((count, count), dtype=np.float32)
        joined[np.arange(count)[:, None], near] = 1.0
        joined = np.maximum(joined, joined.T)
        weight = np.ones(count)
        for _ in range(BALANCED):
            weight = np.sqrt(weight / (joined @ weight))
        chances = weight[:, None] * joined * weight
        chances /= chances.sum(axis=1, keepdims=True)
        # One ascending row for all: window i owns the stretch from i to i + 1.
        self._ends = (np.cumsum(chances, axis=1) + np.arange(count)[:, None]).ravel()

    def after(self, places: Array, rng: np.random.Generator) -> Array:
        """What followed a neighbour of each; the last clean window is followed by the first."""
        at = np.searchsorted(self._ends, places + rng.random(len(places)), side="right")
        # Rounding may end a row just under its next one: stay in it.
        neighbours = np.minimum(at - places * self._count, self._count - 1)
        found: Array = (neighbours + 1) % self._count
        return found


def _distances(values: Array) -> Array:
    """Squared distances of standardised windows, float32 (windows, windows)."""
    scaled = (values - values.mean(axis=0)) / np.maximum(values.std(axis=0), 1e-9)
    squares = (scaled**2).sum(axis=1)
    found: Array = (squares[:, None] + squares - 2.0 * scaled @ scaled.T).astype(np.float32)
    # A window is its own nearest one, whatever rounding says.
    np.fill_diagonal(found, -1.0)
    return found
