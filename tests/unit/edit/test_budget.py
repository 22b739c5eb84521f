"""Byte budgets: the choice fits, more bytes never buy less, and the estimate agrees with the made delta."""

from __future__ import annotations

import pytest

from edgeedit.edit.budget import OVERHEAD, curve, expected_bytes, fit_budget, mask_bits, parse_bytes
from edgeedit.edit.cost import delta_bytes
from edgeedit.edit.evaluate import features
from edgeedit.edit.locality import select
from edgeedit.edit.lorsu import Lorsu
from edgeedit.edit.methods.budgeted import plan
from edgeedit.edit.readers import fit_linear
from edgeedit.edit.run import HeldOut, edit
from edgeedit.edit.shots import Shots, load_pixels
from edgeedit.encoder.encoder import Encoder
from edgeedit.errors import InputError


def test_sizes_are_read_with_their_units() -> None:
    assert [parse_bytes(t) for t in ("2MB", "500 kB", "1MiB", "77")] == [2_000_000, 500_000, 1048576, 77]
    for wrong in ("big", "-1MB", "0", "2 parsecs"):
        with pytest.raises(InputError, match="budget is not a size"):
            parse_bytes(wrong)
    assert mask_bits(0.1) == pytest.approx(4.69, abs=0.005)


def test_a_budget_is_met_and_more_bytes_never_buy_less(encoder: Encoder, sets: dict[str, Shots]) -> None:
    base = sets["base"]
    reader = fit_linear(features(encoder, load_pixels(base, encoder.preprocess)), base.labels, base.classes)
    budget = OVERHEAD + 600
    method, choices = plan(encoder, sets["shots"], reader, Lorsu(steps=6, batch=4), precision="float32", budget=budget)
    assert method.steps == 6
    gains, sizes = [c.gain for c in choices], [c.bytes for c in choices]
    assert gains == sorted(gains) and sizes == sorted(sizes) and 0 < gains[0] < gains[-1] <= 1
    assert any(c.settings == method and c.bytes <= budget for c in choices)
    held = HeldOut(sets["target"], base)
    made = edit(encoder, sets["shots"], sets["control"], reader, method=method, precision="float32", heldout=held, seed=0, limit=0.5)
    assert delta_bytes(made.delta.tensors) <= 1.1 * (budget - OVERHEAD)


def test_a_budget_below_any_edit_is_refused(encoder: Encoder) -> None:
    import numpy as np

    scores = {n: np.ones(encoder.parameters_by_name()[n].shape, np.float32) for n in encoder.editable()}
    with pytest.raises(InputError, match="budget is too small"):
        fit_budget(encoder, scores, Lorsu(), 100)
    assert curve(encoder, scores, Lorsu(), 100) == ()
    small, large = (expected_bytes(encoder, select(encoder, scores, m), m) for m in (Lorsu(share=0.01), Lorsu()))
    assert small < large
