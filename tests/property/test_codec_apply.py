"""The C++ core against the rounding rule, bit for bit, over shapes, dtypes, subnormals, zeros and overlapping parts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeedit import rounding
from edgeedit.codec.apply import apply_delta
from edgeedit.delta import LowRankPart, SparsePart, TensorDelta
from edgeedit.errors import IntegrityError
from edgeedit.limits import MAX_SQUASH_STEP

Array = np.ndarray[Any, Any]
DTYPES = st.sampled_from([np.float32, np.float16, np.uint16])  # uint16 carries bfloat16
SHAPES = st.one_of(
    st.tuples(st.integers(1, 9), st.integers(1, 70)),
    st.sampled_from([(1, 1), (1, 2049), (2049, 1), (3, 1025)]),
    st.tuples(st.integers(1, 40)),
    st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 5)),
)


def _old(rng: np.random.Generator, shape: tuple[int, ...], dtype: type[np.floating[Any]], kind: str) -> Array:
    bits, exponent, mantissa = {np.float32: (np.uint32, 8, 23), np.float16: (np.uint16, 5, 10), np.uint16: (np.uint16, 8, 7)}[dtype]
    pattern = rng.integers(0, 1 << (1 + exponent + mantissa), shape, dtype=np.uint64)
    if kind == "weights":
        return rounding.narrow(rng.normal(0, 0.05, shape).astype(np.float32), np.dtype(dtype))
    if kind == "subnormal":
        pattern &= np.uint64((1 << (exponent + mantissa)) | ((1 << mantissa) - 1))
    elif kind == "zeros":
        pattern &= np.uint64(1 << (exponent + mantissa))
    # "any" keeps every pattern, infinities and NaN with payloads among them.
    return pattern.astype(bits).view(dtype)


def _some(rng: np.random.Generator, bound: int) -> Array:
    count = bound if rng.random() < 0.3 else int(rng.integers(1, bound + 1))
    return np.sort(rng.choice(bound, count, replace=False)).astype(np.int64)


def _delta(rng: np.random.Generator, shape: tuple[int, ...], parts: str) -> TensorDelta:
    sparse, low_rank = None, None
    if "s" in parts or len(shape) != 2:
        index = _some(rng, int(np.prod(shape)))
        q = (rng.integers(1, MAX_SQUASH_STEP + 1, index.size) * rng.choice([-1, 1], index.size)).astype(np.int16)
        sparse = SparsePart(index, q, rounding.legal_step(float(np.exp2(rng.uniform(-60, 6)))))
    if "l" in parts and len(shape) == 2:
        rows, cols, rank = _some(rng, shape[0]), _some(rng, shape[1]), int(rng.integers(1, 6))
        a = rng.integers(-128, 128, (rows.size, rank)).astype(np.int8)
        b = rng.integers(-128, 128, (rank, cols.size)).astype(np.int8)
        b[:, rng.random(cols.size) < 0.2] = 0
        low_rank = LowRankPart(rows, cols, a, b, 2.0 ** int(rng.integers(-60, 3)))
    return TensorDelta("w", shape, sparse, low_rank)


@settings(max_examples=600, deadline=None)
@given(st.integers(0, 2**32), SHAPES, DTYPES, st.sampled_from(["weights", "subnormal", "zeros", "any"]), st.sampled_from(["s", "l", "sl"]))
def test_core_equals_the_rounding_rule(seed: int, shape: tuple[int, ...], dtype: Any, kind: str, parts: str) -> None:
    rng = np.random.default_rng(seed)
    old, delta = _old(rng, shape, dtype, kind), _delta(rng, shape, parts)
    kept = old.copy()
    bits = np.uint32 if dtype is np.float32 else np.uint16
    with np.errstate(all="ignore"):
        try:
            expected = rounding.apply_delta(old, delta)
        except IntegrityError:
            with pytest.raises(IntegrityError, match="not finite"):
                apply_delta(old, delta)
            return
    new = apply_delta(old, delta)
    assert new.dtype == old.dtype
    assert new.flags.c_contiguous
    assert np.array_equal(new.view(bits), expected.view(bits))
    assert np.array_equal(old.view(bits), kept.view(bits))
    outside = ~rounding.changed_elements(delta)
    assert np.array_equal(new.view(bits)[outside], old.view(bits)[outside])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), DTYPES)
def test_full_rank_sums_are_exact(seed: int, dtype: Any) -> None:
    rng = np.random.default_rng(seed)
    a = rng.choice(np.array([-128, 127], np.int8), (2, 1024))
    b = rng.choice(np.array([-128, 127], np.int8), (1024, 3))
    delta = TensorDelta("w", (2, 3), None, LowRankPart(np.arange(2, dtype=np.int64), np.arange(3, dtype=np.int64), a, b, 2.0**-10))
    old = rounding.narrow(rng.normal(size=(2, 3)).astype(np.float32), np.dtype(dtype))
    assert np.array_equal(apply_delta(old, delta), rounding.apply_delta(old, delta))


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), SHAPES, st.integers(1, 255))
def test_codes_are_added_in_the_integers_or_refused(seed: int, shape: tuple[int, ...], most: int) -> None:
    rng = np.random.default_rng(seed)
    old = rng.integers(-128, 128, shape).astype(np.int8)
    index = _some(rng, old.size)
    q = (rng.integers(1, most + 1, index.size) * rng.choice([-1, 1], index.size)).astype(np.int16)
    delta = TensorDelta("w", shape, SparsePart(index, q, 1.0))
    sums = old.astype(np.int64).reshape(-1)
    sums[index] += q
    for rule in (rounding.apply_delta, apply_delta):
        if sums.min() < -128 or sums.max() > 127:
            with pytest.raises(IntegrityError, match=r"-128\.\.127"):
                rule(old, delta)
        else:
            new = rule(old, delta)
            assert new.dtype == np.int8 and np.array_equal(new.reshape(-1), sums)


def test_codes_take_no_other_step_and_no_low_rank_part() -> None:
    old = np.zeros((2, 2), np.int8)
    part = SparsePart(np.array([0], np.int64), np.array([1], np.int16), 0.5)
    low = LowRankPart(*(np.arange(2, dtype=np.int64),) * 2, np.ones((2, 1), np.int8), np.ones((1, 2), np.int8), 1.0)
    for delta in (TensorDelta("w", (2, 2), part), TensorDelta("w", (2, 2), None, low)):
        for rule in (rounding.apply_delta, apply_delta):
            with pytest.raises(IntegrityError, match="step 1"):
                rule(old, delta)


def test_bfloat16_is_rounded_as_ml_dtypes_rounds_it() -> None:
    """An independent implementation over every exponent, both signs, ties, subnormals, infinities and NaN."""
    ml_dtypes = pytest.importorskip("ml_dtypes")
    high = np.arange(1 << 16, dtype=np.uint32) << 16
    bits = np.concatenate([high | low for low in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF)]).astype(np.uint32)
    values = bits.view(np.float32)
    with np.errstate(all="ignore"):
        expected = values.astype(ml_dtypes.bfloat16).view(np.uint16)
    made, number = rounding.narrow(values, np.dtype(np.uint16)), ~np.isnan(values)
    assert np.array_equal(made[number], expected[number]) and np.isnan(rounding.widen(made)[~number]).all()
