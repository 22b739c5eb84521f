"""Chains and drift: against hand-worked matrices, a Gram-matrix CKA, and a tiny encoder."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from edgeedit.delta import Delta
from edgeedit.edit.continual import Progress, Session, backward_transfer, run_chain, state_from_json, summary
from edgeedit.edit.drift import advise, block_rows, borderline_agreement, drift, embedding_shift, linear_cka, pace
from edgeedit.edit.evaluate import features
from edgeedit.edit.lorsu import Lorsu
from edgeedit.edit.readers import fit_linear
from edgeedit.edit.run import HeldOut, edit
from edgeedit.edit.shots import Shots, load_pixels, subset
from edgeedit.encoder.encoder import Encoder
from edgeedit.encoder.values import parameter_values, with_values
from edgeedit.errors import InputError
from edgeedit.rounding import apply_delta

FAST = Lorsu(share=0.1, heads=1, rank=2, lr=3e-3, lr_low_rank=1e-2, steps=4, batch=8, patterns=2)


def _gram_cka(x: np.ndarray, y: np.ndarray) -> float:
    """Independent form: HSIC of Gram matrices with an explicit centring matrix."""
    n = len(x)
    centre = np.eye(n) - np.ones((n, n)) / n
    k, m = centre @ (x @ x.T) @ centre, centre @ (y @ y.T) @ centre
    return float(np.trace(k @ m) / np.sqrt(np.trace(k @ k) * np.trace(m @ m)))


def test_linear_cka_equals_the_gram_form_and_ignores_rotation_and_scale() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(30, 7)) + 3, rng.normal(size=(30, 5))
    y[:, 0] += 2 * x[:, 1]
    assert linear_cka(x, y) == pytest.approx(_gram_cka(x, y), rel=1e-9)
    rotation = np.linalg.qr(rng.normal(size=(7, 7)))[0]
    assert linear_cka(x, 4 * x @ rotation + 1) == pytest.approx(1.0)
    assert linear_cka(x, y) < 0.9
    with pytest.raises(InputError, match="do not belong"):
        linear_cka(x, y[:-1])
    with pytest.raises(InputError, match="do not vary"):
        linear_cka(x, np.ones((30, 2)))


def test_block_rows_are_the_mean_tokens_of_every_block(encoder: Encoder, sets: dict[str, Shots]) -> None:
    pixels = load_pixels(sets["target"], encoder.preprocess)
    with torch.no_grad():
        states = encoder.wrapped(pixel_values=torch.from_numpy(pixels), output_hidden_states=True).hidden_states
    rows = block_rows(encoder, pixels)
    assert len(rows) == encoder.blocks
    for block, found in enumerate(rows):
        assert np.allclose(found, states[block + 1].mean(dim=1).numpy(), atol=1e-5)


def test_drift_is_nothing_without_an_edit_and_grows_with_it(encoder: Encoder, sets: dict[str, Shots]) -> None:
    pixels = load_pixels(sets["target"], encoder.preprocess)
    still = drift(encoder, encoder, pixels)
    assert still.shift == 0 and still.cosine == pytest.approx(0, abs=1e-6) and still.cka == pytest.approx((1.0, 1.0))
    values = parameter_values(encoder, "float32")
    found = []
    for size in (0.02, 0.2):
        name = encoder.fc1_name(1)
        moved = with_values(encoder, {**values, name: values[name] + np.float32(size) * np.sign(values[name])})
        found.append(drift(encoder, moved, pixels))
    assert 0 < found[0].shift < found[1].shift
    assert found[1].cka[0] == pytest.approx(1.0) and found[1].cka[1] < found[0].cka[1] < 1.0
    rows = np.random.default_rng(0).normal(size=(2000, 3))
    assert embedding_shift(rows, rows + rows.std(axis=0))[0] == pytest.approx(1.0, rel=1e-3)


def test_borderline_agreement_looks_at_near_ties_only() -> None:
    before = np.array([[0.0, 0.01], [0.0, 5.0], [0.02, 0.0], [4.0, 0.0]])
    after = np.array([[0.0, 0.3], [9.0, 0.0], [0.0, 0.3], [0.0, 9.0]])  # row 1 and 3 flip too, but are no near ties
    assert borderline_agreement(before, after) == (0.5, 2)
    assert borderline_agreement(before[[1, 3]], after[[1, 3]]) == (None, 0)


def test_summary_equals_a_matrix_worked_by_hand() -> None:
    accuracy = np.array([[0.5, 0.4, 0.6], [0.9, 0.5, 0.6], [0.8, 0.8, 0.5], [0.7, 0.9, 0.9]])
    found = summary(1 - accuracy, np.array([0.1, 0.1, 0.12, 0.15]))
    assert found["acc"] == pytest.approx((0.7 + 0.9 + 0.9) / 3)
    assert found["bwt"] == pytest.approx(((0.7 - 0.9) + (0.9 - 0.8)) / 2)
    assert found["forgetting"] == pytest.approx(((0.9 - 0.7) + (0.8 - 0.9)) / 2)
    assert found["target_improvement"] == pytest.approx((0.4 + 0.4 + 0.3) / 3)
    assert found["control_change"] == pytest.approx(0.05)
    with pytest.raises(InputError, match="does not fit"):
        summary(np.zeros((3, 3)), np.zeros(3))


def test_a_chain_judges_every_state_on_top_of_the_former(encoder: Encoder, sets: dict[str, Shots]) -> None:
    base = sets["base"]
    reader = fit_linear(features(encoder, load_pixels(base, encoder.preprocess)), base.labels, base.classes)
    sessions = [Session("first", sets["shots"], sets["target"]), Session("second", sets["target"], sets["shots"])]

    def step(current: Encoder, session: Session, number: int) -> object:
        held = HeldOut(session.heldout)
        return edit(
            current, session.shots, sets["control"], reader, method=FAST, precision="float16", heldout=held, seed=number, limit=1
        ).delta

    result = run_chain(encoder, sessions, base, reader, step, precision="float16")  # type: ignore[arg-type]
    assert result.matrix.shape == (3, 2) and result.control.shape == (3,) and len(result.deltas) == len(result.drifts) == 2
    values = parameter_values(encoder, "float16")
    for delta in result.deltas:
        values.update({t.name: apply_delta(values[t.name], t) for t in delta.tensors})
    last = with_values(encoder, values)
    rows = features(last, load_pixels(sets["target"], encoder.preprocess))
    wrong = reader.logits_numpy(rows).argmax(1) != sets["target"].labels
    assert result.matrix[2, 0] == pytest.approx(np.mean([wrong[sets["target"].labels == c].mean() for c in (0, 1)]))
    assert result.drifts[1].shift > 0
    assert result.shares.sum(axis=1) == pytest.approx(np.ones(3))
    unchanged = run_chain(encoder, sessions[:1], base, reader, lambda current, *_: current)
    assert np.array_equal(unchanged.matrix[0], unchanged.matrix[1]) and unchanged.drifts[0].shift == 0


class _Memory:
    """A store that is cut off after some edits, and goes through plain JSON as a file would."""

    def __init__(self, edits: int) -> None:
        self.edits = edits
        self.chain: Progress | None = None

    def load(self) -> Progress | None:
        return self.chain

    def keep(self, chain: Progress) -> None:
        rows = json.loads(json.dumps([s.to_json() for s in chain.states]))
        self.chain = replace(chain, states=tuple(state_from_json(row) for row in rows))
        if len(chain.states) - 1 == self.edits:
            raise KeyboardInterrupt


def test_a_chain_that_was_cut_off_goes_on_as_if_it_were_not(encoder: Encoder, sets: dict[str, Shots]) -> None:
    base = sets["base"]
    reader = fit_linear(features(encoder, load_pixels(base, encoder.preprocess)), base.labels, base.classes)
    both = subset(sets["target"], [*range(20), *range(20)])  # a held-out picture may stand in several sessions
    chain = [Session("1", sets["shots"], sets["target"]), Session("2", subset(sets["shots"], range(4, 12)), both)]

    def step(current: Encoder, session: Session, number: int) -> Delta:
        held = HeldOut(sets["target"])
        made = edit(current, session.shots, sets["control"], reader, method=FAST, precision="float32", heldout=held, seed=number, limit=1)
        return made.delta

    whole = run_chain(encoder, chain, base, reader, step)
    memory = _Memory(1)
    with pytest.raises(KeyboardInterrupt):
        run_chain(encoder, chain, base, reader, step, store=memory)
    memory.edits = -1
    joined = run_chain(encoder, chain, base, reader, step, store=memory)
    for name in ("matrix", "control", "agreement", "shares"):
        assert np.array_equal(getattr(whole, name), getattr(joined, name), equal_nan=True), name
    assert whole.drifts == joined.drifts and len(joined.deltas) == 2
    assert whole.matrix[:, 0] == pytest.approx(whole.matrix[:, 1])
    with pytest.raises(InputError, match="cannot go on"):
        run_chain(encoder, chain[:1], base, reader, step, store=memory)


def test_backward_transfer_has_an_interval_and_no_bias_from_the_maximum() -> None:
    accuracy = np.array([[0.5, 0.4, 0.6], [0.9, 0.5, 0.6], [0.8, 0.8, 0.5], [0.7, 0.9, 0.9]])
    value, low, high = backward_transfer(1 - accuracy)
    assert value == pytest.approx(summary(1 - accuracy, np.zeros(4))["bwt"])
    assert (low, high) == pytest.approx((-0.2, 0.1))  # two sessions: a resample takes one of them twice, or both
    rng = np.random.default_rng(1)
    noise = 0.3 + rng.normal(0, 0.05, (51, 50))  # fifty states that differ by chance only: nothing is forgotten
    value, low, high = backward_transfer(noise)
    assert low < 0 < high and summary(noise, np.zeros(51))["forgetting"] > 0.05
    assert backward_transfer(np.zeros((2, 1))) == (0.0, 0.0, 0.0)


def test_pace_weighs_gain_against_drift_per_update() -> None:
    gains, drifts = [0.1, 0.2, 0.3, 0.0, 0.04], [0.1, 0.2, 0.4, 0.4, 0.4]
    first, second = pace(gains, drifts, window=3)
    assert (first.after, first.updates, second.after, second.updates) == (3, 3, 5, 2)
    assert first.gain == pytest.approx(0.2) and first.drift == pytest.approx(0.4 / 3) and first.rate == pytest.approx(1.5)
    assert second.gain == pytest.approx(0.02) and second.drift == 0 and second.rate is None
    with pytest.raises(InputError, match="inconsistent"):
        pace([0.1], [])


def test_advice_names_the_reason() -> None:
    gains, drifts = [0.1] * 8, [0.05 * n for n in range(1, 9)]
    assert advise(gains, drifts, 8, 16, 1.0).action == "go on"
    assert advise(gains, drifts, 15, 16, 1.0).action == "squash"
    assert advise(gains, drifts, 8, 16, 0.3).action == "retrain"
    assert advise([0.1] * 5 + [0.0, -0.1, 0.05], drifts, 8, 16, 1.0).action == "retrain"
    assert advise(gains, drifts, 8, 16, 1.0).every == 1
    assert advise([0.1] * 4 + [0.01] * 4, drifts, 8, 16, 1.0).every == 2
    with pytest.raises(InputError, match="inconsistent"):
        advise([], [], 0, 16, 1.0)
