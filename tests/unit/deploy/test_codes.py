"""A float change on int8 codes: what moves, what is clipped, what survives, against the definition."""

from __future__ import annotations

import numpy as np
import pytest

from edgeedit.delta import LowRankPart, SparsePart, TensorDelta
from edgeedit.deploy.codes import broadcast_scales, lower_codes
from edgeedit.errors import InputError
from edgeedit.rounding import apply_delta

SHAPE = (40, 60)


def _case(size: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, TensorDelta, np.ndarray]:
    """Weights, scales by column, codes, a change of `size` scales (RMS) with both parts, and what it adds."""
    rng = np.random.default_rng(4)
    source = rng.normal(0, 0.05, SHAPE).astype(np.float32)
    scales = np.abs(source).max(0, keepdims=True).astype(np.float64) / 127
    codes = np.rint(source / scales).astype(np.int8)
    index = np.sort(rng.choice(source.size, 240, replace=False)).astype(np.int64)
    q = np.rint(rng.normal(0, 16, 240)).astype(np.int16)
    q[q == 0] = 1
    step = 2.0 ** np.round(np.log2(size * scales.mean() / 16))
    rows, cols = np.array([3, 5], np.int64), np.arange(60, dtype=np.int64)
    low = LowRankPart(rows, cols, np.full((2, 1), 16, np.int8), rng.integers(-9, 10, (1, 60)).astype(np.int8), step / 16)
    wanted = np.zeros(SHAPE)
    wanted.reshape(-1)[index] = step * q
    wanted[np.ix_(rows, cols)] += low.scale * (low.a.astype(int) @ low.b.astype(int))
    return source, scales, codes, TensorDelta("w", SHAPE, SparsePart(index, q, step), low), wanted


@pytest.mark.parametrize("size", [0.1, 1.0, 8.0, 400.0])
def test_codes_are_those_of_the_changed_weights_quantised_again(size: float) -> None:
    source, scales, codes, change, wanted = _case(size)
    lowered, survival = lower_codes(change, codes, scales, source)
    assert lowered is not None
    expected = np.where(wanted != 0, np.clip(np.rint((source.astype(np.float64) + wanted) / scales), -127, 127), codes)
    new = apply_delta(codes, lowered)
    assert np.array_equal(new, expected)
    applied = (new.astype(np.float64) - codes) * scales
    assert survival.moved == int((new != codes).sum()) and survival.clipped == int((np.abs((source + wanted) / scales) >= 127.5).sum())
    assert survival.share == pytest.approx((applied * wanted).sum() / (wanted**2).sum())
    assert survival.error == pytest.approx(np.sqrt(((applied - wanted) ** 2).sum() / (wanted**2).sum()))
    if size < 400:  # at 400 scales most codes are at their end
        assert survival.share == pytest.approx(1, abs=0.35), "rounding the changed weight keeps the change on the mean"
    else:
        assert survival.clipped > 100 and survival.share < 0.9


def test_without_the_weights_what_is_below_half_a_scale_is_lost() -> None:
    _, scales, codes, change, _ = _case(0.05)
    lowered, survival = lower_codes(change, codes, scales)
    assert lowered is None and (survival.moved, survival.share, survival.error) == (0, 0.0, 1.0)
    _, scales, codes, change, wanted = _case(8.0)
    lowered, survival = lower_codes(change, codes, scales)
    assert lowered is not None and survival.share > 0.95
    assert np.array_equal(apply_delta(codes, lowered), np.clip(codes + np.rint(wanted / scales), -127, 127))


def test_scales_that_do_not_fit_are_refused() -> None:
    assert broadcast_scales(np.ones(60, np.float32), 1, SHAPE, "w").shape == (1, 60)
    assert broadcast_scales(np.ones((), np.float32), 0, SHAPE, "w").shape == (1, 1)
    for scales, axis in ((np.ones(60), 0), (np.zeros(1), 0), (np.array([np.nan]), 0), (np.ones(1), 2)):
        with pytest.raises(InputError, match="do not fit"):
            broadcast_scales(scales.astype(np.float32), axis, SHAPE, "w")
