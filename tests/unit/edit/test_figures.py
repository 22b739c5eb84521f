"""Figures against scipy and scikit-learn; shots and splits."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import stats
from sklearn import metrics as reference
from sklearn.decomposition import PCA

from edgeedit.edit.drift import SHOWN_ROWS, feature_movement
from edgeedit.edit.shots import load_shots, open_image, split_by_group
from edgeedit.edit.statistics import auc, balanced_error, mcnemar, paired_change, t_interval, verdict_shares, wilson
from edgeedit.errors import InputError


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10_000))
def test_error_and_auc_equal_scikit_learn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = np.concatenate([[0, 1], rng.integers(0, 2, 40)])
    scores = rng.integers(0, 8, 42) / 8  # many ties
    assert auc(labels, scores) == pytest.approx(reference.roc_auc_score(labels, scores))
    verdicts = (scores > 0.5).astype(np.int64)
    assert balanced_error(labels, verdicts) == pytest.approx(1 - reference.balanced_accuracy_score(labels, verdicts))


@pytest.mark.parametrize(("fixed", "broken"), [(0, 0), (5, 1), (1, 5), (30, 30), (700, 600)])
def test_mcnemar_equals_the_exact_binomial_test(fixed: int, broken: int) -> None:
    expected = stats.binomtest(min(fixed, broken), fixed + broken).pvalue if fixed + broken else 1.0
    assert mcnemar(fixed, broken) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("wrong", "n"), [(0, 10), (3, 50), (50, 50), (133, 660)])
def test_wilson_equals_scipy(wrong: int, n: int) -> None:
    expected = stats.binomtest(wrong, n).proportion_ci(method="wilson")
    found = wilson(wrong, n)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_t_interval_equals_scipy() -> None:
    values = np.array([0.1, -0.2, 0.05, 0.3])
    expected = stats.t.interval(0.95, 3, values.mean(), stats.sem(values))
    assert t_interval(values) == pytest.approx(expected, abs=1e-3)
    assert t_interval(values[:1]) == (None, None)


@pytest.mark.parametrize("width", [6, 900])
def test_the_plane_of_movement_equals_scikit_learn_and_the_populations_are_told_apart(width: int) -> None:
    rng = np.random.default_rng(width)
    spread = 4.0 / np.arange(1, width + 1)
    before = {name: (rng.normal(size=(n, width)) * spread + 3).astype(np.float32) for name, n in (("target", 90), ("control", 120))}
    after = {"target": before["target"] + 4.0 * np.eye(width, dtype=np.float32)[1], "control": before["control"] + np.float32(1e-3)}
    found = feature_movement(before, after)
    for name, n in (("target", 90), ("control", 120)):
        rows = before[name].astype(np.float64)
        known = PCA(2).fit(rows)
        assert found[name]["explained"] == pytest.approx(known.explained_variance_ratio_, rel=1e-4)
        for when, own in (("before", before), ("after", after)):
            expected = known.transform(own[name]) / known.transform(rows)[:, 0].std()
            got = np.array(found[name][when])
            signs = np.sign((got * expected).sum(axis=0))
            assert got.shape == (n, 2)
            assert np.abs(got * signs - expected).max() < 2e-3
    assert found["target"]["p"] < 0.01
    assert found["control"]["p"] > 0.05
    assert found["target"]["mmd"] > 5 * abs(found["control"]["mmd"])
    assert found == feature_movement(before, after)


def test_an_edit_that_moves_nothing_is_told_apart_as_often_as_chance_would() -> None:
    """The same images stand on both sides: a test of paired rows as if they were two samples would never call."""
    rng = np.random.default_rng(3)
    p = []
    for _ in range(60):
        rows = {"control": rng.normal(size=(40, 5)).astype(np.float32)}
        p.append(feature_movement(rows, rows)["control"]["p"])
    assert stats.kstest(p, "uniform").pvalue > 0.01


def test_movement_takes_large_small_and_flat_sets() -> None:
    rng = np.random.default_rng(0)
    many = rng.normal(size=(3 * SHOWN_ROWS, 4)).astype(np.float32)
    found = feature_movement({"target": many, "unrelated": many[:1]}, {"target": many, "unrelated": many[:1]})
    assert list(found) == ["target"]  # one image is no population
    assert found["target"]["n"] == len(found["target"]["before"]) == SHOWN_ROWS
    assert found["target"]["before"] == found["target"]["after"]
    flat = {"target": np.ones((5, 4), np.float32)}
    assert feature_movement(flat, {"target": many[:5]}) == feature_movement({}, {}) == {}
    line = {"target": np.outer(np.arange(4), np.ones(5)).astype(np.float32)}
    assert feature_movement(line, line)["target"]["explained"] == [pytest.approx(1.0), pytest.approx(0.0)]


def test_paired_interval_is_wider_when_images_come_in_groups() -> None:
    rng = np.random.default_rng(0)
    labels = np.tile([0, 1], 100)
    bad_group = np.repeat(rng.random(20) < 0.3, 10)
    before = np.zeros(200, dtype=bool)
    single = paired_change(labels, before, bad_group, tuple(str(i) for i in range(200)))
    grouped = paired_change(labels, before, bad_group, tuple(str(i // 10) for i in range(200)))
    assert grouped.high - grouped.low > 1.5 * (single.high - single.low)
    assert grouped.low <= bad_group.mean() <= grouped.high


@pytest.mark.parametrize(("images", "broke"), [(50, 0.01), (100, 0.01), (400, 0.01)])
def test_paired_interval_covers_a_rare_break(images: int, broke: float) -> None:
    """A bootstrap alone covers 41 % at 50 images: where no break was drawn, no resample shows one."""
    rng = np.random.default_rng(0)
    labels, names = np.arange(images) % 2, tuple(str(n) for n in range(images))
    before = np.zeros(images, dtype=bool)
    found = [paired_change(labels, before, rng.random(images) < broke, names) for _ in range(100)]
    assert sum(i.low <= broke <= i.high for i in found) >= 93


def test_no_flip_among_few_images_proves_nothing() -> None:
    """For one class the floor is the published formula: with no flip, +-1.96 sqrt(2) / (n + 2)."""
    still = np.zeros(100, dtype=bool)
    found = paired_change(np.zeros(100, dtype=np.int64), still, still, tuple(str(n) for n in range(100)))
    assert (found.low, found.high) == pytest.approx((-1.959964 * 2**0.5 / 102, 1.959964 * 2**0.5 / 102), abs=1e-6)
    many = paired_change(np.arange(100) % 20, still, still, tuple(str(n) for n in range(100)))
    assert many.high == pytest.approx(found.high, rel=0.05)  # equal classes weigh as one pool does
    one_group = paired_change(np.arange(100) % 2, still, still, ("lot",) * 100)
    assert (one_group.low, one_group.high) == (-1, 1)


def _picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(len(str(path))).integers(0, 255, (8, 8, 3)).astype(np.uint8)).save(path)
    return path


def test_jsonl_reads_labels_groups_and_questions(tmp_path: Path) -> None:
    for number in range(4):
        _picture(tmp_path / f"{number}.png")
    rows = [{"image": f"{n}.png", "label": "ok" if n % 2 else "bad", "group": f"g{n // 2}"} for n in range(4)]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(r) for r in rows), "utf-8")
    shots = load_shots(tmp_path / "a.jsonl")
    assert (shots.classes, shots.labels.tolist(), shots.groups) == (("bad", "ok"), [0, 1, 0, 1], ("g0", "g0", "g1", "g1"))
    asked = [{"image": f"{n}.png", "question": "crack?", "answer": "yes" if n else "no"} for n in range(4)]
    (tmp_path / "b.jsonl").write_text("\n".join(json.dumps(r) for r in asked), "utf-8")
    assert load_shots(tmp_path / "b.jsonl").classes == ("crack? no", "crack? yes")


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 1000))
def test_a_split_never_separates_a_group(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    folder = tmp_path_factory.mktemp("s")
    rng = np.random.default_rng(seed)
    lines = [
        json.dumps({"image": _picture(folder / f"{n}.png").name, "label": str(n % 2), "group": f"g{n % 2}-{rng.integers(0, 4)}"})
        for n in range(24)
    ]
    (folder / "x.jsonl").write_text("\n".join(lines), "utf-8")
    try:
        left, right = split_by_group(load_shots(folder / "x.jsonl"), 0.5, seed)
    except InputError:
        return  # a class had one group only: refused, which test_bad_sets covers
    assert not set(left.groups) & set(right.groups)
    assert len(left.paths) + len(right.paths) == 24
    assert set(left.labels.tolist()) == set(right.labels.tolist()) == {0, 1}


def test_bad_sets_are_one_sentence_and_exit_2(tmp_path: Path) -> None:
    one = tmp_path / "one"
    _picture(one / "a" / "1.png")
    cases = {"missing": one, "empty": tmp_path / "none", "picture": tmp_path / "broken", "folder or": _picture(tmp_path / "x.png")}
    (tmp_path / "none").mkdir()
    _picture(tmp_path / "broken" / "a" / "1.png")
    _picture(tmp_path / "broken" / "b" / "1.png").write_bytes(b"no picture")
    for word, path in cases.items():
        with pytest.raises(InputError, match=word) as caught:
            load_shots(path)
        assert caught.value.exit_code == 2
        assert "\n" not in caught.value.message
    both = tmp_path / "both"
    _picture(both / "a" / "1.png")
    _picture(both / "b" / "1.png")
    with pytest.raises(InputError, match="both sides"):
        split_by_group(load_shots(both), 0.5, 0)


def test_pictures_that_pil_would_spoil_are_refused(tmp_path: Path) -> None:
    """16-bit grey values above 255 would become white; NaN would become a number."""
    wide = (np.arange(64).reshape(8, 8) * 1000).astype(np.uint16)
    Image.fromarray(wide).save(tmp_path / "16.png")
    values = np.full((8, 8), np.nan, dtype=np.float32)
    Image.fromarray(values).save(tmp_path / "f.tif")
    for name in ("16.png", "f.tif"):
        with pytest.raises(InputError, match=f"{name} does not fit: expected 8 bits"):
            open_image(tmp_path / name)


def test_bad_lines_are_input_errors_and_odd_text_is_not(tmp_path: Path) -> None:
    picture = _picture(tmp_path / "x.png").name
    (tmp_path / "latin.jsonl").write_bytes(f'{{"image": "{picture}", "label": "br\u00fcchig"}}\n'.encode("latin-1"))
    with pytest.raises(InputError, match="expected UTF-8"):
        load_shots(tmp_path / "latin.jsonl")
    (tmp_path / "nan.jsonl").write_text(f'{{"image": "{picture}", "label": NaN}}\n' * 2, "utf-8")
    with pytest.raises(InputError, match=r"line 1 of .*NaN is no label"):
        load_shots(tmp_path / "nan.jsonl")
    lines = [json.dumps({"image": picture, "label": label}, ensure_ascii=False) for label in ("a\u2028b", "c")]
    (tmp_path / "odd.jsonl").write_text("\n".join(lines), "utf-8")
    assert load_shots(tmp_path / "odd.jsonl").classes == ("a\u2028b", "c")


def test_shares_are_of_the_verdicts_not_of_the_labels() -> None:
    assert verdict_shares(np.array([0, 0, 2, 0]), 3) == (0.75, 0.0, 0.25)
