"""Whose fault an alarm is: the running generation and its parent, both on clean and on recent frames.

    the parent sees another world too                         -> `world`: keep the patch, collect frames
    only the patch spoils frames of clean days, or operators
    override more while the parent sees the world it knew     -> `patch`: revert it
    neither can be shown                                      -> `unclear`: keep

Guarantees: decides from four sets of features only; loads nothing and changes nothing.  Features that merely moved are no harm:
a patch is made to move them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgeedit.device.monitor.statistics import binomial_tail, mmd_test

Array = np.ndarray[Any, Any]
Reader = Callable[[Array], Array]
LEVEL = 0.01  # of each test
# Share of clean verdicts that a patch may change; three honest edits changed 2.1, 2.4 and 4.0 % of 327 development cells.
MAX_FLIPS = 0.05


@dataclass(frozen=True)
class Cause:
    """`verdict` is patch, world or unclear; `reason` a sentence with the figures behind it."""

    verdict: str
    reason: str


def harm(before: Array, after: Array) -> tuple[int, float]:
    """(flips, p): verdicts int64 (n,) of the same clean frames that differ, and how likely so many are where MAX_FLIPS is true."""
    flips = int((before != after).sum())
    return flips, binomial_tail(flips, len(before), MAX_FLIPS)


def find_cause(parent: tuple[Array, Array], head: tuple[Array, Array], reader: Reader | None, *, overridden: bool = False) -> Cause:
    """`parent` and `head` hold features (n, width) of (clean, recent) frames, the same frames for both.

    Without a `reader` (features -> logits) there are no verdicts, so that only outputs which are not finite and operators
    (`overridden`: they override more than on clean days) can show that a patch is harmful."""
    world, p_world = mmd_test(parent[0], parent[1])
    if p_world <= LEVEL:
        return Cause("world", f"the parent sees other frames than on clean days too: MMD^2 {world:.3g}, p {p_world:.3g}")
    if not np.isfinite(head[0]).all():
        return Cause("patch", "the patch gives outputs on clean frames that are not finite")
    same = f"the parent sees no change, p {p_world:.3g}"
    told = "no reader gives verdicts"
    if reader is not None:
        flips, p_patch = harm(reader(parent[0]).argmax(axis=1), reader(head[0]).argmax(axis=1))
        told = f"{flips} of {len(head[0])} clean verdicts flip, p {p_patch:.3g}"
        if p_patch <= LEVEL:
            return Cause("patch", f"only the patch is worse: {told}; {same}")
    if overridden:
        return Cause("patch", f"only the patch is worse: operators override it; {same}")
    return Cause("unclear", f"no cause can be shown: {told}; {same}")
