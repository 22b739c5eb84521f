"""Sections: frozen bytes, each named way to be wrong, and bombs."""

from __future__ import annotations

import struct
import tracemalloc
import zlib

import numpy as np
import pytest

from edgeedit.codec import density, planes
from edgeedit.codec.probes import decode_probes, encode_probes, probe_step, round_probes
from edgeedit.codec.sections import (
    decode_dense,
    decode_exact,
    decode_low_rank,
    decode_sparse,
    encode_dense,
    encode_exact,
    encode_low_rank,
    encode_sparse,
)
from edgeedit.delta import ExactPart, LowRankPart, SparsePart, TensorDelta
from edgeedit.errors import IntegrityError


def _low_rank(rank: int, rows: int, cols: int, flags: int, payload: bytes) -> bytes:
    packed = zlib.compress(payload)
    return struct.pack("<IIIII", rank, rows, cols, flags, len(packed)) + packed


def test_the_layout_is_the_documented_one() -> None:
    rows, cols, a, b = decode_low_rank(_low_rank(1, 2, 2, 2, struct.pack("<II4b", 0, 2, 1, -2, 3, -4)), (3, 2))
    assert (rows.tolist(), cols.tolist(), a.tolist(), b.tolist()) == ([0, 2], [0, 1], [[1], [-2]], [[3, -4]])


def test_gaps_are_what_lies_between_neighbours() -> None:
    rows, cols, _, b = decode_low_rank(_low_rank(1, 2, 2, 4, struct.pack("<4I4b", 0, 1, 2, 0, 1, -2, 3, -4)), (3, 4))
    assert (rows.tolist(), cols.tolist(), b.tolist()) == ([0, 2], [2, 3], [[3, -4]])
    noise = np.random.default_rng(0).integers(-128, 128, 2 * 64 * 8).astype(np.int8)
    head = LowRankPart(np.arange(64, 128), np.arange(64), noise[:512].reshape(64, 8), noise[512:].reshape(8, 64), 0.5)
    data = encode_low_rank(TensorDelta("w", (384, 64), None, head))
    assert data[12] == 4 | 2 and len(data) < noise.size + 60
    for made, found in zip((head.rows, head.cols, head.a, head.b), decode_low_rank(data, (384, 64)), strict=True):
        assert np.array_equal(made, found)


def test_the_encoder_writes_that_layout() -> None:
    part = SparsePart(np.array([0, 9], np.int64), np.array([1, -127], np.int16), 0.5)
    low = LowRankPart(np.array([1], np.int64), np.arange(5, dtype=np.int64), np.ones((1, 2), np.int8), np.ones((2, 5), np.int8), 0.5)
    delta = TensorDelta("w", (2, 5), part, low)
    assert encode_sparse(delta) == density.encode(part.index, part.q, (2, 5))
    found, steps = decode_sparse(encode_sparse(delta), (2, 5))
    assert (found.tolist(), steps.tolist()) == ([0, 9], [1, -127])
    assert struct.unpack_from("<4I", encode_low_rank(delta)) == (2, 1, 5, 2)
    assert zlib.decompress(encode_low_rank(delta)[20:]) == struct.pack("<I", 1) + b"\1" * 12


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
        _low_rank(1, 1, 1, 8, struct.pack("<II", 0, 0) + bytes(2)),
        _low_rank(1, 3, 4, 7, bytes(7)),  # gaps without a list
        _low_rank(1, 2, 1, 4, struct.pack("<III", 1, 1, 0) + bytes(3)),  # rows 1 and 3
        _low_rank(1, 2, 1, 4, struct.pack("<III", 0xFFFFFFFF, 0, 0) + bytes(3)),
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
        decode_sparse(bytes(100), shape)


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
    # Declares as many entries as the tensor has, in tables that cost no bit: still nothing but what the tensor needs.
    empty = struct.pack("<BB6I", 1, 1, 10, 4, 4, 0, 4, 0) + bytes(6) + struct.pack("<3I", *[1 << 16] * 3)
    assert _peak_of(lambda: decode_sparse(empty, (2, 5))) < 1 << 20
    assert _peak_of(lambda: decode_sparse(struct.pack("<BB6I", 1, 1, 1 << 31, 4, 4, 0, 4, 0) + bytes(18), (2, 5))) < 1 << 20
    head = struct.pack("<IIIII", 1, 1, 1, 0, len(bomb))
    assert _peak_of(lambda: decode_low_rank(head + bomb, (3, 4))) < 1 << 20
    # A rank that is legal by itself would need 256 GiB here.
    head = struct.pack("<IIIII", 1024, 1 << 28, 1, 3, len(bomb))
    assert _peak_of(lambda: decode_low_rank(head + bomb, (1 << 28, 1))) < 1 << 20


def _exact(index: list[int], difference: list[int]) -> TensorDelta:
    return TensorDelta("w", (2, 5), exact=ExactPart(np.array(index, np.int64), np.array(difference, np.int64)))


@pytest.mark.parametrize("width", [2, 4])
def test_corrections_round_trip_at_both_ends_of_their_range(width: int) -> None:
    low, high = -(1 << (8 * width - 1)), (1 << (8 * width - 1)) - 1
    index, difference = decode_exact(encode_exact(_exact([0, 4, 9], [low, 1, high]), width), (2, 5), width)
    assert (index.tolist(), difference.tolist()) == ([0, 4, 9], [low, 1, high])
    with pytest.raises(IntegrityError, match="do not fit"):
        encode_exact(_exact([0], [high + 1]), width)


def test_damaged_corrections_are_refused() -> None:
    def made(index: list[int], q: list[int], differences: list[int]) -> bytes:
        positions = density.encode(np.array(index, np.int64), np.array(q, np.int16), (2, 5))
        return struct.pack("<I", len(positions)) + positions + planes.pack(np.array(differences, np.int64), 2)

    good = made([1, 7], [1, 1], [3, -3])
    assert decode_exact(good, (2, 5), 2)[1].tolist() == [3, -3]
    bad = {
        "steps of 1 alone": made([1, 7], [1, 2], [3, -3]),
        "none of 0": made([1, 7], [1, 1], [3, 0]),
        "exactly 4 bytes": made([1, 7], [1, 1], [3, -3, 5]),
        "wrong length": struct.pack("<I", len(good)) + good[4:],
        "one deflate stream": good + b"\0",
        "a wrong length: expected exactly": good[:-3],
    }
    for words, data in bad.items():
        with pytest.raises(IntegrityError, match=words):
            decode_exact(data, (2, 5), 2)
    with pytest.raises(IntegrityError):
        decode_exact(good, (2, 3), 2)  # position 7 lies outside


def test_a_dense_section_lists_every_step_and_refuses_the_rest() -> None:
    part = SparsePart(np.array([0, 3, 9], np.int64), np.array([255, -1, -255], np.int16), 0.5)
    data = encode_dense(TensorDelta("w", (2, 5), part))
    index, q = decode_dense(data, (2, 5))
    assert (index.tolist(), q.tolist()) == ([0, 3, 9], [255, -1, -255])
    for steps in ([0] * 10, [256] + [0] * 9, [1] * 9, [1] * 11):
        with pytest.raises(IntegrityError):
            decode_dense(planes.pack(np.array(steps), 2), (2, 5))
    with pytest.raises(IntegrityError, match="65536"):
        decode_dense(data, (1 << 9, 1 << 8))


def test_a_small_stream_does_not_unfold_into_a_large_one() -> None:
    bomb = planes.pack(np.zeros(1 << 22, np.int64), 2)
    assert _peak_of(lambda: decode_dense(bomb, (2, 5))) < 1 << 20
    assert _peak_of(lambda: decode_dense(planes.pack(np.ones(10, np.int64), 2), (1 << 8, 1 << 8))) < 1 << 20


def test_probes_are_rounded_to_a_quarter_of_their_tolerance_and_coded_exactly() -> None:
    rng = np.random.default_rng(0)
    for tolerance in (0.25, 0.037, 1e-6):
        expected = rng.normal(0, 2, (7, 33)).astype(np.float32)
        step = probe_step(tolerance)
        assert tolerance / 4 < step <= tolerance / 2
        rounded = round_probes(expected, tolerance)
        assert np.abs(rounded - expected).max() <= tolerance / 4
        data = encode_probes(rounded, step)
        assert data is not None and np.array_equal(decode_probes(data, 7, 33, step), rounded)
    assert encode_probes(np.array([[-0.0]], np.float32), 0.5) is None  # its bits would be lost
    assert encode_probes(np.array([[0.3]], np.float32), 0.5) is None
    large = np.array([[1e30]], np.float32)
    assert round_probes(large, 1e-3) is large
    for data in (planes.pack(np.array([(1 << 24) + 1]), 4), planes.pack(np.array([1, 2]), 4), b""):
        with pytest.raises(IntegrityError):
            decode_probes(data, 1, 1, 0.5)
