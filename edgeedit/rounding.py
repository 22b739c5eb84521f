"""The one definition of a new weight (architecture, decision 2), in plain numpy; the C++ core is compared with it.

    new = round_to_dtype((float32(old) + s*q) + t*(A.B))

Sparse part first, then low rank, float32 between, ONE rounding at the end, nearest even, subnormals kept.  `s` has at
most 16 significant bits and |q| <= 255, so s*q is exact in float32; A and B are int8 and the rank is at most 1024, so
every sum of A.B is an integer below 2^24 and exact; `t` is a power of two.  Hence neither FMA nor thread count nor
summation order can change a bit.  A non-finite result is refused.

An int8 tensor holds codes (weight = scale * code): there the change is `code + q` in the integers, without step (it is 1) and
without low-rank part, and a sum outside -128..127 is refused; whoever makes the patch chooses codes that fit.  bfloat16 is
carried as uint16.

Corrections come last, on the bits of what the rule gave: bits + difference, modulo 2^16 or 2^32.  Only a squash has them, where no
integers repeat what a chain of roundings made.  int8 codes have none.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from edgeedit.delta import ExactPart, LowRankPart, SparsePart, TensorDelta
from edgeedit.errors import InputError, IntegrityError
from edgeedit.limits import MAX_SCALE_BITS, MAX_SCALE_EXP, MIN_SCALE_EXP

Array = np.ndarray[Any, Any]


def check_scale(value: float, *, power_of_two: bool) -> None:
    """Raise IntegrityError unless `value` is a legal step `s` (<= 16 significant bits) or power of two `t`."""
    if not (math.isfinite(value) and 2.0**MIN_SCALE_EXP <= value <= 2.0**MAX_SCALE_EXP):
        raise IntegrityError(f"scale out of range: expected 2^{MIN_SCALE_EXP}..2^{MAX_SCALE_EXP}, got {value!r}")
    mantissa, _ = math.frexp(value)
    bits = 1 if power_of_two else MAX_SCALE_BITS
    if (mantissa * 2.0**bits) != int(mantissa * 2.0**bits):
        raise IntegrityError(f"scale has too many significant bits: expected at most {bits}, got {value!r}")


def legal_step(value: float) -> float:
    """The nearest float with at most 16 significant bits, clamped into the legal range."""
    if not math.isfinite(value) or value <= 0:
        raise InputError(f"step is not positive and finite: got {value!r}")
    mantissa, exponent = math.frexp(min(max(value, 2.0**MIN_SCALE_EXP), 2.0**MAX_SCALE_EXP))
    return math.ldexp(round(mantissa * 2.0**MAX_SCALE_BITS) / 2.0**MAX_SCALE_BITS, exponent)


def low_rank_product(part: LowRankPart) -> Array:
    """Exact integer A.B as float32, shape (len(rows), len(cols))."""
    return (part.a.astype(np.int32) @ part.b.astype(np.int32)).astype(np.float32)


def widen(array: Array) -> Array:
    """Stored float32, float16 or (as uint16) bfloat16 values as float32; exact."""
    if array.dtype == np.uint16:
        single: Array = (array.astype(np.uint32) << np.uint32(16)).view(np.float32)
        return single
    wide: Array = array.astype(np.float32)
    return wide


def narrow(values: Array, dtype: np.dtype[Any]) -> Array:
    """float32 values rounded once to a stored dtype, nearest even; too large ones become infinite, NaN stays NaN."""
    if dtype != np.uint16:
        with np.errstate(over="ignore"):
            stored: Array = values.astype(dtype)
        return stored
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits.astype(np.uint64) + 0x7FFF + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint64(16)
    result: Array = np.where(np.isnan(values), (bits >> np.uint32(16)) | np.uint32(0x40), rounded).astype(np.uint16)
    return result


def finite(array: Array) -> Array:
    """Boolean array: which stored values are finite; every integer code is."""
    result: Array = np.isfinite(widen(array) if array.dtype == np.uint16 else array)
    return result


def apply_delta(old: Array, delta: TensorDelta) -> Array:
    """The new tensor, same shape and dtype as `old` (float32, float16, bfloat16 as uint16, int8); raises IntegrityError when
    a result is not finite or no int8 code."""
    if tuple(old.shape) != delta.shape:
        raise IntegrityError(f"delta does not fit {delta.name}: expected shape {delta.shape}, got {tuple(old.shape)}")
    if old.dtype == np.int8:
        return _add_codes(old, delta)
    work = widen(old)
    touched = np.zeros(old.shape, dtype=bool)
    if delta.sparse is not None:
        flat = work.reshape(-1)
        flat[delta.sparse.index] += np.float32(delta.sparse.step) * delta.sparse.q.astype(np.float32)
        touched.reshape(-1)[delta.sparse.index] = True
    if delta.low_rank is not None:
        grid = np.ix_(delta.low_rank.rows, delta.low_rank.cols)
        work[grid] += np.float32(delta.low_rank.scale) * low_rank_product(delta.low_rank)
        touched[grid] = True
    new = narrow(work, old.dtype)
    # Untouched elements keep their bits, including the payload of a NaN.
    result = np.where(touched, new, old)
    if not finite(new[touched]).all():
        raise IntegrityError(f"delta makes {delta.name} not finite: expected finite weights")
    if delta.exact is not None:
        correct(result, delta.exact, delta.name)
    return result


def correct(made: Array, part: ExactPart, name: str) -> None:
    """Add corrections to the stored bits of `made` (C order, float32, float16 or bfloat16 as uint16) in place; raises IntegrityError
    when a position lies outside or a corrected weight is not finite."""
    if made.dtype == np.int8 or int(part.index[-1]) >= made.size:
        raise IntegrityError(f"corrections do not fit {name}: expected positions inside {made.shape} floats, got {made.dtype}")
    word = np.dtype(f"u{made.dtype.itemsize}")
    bits = made.reshape(-1).view(word)
    bits[part.index] += (part.difference & np.iinfo(word).max).astype(word)
    if not finite(made.reshape(-1)[part.index]).all():
        raise IntegrityError(f"corrections make {name} not finite: expected finite weights")


def _add_codes(old: Array, delta: TensorDelta) -> Array:
    if delta.exact is not None or delta.low_rank is not None or (delta.sparse is not None and delta.sparse.step != 1.0):
        raise IntegrityError(f"delta does not fit {delta.name}: expected integers with step 1 alone for int8 codes")
    codes = old.astype(np.int32)
    if delta.sparse is not None:
        codes.reshape(-1)[delta.sparse.index] += delta.sparse.q
    if codes.min() < -128 or codes.max() > 127:
        raise IntegrityError(f"delta makes {delta.name} leave int8: expected codes in -128..127")
    return codes.astype(np.int8)


def changed_elements(delta: TensorDelta) -> Array:
    """Boolean array of `delta.shape`: the elements that the delta declares it may change."""
    declared = np.zeros(delta.shape, dtype=bool)
    if delta.sparse is not None:
        declared.reshape(-1)[delta.sparse.index] = True
    if delta.low_rank is not None:
        declared[np.ix_(delta.low_rank.rows, delta.low_rank.cols)] = True
    if delta.exact is not None:
        declared.reshape(-1)[delta.exact.index] = True
    return declared


def transpose_delta(delta: TensorDelta, name: str) -> TensorDelta:
    """The same change for the transposed matrix, under the deployed `name`; indices are re-sorted.  Raises InputError for anything
    but a parameter's change of a matrix."""
    if len(delta.shape) != 2 or delta.exact is not None:
        raise InputError(f"cannot transpose {delta.name}: expected 2 dimensions and no corrections, got {len(delta.shape)}")
    height, width = delta.shape
    sparse, low_rank = None, None
    if delta.sparse is not None:
        row, col = np.divmod(delta.sparse.index, width)
        moved = col * height + row
        order = np.argsort(moved, kind="stable")
        sparse = SparsePart(moved[order], delta.sparse.q[order], delta.sparse.step)
    if delta.low_rank is not None:
        part = delta.low_rank
        low_rank = LowRankPart(part.cols, part.rows, np.ascontiguousarray(part.b.T), np.ascontiguousarray(part.a.T), part.scale)
    return TensorDelta(name, (width, height), sparse, low_rank)
