"""Applying and copying: conversions against numpy, what is refused, the caller's arrays, the GIL."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from edgeedit import rounding
from edgeedit.codec import _core
from edgeedit.codec.apply import apply_delta, copy_tensors
from edgeedit.delta import LowRankPart, SparsePart, TensorDelta
from edgeedit.errors import IntegrityError


def _step(shape: tuple[int, ...] = (2, 3), step: float = 0.5) -> TensorDelta:
    return TensorDelta("blocks.0.w", shape, SparsePart(np.array([1], np.int64), np.array([3], np.int16), step))


def test_all_halves_are_widened_as_numpy_does() -> None:
    halves = np.arange(1 << 16, dtype=np.uint16)
    got = np.empty(halves.size, np.uint32)
    assert _core.widen_half(halves, got)
    expected = halves.view(np.float16).astype(np.float32)
    finite = np.isfinite(expected)
    assert np.array_equal(got[finite], expected.view(np.uint32)[finite])
    assert np.array_equal(np.isnan(got.view(np.float32)), np.isnan(expected))


def test_floats_around_every_half_and_every_tie_are_narrowed_as_numpy_does() -> None:
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float64)
    points = np.concatenate([halves, (halves[:-1] + halves[1:]) / 2, [65520.0, 65519.99, 7e4, 1e38, np.inf]]).astype(np.float32)
    patterns = (points.view(np.uint32)[:, None].astype(np.int64) + np.arange(-2, 3)).reshape(-1)
    random = np.random.default_rng(0).integers(0, 1 << 32, 1_000_000)
    bits = np.concatenate([patterns[(patterns >= 0) & (patterns <= 0x7F800000)], random]).astype(np.uint32)
    bits = np.concatenate([bits, bits ^ np.uint32(1 << 31)])
    got = np.empty(bits.size, np.uint16)
    assert _core.narrow_half(bits, got)
    with np.errstate(all="ignore"):
        expected = bits.view(np.float32).astype(np.float16)
    number = ~np.isnan(expected)
    assert np.array_equal(got[number], expected.view(np.uint16)[number])
    assert np.isnan(got.view(np.float16)[~number]).all()


def test_bfloat16_conversion_is_nearest_even() -> None:
    bits = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0x00008000, 0x00018000, 0x7F7FFFFF, 0x80000000], np.uint32)
    got = np.empty(bits.size, np.uint16)
    assert _core.narrow_bfloat16(bits, got)
    assert got.tolist() == [0x3F80, 0x3F82, 0x3F81, 0x0000, 0x0002, 0x7F80, 0x8000]
    back = np.empty(bits.size, np.uint32)
    assert _core.widen_bfloat16(got, back)
    assert np.array_equal(back, got.astype(np.uint32) << np.uint32(16))


def test_minus_zero_becomes_zero_only_where_it_is_named() -> None:
    part = LowRankPart(np.array([0], np.int64), np.array([1], np.int64), np.zeros((1, 1), np.int8), np.ones((1, 1), np.int8), 0.5)
    old = np.full((1, 3), -0.0, np.float16)
    new = apply_delta(old, TensorDelta("w", (1, 3), None, part))
    assert np.signbit(new).tolist() == [[True, False, True]]


@pytest.mark.parametrize(
    ("old", "message"),
    [
        (np.zeros((3, 2), np.float32), "shape"),
        (np.zeros((2, 3), np.float64), "float32, float16"),
        (np.zeros((2, 3), np.float32).astype(">f4"), "float32, float16"),
        (np.zeros((3, 2), np.float32).T, "contiguous"),
        (np.zeros((2, 6), np.float32)[:, ::2], "contiguous"),
        (np.full((2, 3), np.nan, np.float32), "not finite"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(old: Any, message: str) -> None:
    with pytest.raises(IntegrityError, match=message):
        apply_delta(old, _step())


@pytest.mark.parametrize("step", [0.0, -0.5, float("nan"), float("inf"), 2.0**-61, 2.0**21, 1 + 2.0**-16])
def test_illegal_steps_are_refused(step: float) -> None:
    with pytest.raises(IntegrityError, match="scale"):
        apply_delta(np.zeros((2, 3), np.float32), _step(step=step))


def test_the_core_refuses_by_itself_what_python_would_have_refused() -> None:
    old, out = np.zeros(24, np.uint8), np.zeros(24, np.uint8)
    good_index, good_q = np.array([1], np.int64), np.array([3], np.int16)
    for index, q, step in [
        (np.array([6], np.int64), good_q, 0.5),
        (np.array([-1], np.int64), good_q, 0.5),
        (good_index, np.array([0], np.int16), 0.5),
        (good_index, np.array([256], np.int16), 0.5),
        (good_index, good_q, 0.0),
        (np.array([1, 2], np.int64), good_q, 0.5),
    ]:
        assert _core.apply(0, old, out, 2, 3, _core.SparseInput(index, None, q, step), None) != 0
    sparse = _core.SparseInput(good_index, None, good_q, 0.5)
    assert _core.apply(0, old, out, 2, 3, sparse, None) == 0
    assert _core.apply(0, old, out, 2, 4, sparse, None) != 0
    assert _core.apply(9, old, out, 2, 3, sparse, None) != 0
    assert _core.apply(0, old, out, 2, 3, None, None) != 0
    with pytest.raises(TypeError):
        _core.SparseInput(good_index.astype(np.int32), None, good_q, 0.5)


def test_a_read_only_mapped_tensor_can_be_the_old_one(tmp_path: Any) -> None:
    np.arange(6, dtype=np.float16).tofile(tmp_path / "w.bin")
    old = np.memmap(tmp_path / "w.bin", np.float16, "r", shape=(2, 3))
    new = apply_delta(old, _step())
    assert type(new) is np.ndarray
    assert np.array_equal(new, rounding.apply_delta(np.asarray(old), _step()))


def test_copy_is_all_or_nothing() -> None:
    first, second = np.zeros(3, np.float16), np.zeros((2, 2), np.float32)
    copy_tensors([(first, np.arange(3, dtype=np.float16)), (second, np.eye(2, dtype=np.float32))])
    assert first.tolist() == [0, 1, 2]
    assert np.array_equal(second, np.eye(2))
    with pytest.raises(IntegrityError, match="cannot copy"):
        copy_tensors([(first, np.ones(3, np.float16)), (second, np.ones((2, 3), np.float32))])
    assert first.tolist() == [0, 1, 2]
    frozen = np.zeros(3, np.float16)
    frozen.flags.writeable = False
    for target in (frozen, np.zeros(6, np.float16)[::2], np.zeros(3, np.float32)):
        with pytest.raises(IntegrityError):
            copy_tensors([(target, first)])
    copy_tensors([(np.empty((0, 3), np.float32), np.empty((0, 3), np.float32))])


def test_applying_releases_the_gil() -> None:
    shape = (2048, 2048)
    rng = np.random.default_rng(0)
    rows = cols = np.arange(2048, dtype=np.int64)
    a, b = rng.integers(1, 128, (2048, 256)).astype(np.int8), rng.integers(1, 128, (256, 2048)).astype(np.int8)
    delta = TensorDelta("w", shape, None, LowRankPart(rows, cols, a, b, 2.0**-30))
    old = np.zeros(shape, np.float32)
    done = threading.Event()

    def work() -> None:
        apply_delta(old, delta)
        done.set()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    ticks = 0
    while not done.wait(0.001):
        ticks += 1
    thread.join(30)
    # With the GIL held this loop would get at most a turn or two before and after the call.
    assert ticks > 5
