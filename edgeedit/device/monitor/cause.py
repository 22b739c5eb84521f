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

from edgeedit.device.monitor.statistics import binomial_tail
from edgeedit.mmd import mmd_test
from edgeedit.patch.manifest import USUAL_FLIPS

Array = np.ndarray[Any, Any]
Reader = Callable[[Array], Array]
LEVEL = 0.01  # of each test


@dataclass(frozen=True)
class Cause:
    """`verdict` is patch, world or unclear; `reason` a sentence with the figures behind it."""

    verdict: str
    reason: str


@dataclass(frozen=True)
class Harm:
    """`flips` of `frames` verdicts on frames of a world that the parent knows differ from the parent's, where the share `allowed` may."""

    flips: int
    frames: int
    allowed: float

    @property
    def p(self) -> float:
        """How likely so many are where the share is exactly the allowed one."""
        return binomial_tail(self.flips, self.frames, self.allowed)

    def sentence(self) -> str:
        """The figures."""
        return f"{self.flips} of {self.frames} clean verdicts flip where a share of {self.allowed:.3g} may, p {self.p:.3g}"


def harm(before: Array, after: Array, allowed: float) -> Harm:
    """Of verdicts int64 (n,) of the same clean frames by a parent and its patch."""
    return Harm(int((before != after).sum()), len(before), allowed)


def find_cause(
    parent: tuple[Array, Array],
    head: tuple[Array, Array],
    reader: Reader | None,
    *,
    overridden: bool = False,
    allowed: float = USUAL_FLIPS,
) -> Cause:
    """`parent` and `head` hold features (n, width) of (clean, recent) frames, the same frames for both; the patch may change the share
    `allowed` of clean verdicts.

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
        found = harm(reader(parent[0]).argmax(axis=1), reader(head[0]).argmax(axis=1), allowed)
        told = found.sentence()
        if found.p <= LEVEL:
            return Cause("patch", f"only the patch is worse: {told}; {same}")
    if overridden:
        return Cause("patch", f"only the patch is worse: operators override it; {same}")
    return Cause("unclear", f"no cause can be shown: {told}; {same}")
