"""Sections: what goes in comes out; whatever bytes come in, a valid part or IntegrityError comes out."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeedit.codec.sections import decode_low_rank, decode_sparse, encode_low_rank, encode_sparse
from edgeedit.delta import LowRankPart, SparsePart, TensorDelta
from edgeedit.errors import IntegrityError

SHAPES = st.tuples(st.integers(1, 12), st.integers(1, 40))


def _delta(seed: int, shape: tuple[int, int], largest: int) -> TensorDelta:
    rng = np.random.default_rng(seed)

    def some(bound: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        return np.sort(rng.choice(bound, int(rng.integers(1, bound + 1)), replace=False)).astype(np.int64)

    index = some(shape[0] * shape[1])
    q = (rng.integers(1, largest + 1, index.size) * rng.choice([-1, 1], index.size)).astype(np.int16)
    rows, cols, rank = some(shape[0]), some(shape[1]), int(rng.integers(1, 5))
    a, b = rng.integers(-128, 128, (rows.size, rank)).astype(np.int8), rng.integers(-128, 128, (rank, cols.size)).astype(np.int8)
    return TensorDelta("w", shape, SparsePart(index, q, 0.5), LowRankPart(rows, cols, a, b, 0.5))


def _decode_or_refuse(kind: str, data: bytes, shape: tuple[int, int]) -> None:
    """What a decoder accepts, TensorDelta must accept too: that is what `valid` means."""
    try:
        parts = decode_sparse(data, shape) if kind == "sparse" else decode_low_rank(data, shape)
    except IntegrityError:
        return
    if len(parts) == 2:
        TensorDelta("w", shape, SparsePart(*parts, 0.5))
    else:
        TensorDelta("w", shape, None, LowRankPart(*parts, 0.5))


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32), SHAPES, st.sampled_from([1, 127, 128, 255]))
def test_round_trip(seed: int, shape: tuple[int, int], largest: int) -> None:
    delta = _delta(seed, shape, largest)
    assert delta.sparse is not None
    assert delta.low_rank is not None
    index, q = decode_sparse(encode_sparse(delta), shape)
    assert np.array_equal(index, delta.sparse.index)
    assert np.array_equal(q, delta.sparse.q)
    assert (index.dtype, q.dtype) == (np.int64, np.int16)
    got = decode_low_rank(encode_low_rank(delta), shape)
    for name, array in zip(("rows", "cols", "a", "b"), got, strict=True):
        expected = getattr(delta.low_rank, name)
        assert array.dtype == expected.dtype
        assert np.array_equal(array, expected)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), SHAPES)
def test_every_truncation_and_extension_is_refused(seed: int, shape: tuple[int, int]) -> None:
    delta = _delta(seed, shape, 127)
    for data, decode in ((encode_sparse(delta), decode_sparse), (encode_low_rank(delta), decode_low_rank)):
        for wrong in [data[:length] for length in range(len(data))] + [data + b"\0", data + data]:
            try:
                decode(wrong, shape)
            except IntegrityError:
                continue
            raise AssertionError(f"accepted {len(wrong)} of {len(data)} bytes")


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32), SHAPES, st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 255)), min_size=1, max_size=4))
def test_flipped_bytes_never_give_a_wrong_part(seed: int, shape: tuple[int, int], flips: list[tuple[int, int]]) -> None:
    delta = _delta(seed, shape, 255)
    for kind, data in (("sparse", encode_sparse(delta)), ("low rank", encode_low_rank(delta))):
        wrong = bytearray(data)
        for place, mask in flips:
            wrong[place % len(wrong)] ^= mask
        _decode_or_refuse(kind, bytes(wrong), shape)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200), SHAPES)
def test_arbitrary_bytes_are_refused_or_valid(data: bytes, shape: tuple[int, int]) -> None:
    _decode_or_refuse("sparse", data, shape)
    _decode_or_refuse("low rank", data, shape)
