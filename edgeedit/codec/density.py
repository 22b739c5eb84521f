"""A sparse change as bytes under row x column density classes: the fit of the classes, and the face of the C++ coder.

The probability that entry (i, j) is in the mask is modelled as sigmoid(a_i + b_j); the classes of rows and columns are shipped, the
fit is not: it may be in floating point, because it decides the size of the bytes and never their meaning.  Layout: core/density.h.
Guarantees: whatever the bytes, `decode` returns ascending positions with legal steps or raises IntegrityError.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgeedit.codec import _core
from edgeedit.errors import IntegrityError

Array = np.ndarray[Any, Any]
LOGIT = 0.2  # natural-log odds of one class
_ROUNDS = 6
_COARSE = (1, 2, 4)  # classes are tried at these multiples of LOGIT: few entries do not pay for fine margins


def as_matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    """(rows, columns) under which a tensor is coded: the first dimension against the rest; a vector is one row."""
    size = int(np.prod(shape, dtype=np.int64))
    return (1, size) if len(shape) == 1 else (shape[0], size // shape[0])


def fit(index: Array, rows: int, cols: int) -> tuple[Array, Array]:
    """Logits a (rows,) and b (cols,), float64, -inf where a row or column has no entry; by matching counts (damped Newton)."""
    mask = np.zeros((rows, cols), dtype=np.float32)
    mask.reshape(-1)[index] = 1.0
    row_counts, col_counts = mask.sum(1, dtype=np.float64), mask.sum(0, dtype=np.float64)
    used_rows, used_cols = np.flatnonzero(row_counts), np.flatnonzero(col_counts)
    r, c = row_counts[used_rows], col_counts[used_cols]
    height, width = used_rows.size, used_cols.size
    density = index.size / (height * width)
    overall = np.log((density * height * width + 0.5) / ((1 - density) * height * width + 0.5))
    a = np.log((r + 0.5) / (width - r + 0.5))
    b = np.log((c + 0.5) / (height - c + 0.5)) - overall
    for _ in range(_ROUNDS):
        p = _sigmoid(a, b)
        a -= 0.7 * (p.sum(1, dtype=np.float64) - r) / np.maximum((p * (1 - p)).sum(1, dtype=np.float64), 0.5)
        p = _sigmoid(a, b)
        b -= 0.7 * (p.sum(0, dtype=np.float64) - c) / np.maximum((p * (1 - p)).sum(0, dtype=np.float64), 0.5)
    full_a, full_b = np.full(rows, -np.inf), np.full(cols, -np.inf)
    full_a[used_rows], full_b[used_cols] = a, b
    return full_a, full_b


def _sigmoid(a: Array, b: Array) -> Array:
    logits = a[:, None].astype(np.float32) + b[None, :].astype(np.float32)
    with np.errstate(over="ignore"):
        result: Array = 1.0 / (1.0 + np.exp(-logits))
    return result


def _classes(logits: Array, middle: int, highest: int, coarse: int) -> Array:
    finite = np.isfinite(logits)
    numbers = np.round(np.where(finite, logits, 0.0) / (LOGIT * coarse)) * coarse + middle
    result: Array = np.where(finite, np.clip(numbers, 1, highest), 0).astype(np.uint8)
    return result


def encode(index: Array, q: Array, shape: tuple[int, ...]) -> bytes:
    """The section of a sparse change: `index` int64 ascending flat positions, `q` int16 steps; raises IntegrityError."""
    rows, cols = as_matrix(shape)
    if not index.size or index.size != q.size or int(index[0]) < 0 or int(index[-1]) >= rows * cols:
        raise IntegrityError(f"sparse part does not fit {shape}: expected ascending positions inside it, one step each")
    a, b = fit(index, rows, cols)
    capacity = 1024 + 8 * (rows + cols) + 4 * index.size + 2 * rows * (-(-cols // 8))
    best = b""
    for coarse in _COARSE:
        out = np.empty(capacity, np.uint8)
        row_class, col_class = _classes(a, 33, 64, coarse), _classes(b, 32, 63, coarse)
        status, size = _core.density_encode(np.ascontiguousarray(index), np.ascontiguousarray(q), rows, cols, row_class, col_class, out)
        if status:
            raise IntegrityError(
                f"cannot encode a sparse part of {shape}: expected ascending positions and legal steps, got status {status}"
            )
        if not best or size < len(best):
            best = out[:size].tobytes()
    return best


def decode_bitmap(data: bytes | memoryview, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """The mask as a bitmap (uint8, one bit for each element, least significant first) and the steps (int16); raises IntegrityError."""
    rows, cols = as_matrix(shape)
    section = np.frombuffer(data, np.uint8)
    status, count = _core.density_count(section, rows, cols) if section.size else (1, 0)
    if status:
        raise IntegrityError(f"sparse section does not fit {shape}: expected a header of at most {rows * cols} entries")
    bitmap, q = np.empty(-(-rows * cols // 8), np.uint8), np.empty(count, np.int16)
    workspace = np.empty(_core.density_workspace(rows, cols) // 8 + 1, np.uint64)
    if _core.density_decode(section, rows, cols, bitmap, q, workspace.view(np.uint8)):
        raise IntegrityError(f"sparse section is damaged: expected {count} entries in whole streams")
    return bitmap, q


def decode(data: bytes | memoryview, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """Positions (int64, ascending) and steps (int16) of a section for a tensor of `shape`; raises IntegrityError."""
    bitmap, q = decode_bitmap(data, shape)
    index = np.empty(q.size, np.int64)
    if _core.expand_bitmap(bitmap, index):
        raise IntegrityError(f"sparse section has a wrong bitmap: expected {q.size} bits")
    return index, q
