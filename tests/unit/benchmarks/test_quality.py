"""The quality grid's own logic: order, choice of rates, goals, storage and sets that never share an image."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[3] / "benchmarks"))

import edit_quality
import quality_report
import quality_sets
import rivals

from edgeedit.catalog import load_recipe
from edgeedit.delta import LowRankPart, SparsePart, TensorDelta
from edgeedit.digest import digest_file
from edgeedit.edit.cost import delta_bytes, entropy_bits, position_bits
from edgeedit.edit.evaluate import features
from edgeedit.edit.readers import fit_linear
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
    assert {row[3] for row in work if row[0] == "fashion"} == set(edit_quality.FIRST[:4])


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


def test_rivals_train_and_merge() -> None:
    tiny = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 28, "patch_size": 7}
    encoder = random_encoder(load_recipe("dinov2"), tiny, seed=1)
    pixels = torch.randn(20, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(20) % 2
    reader = fit_linear(features(encoder, pixels.numpy()), labels.numpy(), ("a", "b"))
    data = rivals.Data(pixels, 1 - labels, pixels[:16])
    before = {n: p.detach().clone() for n, p in encoder.parameters_by_name().items()}
    for made, touched in (
        (rivals.lora(encoder, data, reader, 1e-2, 0, steps=3), set(encoder.editable())),
        (rivals.dense(encoder, data, reader, 1e-3, 0, steps=3, only="norm"), {n for n in before if "norm" in n}),
    ):
        after = made.encoder.parameters_by_name()
        assert {n for n in before if not torch.equal(before[n], after[n])} == touched
    half = rivals.interpolated(encoder, made, 0.5).encoder.parameters_by_name()
    name = next(iter(touched))
    assert torch.allclose(half[name] - before[name], 0.5 * (after[name] - before[name]), atol=1e-7)
    assert all(torch.equal(before[n], p) for n, p in encoder.parameters_by_name().items()), "the given encoder was changed"
