"""Applies the change of one tensor with the C++ core, and copies tensors at memory speed for the swap of a running engine.

Guarantees: bit for bit the result of `edgeedit.rounding.apply_delta`, whatever the platform, thread count or floating-point
control register; the GIL is released while it computes; `old` is never written; a refused copy changes nothing.  Does not
know names beyond messages, files or digests, and does not make a copy atomic for a reader: the caller holds the frame lock.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import numpy as np

from edgeedit.codec import _core
from edgeedit.codec.density import as_matrix
from edgeedit.delta import ExactPart, LowRankPart, SparsePart, TensorDelta
from edgeedit.errors import IntegrityError
from edgeedit.rounding import check_scale, correct

Array = np.ndarray[Any, Any]
# Numbers are those of edgeedit::Dtype in core.h; bfloat16 is carried as uint16.
_DTYPES = {np.dtype(np.float32): 0, np.dtype(np.float16): 1, np.dtype(np.uint16): 2, np.dtype(np.int8): 3}
# Index and meaning are those of edgeedit::Status in core.h.
_REASONS = (
    "",
    "expected parts that fit the tensor",
    "expected sizes inside the limits",
    "expected ascending positions inside the tensor",
    "expected steps 1 <= |q| <= 255",
    "expected a legal step and scale",
    "expected finite weights",
    "expected bytes that a writer makes",
    "expected integers with step 1 and codes in -128..127",
)
_NOT_FINITE = 6


def apply_delta(old: Array, delta: TensorDelta) -> Array:
    """The new tensor, same shape and dtype as `old` (float32, float16, bfloat16 as uint16, int8; C order, native byte order); elements
    that `delta` does not name keep their bits.  Raises IntegrityError when `old` does not fit or a result is not finite or no
    int8 code."""
    _check(old, delta.name, delta.shape)
    if delta.sparse is not None:
        check_scale(delta.sparse.step, power_of_two=False)
    if delta.low_rank is not None:
        check_scale(delta.low_rank.scale, power_of_two=True)
    height, width = delta.shape if len(delta.shape) == 2 else (1, old.size)
    if delta.sparse is None and delta.low_rank is None:
        new = np.array(old, order="C", subok=False)
    else:
        new = np.empty_like(old, order="C", subok=False)
        parts = _sparse(delta.sparse), _low_rank(delta.low_rank)
        _raise(_core.apply(_DTYPES[old.dtype], _octets(old), _octets(new), height, width, *parts), delta.name)
    if delta.exact is not None:
        correct(new, delta.exact, delta.name)
    return new


def apply_coded(
    old: Array, name: str, section: bytes | memoryview, step: float, low_rank: LowRankPart | None = None, exact: ExactPart | None = None
) -> Array:
    """The new tensor as `apply_delta` makes it, straight from a sparse section (and the other parts of the same tensor): one pass, and
    beside the result no memory that grows with the number of entries.  `old` as there; raises IntegrityError as there, and when
    the section is damaged."""
    _check(old, name, old.shape)
    check_scale(step, power_of_two=False)
    if low_rank is not None:
        check_scale(low_rank.scale, power_of_two=True)
    rows, cols = as_matrix(old.shape)
    new = np.empty_like(old, order="C", subok=False)
    workspace = np.empty(_core.density_workspace(rows, cols) // 8 + 1, np.uint64).view(np.uint8)
    data = np.frombuffer(section, np.uint8)
    status = _core.density_apply(
        _DTYPES[old.dtype], _octets(old), _octets(new), rows, cols, data, step, _low_rank(low_rank), workspace
    )  # fmt: skip
    _raise(status, name)
    if exact is not None:
        correct(new, exact, name)
    return new


def _raise(status: int, name: str) -> None:
    if status == _NOT_FINITE:
        raise IntegrityError(f"delta makes {name} not finite: expected finite weights")
    if status:
        raise IntegrityError(f"delta does not fit {name}: {_REASONS[status]}")


def copy_tensors(pairs: Iterable[tuple[Array, Array]]) -> None:
    """Copy each (target, source) pair; both C-contiguous with one shape and dtype, targets writable.  Raises IntegrityError."""
    octets = []
    for target, source in pairs:
        if target.shape != source.shape or target.dtype != source.dtype:
            raise IntegrityError(f"cannot copy a tensor: expected {target.dtype} {target.shape}, got {source.dtype} {source.shape}")
        if not (target.flags.c_contiguous and source.flags.c_contiguous and target.flags.writeable):
            raise IntegrityError("cannot copy a tensor: expected contiguous arrays and a writable target")
        octets.append((target.reshape(-1).view(np.uint8), source.reshape(-1).view(np.uint8)))
    if _core.copy_tensors(octets):
        raise IntegrityError("cannot copy a tensor: expected equal lengths")


def _check(old: Array, name: str, shape: tuple[int, ...]) -> None:
    if tuple(old.shape) != shape:
        raise IntegrityError(f"delta does not fit {name}: expected shape {shape}, got {tuple(old.shape)}")
    if old.dtype not in _DTYPES or not old.dtype.isnative:
        raise IntegrityError(
            f"cannot change {name}: expected float32, float16, bfloat16 or int8 in {sys.byteorder} endian order, got {old.dtype.str}"
        )
    if not old.flags.c_contiguous:
        raise IntegrityError(f"cannot change {name}: expected a C-contiguous tensor, got strides {old.strides}")


def _octets(array: Array) -> Array:
    return array.reshape(-1).view(np.uint8)


def _sparse(part: SparsePart | None) -> _core.SparseInput | None:
    if part is None:
        return None
    return _core.SparseInput(np.ascontiguousarray(part.index), None, np.ascontiguousarray(part.q), part.step)


def _low_rank(part: LowRankPart | None) -> _core.LowRankInput | None:
    if part is None:
        return None
    rows, cols = np.ascontiguousarray(part.rows), np.ascontiguousarray(part.cols)
    # reshape(-1) keeps C order and copies only where a factor is not contiguous.
    return _core.LowRankInput(rows, cols, part.a.reshape(-1), part.b.reshape(-1), part.a.shape[1], part.scale)
