"""Maximum mean discrepancy of two sets of rows, unbiased, with a permutation test; numpy only.

Guarantees: plain functions of arrays, equal to a computation by scipy on the same data (tests).  The camera's monitor and the
server's report read the same number out of it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def squared_distances(x: Array, y: Array) -> Array:
    """Squared Euclidean distances (len(x), len(y)), never negative."""
    distances: Array = (x * x).sum(axis=1)[:, None] + (y * y).sum(axis=1)[None] - 2.0 * (x @ y.T)
    return np.maximum(distances, 0.0)


def kernel_scale(reference: Array) -> float:
    """Factor in exp(-factor d^2): one over the median squared distance of different rows (the median rule)."""
    distances = squared_distances(reference, reference)
    return 1.0 / max(float(np.median(distances[np.triu_indices(len(reference), 1)])), 1e-12)


def within(kernel: Array) -> float:
    """Mean of a symmetric kernel matrix outside its diagonal."""
    return float((kernel.sum() - np.trace(kernel)) / (len(kernel) * (len(kernel) - 1)))


def mmd(reference: Array, rows: Array, scale: float, known_within: float | None = None) -> float:
    """Unbiased squared maximum mean discrepancy with a Gaussian kernel (Gretton et al. 2012, eq. 3); may be negative."""
    own = within(np.exp(-scale * squared_distances(reference, reference))) if known_within is None else known_within
    theirs = within(np.exp(-scale * squared_distances(rows, rows)))
    return own + theirs - 2.0 * float(np.exp(-scale * squared_distances(reference, rows)).mean())


def mmd_test(x: Array, y: Array, *, permutations: int = 200, seed: int = 0) -> tuple[float, float]:
    """(MMD^2, p) of a permutation test with the median rule on both sets together; p is at least 1 / (permutations + 1)."""
    both = np.concatenate([x, y]).astype(np.float64)
    kernel = np.exp(-kernel_scale(both) * squared_distances(both, both))
    np.fill_diagonal(kernel, 0.0)
    n, m = len(x), len(y)
    rng = np.random.default_rng(seed)
    sides = np.zeros((permutations + 1, n + m))
    sides[0, :n] = 1.0
    for row in sides[1:]:
        row[rng.permutation(n + m)[:n]] = 1.0
    # Sums of the kernel over each side and across, for all permutations at once.
    first, total = sides @ kernel, kernel.sum()
    xx = (first * sides).sum(axis=1)
    xy = first.sum(axis=1) - xx
    yy = total - xx - 2.0 * xy
    values = xx / (n * (n - 1)) + yy / (m * (m - 1)) - 2.0 * xy / (n * m)
    return float(values[0]), float((1 + (values[1:] >= values[0] - 1e-15).sum()) / (permutations + 1))
