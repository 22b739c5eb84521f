"""What a change costs in bytes, before any patch is written: the information in its positions and integers.

Guarantees: depends on the Delta only, so methods can be compared without a Bundle; a real patch is larger by headers,
probes and signatures and by what its coder loses.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from edgeedit.delta import LowRankPart, SparsePart, TensorDelta

Array = np.ndarray[Any, Any]


def entropy_bits(values: Array) -> float:
    """Zeroth-order entropy of integers, in bits for all of them together."""
    _, counts = np.unique(values, return_counts=True)
    return float(-(counts * np.log2(counts / values.size)).sum())


def position_bits(count: int, size: int) -> float:
    """log2 of the number of ways to choose `count` of `size` positions."""
    return (math.lgamma(size + 1) - math.lgamma(count + 1) - math.lgamma(size - count + 1)) / math.log(2)


def delta_bytes(tensors: Sequence[TensorDelta]) -> int:
    """Least bytes of all tensors: positions and integers coded at their entropy."""
    total = sum(_bits(t.sparse, t.low_rank, t.shape) for t in tensors)
    return math.ceil(total / 8)


def _bits(sparse: SparsePart | None, low_rank: LowRankPart | None, shape: tuple[int, ...]) -> float:
    bits = 0.0
    if sparse is not None:
        bits += position_bits(sparse.index.size, math.prod(shape)) + entropy_bits(sparse.q)
    if low_rank is not None:
        bits += entropy_bits(low_rank.a) + entropy_bits(low_rank.b)
        bits += position_bits(low_rank.rows.size, shape[0]) + position_bits(low_rank.cols.size, shape[1])
    return bits
