"""Probes tell an edited encoder from its parent, or the pack is refused; the mapping names what it cannot tell apart."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgeedit.bundle import Preprocess
from edgeedit.deploy.compare import batches, difference
from edgeedit.deploy.mapping import ambiguous, match, stand_ins
from edgeedit.deploy.probes import check_probes, expectations
from edgeedit.errors import InputError
from edgeedit.patterns import synthetic_pixels


def test_no_op_is_refused(tiny_bundle: Any) -> None:
    encoder, bundle = tiny_bundle("clip", "float32")
    old = expectations(encoder, None, bundle)
    with pytest.raises(InputError, match="no probe sees the edit"):
        check_probes(old, old.copy(), bundle.tolerance)
    new = old.copy()
    new[2, 1] += 9 * bundle.tolerance
    with pytest.raises(InputError, match="no probe sees the edit"):
        check_probes(old, new, bundle.tolerance)
    new[2, 1] = old[2, 1] + 11 * bundle.tolerance
    check_probes(old, new, bundle.tolerance)
    new[0, 0] = np.nan
    with pytest.raises(InputError, match="no probe sees the edit"):
        check_probes(old, new, bundle.tolerance)


def test_synthetic_pixels_are_smooth_seeded_and_in_range() -> None:
    pre = Preprocess(56, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
    probes = synthetic_pixels(pre, 4, seed=1)
    assert probes.shape == (4, 3, 56, 56) and probes.dtype == np.float32
    assert np.array_equal(probes, synthetic_pixels(pre, 4, seed=1))
    assert not np.array_equal(probes, synthetic_pixels(pre, 4, seed=2))
    pixels = probes * np.array(pre.std).reshape(1, 3, 1, 1) + np.array(pre.mean).reshape(1, 3, 1, 1)
    assert pixels.min() >= -1e-6 and pixels.max() <= 1 + 1e-6
    assert np.abs(np.diff(pixels, axis=3)).mean() < 0.5 * np.abs(pixels - pixels.mean((2, 3), keepdims=True)).mean()


def test_stand_ins_are_distinct_and_match_under_transposition() -> None:
    rng = np.random.default_rng(0)
    square = rng.normal(size=(9, 9)).astype(np.float32)
    values = {"q": square, "k": square.T.copy(), "zero": np.zeros(9, np.float32), "one": np.zeros(9, np.float32), "free": square + 1}
    assert ambiguous(values) == {"q", "k", "zero", "one"}
    drawn = stand_ins(values, ambiguous(values), 0)
    assert drawn["free"] is values["free"]
    found = match({"a": drawn["k"].T, "b": drawn["q"], "c": drawn["one"].reshape(1, 9), "d": np.ones(3, np.float32)}, drawn, {"q", "k"})
    assert {k: (m.name, m.transposed) for k, m in found.items()} == {
        "a": ("k::T", True),
        "b": ("q", False),
        "c": ("one", False),
        "d": ("d", False),
    }
    with pytest.raises(InputError, match="cannot map k: expected one deployed tensor, got two"):
        match({"a": drawn["k"].T, "b": drawn["q"], "c": drawn["k"]}, drawn, {"q", "k"})
    with pytest.raises(InputError, match="cannot map q: expected one deployed tensor, got none"):
        match({"a": drawn["k"].T}, drawn, {"q", "k"})


def test_difference_refuses_what_cannot_be_compared() -> None:
    ones = np.ones((2, 3), np.float32)
    assert difference(ones, ones * 2).to_json() == {"cosine_min": pytest.approx(1.0), "max_abs": 1.0, "mean_abs": 1.0}
    with pytest.raises(InputError, match="expected shape"):
        difference(ones, ones[:1])
    with pytest.raises(InputError, match="finite"):
        difference(ones, np.full_like(ones, np.nan))
    assert [(s.start, s.stop) for s in batches(10)] == [(0, 1), (1, 9), (9, 10)]
