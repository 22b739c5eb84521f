"""Statistics of judged images: errors, AUC, intervals, paired tests.  Plain numpy; scipy is the reference in the tests.

Guarantees: every function is deterministic; the paired interval resamples whole groups (2,000 resamples, fixed seed), so
images of one module do not count as independent, and it never shrinks to a point because few images agree.  Errors are 0..1.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from edgeedit.metrics import Interval

Array = np.ndarray[Any, Any]
Z95 = 1.959963984540054  # normal quantile of a two-sided 95 % interval
RESAMPLES = 2000


def balanced_error(labels: Array, verdicts: Array) -> float:
    """Mean over the classes present of the share misjudged."""
    return float(np.mean([np.mean(verdicts[labels == c] != c) for c in np.unique(labels)]))


def auc(labels: Array, scores: Array) -> float:
    """Area under the ROC curve of class 1 by the rank sum (ties count half)."""
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    positive = labels == 1
    n1, n0 = int(positive.sum()), int((~positive).sum())
    if not n1 or not n0:
        return float("nan")
    return float((ranks[positive].sum() - n1 * (n1 + 1) / 2) / (n1 * n0))


def verdict_shares(verdicts: Array, classes: int) -> tuple[float, ...]:
    """Share of the images given each verdict, one number for each of `classes`; they add up to 1."""
    return tuple(float(v) for v in np.bincount(verdicts, minlength=classes) / max(1, verdicts.size))


def wilson(wrong: int, n: int) -> Interval:
    """Wilson 95 % interval of a share (Wilson 1927)."""
    share, z2 = wrong / n, Z95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return Interval(max(0.0, centre - half), min(1.0, centre + half))


def mcnemar(fixed: int, broken: int) -> float:
    """Exact two-sided McNemar p: binomial(fixed + broken, 1/2)."""
    n, k = fixed + broken, min(fixed, broken)
    if n == 0:
        return 1.0
    tail = sum(math.comb(n, i) for i in range(k + 1))
    # Integers until the last division: a float power of 1/2 underflows for large n.
    return min(1.0, float(2 * tail / (1 << n)) if n < 1000 else math.exp(math.log(2 * tail) - n * math.log(2)))


def paired_change(labels: Array, wrong_before: Array, wrong_after: Array, groups: tuple[str, ...]) -> Interval:
    """95 % interval of the change of the balanced error (after - before): a bootstrap over groups, widened to hold the
    adjusted Wald interval of `_few_flips`.  One single group says nothing about another: then it is [-1, 1]."""
    classes = np.unique(labels)
    _, group = np.unique(np.array(groups), return_inverse=True)
    count = int(group.max()) + 1
    if count < 2:
        return Interval(-1.0, 1.0)
    sums, sizes = np.zeros((classes.size, count)), np.zeros((classes.size, count))
    difference = wrong_after.astype(np.int64) - wrong_before.astype(np.int64)
    for row, number in enumerate(classes):
        own = labels == number
        sums[row] = np.bincount(group[own], difference[own], count)
        sizes[row] = np.bincount(group[own], minlength=count)
    rng = np.random.default_rng(0)
    weights = rng.multinomial(count, np.full(count, 1.0 / count), RESAMPLES)
    totals = weights @ sizes.T
    with np.errstate(invalid="ignore"):
        changes = np.nanmean(np.where(totals > 0, (weights @ sums.T) / np.maximum(totals, 1), np.nan), axis=1)
    low, high = np.nanpercentile(changes, [2.5, 97.5])
    floor = _few_flips(labels, difference)
    return Interval(max(-1.0, min(float(low), floor.low)), min(1.0, max(float(high), floor.high)))


def _few_flips(labels: Array, difference: Array) -> Interval:
    """Adjusted Wald interval for paired shares (Bonett and Price 2012), per class and averaged; `difference` is +1 where
    a verdict broke, -1 where it was repaired.

    A resample of ten images without a flip never shows a flip, so the bootstrap alone would call ten images proof.
    One imagined repair and one imagined break, shared among the classes, keep the interval as wide as few images deserve."""
    classes = np.unique(labels)
    share = 1.0 / classes.size
    centre = variance = 0.0
    for number in classes:
        own = difference[labels == number]
        n = own.size + 2 * share
        broke, repaired = ((own == 1).sum() + share) / n, ((own == -1).sum() + share) / n
        centre += share * (broke - repaired)
        variance += share**2 * (broke + repaired - (broke - repaired) ** 2) / n
    half = Z95 * math.sqrt(variance)
    return Interval(float(centre - half), float(centre + half))


def t_interval(values: Array) -> tuple[float | None, float | None]:
    """95 % t-interval of the mean over seeds; (None, None) for one value."""
    if values.size < 2:
        return None, None
    quantiles = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)  # Student t, 1..9 degrees of freedom
    t = quantiles[min(values.size - 1, len(quantiles)) - 1]
    half = t * float(values.std(ddof=1)) / math.sqrt(values.size)
    return float(values.mean()) - half, float(values.mean()) + half
