"""Whose fault an alarm is: the running generation and its parent, both on clean and on recent frames.

    the parent sees another world too            -> `world`: keep the patch, collect frames
    only the patch spoils frames of clean days   -> `patch`: revert it
    neither can be shown                         -> `unclear`: keep

Guarantees: decides from four sets of features only; loads nothing and changes nothing.
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
MAX_FLIPS = 0.1  # share of clean verdicts that a patch may change before it can be called harmful


@dataclass(frozen=True)
class Cause:
    """`verdict` is patch, world or unclear; `reason` a sentence with the figures behind it."""

    verdict: str
    reason: str


def find_cause(parent: tuple[Array, Array], head: tuple[Array, Array], reader: Reader | None) -> Cause:
    """`parent` and `head` hold features (n, width) of (clean, recent) frames, the same frames for both.

    With a reader (features -> logits) harm is verdicts of clean frames that flip: more than MAX_FLIPS of them, by an exact binomial
    test.  Without one it is that the features of clean frames have moved (MMD, permutation test)."""
    world, p_world = mmd_test(parent[0], parent[1])
    if p_world <= LEVEL:
        return Cause("world", f"the parent sees other frames than on clean days too: MMD^2 {world:.3g}, p {p_world:.3g}")
    if not np.isfinite(head[0]).all():
        return Cause("patch", "the patch gives outputs on clean frames that are not finite")
    if reader is not None:
        flips = int((reader(parent[0]).argmax(axis=1) != reader(head[0]).argmax(axis=1)).sum())
        p_patch = binomial_tail(flips, len(head[0]), MAX_FLIPS)
        told = f"{flips} of {len(head[0])} clean verdicts flip, p {p_patch:.3g}"
    else:
        moved, p_patch = mmd_test(parent[0], head[0])
        told = f"features of clean frames moved: MMD^2 {moved:.3g}, p {p_patch:.3g}"
    if p_patch <= LEVEL:
        return Cause("patch", f"only the patch is worse: {told}; its parent sees no change, p {p_world:.3g}")
    return Cause("unclear", f"no cause can be shown: {told}; the parent sees no change, p {p_world:.3g}")
