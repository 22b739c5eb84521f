"""The quality grid's own logic: order, choice of rates, goals, storage and sets that never share an image."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[3] / "benchmarks"))

import edit_quality
import quality_cells
import quality_report
import quality_sets

from edgeedit.catalog import load_recipe
from edgeedit.delta import LowRankPart, SparsePart, TensorDelta
from edgeedit.digest import digest_file
from edgeedit.edit.cost import delta_bytes, entropy_bits, position_bits
from edgeedit.edit.evaluate import features
from edgeedit.edit.methods.full import LayerNorm
from edgeedit.edit.methods.lora import Lora
from edgeedit.edit.methods.no_edit import NoEdit
from edgeedit.edit.methods.refit import RefitBaseShots
from edgeedit.edit.readers import fit_linear
from edgeedit.edit.shots import Shots, load_pixels, make_shots
from edgeedit.encoder.load import random_encoder


def _cell(target: float, control: float, unrelated: float = 0.0) -> dict[str, Any]:
    pairs = {"target": (0.5, target), "control": (0.1, 0.1 + control), "unrelated": (0.1, 0.1 + unrelated)}
    return {name: {"error": list(pair)} for name, pair in pairs.items()}


def _row(method: str, target: list[float], control: list[float], size: int = 100, set_name: str = "elpv") -> dict[str, Any]:
    return {
        "set": set_name, "shots": 10, "method": method, "seeds": list(range(len(target))), "bytes": size, "target_auc": [0.5, 0.8],
        "target_change": target, "control_change": control, "unrelated_change": control,
    }  # fmt: skip


def test_the_main_methods_come_first_seed_by_seed() -> None:
    work = edit_quality.plan("cpu", list(quality_sets.NAMES), list(edit_quality.METHODS))
    main = len(edit_quality.FIRST)
    assert [row[3] for row in work[:main]] == list(edit_quality.FIRST)
    assert {row[2] for row in work[:main]} == {0} and {row[2] for row in work[main : 2 * main]} == {1}
    assert len(set(work)) == len(work)
    assert {row[3] for row in work if row[0] == "fashion"} == {"none", "default", "refit base+shots", "lora"}


def test_a_rate_that_breaks_the_control_is_not_chosen() -> None:
    rows = {"1": _cell(0.3, 0.01), "2": _cell(0.2, 0.05), "3": _cell(0.25, 0.0, 0.04), "4": {"failed": "diverged"}}
    assert edit_quality.choose(rows) == "1"
    assert edit_quality.choose({"2": rows["2"], "3": rows["3"], "4": rows["4"]}) == "2"


def test_goals_list_losses() -> None:
    rows = [_row("default", [-0.2, -0.2], [0.01, 0.02]), _row("lora", [-0.1, -0.1], [0.0, 0.0]), _row("full", [-0.1, -0.15], [0.1, 0.1], 9)]
    rows.append(_row("refit base+shots", [-0.21, -0.15], [0.0, 0.0]))
    found = {g["name"].split(" (")[0]: g for g in quality_report.goals(rows)}
    assert found["control drop"]["met"] is False and found["control drop"]["value"] == 0.015
    assert found["dominates lora"]["met"] is False, "better target, worse control"
    assert found["dominates full"]["met"] is False, "eleven times its bytes"
    assert found["dominates spu"]["met"] is None
    assert found["on the Pareto front"]["met"] is True
    assert found["beats the re-fitted reader"]["met"] is False
    worse = [_row("default", [-0.2], [0.02]), _row("lora", [-0.3], [0.0])]
    assert quality_report.goals(worse)[0]["value"] == ["lora"]


def test_cost_equals_counting() -> None:
    assert position_bits(2, 5) == pytest.approx(np.log2(10))
    assert entropy_bits(np.array([1, 1, 2, 2])) == pytest.approx(4.0)
    sparse = SparsePart(np.array([0, 3], np.int64), np.array([1, 2], np.int16), 0.5)
    low = LowRankPart(np.arange(4, dtype=np.int64), np.arange(4, dtype=np.int64), np.ones((4, 1), np.int8), np.ones((1, 4), np.int8), 1.0)
    assert delta_bytes([TensorDelta("w", (4, 4), sparse, low)]) == int(np.ceil((np.log2(120) + 2) / 8))


@pytest.mark.parametrize("name", ["elpv", "elpv-camera"])
def test_no_picture_is_on_both_sides(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality_sets, "FOLDER", tmp_path)
    data = quality_sets.sets(name, 0, 10, development=False)
    used = {digest_file(p) for shots in (data.shots, data.control, data.reader_train) for p in shots.paths}
    judged = {digest_file(p) for shots in (data.target_heldout, data.control_heldout) for p in shots.paths}
    assert not used & judged
    assert not {p.name for p in data.shots.paths} & {p.name for p in data.target_heldout.paths}
    development = quality_sets.sets(name, 100, 10, development=True)
    chosen_on = {p.name for p in development.target_heldout.paths} | {p.name for p in development.control_heldout.paths}
    assert not chosen_on & {p.name for p in (*data.target_heldout.paths, *data.control_heldout.paths)}


def test_an_outcome_holds_what_the_rival_changed_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality_cells, "FOLDER", tmp_path / "made")
    tiny = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 28, "patch_size": 7}
    encoder = random_encoder(load_recipe("dinov2"), tiny, seed=1)
    rng = np.random.default_rng(0)
    for number in range(36):
        Image.fromarray(rng.integers(0, 256, (28, 28, 3), np.uint8)).save(tmp_path / f"{number}.png")
    paths = [tmp_path / f"{number}.png" for number in range(36)]

    def shots(first: int, last: int) -> Shots:
        labels = np.arange(last - first) % 2
        return make_shots(paths[first:last], labels, ("a", "b"), [str(n) for n in range(first, last)])

    train, few, control = shots(0, 12), shots(12, 20), shots(20, 36)
    reader = fit_linear(features(encoder, load_pixels(train, encoder.preprocess)), train.labels, train.classes)
    data = SimpleNamespace(shots=few, control=control, reader_train=train)
    of: Any = SimpleNamespace(data=data, encoder=encoder, reader=reader)
    before = encoder.parameters_by_name()
    for method, touched in (
        (LayerNorm(steps=2, batch=4), {n for n in before if "norm" in n}),
        (Lora(steps=2, batch=4), None),
        (NoEdit(), set()),
    ):
        made = quality_cells.Packaged(method)(of, 1.0, 0)
        changed = {n for n, p in made.encoder.parameters_by_name().items() if not torch.equal(before[n], p)}
        assert changed == touched if touched is not None else set(encoder.editable()) <= changed
    assert made.size == 0 and made.reader is reader
    refitted = quality_cells.Packaged(RefitBaseShots())(of, 1.0, 0)
    rows = features(encoder, np.concatenate([load_pixels(s, encoder.preprocess) for s in (train, few)]))
    again = fit_linear(rows, np.concatenate([train.labels, few.labels]), reader.classes)
    assert np.allclose(refitted.reader.weight, again.weight, atol=1e-5) and not np.allclose(
        refitted.reader.weight, reader.weight, atol=1e-5
    )


def test_scaling_touches_learning_rates_only() -> None:
    assert quality_cells.scaled(Lora(lr_low_rank=1e-3), 3.0) == Lora(lr=Lora().lr * 3.0, lr_low_rank=1e-3 * 3.0)
    assert quality_cells.scaled(NoEdit(), 3.0) == NoEdit()
