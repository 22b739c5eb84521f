"""Planted heads and planted single weights are named first, at random they are not; estimates against differences, listed weights against
brute force."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr

from edgeedit.delta import Delta, LowRankPart, SparsePart, TensorDelta
from edgeedit.edit.components import Component, Judged, brute_force, components_of, judge_rows
from edgeedit.edit.entries import entry_effects, entry_rows
from edgeedit.edit.evaluate import features, reader_labels
from edgeedit.edit.explain import Sample, Subject, explain, summary_lines
from edgeedit.edit.readers import Reader, fit_linear
from edgeedit.edit.shots import Shots, load_pixels
from edgeedit.encoder.encoder import Encoder
from edgeedit.encoder.values import parameter_values, with_values
from edgeedit.rounding import apply_delta

Array = np.ndarray[Any, Any]
PLANTED, DECOYS = 20, 380  # single weights of one matrix


@pytest.fixture(scope="module")
def reader(encoder: Encoder, sets: dict[str, Shots]) -> Reader:
    base = sets["base"]
    return fit_linear(features(encoder, load_pixels(base, encoder.preprocess)), base.labels, base.classes)


@dataclass(frozen=True)
class Plant:
    """A faulty encoder, the Delta that repairs it, the head and the single weights (parameter, flat place) that carry the fault."""

    faulty: Encoder
    delta: Delta
    head: tuple[int, int]
    ffn: int
    weights: set[tuple[str, int]]


def plant(encoder: Encoder, seed: int) -> Plant:
    rng = np.random.default_rng(seed)
    values = parameter_values(encoder, "float32")
    width, head, ffn = encoder.head_rows(0).stop, (seed % 2, seed % 4), (seed // 2) % 2
    changes, weights = [], set()
    for block in range(encoder.blocks):
        for name in encoder.qkv_names(block):
            out, into = values[name].shape
            a = rng.integers(-2, 3, (out, 2)).astype(np.int8)
            if block == head[0]:
                a[head[1] * width : (head[1] + 1) * width] = rng.integers(-127, 128, (width, 2))
            b = rng.integers(-60, 61, (2, into)).astype(np.int8)
            changes.append(
                TensorDelta(name, (out, into), low_rank=LowRankPart(np.arange(out), np.arange(into, dtype=np.int64), a, b, 2.0**-13))
            )
        name = encoder.fc1_name(block)
        index = rng.permutation(values[name].size)[: PLANTED + DECOYS].astype(np.int64)
        size = np.ones(index.size, np.int16)
        if block == ffn:
            size[:PLANTED] = 120
            weights = {(name, int(place)) for place in index[:PLANTED]}
        order = np.argsort(index)
        q = (rng.choice([-1, 1], index.size) * size).astype(np.int16)
        changes.append(TensorDelta(name, values[name].shape, SparsePart(index[order], q[order], 2.0**-7)))
    faulty = {**values}
    for change in changes:
        faulty[change.name] = values[change.name] - apply_delta(np.zeros(change.shape, np.float32), change)
    return Plant(with_values(encoder, faulty), Delta(tuple(changes)), head, ffn, weights)


@pytest.fixture(scope="module", params=range(3))
def case(request: pytest.FixtureRequest, encoder: Encoder, sets: dict[str, Shots], reader: Reader) -> tuple[Plant, Encoder, Judged]:
    """A plant, the repaired encoder, and the images that judge it."""
    made = plant(encoder, request.param)
    values = parameter_values(made.faulty, "float32")
    new = {**values, **{t.name: apply_delta(values[t.name], t) for t in made.delta.tensors}}
    target = sets["target"]
    judged = Judged("target", load_pixels(target, encoder.preprocess), reader_labels(target, reader), reader)
    return made, with_values(made.faulty, new), judged


def left_out(case: tuple[Plant, Encoder, Judged], places: set[tuple[str, int]]) -> float:
    """By how much the loss moves, up or down, without these weights."""
    made, edited, judged = case
    old = parameter_values(made.faulty, "float32")
    masks = {}
    for name in {name for name, _ in places}:
        masks[name] = np.isin(np.arange(old[name].size), [p for n, p in places if n == name]).reshape(old[name].shape)
    whole = judge_rows(features(edited, judged.pixels), judged)
    return abs(brute_force(edited, old, Component("other", None, None, masks, len(places), 0.0), judged).loss - whole.loss)


def test_planted_head_and_weights_are_named_first_and_random_ones_are_not(
    case: tuple[Plant, Encoder, Judged], sets: dict[str, Shots], reader: Reader
) -> None:
    made = case[0]
    subject = Subject(sets["target"], None, ())
    value = explain(made.faulty, made.delta, reader, subject, precision="float32", sample=Sample(images=20, maps=0))
    first = {(row["kind"], row["block"], row["head"]) for row in value["components"][:2]}
    assert first == {("head", *made.head), ("ffn", made.ffn, None)}, [(r["name"], r["target"]) for r in value["components"][:4]]
    # Of single weights those of the first FFN matrices: a planted head's rows are all of one kind.
    shapes = {t.name: t.shape for t in made.delta.tensors}
    fc1 = Delta(tuple(t for t in made.delta.tensors if t.sparse is not None))
    value = explain(made.faulty, fc1, reader, subject, precision="float32", sample=Sample(images=20, maps=0))["entries"]
    named = [(row["name"], int(np.ravel_multi_index(row["index"], shapes[row["name"]]))) for row in value["top"]]
    assert len(named) == PLANTED and set(named[:8]) <= made.weights
    hits = len(set(named) & made.weights)
    rng = np.random.default_rng(0)
    changed = [(t.name, int(p)) for t in fc1.tensors if t.sparse is not None for p in t.sparse.index]
    draws = [{changed[i] for i in rng.choice(len(changed), PLANTED, replace=False)} for _ in range(12)]
    assert hits >= 14 and max(len(draw & made.weights) for draw in draws) <= 4
    assert value["changed"] == len(changed) and value["share"] > 10 * value["share_at_random"] == pytest.approx(10 * PLANTED / len(changed))
    planted, drawn = left_out(case, made.weights), [left_out(case, draw) for draw in draws]
    assert planted > 2 * np.mean(drawn)
    assert min(planted, left_out(case, set(named))) > 2 * max(left_out(case, draw - made.weights) for draw in draws)


def test_listed_weights_are_left_out_as_brute_force_does_it(case: tuple[Plant, Encoder, Judged]) -> None:
    made, edited, judged = case
    old, new = parameter_values(made.faulty, "float32"), parameter_values(edited, "float32")
    parts = components_of(edited, old, new)
    whole = judge_rows(features(edited, judged.pixels), judged)
    rows = entry_rows(edited, old, parts, judged, whole, shown=12)["top"]
    exact = []
    for row in rows:
        values = {**new, row["name"]: new[row["name"]].copy()}
        values[row["name"]][tuple(row["index"])] = old[row["name"]][tuple(row["index"])]
        exact.append(judge_rows(features(with_values(edited, values), judged.pixels), judged).loss - whole.loss)
    found = [row["loss_rise"] for row in rows]
    np.testing.assert_allclose(found, exact, atol=2e-6)
    assert spearmanr(np.abs(found), np.abs(exact)).statistic > 0.98  # equal up to ties at float32's noise
    assert [abs(v) for v in found] == sorted((abs(v) for v in found), reverse=True)
    for name, value in parameter_values(edited, "float32").items():
        assert np.array_equal(value, new[name])
    assert not any(p.requires_grad for p in edited.parameters_by_name().values())


class _Masked(Reader):
    """A reader that was asked about two classes at a time."""

    def verdict_logits(self, logits: Array, labels: Array) -> Array:
        pair = np.arange(logits.shape[1])[None, :] // 2 == labels[:, None] // 2
        result: Array = np.where(pair, logits, -np.inf)
        return result


@pytest.mark.parametrize("masked", [False, True])
def test_estimates_add_up_to_the_slope_of_the_loss(encoder: Encoder, sets: dict[str, Shots], reader: Reader, masked: bool) -> None:
    made = plant(encoder, 1)
    old = parameter_values(made.faulty, "float32")
    new = {**old, **{t.name: apply_delta(old[t.name], t) for t in made.delta.tensors}}
    edited = with_values(made.faulty, new)
    if masked:
        weight = np.concatenate([reader.weight, reader.weight[:, ::-1] * 3], axis=1)
        reader = _Masked(reader.kind, (*reader.classes, "x", "y"), reader.mean, reader.std, weight, np.tile(reader.bias, 2))
    target = sets["target"]
    judged = Judged("target", load_pixels(target, encoder.preprocess), reader_labels(target, reader), reader)
    effects = entry_effects(edited, old, components_of(edited, old, new), judged)
    assert sum(own.places.size for own in effects.values()) == sum(int((old[n] != new[n]).sum()) for n in old)

    def loss(step: float) -> float:
        mixed = {n: (new[n] + np.float32(step) * (old[n] - new[n])).astype(np.float32) for n in new}
        return judge_rows(features(with_values(edited, mixed), judged.pixels), judged).loss

    slope = (loss(0.01) - loss(-0.01)) / 0.02
    assert sum(float(own.estimates.sum()) for own in effects.values()) == pytest.approx(slope, rel=0.02)


def test_an_edit_without_a_component_lists_nothing(encoder: Encoder, sets: dict[str, Shots], reader: Reader) -> None:
    target = sets["target"]
    judged = Judged("target", load_pixels(target, encoder.preprocess), reader_labels(target, reader), reader)
    whole = judge_rows(features(encoder, judged.pixels), judged)
    assert entry_rows(encoder, {}, (), judged, whole) == {"changed": 0, "top": [], "share": 0.0, "share_at_random": 0.0}


def test_the_summary_names_the_weights(encoder: Encoder, sets: dict[str, Shots], reader: Reader) -> None:
    made = plant(encoder, 0)
    value = explain(
        made.faulty, made.delta, reader, Subject(sets["target"], None, ()), precision="float32", sample=Sample(images=8, maps=0)
    )
    lines = summary_lines(value)
    at = next(n for n, line in enumerate(lines) if "changed weights hold" in line)
    top = value["entries"]["top"][0]
    assert f"{value['entries']['share_at_random']:.1%}" in lines[at] and f"{top['name']} {top['index']}" in lines[at + 1]
