"""Drift statistics in numpy: PSI, two-sample KS, CUSUM, binomial tail; the MMD is in `edgeedit.mmd`.

Guarantees: plain functions of arrays, equal to scipy's and river's on the same data (tests); numpy only.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
BINS = 10  # deciles of the reference, as the usual reading of the PSI has it


def bin_edges(reference: Array) -> Array:
    """Inner edges (BINS - 1, columns) of equally filled bins of each column of `reference` (n, columns)."""
    edges: Array = np.quantile(reference, np.arange(1, BINS) / BINS, axis=0)
    return edges


def bin_shares(rows: Array, edges: Array) -> Array:
    """Share of `rows` (n, columns) in each bin, (BINS, columns); half a count is added to every bin, so that none is empty."""
    places = (rows[:, None, :] >= edges[None]).sum(axis=1)
    counts = (places[None] == np.arange(len(edges) + 1)[:, None, None]).sum(axis=1)
    shares: Array = (counts + 0.5) / (len(rows) + 0.5 * (len(edges) + 1))
    return shares


def psi(expected: Array, got: Array) -> Array:
    """Population stability index of each column: sum over bins of (got - expected) ln(got / expected); shares (bins, columns)."""
    index: Array = ((got - expected) * np.log(got / expected)).sum(axis=0)
    return index


def ks(reference: Array, rows: Array) -> Array:
    """Two-sample Kolmogorov-Smirnov distance of each column, 0..1; `reference` (n, columns), `rows` (m, columns)."""
    n, m = len(reference), len(rows)
    both = np.concatenate([reference, rows]).T
    order = np.argsort(both, axis=1)
    below = np.cumsum(order < n, axis=1)
    apart = np.abs(below / n - (np.arange(1, n + m + 1) - below) / m)
    values = np.take_along_axis(both, order, axis=1)
    # Both distribution functions jump at a value as a whole: only the last of equal ones counts.
    apart[:, :-1][values[:, 1:] == values[:, :-1]] = 0.0
    found: Array = apart.max(axis=1)
    return found


class Cusum:
    """Upper cumulative sums of standardised values (Page 1954): s = max(0, s + x - allowance), one for each chart; `allowance` of all
    charts or (charts,)."""

    def __init__(self, charts: int, allowance: float | Array) -> None:
        self.sums: Array = np.zeros(charts)
        self._allowance = allowance

    def step(self, values: Array) -> Array:
        """Take one value for each chart; returns the sums."""
        self.sums = np.maximum(0.0, self.sums + values - self._allowance)
        return self.sums


def binomial_tail(hits: int, trials: int, chance: float) -> float:
    """P(at least `hits` of `trials`) where each has `chance`; exact, by logarithms of factorials."""
    if hits <= 0:
        return 1.0
    if chance <= 0.0:
        return 0.0
    if chance >= 1.0:
        return 1.0
    logs = [
        math.lgamma(trials + 1)
        - math.lgamma(k + 1)
        - math.lgamma(trials - k + 1)
        + k * math.log(chance)
        + (trials - k) * math.log1p(-chance)
        for k in range(hits, trials + 1)
    ]
    return min(1.0, math.fsum(math.exp(value) for value in logs))
