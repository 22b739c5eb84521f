"""Decode and apply in one pass, in the scalar and in the wide form: the same bits as the rounding rule, and the same refusals."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeedit import rounding
from edgeedit.codec import _core, density
from edgeedit.codec.apply import apply_coded, apply_delta
from edgeedit.delta import LowRankPart, SparsePart, TensorDelta
from edgeedit.errors import IntegrityError


@contextmanager
def _form(scalar: bool) -> Iterator[None]:
    _core.use_scalar(scalar)
    try:
        yield
    finally:
        _core.use_scalar(False)


def _weights(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Normal weights among which both zeros, subnormals and large values stand."""
    if dtype == "int8":
        return rng.integers(-128, 128, shape).astype(np.int8)
    if dtype == "uint16":
        return rounding.narrow(_weights(rng, shape, "float32"), np.dtype(np.uint16))
    made = rng.normal(0, 0.05, shape).astype(dtype)
    tiny = np.finfo(dtype).smallest_subnormal
    flat = made.reshape(-1)
    some = rng.integers(0, flat.size, max(flat.size // 3, 1))
    flat[some] = rng.choice(np.array([0.0, -0.0, tiny, -tiny, 3 * tiny, 60000.0, -1024.0], dtype), some.size)
    return made


def _indices(rng: np.random.Generator, bound: int) -> np.ndarray:
    """All, a run of neighbours, or some."""
    kind = rng.integers(3)
    if kind == 0:
        return np.arange(bound, dtype=np.int64)
    if kind == 1:
        start = int(rng.integers(bound))
        return np.arange(start, int(rng.integers(start, bound)) + 1, dtype=np.int64)
    return np.sort(rng.choice(bound, int(rng.integers(1, bound + 1)), replace=False)).astype(np.int64)


def _change(rng: np.random.Generator, shape: tuple[int, ...], share: float, low_rank: bool) -> TensorDelta:
    size = int(np.prod(shape))
    mask = rng.random(size) < share
    mask[rng.integers(size)] = True
    index = np.flatnonzero(mask).astype(np.int64)
    big = rng.random(index.size) < 0.05
    q = np.where(big, rng.integers(1, 256, index.size), rng.integers(1, 9, index.size)) * rng.choice([-1, 1], index.size)
    sparse = SparsePart(index, q.astype(np.int16), float(rng.integers(1, 1 << 16)) * 2.0 ** int(rng.integers(-34, -20)))
    low = None
    if low_rank and len(shape) == 2:
        rows, cols, rank = _indices(rng, shape[0]), _indices(rng, shape[1]), int(rng.integers(1, 12))
        a, b = rng.integers(-128, 128, (rows.size, rank)).astype(np.int8), rng.integers(-128, 128, (rank, cols.size)).astype(np.int8)
        a[rng.random(a.shape) < 0.3] = 0
        low = LowRankPart(rows, cols, a, b, 2.0 ** int(rng.integers(-26, -12)))
    return TensorDelta("t", shape, sparse, low)


def _outcome(make: object) -> bytes | None:
    try:
        return make().tobytes()  # type: ignore[operator]
    except IntegrityError:
        return None


SHAPES = st.one_of(
    st.tuples(st.integers(1, 90)),
    st.tuples(st.integers(1, 30), st.integers(1, 90)),
    st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 9)),
)


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=SHAPES,
    dtype=st.sampled_from(["float16", "float32", "uint16", "int8"]),
    share=st.sampled_from([0.0, 0.02, 0.1, 0.5, 1.0]),
    low_rank=st.booleans(),
)
def test_one_pass_gives_the_bits_of_the_rule_in_both_forms(
    seed: int, shape: tuple[int, ...], dtype: str, share: float, low_rank: bool
) -> None:
    rng = np.random.default_rng(seed)
    old, delta = _weights(rng, shape, dtype), _change(rng, shape, share, low_rank and dtype != "int8")
    assert delta.sparse is not None
    if dtype == "int8":  # half of them stay inside the codes
        old = old // 2 if seed % 2 else old
        small = np.where(seed % 2, np.clip(delta.sparse.q, -60, 60), delta.sparse.q).astype(np.int16)
        delta = TensorDelta("t", shape, SparsePart(delta.sparse.index, small, 1.0))
    assert delta.sparse is not None
    section = density.encode(delta.sparse.index, delta.sparse.q, shape)
    step, low = delta.sparse.step, delta.low_rank
    expected = _outcome(lambda: rounding.apply_delta(old, delta))
    alone = None if low is None else TensorDelta("t", shape, None, low)
    expected_alone = None if alone is None else _outcome(lambda: rounding.apply_delta(old, alone))
    before = old.tobytes()
    for scalar in (False, True):
        with _form(scalar):
            assert _outcome(lambda: apply_coded(old, "t", section, step, low)) == expected
            assert _outcome(lambda: apply_delta(old, delta)) == expected
            if alone is not None:
                assert _outcome(lambda: apply_delta(old, alone)) == expected_alone
    assert old.tobytes() == before


@pytest.mark.parametrize("shape", [(700, 260), (70, 2600)])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_long_streams_and_wide_low_rank_parts(shape: tuple[int, int], dtype: str) -> None:
    """Eight lanes whose phase moves from row to row, and more columns than sums are kept at once."""
    rng = np.random.default_rng(7)
    old, delta = np.asarray(rng.normal(0, 0.05, shape), dtype), _change(rng, shape, 0.3, True)
    assert delta.sparse is not None
    rows, cols = np.arange(0, shape[0], 3, dtype=np.int64), np.delete(np.arange(shape[1], dtype=np.int64), 5)
    a, b = rng.integers(-128, 128, (rows.size, 9)).astype(np.int8), rng.integers(-128, 128, (9, cols.size)).astype(np.int8)
    delta = TensorDelta("t", shape, delta.sparse, LowRankPart(rows, cols, a, b, 2.0**-20))
    section = density.encode(delta.sparse.index, delta.sparse.q, shape)
    assert 8 in section[:2]
    expected = rounding.apply_delta(old, delta).tobytes()
    for scalar in (False, True):
        with _form(scalar):
            assert apply_coded(old, "t", section, delta.sparse.step, delta.low_rank).tobytes() == expected
            assert apply_delta(old, delta).tobytes() == expected


@pytest.mark.parametrize("scalar", [False, True])
@pytest.mark.parametrize("at", [0, 3, 8, 16, 20])
@pytest.mark.parametrize("bad", [np.inf, np.nan, 65504.0])
def test_a_weight_that_is_or_becomes_infinite_is_refused_wherever_it_stands(scalar: bool, at: int, bad: float) -> None:
    old = np.ones((3, 21), np.float16)
    old[1, at] = bad
    q = np.full(63, 100, np.int16)
    section = density.encode(np.arange(63, dtype=np.int64), q, (3, 21))
    with _form(scalar), pytest.raises(IntegrityError, match="not finite"):
        apply_coded(old, "t", section, 1.0)
    low = LowRankPart(np.arange(3), np.arange(21), np.full((3, 1), 100, np.int8), np.ones((1, 21), np.int8), 1.0)
    with _form(scalar), pytest.raises(IntegrityError, match="not finite"):
        apply_delta(old, TensorDelta("t", (3, 21), None, low))


def test_damaged_sections_and_wrong_steps_are_refused() -> None:
    rng = np.random.default_rng(1)
    delta = _change(rng, (20, 30), 0.2, False)
    assert delta.sparse is not None
    old = np.ones((20, 30), np.float32)
    section = density.encode(delta.sparse.index, delta.sparse.q, (20, 30))
    for bad in (section[:-1], section + b"\0", b""):
        with pytest.raises(IntegrityError):
            apply_coded(old, "t", bad, 0.5)
    with pytest.raises(IntegrityError):
        apply_coded(old, "t", section, 1 + 2.0**-20)
    with pytest.raises(IntegrityError):
        apply_coded(old.reshape(30, 20)[:, :19].copy(), "t", section, 0.5)
