"""From trained float values to the integer form of a Delta, and how much of it survives a precision.

Guarantees: every number fits the rounding rule (steps of 16 significant bits, |q| <= 127, int8 factors, power-of-two
scale).  Entries that round to zero are dropped.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from edgeedit.delta import LowRankPart, SparsePart
from edgeedit.limits import MAX_STEP
from edgeedit.rounding import legal_step, low_rank_product

Array = np.ndarray[Any, Any]


def sparse_part(index: Array, values: Array, bits: int) -> SparsePart | None:
    """Integers q with step = rms of the non-zero values x 2^(2 - bits); the step grows where |q| would pass 127."""
    kept = values[values != 0].astype(np.float64)
    if kept.size == 0:
        return None
    step = max(float(np.sqrt((kept**2).mean())) * 2.0 ** (2 - bits), float(np.abs(kept).max()) / MAX_STEP * (1 + 2.0**-15))
    legal = legal_step(step)
    q = np.rint(values.astype(np.float64) / legal).astype(np.int16)
    keep = q != 0
    return SparsePart(index[keep], q[keep], legal) if keep.any() else None


def low_rank_part(rows: Array, a: Array, b: Array) -> LowRankPart | None:
    """int8 factors of A.B after an SVD that orders the components and balances the factors; t is a power of two."""
    # Of the small core between two orthonormal bases: the product itself has thousands of columns and only `rank` components.
    (basis, left_core), (cobasis, right_core) = np.linalg.qr(a.astype(np.float64)), np.linalg.qr(b.astype(np.float64).T)
    u, sizes, v = np.linalg.svd(left_core @ right_core.T, full_matrices=False)
    u, v = basis @ u, v @ cobasis.T
    rank = min(a.shape[1], int((sizes > 1e-12 * max(sizes[0], 1e-300)).sum()))
    if sizes[0] == 0 or rank == 0:
        return None
    left, right = u[:, :rank] * sizes[:rank], v[:rank]
    tops = np.abs(left).max(axis=0), np.abs(right).max(axis=1)
    # t must let the largest component's product reach 127 * 127; a smaller component spreads its range over both factors.
    scale = 2.0 ** math.ceil(math.log2(float((tops[0] * tops[1]).max()) / MAX_STEP**2))
    ratio = np.sqrt(tops[1] / tops[0] / scale)  # balances |A| and |B|
    left_int, right_int = np.rint(left * ratio), np.rint(right / (ratio * scale)[:, None])
    keep = (left_int != 0).any(axis=0) & (right_int != 0).any(axis=1)
    if not keep.any():
        return None
    factors = [np.ascontiguousarray(np.clip(x, -MAX_STEP, MAX_STEP).astype(np.int8)) for x in (left_int[:, keep], right_int[keep])]
    return LowRankPart(rows, np.arange(b.shape[1], dtype=np.int64), factors[0], factors[1], scale)


def to_bfloat16(values: Array) -> Array:
    """float32 rounded to bfloat16 (nearest even), still stored as float32."""
    bits = values.astype(np.float32).view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    return rounded.astype(np.uint32).view(np.float32)


def survival(old: Array, new: Array, precision: str) -> tuple[int, int]:
    """(changed, declared): of the elements that differ in float32, how many still differ after rounding both."""
    differ = old != new
    before, after = old[differ], new[differ]
    if precision == "bfloat16":
        before, after = to_bfloat16(before), to_bfloat16(after)
    else:
        before, after = before.astype(precision), after.astype(precision)
    return int((before != after).sum()), int(differ.sum())


def rounded_values(values: torch.Tensor, bits: int) -> torch.Tensor:
    """What `sparse_part` makes of `values` (1-D), on their device: the integer form as numbers."""
    array = values.cpu().numpy()
    part = sparse_part(np.arange(array.size, dtype=np.int64), array, bits)
    result = np.zeros_like(array)
    if part is not None:
        result[part.index] = np.float32(part.step) * part.q
    return torch.from_numpy(result).to(values)


def rounded_low_rank(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """What `low_rank_part` makes of A.B, on their device."""
    part = low_rank_part(np.arange(a.shape[0], dtype=np.int64), a.cpu().numpy(), b.cpu().numpy())
    if part is None:
        return torch.zeros_like(a @ b)
    return torch.from_numpy(np.float32(part.scale) * low_rank_product(part)).to(a)
