"""Byte sections of a patch, format v1: a sparse part, a low-rank part and corrections as bytes and back.

    sparse    the coder of edgeedit/codec/density.py
    dense     the same part of a small tensor: q of every element (0: no entry), as planes of 2 bytes (edgeedit/codec/planes.py)
    low rank  u32 rank | u32 rows | u32 columns | u32 flags (1 all rows, 2 all columns, 4 gaps) | u32 length | zlib(payload)
    payload   u32 row indices unless all rows | u32 column indices unless all columns | int8 A | int8 B; by flag 4 an index
              is what lies between it and the one before, so the rows of a head are a number and zeros
    exact     u32 length | positions, as a sparse section whose steps are all 1 | differences, as planes of the dtype's bytes

All integers are little-endian.  Steps and scales are not here: they are in the manifest.
Guarantees: whatever the bytes, a decoder returns a valid part or raises IntegrityError; the size of everything is known and
checked before it is allocated, so a small section cannot unfold into a large one.  Does not verify who made the bytes.
"""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np

from edgeedit.codec import density, planes
from edgeedit.delta import TensorDelta
from edgeedit.errors import IntegrityError
from edgeedit.limits import MAX_DENSE_ELEMENTS, MAX_DIMS, MAX_PATCH_BYTES, MAX_RANK, MAX_SQUASH_STEP, MAX_TENSOR_ELEMENTS

Array = np.ndarray[Any, Any]
_LOW_RANK_HEAD = struct.Struct("<IIIII")
_EXACT_HEAD = struct.Struct("<I")
_ALL_ROWS, _ALL_COLS, _GAPS = 1, 2, 4
_LEVEL, _RAW = 9, -15  # _RAW: deflate blocks without zlib's header and checksum


def encode_sparse(delta: TensorDelta) -> bytes:
    """The sparse part of `delta` as a section; raises IntegrityError when it has none."""
    part = delta.sparse
    if part is None:
        raise IntegrityError(f"{delta.name} has no sparse part: expected one to encode")
    _elements(delta.shape)
    return density.encode(part.index.astype(np.int64), part.q.astype(np.int16), delta.shape)


def decode_sparse(data: bytes | memoryview, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """The positions (int64, ascending) and steps (int16) of a sparse section for a tensor of `shape`; raises IntegrityError."""
    _elements(shape)
    view = memoryview(data).cast("B")
    if not 0 < len(view) <= MAX_PATCH_BYTES:
        raise IntegrityError(f"sparse section has a wrong length: expected 1..{MAX_PATCH_BYTES} bytes, got {len(view)}")
    return density.decode(view, shape)


def encode_dense(delta: TensorDelta) -> bytes:
    """The sparse part of a small tensor with the step of every element; raises IntegrityError when it has none or is too large."""
    part, size = delta.sparse, _elements(delta.shape)
    if part is None or size > MAX_DENSE_ELEMENTS:
        raise IntegrityError(
            f"{delta.name} has no dense section: expected a sparse part and at most {MAX_DENSE_ELEMENTS} elements, got {size}"
        )
    steps = np.zeros(size, np.int64)
    steps[part.index] = part.q
    return planes.pack(steps, 2)


def decode_dense(data: bytes | memoryview, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """The positions (int64, ascending) and steps (int16) of a dense section for a tensor of `shape`; raises IntegrityError."""
    size = _elements(shape)
    if size > MAX_DENSE_ELEMENTS:
        raise IntegrityError(f"dense section does not fit {shape}: expected at most {MAX_DENSE_ELEMENTS} elements, got {size}")
    steps = planes.unpack(data, size, 2, "dense section")
    if not steps.any() or int(np.abs(steps).max()) > MAX_SQUASH_STEP:
        raise IntegrityError(f"dense section has wrong steps: expected |q| <= {MAX_SQUASH_STEP}, not all 0")
    index = np.flatnonzero(steps).astype(np.int64)
    return index, steps[index].astype(np.int16)


def encode_exact(delta: TensorDelta, item_bytes: int) -> bytes:
    """The corrections of `delta` for a dtype of `item_bytes` (2 or 4); raises IntegrityError when it has none."""
    part = delta.exact
    if part is None:
        raise IntegrityError(f"{delta.name} has no corrections: expected some to encode")
    positions = density.encode(part.index, np.ones(part.index.size, np.int16), delta.shape)
    return _EXACT_HEAD.pack(len(positions)) + positions + planes.pack(part.difference, item_bytes)


def decode_exact(data: bytes | memoryview, shape: tuple[int, ...], item_bytes: int) -> tuple[Array, Array]:
    """The positions (int64, ascending) and differences (int64, not 0) of corrections for a tensor of `shape` whose elements have
    `item_bytes`; raises IntegrityError."""
    (length,), body = _open(data, _EXACT_HEAD, "corrections")
    if not 0 < length < len(body):
        raise IntegrityError(f"corrections have a wrong length: expected 1..{len(body) - 1} bytes of positions, got {length}")
    index, ones = decode_sparse(body[:length], shape)
    if (ones != 1).any():
        raise IntegrityError("corrections have wrong positions: expected steps of 1 alone")
    differences = planes.unpack(body[length:], index.size, item_bytes, "section of corrections")
    if not differences.all():
        raise IntegrityError("corrections have a wrong difference: expected none of 0")
    return index, differences


def encode_low_rank(delta: TensorDelta) -> bytes:
    """The low-rank part of `delta` as a section; raises IntegrityError when it has none or is larger than a patch may be."""
    part = delta.low_rank
    if part is None:
        raise IntegrityError(f"{delta.name} has no low-rank part: expected one to encode")
    height, width = _matrix(delta.shape)
    flags = (_ALL_ROWS if part.rows.size == height else 0) | (_ALL_COLS if part.cols.size == width else 0)
    _payload_bytes(part.a.shape[1], part.rows.size, part.cols.size, flags)
    lists = ([] if flags & _ALL_ROWS else [part.rows]) + ([] if flags & _ALL_COLS else [part.cols])
    factors = part.a.tobytes() + part.b.tobytes()
    packed = zlib.compress(b"".join(indices.astype("<u4").tobytes() for indices in lists) + factors, _LEVEL)
    if lists:
        gaps = b"".join((np.diff(indices, prepend=-1) - 1).astype("<u4").tobytes() for indices in lists)
        apart = _deflate_apart(gaps, factors)
        packed, flags = (apart, flags | _GAPS) if len(apart) < len(packed) else (packed, flags)
    return _LOW_RANK_HEAD.pack(part.a.shape[1], part.rows.size, part.cols.size, flags, len(packed)) + packed


def _deflate_apart(repetitive: bytes, noise: bytes) -> bytes:
    """Both in one zlib stream, as blocks of their own: matches for the first, byte frequencies alone for the second (of noise, matches
    of three bytes cost more than they save)."""
    first = zlib.compressobj(_LEVEL, zlib.DEFLATED, _RAW, 9)
    second = zlib.compressobj(_LEVEL, zlib.DEFLATED, _RAW, 9, zlib.Z_HUFFMAN_ONLY)
    blocks = first.compress(repetitive) + first.flush(zlib.Z_FULL_FLUSH) + second.compress(noise) + second.flush()
    return b"\x78\xda" + blocks + zlib.adler32(repetitive + noise).to_bytes(4, "big")


def decode_low_rank(data: bytes | memoryview, shape: tuple[int, ...]) -> tuple[Array, Array, Array, Array]:
    """Rows and columns (int64, ascending), A (rows, rank) and B (rank, columns) (int8) of a low-rank section for a matrix of
    `shape`; raises IntegrityError."""
    height, width = _matrix(shape)
    (rank, row_count, col_count, flags, length), body = _open(data, _LOW_RANK_HEAD, "low-rank section")
    expected_flags = (_ALL_ROWS if row_count == height else 0) | (_ALL_COLS if col_count == width else 0)
    gaps = bool(flags & _GAPS) and expected_flags != _ALL_ROWS | _ALL_COLS
    sizes_fit = 0 < rank <= MAX_RANK and 0 < row_count <= height and 0 < col_count <= width
    if not sizes_fit or flags != expected_flags | (_GAPS if gaps else 0) or len(body) != length:
        raise IntegrityError(
            f"low-rank section does not fit {shape}: got rank {rank}, {row_count} rows, {col_count} columns, flags {flags}"
        )
    payload = _inflate(body, _payload_bytes(rank, row_count, col_count, flags), "low-rank payload")
    rows, cols, offset = np.arange(height, dtype=np.int64), np.arange(width, dtype=np.int64), 0
    if not flags & _ALL_ROWS:
        rows, offset = _indices(payload, offset, row_count, height, gaps)
    if not flags & _ALL_COLS:
        cols, offset = _indices(payload, offset, col_count, width, gaps)
    a = np.frombuffer(payload, np.int8, row_count * rank, offset).reshape(row_count, rank)
    b = np.frombuffer(payload, np.int8, rank * col_count, offset + row_count * rank).reshape(rank, col_count)
    return rows, cols, a, b


def _elements(shape: tuple[int, ...]) -> int:
    size = 1
    for length in shape:
        size *= length
    if not 0 < len(shape) <= MAX_DIMS or min(shape) < 1 or size > MAX_TENSOR_ELEMENTS:
        raise IntegrityError(f"section is for an impossible shape: expected at most {MAX_TENSOR_ELEMENTS} elements, got {shape}")
    return size


def _matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    _elements(shape)
    if len(shape) != 2:
        raise IntegrityError(f"low-rank section needs a matrix: got shape {shape}")
    return shape[0], shape[1]


def _payload_bytes(rank: int, row_count: int, col_count: int, flags: int) -> int:
    size = rank * (row_count + col_count) + (0 if flags & _ALL_ROWS else 4 * row_count) + (0 if flags & _ALL_COLS else 4 * col_count)
    if size > MAX_PATCH_BYTES:
        raise IntegrityError(f"low-rank section is too large: expected at most {MAX_PATCH_BYTES} bytes unpacked, got {size}")
    return size


def _open(data: bytes | memoryview, head: struct.Struct, what: str) -> tuple[tuple[int, ...], memoryview]:
    view = memoryview(data).cast("B")
    if not head.size <= len(view) <= MAX_PATCH_BYTES:
        raise IntegrityError(f"{what} has a wrong length: expected {head.size}..{MAX_PATCH_BYTES} bytes, got {len(view)}")
    return head.unpack_from(view), view[head.size :]


def _inflate(packed: memoryview, size: int, what: str) -> bytes:
    state = zlib.decompressobj()
    try:
        # One byte more than expected: zlib must reach its end mark, and a stream that goes on is seen without unfolding it.
        content = state.decompress(packed, size + 1)
    except zlib.error as error:
        raise IntegrityError(f"cannot unpack {what}: expected a zlib stream, got {error}") from error
    if len(content) != size or not state.eof or state.unused_data:
        raise IntegrityError(f"{what} has a wrong length: expected exactly {size} bytes in one zlib stream")
    return content


def _indices(payload: bytes, offset: int, count: int, bound: int, gaps: bool) -> tuple[Array, int]:
    values = np.frombuffer(payload, "<u4", count, offset).astype(np.int64)
    if gaps:
        values = np.cumsum(values + 1) - 1
    if values[-1] >= bound or (np.diff(values) <= 0).any():
        raise IntegrityError(f"low-rank section has wrong indices: expected ascending inside 0..{bound - 1}")
    return values, offset + 4 * count
