"""The explanation of an edit: planted components come first, leaving one out equals brute force, the random baseline is worse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import Occlusion
from report_page import check_numbers
from scipy.stats import spearmanr

from edgeedit.delta import Delta, LowRankPart, SparsePart, TensorDelta
from edgeedit.edit.components import Component, Effect, Judged, Judgement, brute_force, components_of, judge_rows, leave_one_out
from edgeedit.edit.evaluate import features, reader_labels
from edgeedit.edit.explain import Sample, Subject, component_rows, explain, summary_lines
from edgeedit.edit.importance import importance
from edgeedit.edit.locality import choose, mean_gradients
from edgeedit.edit.lorsu import Lorsu
from edgeedit.edit.readers import Reader, fit_linear
from edgeedit.edit.run import HeldOut, edit
from edgeedit.edit.saliency import margin, nearest, occlusion, window_of
from edgeedit.edit.shots import Shots, load_pixels
from edgeedit.encoder.encoder import Encoder
from edgeedit.encoder.values import parameter_values, with_values
from edgeedit.report.html import save_report
from edgeedit.rounding import apply_delta

Array = np.ndarray[Any, Any]
PLANTED_HEAD, PLANTED_FFN = (1, 2), 0  # (block, head); block


@pytest.fixture(scope="module")
def reader(encoder: Encoder, sets: dict[str, Shots]) -> Reader:
    base = sets["base"]
    return fit_linear(features(encoder, load_pixels(base, encoder.preprocess)), base.labels, base.classes)


@pytest.fixture(scope="module")
def planted(encoder: Encoder) -> tuple[Encoder, Delta]:
    """An encoder with a fault in one head and in entries of one FFN, and the Delta that takes both out again, among decoys."""
    rng = np.random.default_rng(5)
    values = parameter_values(encoder, "float32")
    width = encoder.head_rows(0).stop
    tensors = {}
    for block in range(encoder.blocks):
        for name in encoder.qkv_names(block):
            out, into = values[name].shape
            rows = np.concatenate([np.arange(h * width, (h + 1) * width) for h in (0, 2)]).astype(np.int64)
            a = rng.integers(-2, 3, (rows.size, 2)).astype(np.int8)
            if (block, 2) == PLANTED_HEAD:
                a[width:] = rng.integers(-127, 128, (width, 2))
            b = rng.integers(-60, 61, (2, into)).astype(np.int8)
            tensors[name] = TensorDelta(name, (out, into), low_rank=LowRankPart(rows, np.arange(into, dtype=np.int64), a, b, 2.0**-13))
        name = encoder.fc1_name(block)
        index = np.sort(rng.permutation(values[name].size)[:400]).astype(np.int64)
        q = rng.choice([-1, 1], 400).astype(np.int16) * (120 if block == PLANTED_FFN else 1)
        tensors[name] = TensorDelta(name, values[name].shape, sparse=SparsePart(index, q.astype(np.int16), 2.0**-8))
    repair = tuple(sorted(tensors.values(), key=lambda t: t.name))
    faulty = dict(values)
    for t in repair:
        work = values[t.name].astype(np.float64)
        work -= apply_delta(np.zeros(t.shape, np.float32), t)
        faulty[t.name] = work.astype(np.float32)
    return with_values(encoder, faulty), Delta(repair)


def test_planted_components_come_first_and_leaving_out_equals_brute_force(
    planted: tuple[Encoder, Delta], sets: dict[str, Shots], reader: Reader
) -> None:
    faulty, delta = planted
    subject = Subject(sets["target"], sets["control"], (sets["shots"],))
    value = explain(faulty, delta, reader, subject, precision="float32", sample=Sample(images=20, maps=2, stored=16))
    assert value["sets"]["target"]["loss_before"] > value["sets"]["target"]["loss_after"]
    first = {(row["kind"], row["block"], row["head"]) for row in value["components"][:2]}
    assert first == {("head", *PLANTED_HEAD), ("ffn", PLANTED_FFN, None)}, [(r["name"], r["target"]) for r in value["components"]]
    assert len(value["components"]) == faulty.blocks * 3
    assert value["census"]["outside"] == 0 < value["census"]["changed"]
    assert sum(r["energy_share"] for r in value["components"]) == pytest.approx(1)

    values = parameter_values(faulty, "float32")
    new = {**values, **{t.name: apply_delta(values[t.name], t) for t in delta.tensors}}
    edited, whole = with_values(faulty, new), with_values(faulty, new)
    parts = components_of(faulty, values, new)
    judged = Judged("target", load_pixels(sets["target"], faulty.preprocess), reader_labels(sets["target"], reader), reader)
    effects = leave_one_out(edited, values, parts, [judged])
    slow = [brute_force(whole, values, part, judged) for part in parts]
    # An independent way too: a fresh encoder that never held the component.
    for part, expected in zip(parts, slow, strict=True):
        without = {n: np.where(part.parts[n], values[n], new[n]) if n in part.parts else new[n] for n in new}
        again = judge_rows(features(with_values(faulty, without), judged.pixels), judged)
        assert again == pytest.approx(expected, rel=1e-6)
    fast = [e.sets["target"].loss for e in effects]
    np.testing.assert_allclose([e.sets["target"].margin for e in effects], [s.margin for s in slow], atol=1e-5)
    np.testing.assert_allclose(fast, [s[0] for s in slow], rtol=1e-5)
    assert spearmanr(fast, [s[0] for s in slow]).statistic == 1.0
    assert [e.sets["target"].wrong for e in effects] == [s.wrong for s in slow]
    for name, value_ in parameter_values(edited, "float32").items():
        assert np.array_equal(value_, new[name]), "leaving out changed the encoder that was given"


def test_components_stand_by_the_size_of_their_effect_whatever_its_sign() -> None:
    parts = [Component("head", 0, n, {}, 1, 1.0) for n in range(3)]
    effects = [Effect(part, {"target": Judgement(loss, 4, 1.0 - loss)}) for part, loss in zip(parts, (0.6, 0.1, 0.5), strict=True)]
    rows = component_rows(effects, {"target": Judgement(0.5, 5, 0.25)}, {})
    assert [r["name"] for r in rows] == ["block 0, head 1", "block 0, head 0", "block 0, head 2"]
    assert [r["target"]["loss_rise"] for r in rows] == pytest.approx([-0.4, 0.1, 0.0])
    assert [r["target"]["margin_fall"] for r in rows] == pytest.approx([-0.65, -0.15, -0.25])
    assert [r["target"]["more_misjudged"] for r in rows] == [-1, -1, -1]


def test_a_component_that_was_not_planted_is_not_named_first(
    planted: tuple[Encoder, Delta], sets: dict[str, Shots], reader: Reader
) -> None:
    faulty, delta = planted
    kept = tuple(t for t in delta.tensors if t.name != faulty.fc1_name(PLANTED_FFN))
    value = explain(faulty, Delta(kept), reader, Subject(sets["target"], None, ()), precision="float32", sample=Sample(images=20, maps=0))
    assert value["components"][0]["name"] == "block 1, head 2"
    assert "control" not in value["components"][0] and value["neighbours"] is None
    assert all(row["kind"] == "head" or row["block"] != PLANTED_FFN for row in value["components"])


def test_census_sees_a_head_that_was_not_chosen(planted: tuple[Encoder, Delta], sets: dict[str, Shots], reader: Reader) -> None:
    faulty, delta = planted
    heads = [[{"head": h, "score": 1.0, "chosen": h == 0} for h in range(4)] for _ in range(2)]
    info = {"locality": {"blocks": [{"block": b, "fc1_share": 0.0, "heads": heads[b]} for b in range(2)]}}
    value = explain(
        faulty, Delta(delta.tensors, info), reader, Subject(sets["target"], None, ()), precision="float32", sample=Sample(maps=0)
    )
    changed = sum(r["changed"] for r in value["components"] if r["kind"] == "head" and r["head"] == 2)
    assert value["census"]["outside"] == changed > 0


def test_importance_beats_random_and_random_is_what_drawing_gives(encoder: Encoder, sets: dict[str, Shots], reader: Reader) -> None:
    shots = sets["shots"]
    pixels = torch.from_numpy(load_pixels(shots, encoder.preprocess))
    labels = torch.from_numpy(reader_labels(shots, reader))

    def loss(rows: slice) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(reader.logits(encoder(pixels[rows])), labels[rows])

    scores = mean_gradients(encoder, loss, len(shots.paths), 8)
    locality = choose(encoder, scores, 0.05, 1)
    found = importance(encoder, scores, locality)
    assert found["covered"] > found["random_high"] > found["random_mean"] > 0
    assert sum(b["ffn"] + b["heads"] for b in found["blocks"]) == pytest.approx(1)
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(400):
        held = total = 0.0
        for block in range(encoder.blocks):
            squares = scores[encoder.fc1_name(block)].astype(np.float64).reshape(-1) ** 2
            held += squares[rng.permutation(squares.size)[: locality.entries[encoder.fc1_name(block)].size]].sum()
            held += locality.head_scores[block][rng.permutation(encoder.heads)[:1]].sum()
            total += squares.sum() + locality.head_scores[block].sum()
        drawn.append(held / total)
    assert found["random_mean"] == pytest.approx(np.mean(drawn), rel=0.06)
    assert np.mean(np.array(drawn) > found["random_high"]) < 0.03


def test_occlusion_and_neighbours_against_references(encoder: Encoder, sets: dict[str, Shots], reader: Reader) -> None:
    target = sets["target"]
    pixels, labels = load_pixels(target, encoder.preprocess)[:3], reader_labels(target, reader)[:3]
    maps, window = occlusion(encoder, reader, pixels, labels), window_of(encoder)

    def run(images: torch.Tensor) -> torch.Tensor:
        rows = features(encoder, images.detach().numpy())
        return torch.from_numpy(margin(reader, rows, np.full(len(rows), labels[0])))

    shape = (3, window, window)
    expected = Occlusion(run).attribute(torch.from_numpy(pixels[:1]), sliding_window_shapes=shape, strides=shape, baselines=0)
    cells = expected[0, 0, ::window, ::window].numpy()
    np.testing.assert_allclose(maps[0], cells, atol=1e-4)
    rows = features(encoder, pixels)
    best = nearest(rows, np.concatenate([rows[::-1], rows * -1]), np.zeros(encoder.width), 1)
    assert [b[0][0] for b in best] == [2, 1, 0] and all(b[0][1] == pytest.approx(1) for b in best)


def test_a_real_edit_explains_itself(encoder: Encoder, sets: dict[str, Shots], reader: Reader, tmp_path: Path) -> None:
    method = Lorsu(steps=6, heads=1, augment=False)
    held = HeldOut(sets["target"], sets["base"])
    result = edit(encoder, sets["shots"], sets["control"], reader, method=method, precision="float32", heldout=held, seed=0, limit=0.5)
    subject = Subject(sets["target"], sets["base"], (sets["shots"], sets["control"]), load_pixels(sets["control"], encoder.preprocess)[:4])
    value = explain(encoder, result.delta, reader, subject, precision="float32", sample=Sample(images=8, maps=2, stored=8))
    assert value["census"]["changed"] == result.metrics.changed_count and value["census"]["outside"] == 0
    assert sum(row["changed"] for row in value["components"]) == result.metrics.changed_count
    assert value["importance"]["covered"] > value["importance"]["random_mean"]
    assert set(value["drift"]) == {"target", "control", "probes"} and len(value["drift"]["probes"]["cka"]) == encoder.blocks
    assert "importance covered" in summary_lines(value)[0]
    # The report takes what was written, and every figure of it is in report.json.
    save_report(result.delta, tmp_path / "r.html", explanation=json.loads(json.dumps(value)))
    report = json.loads((tmp_path / "report.json").read_text("utf-8"))
    page = check_numbers((tmp_path / "r.html").read_text("utf-8"), report)
    assert "Why: what each part of the edit does" in page.words
    before, after = result.features_before["target"].astype(float), result.features_after["target"].astype(float)
    cosines = (before * after).sum(axis=1) / np.linalg.norm(before, axis=1) / np.linalg.norm(after, axis=1)
    assert report["drift"]["sets"]["target"]["median"] == pytest.approx(float(np.median(cosines)), abs=1e-6)
    assert report["data"]["heldout"]["control"] == {"digest": sets["base"].digest, "n": len(sets["base"].paths)}
