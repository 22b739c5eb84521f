"""Sections: frozen bytes, each named way to be wrong, and bombs."""

from __future__ import annotations

import struct
import tracemalloc
import zlib

import numpy as np
import pytest

from edgeedit.codec.sections import decode_low_rank, decode_sparse, encode_low_rank, encode_sparse
from edgeedit.delta import LowRankPart, SparsePart, TensorDelta
from edgeedit.errors import IntegrityError


def _sparse(width: int, bitmap: bytes, steps: bytes) -> bytes:
    first, second = zlib.compress(bitmap), zlib.compress(steps)
    return struct.pack("<III", width, len(first), len(second)) + first + second


def _low_rank(rank: int, rows: int, cols: int, flags: int, payload: bytes) -> bytes:
    packed = zlib.compress(payload)
    return struct.pack("<IIIII", rank, rows, cols, flags, len(packed)) + packed


def test_the_layout_is_the_documented_one() -> None:
    index, q = decode_sparse(_sparse(1, bytes([0b10000001, 0b10]), struct.pack("<3b", 1, -127, 5)), (2, 5))
    assert (index.tolist(), q.tolist()) == ([0, 7, 9], [1, -127, 5])
    _, q = decode_sparse(_sparse(2, bytes([1]), struct.pack("<h", -255)), (4,))
    assert q.tolist() == [-255]
    rows, cols, a, b = decode_low_rank(_low_rank(1, 2, 2, 2, struct.pack("<II4b", 0, 2, 1, -2, 3, -4)), (3, 2))
    assert (rows.tolist(), cols.tolist(), a.tolist(), b.tolist()) == ([0, 2], [0, 1], [[1], [-2]], [[3, -4]])


def test_the_encoder_writes_that_layout() -> None:
    part = SparsePart(np.array([0, 9], np.int64), np.array([1, -127], np.int16), 0.5)
    low = LowRankPart(np.array([1], np.int64), np.arange(5, dtype=np.int64), np.ones((1, 2), np.int8), np.ones((2, 5), np.int8), 0.5)
    delta = TensorDelta("w", (2, 5), part, low)
    width, first, second = struct.unpack_from("<III", encode_sparse(delta))
    body = encode_sparse(delta)[12:]
    assert (width, len(body)) == (1, first + second)
    assert zlib.decompress(body[:first]) == bytes([1, 2])
    assert zlib.decompress(body[first:]) == struct.pack("<2b", 1, -127)
    assert struct.unpack_from("<4I", encode_low_rank(delta)) == (2, 1, 5, 2)
    assert zlib.decompress(encode_low_rank(delta)[20:]) == struct.pack("<I", 1) + b"\1" * 12


@pytest.mark.parametrize(
    "data",
    [
        _sparse(3, b"\1\0", b"\1"),
        _sparse(1, b"\1\0", b"\0"),  # a step of 0
        _sparse(2, b"\1\0", struct.pack("<h", 256)),
        _sparse(2, b"\1\0", struct.pack("<h", -32768)),
        _sparse(1, b"\0\0", b""),  # no bit
        _sparse(1, b"\1\4", b"\1\1"),  # a bit behind the tensor
        _sparse(1, b"\1", b"\1"),
        _sparse(1, b"\1\0\0", b"\1"),
        _sparse(1, b"\3\0", b"\1"),  # two bits, one step
        _sparse(1, b"\1\0", b"\1\1"),
        _sparse(1, b"\1\0", b"\1") + b"\0",
        b"",
    ],
)
def test_wrong_sparse_sections(data: bytes) -> None:
    with pytest.raises(IntegrityError):
        decode_sparse(data, (2, 5))


@pytest.mark.parametrize(
    "data",
    [
        _low_rank(0, 1, 1, 0, struct.pack("<II", 0, 0)),
        _low_rank(1025, 1, 1, 0, struct.pack("<II", 0, 0) + bytes(2050)),
        _low_rank(1, 4, 1, 0, struct.pack("<5I", 0, 1, 2, 3, 0) + bytes(5)),
        _low_rank(1, 1, 1, 0, struct.pack("<II", 3, 0) + bytes(2)),  # row outside
        _low_rank(1, 2, 1, 0, struct.pack("<III", 1, 1, 0) + bytes(3)),  # not ascending
        _low_rank(1, 1, 1, 0, struct.pack("<II", 0, 0xFFFFFFFF) + bytes(2)),
        _low_rank(1, 2, 1, 1, struct.pack("<I", 0) + bytes(3)),  # says all rows with two of three
        _low_rank(1, 3, 1, 0, struct.pack("<4I", 0, 1, 2, 0) + bytes(4)),  # does not say all rows
        _low_rank(1, 1, 1, 4, struct.pack("<II", 0, 0) + bytes(2)),
        _low_rank(1, 1, 1, 0, struct.pack("<II", 0, 0) + bytes(3)),
        _low_rank(1, 1, 1, 0, struct.pack("<II", 0, 0) + bytes(1)),
    ],
)
def test_wrong_low_rank_sections(data: bytes) -> None:
    with pytest.raises(IntegrityError):
        decode_low_rank(data, (3, 4))


@pytest.mark.parametrize("shape", [(), (0,), (2, -1), (1 << 15, 1 << 14), (1,) * 9])
def test_impossible_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(IntegrityError):
        decode_sparse(_sparse(1, b"\1", b"\1"), shape)


def test_low_rank_needs_a_matrix_and_a_part() -> None:
    with pytest.raises(IntegrityError, match="matrix"):
        decode_low_rank(_low_rank(1, 1, 1, 0, bytes(10)), (3,))
    delta = TensorDelta("w", (3,), SparsePart(np.array([0], np.int64), np.array([1], np.int16), 0.5))
    with pytest.raises(IntegrityError, match="no low-rank"):
        encode_low_rank(delta)


def _peak_of(action: object) -> int:
    tracemalloc.start()
    try:
        with pytest.raises(IntegrityError):
            action()  # type: ignore[operator]
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_bombs_do_not_unfold() -> None:
    bomb = zlib.compress(bytes(64 << 20), 9)  # 64 MiB in 64 kB
    head = struct.pack("<III", 1, len(bomb), 8)
    assert _peak_of(lambda: decode_sparse(head + bomb + bytes(8), (2, 5))) < 1 << 20
    bitmap = zlib.compress(b"\1\0")
    head = struct.pack("<III", 1, len(bitmap), len(bomb))
    assert _peak_of(lambda: decode_sparse(head + bitmap + bomb, (2, 5))) < 1 << 20
    head = struct.pack("<IIIII", 1, 1, 1, 0, len(bomb))
    assert _peak_of(lambda: decode_low_rank(head + bomb, (3, 4))) < 1 << 20
    # A rank that is legal by itself would need 256 GiB here.
    head = struct.pack("<IIIII", 1024, 1 << 28, 1, 3, len(bomb))
    assert _peak_of(lambda: decode_low_rank(head + bomb, (1 << 28, 1))) < 1 << 20
