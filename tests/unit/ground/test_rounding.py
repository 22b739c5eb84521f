"""The rounding rule against independent arithmetic, and the delta algebra around it."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from edgeedit.delta import Delta, LowRankPart, SparsePart, TensorDelta, load_delta
from edgeedit.errors import InputError, IntegrityError
from edgeedit.rounding import apply_delta, changed_elements, check_scale, legal_step, transpose_delta


def _delta(rng: np.random.Generator, shape: tuple[int, int]) -> TensorDelta:
    index = np.sort(rng.choice(shape[0] * shape[1], 40, replace=False)).astype(np.int64)
    q = rng.integers(1, 128, 40).astype(np.int16) * rng.choice([-1, 1], 40).astype(np.int16)
    rows, cols = np.arange(2, 6, dtype=np.int64), np.arange(shape[1], dtype=np.int64)
    a, b = rng.integers(-127, 128, (4, 3)).astype(np.int8), rng.integers(-127, 128, (3, shape[1])).astype(np.int8)
    return TensorDelta("w", shape, SparsePart(index, q, legal_step(1e-3)), LowRankPart(rows, cols, a, b, 2.0**-20))


def _float32(value: Fraction) -> np.float32:
    # Fraction -> float64 is correctly rounded; these values have few enough bits for float64 -> float32 to round once.
    return np.float32(float(value))


def test_float32_result_equals_exact_rational_arithmetic() -> None:
    rng = np.random.default_rng(1)
    old = rng.normal(0, 0.05, (8, 16)).astype(np.float32)
    delta = _delta(rng, (8, 16))
    new = apply_delta(old, delta)
    assert delta.sparse is not None and delta.low_rank is not None
    steps = np.zeros(128, dtype=np.int64)
    steps[delta.sparse.index] = delta.sparse.q
    for row in range(8):
        for col in range(16):
            value = old[row, col]
            if steps[row * 16 + col]:
                value = _float32(Fraction(float(value)) + Fraction(delta.sparse.step) * int(steps[row * 16 + col]))
            if 2 <= row < 6:
                product = sum(int(delta.low_rank.a[row - 2, r]) * int(delta.low_rank.b[r, col]) for r in range(3))
                value = _float32(Fraction(float(value)) + Fraction(delta.low_rank.scale) * product)
            assert new[row, col] == value


def test_nothing_outside_the_declared_elements_changes_not_even_a_nan() -> None:
    rng = np.random.default_rng(2)
    old = rng.normal(size=(8, 16)).astype(np.float16)
    old[0, 0] = np.nan
    delta = _delta(rng, (8, 16))
    delta = TensorDelta("w", delta.shape, SparsePart(np.array([5], np.int64), np.array([3], np.int16), 0.5), delta.low_rank)
    new = apply_delta(old, delta)
    outside = ~changed_elements(delta)
    assert np.array_equal(new.view(np.uint16)[outside], old.view(np.uint16)[outside])


def test_transposed_delta_is_the_transpose_of_the_result() -> None:
    rng = np.random.default_rng(3)
    old = rng.normal(size=(8, 16)).astype(np.float16)
    delta = _delta(rng, (8, 16))
    moved = apply_delta(np.ascontiguousarray(old.T), transpose_delta(delta, "w::T"))
    assert np.array_equal(moved.T, apply_delta(old, delta))


def test_overflow_is_refused() -> None:
    delta = TensorDelta("w", (2,), SparsePart(np.array([0], np.int64), np.array([100], np.int16), 1000.0))
    with pytest.raises(IntegrityError, match="not finite"):
        apply_delta(np.zeros(2, np.float16), delta)


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf"), 2.0**-61, 2.0**21, 1 + 2.0**-16])
def test_illegal_steps_are_refused(value: float) -> None:
    with pytest.raises(IntegrityError):
        check_scale(value, power_of_two=False)


def test_legal_step_keeps_sixteen_bits() -> None:
    for value in np.random.default_rng(4).uniform(1e-9, 1.0, 200):
        step = legal_step(float(value))
        check_scale(step, power_of_two=False)
        assert abs(step - value) <= value * 2.0**-16
    with pytest.raises(IntegrityError):
        check_scale(0.75, power_of_two=True)


def test_delta_file_round_trip_is_deterministic(tmp_path: Path) -> None:
    delta = Delta((_delta(np.random.default_rng(5), (8, 16)),), {"seed": 3, "note": "ß"})
    delta.save(tmp_path / "a.delta")
    again = load_delta(tmp_path / "a.delta")
    again.save(tmp_path / "b.delta")
    assert (tmp_path / "a.delta").read_bytes() == (tmp_path / "b.delta").read_bytes()
    assert again.info == delta.info
    old = np.ones((8, 16), np.float32)
    assert np.array_equal(apply_delta(old, again.tensors[0]), apply_delta(old, delta.tensors[0]))


def test_wrong_delta_files_are_input_errors(tmp_path: Path) -> None:
    path = tmp_path / "x.delta"
    path.write_bytes(b"not a zip")
    with pytest.raises(InputError):
        load_delta(path)
    with pytest.raises(InputError):
        load_delta(tmp_path / "absent.delta")


def test_parts_that_do_not_fit_are_refused() -> None:
    index, q = np.array([3, 1], np.int64), np.array([1, 1], np.int16)
    with pytest.raises(IntegrityError, match="ascending"):
        TensorDelta("w", (2, 4), SparsePart(index, q, 0.5))
    with pytest.raises(IntegrityError, match="range"):
        TensorDelta("w", (2, 4), SparsePart(np.array([1, 3], np.int64), np.array([0, 1], np.int16), 0.5))
    with pytest.raises(IntegrityError, match="no change"):
        TensorDelta("w", (2, 4))
