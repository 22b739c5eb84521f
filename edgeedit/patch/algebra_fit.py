"""`fit_change`: the cheapest legal change that turns one given tensor into another, bit for bit (the heart of `squash`).

    residual = new - old - t*(A.B);  q = nearest(residual / s);  where the rounding rule still misses: corrections of its bits

A sum of rounded steps is not the rounded sum, so no choice of integers alone repeats a chain.  Instead of adding up q, this
takes the chain's RESULT as the target, tries the steps and low-rank parts that the chain offers, and corrects what is missed: on top
of the nearest q (a difference of a unit or two in the last place) or in its place (a larger difference, no q), whichever is cheaper.
Guarantees: rule + corrections give `new` bit for bit for every candidate; the cheapest by estimated bits is returned.
Does not encode anything, and knows no names.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgeedit.bundle import DTYPES
from edgeedit.delta import ExactPart, LowRankPart, SparsePart, TensorDelta
from edgeedit.errors import InputError
from edgeedit.limits import MAX_RANK, MAX_SQUASH_STEP, MAX_STEP, MIN_SCALE_EXP
from edgeedit.rounding import finite, low_rank_product, narrow, widen

Array = np.ndarray[Any, Any]
_FINER = (0, 1, 2, 3, 4, 5)  # power-of-two steps tried: the grid of the typical changed weight, divided by 2^0 .. 2^5


@dataclass(frozen=True)
class Fit:
    """A change of one tensor: parts of the rounding rule and corrections, None where there is none.  `cost` is the estimate in bits by
    which it was chosen."""

    sparse: SparsePart | None
    low_rank: LowRankPart | None
    exact: ExactPart | None
    cost: float


def fit_change(old: Array, new: Array, parts: Sequence[TensorDelta]) -> Fit | None:
    """The cheapest candidate for `old` -> `new` (one deployed dtype and shape, finite where they differ), or None when they
    are equal bit for bit.  `parts` are the chain's changes of this tensor.  Raises InputError when the tensors do not pair."""
    if old.dtype != new.dtype or old.shape != new.shape or old.dtype not in DTYPES.values():
        raise InputError(f"cannot compare tensors: expected one dtype and shape, got {old.dtype} {old.shape} and {new.dtype} {new.shape}")
    if np.array_equal(_bits(old), _bits(new)):
        return None
    if old.dtype == np.int8:
        return _fit_codes(old, new)
    lows: list[LowRankPart | None] = [None, *_low_rank_candidates([part.low_rank for part in parts if part.low_rank is not None])]
    fits = [fit for low in lows for step in (None, *_steps(old, new, parts)) for fit in _fits(old, new, low, step)]
    return min(fits, key=lambda fit: fit.cost)


def _bits(array: Array) -> Array:
    result: Array = np.ascontiguousarray(array).reshape(-1).view(f"u{array.dtype.itemsize}")
    return result


def _steps(old: Array, new: Array, parts: Sequence[TensorDelta]) -> list[float]:
    """The chain's own steps and low-rank scales, and (16-bit floats only, where a step can be as fine as the weights' grid)
    powers of two."""
    steps = {part.sparse.step for part in parts if part.sparse is not None}
    steps |= {part.low_rank.scale for part in parts if part.low_rank is not None}
    if old.dtype.itemsize == 2:
        differ = _bits(old) != _bits(new)
        spacing = _spacing(new.reshape(-1)[differ])
        grid = round(math.log2(float(np.median(spacing))))
        steps |= {2.0 ** max(grid - finer, MIN_SCALE_EXP) for finer in _FINER}
    return sorted(steps)


def _spacing(values: Array) -> Array:
    """Distance to the next larger magnitude, float64; bfloat16 has 16 bits of significand less than float32."""
    if values.dtype == np.uint16:
        return np.spacing(np.abs(widen(values))).astype(np.float64) * 2.0**16
    return np.spacing(np.abs(values)).astype(np.float64)


def _fit_codes(old: Array, new: Array) -> Fit:
    """Codes differ by whole numbers of at most 255, so integers alone always fit."""
    change = new.astype(np.int16).reshape(-1) - old.astype(np.int16).reshape(-1)
    index = np.flatnonzero(change).astype(np.int64)
    sparse = SparsePart(index, change[index], 1.0)
    return Fit(sparse, None, None, _cost(old.size, sparse, None, None))


def _low_rank_candidates(parts: Sequence[LowRankPart]) -> list[LowRankPart]:
    """Each part alone (the others then fall to the sparse part), and the exact sum of all where it is representable."""
    if len(parts) < 2:
        return list(parts)
    joined = join_low_rank(parts)
    return [parts[-1]] if joined is None else [joined]


def join_low_rank(parts: Sequence[LowRankPart]) -> LowRankPart | None:
    """The exact sum of low-rank parts as one: factors side by side over the union of rows and columns, all brought to the
    smallest scale.  None when a factor would leave int8 or the rank its limit."""
    scale = min(part.scale for part in parts)
    rows, cols = (_union(getattr(part, key) for part in parts) for key in ("rows", "cols"))
    rank = sum(part.a.shape[1] for part in parts)
    if rank > MAX_RANK:
        return None
    a, b = np.zeros((rows.size, rank), np.int64), np.zeros((rank, cols.size), np.int64)
    at = 0
    for part in parts:
        end = at + part.a.shape[1]
        left, right = _spread(part, round(math.log2(part.scale / scale)))
        a[np.searchsorted(rows, part.rows), at:end] = left
        b[at:end, np.searchsorted(cols, part.cols)] = right
        at = end
    if max(int(np.abs(a).max()), int(np.abs(b).max())) > MAX_STEP:
        return None
    return LowRankPart(rows, cols, a.astype(np.int8), b.astype(np.int8), scale)


def _union(arrays: Iterable[Array]) -> Array:
    return np.unique(np.concatenate(list(arrays))).astype(np.int64)


def _spread(part: LowRankPart, exponent: int) -> tuple[Array, Array]:
    """Factors times 2^exponent, as much of it as fits on the left of each component, the rest on the right."""
    a, b = part.a.astype(np.int64), part.b.astype(np.int64)
    for component in range(a.shape[1]):
        room = math.floor(math.log2(MAX_STEP / max(int(np.abs(a[:, component]).max()), 1)))
        left = min(exponent, max(room, 0))
        a[:, component] <<= left
        b[component] <<= min(exponent - left, MAX_STEP.bit_length())  # beyond that it is out of range anyway
    return a, b


def _fits(old: Array, new: Array, low: LowRankPart | None, step: float | None) -> list[Fit]:
    """Both ways to correct what `low` and `step` miss; one where there is no step."""
    target = _bits(new)
    before = widen(old).reshape(-1)
    product = np.zeros(old.shape, dtype=np.float32)
    touched = np.zeros(old.shape, dtype=bool)
    if low is not None:
        grid = np.ix_(low.rows, low.cols)
        product[grid] = np.float32(low.scale) * low_rank_product(low)
        touched[grid] = True
    product, touched = product.reshape(-1), touched.reshape(-1)
    # Only elements that differ, or that the low-rank part moves, can need anything.
    work = np.flatnonzero(touched | (_bits(old) != target))
    q = np.zeros(work.size, dtype=np.int64)
    if step is not None:
        with np.errstate(invalid="ignore", over="ignore"):
            wish = (widen(new.reshape(-1)[work]).astype(np.float64) - before[work] - product[work]) / step
        q = np.rint(np.clip(np.nan_to_num(wish), -MAX_SQUASH_STEP, MAX_SQUASH_STEP)).astype(np.int64)
    made = _rule(old.reshape(-1)[work], before[work], q, step or 0.0, product[work], touched[work])
    missed, found = _bits(made) != target[work], []
    for drop in [missed & ~finite(made), missed] if missed.any() and step is not None else [missed]:
        # A non-finite sum is refused by the rule even where a correction follows; dropping q settles that for the sparse part.
        kept = np.where(drop, 0, q)
        made = _rule(old.reshape(-1)[work], before[work], kept, step or 0.0, product[work], touched[work])
        chosen = np.flatnonzero(kept)
        sparse = SparsePart(work[chosen], kept[chosen].astype(np.int16), step) if step is not None and chosen.size else None
        exact = _corrections(made, target[work], work)
        found.append(Fit(sparse, low, exact, _cost(old.size, sparse, low, exact) if finite(made).all() else math.inf))
    return found


def _corrections(made: Array, target: Array, index: Array) -> ExactPart | None:
    """What must be added to the bits of `made` at flat positions `index`: the signed difference of least magnitude."""
    width = 8 * made.dtype.itemsize
    difference = target.astype(np.int64) - _bits(made).astype(np.int64)
    difference = (difference + (1 << (width - 1))) % (1 << width) - (1 << (width - 1))
    missed = np.flatnonzero(difference)
    return ExactPart(index[missed], difference[missed]) if missed.size else None


def _rule(old: Array, before: Array, q: Array, step: float, product: Array, in_low_rank: Array) -> Array:
    """The rounding rule on a flat selection; elements that neither part names keep their bits."""
    with np.errstate(over="ignore", invalid="ignore"):
        moved = narrow((before + np.float32(step) * q.astype(np.float32)) + product, old.dtype)
    result: Array = np.where((q != 0) | in_low_rank, moved, old)
    return result


def _cost(size: int, sparse: SparsePart | None, low: LowRankPart | None, exact: ExactPart | None) -> float:
    """Estimated bits: positions by entropy, steps and the bytes of corrections by their order-0 entropy, factors as they are."""
    bits = 0.0
    if exact is not None:
        zigzag = np.where(exact.difference < 0, -2 * exact.difference - 1, 2 * exact.difference)
        bits += _positions(size, exact.index.size) + sum(_entropy(zigzag >> shift & 255) for shift in (0, 8, 16, 24))
    if sparse is not None:
        bits += _positions(size, sparse.index.size) + _entropy(sparse.q) + 16 * np.unique(sparse.q).size
    if low is not None:
        bits += 8 * (low.a.size + low.b.size)
    return bits


def _entropy(values: Array) -> float:
    _, counts = np.unique(values, return_counts=True)
    return float((counts * np.log2(values.size / counts)).sum())


def _positions(size: int, count: int) -> float:
    if count in (0, size):
        return 0.0
    share = count / size
    return size * (-share * math.log2(share) - (1 - share) * math.log2(1 - share))
