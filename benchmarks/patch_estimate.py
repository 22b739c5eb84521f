"""The row x column estimate: what a mask and its steps would cost an ideal adaptive coder that sees rows and columns only.

    mask   every entry in one of 24 x 24 contexts (running density of its row so far x of its column so far), each context
           coded at the Krichevsky-Trofimov length  log2 B(n0 + 1/2, n1 + 1/2) / B(1/2, 1/2)
    steps  order-0 entropy of q, per tensor

Plain numpy, independent of the codec.  An estimate, not a lower bound: a coder with other contexts can beat it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from edgeedit.delta import TensorDelta

Array = np.ndarray[Any, Any]
_CLASSES = 24


def _density_class(ratio: Array) -> Array:
    result: Array = np.clip(np.rint(2.6 * (np.log2(ratio) + 9)), 0, _CLASSES - 1).astype(np.int64)
    return result


def mask_bits(mask: Array) -> float:
    """Bits of a boolean matrix under the row x column contexts."""
    rows, cols = (np.arange(n, dtype=np.float64) for n in mask.shape)
    marks = mask.astype(np.float64)
    in_row = (np.cumsum(marks, axis=1) - marks + 3) / (cols + 30)
    in_col = (np.cumsum(marks, axis=0) - marks + 1) / (rows[:, None] + 10)
    context = (_density_class(in_row) * _CLASSES + _density_class(in_col)).reshape(-1)
    ones = np.bincount(context, weights=marks.reshape(-1), minlength=_CLASSES**2)
    zeros = np.bincount(context, minlength=_CLASSES**2) - ones
    beta = [math.lgamma(a + 0.5) + math.lgamma(b + 0.5) - math.lgamma(a + b + 1) for a, b in zip(zeros, ones, strict=True)]
    return -(sum(beta) - len(beta) * math.log(math.pi)) / math.log(2)


def entropy_bits(q: Array) -> float:
    """Order-0 entropy of all of `q`, in bits."""
    _, counts = np.unique(q, return_counts=True)
    return float((counts * np.log2(q.size / counts)).sum())


def estimate_bytes(deltas: list[TensorDelta]) -> float:
    """Bytes of all sparse parts; low-rank parts are not counted.  A tensor that is no matrix counts as one row."""
    bits = 0.0
    for delta in deltas:
        if delta.sparse is None:
            continue
        mask = np.zeros(int(np.prod(delta.shape)), dtype=bool)
        mask[delta.sparse.index] = True
        bits += mask_bits(mask.reshape(delta.shape if len(delta.shape) == 2 else (1, -1))) + entropy_bits(delta.sparse.q)
    return bits / 8
