"""The arithmetic of the patch benchmarks on tiny input: baselines, estimate, goals, resampling.  Nothing here is timed."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeedit.delta import LowRankPart, SparsePart, TensorDelta

Array = np.ndarray[Any, Any]
BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmarks"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    return importlib.import_module


def _delta(rng: np.random.Generator, share: float = 0.1, shape: tuple[int, int] = (96, 64)) -> TensorDelta:
    index = np.flatnonzero(rng.random(shape[0] * shape[1]) < share).astype(np.int64)
    q = (rng.integers(1, 9, index.size) * rng.choice([-1, 1], index.size)).astype(np.int16)
    return TensorDelta("00.fc1", shape, SparsePart(index, q, 2.0**-12))


def test_the_estimate_is_near_the_entropy_of_a_structureless_mask(load: Any) -> None:
    estimate = load("patch_estimate")
    mask = np.random.default_rng(0).random((512, 512)) < 0.1
    entropy = -512 * 512 * (0.1 * np.log2(0.1) + 0.9 * np.log2(0.9))
    assert entropy * 0.98 < estimate.mask_bits(mask) < entropy * 1.04
    rows = np.random.default_rng(0).random((512, 512)) < np.where(np.arange(512) % 10 == 0, 0.9, 0.01)[:, None]
    assert estimate.mask_bits(rows) < 0.6 * entropy  # structure in the rows is seen
    assert estimate.entropy_bits(np.array([1, 1, 2, 2, 3, 3, 4, 4])) == 16.0


def test_baselines_grow_with_the_change(load: Any) -> None:
    rivals = load("patch_rivals")
    rng = np.random.default_rng(1)
    small, large = _delta(rng, 0.01), _delta(rng, 0.3)
    assert 0 < rivals.bitmap_int8_zstd([small]) < rivals.bitmap_int8_zstd([large])
    assert large.sparse is not None
    assert rivals.bitmap_int8_zstd([large]) < 96 * 64 // 8 + large.sparse.index.size + 64


def test_a_missing_or_starved_tool_is_not_run_with_a_reason(load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rivals = load("patch_rivals")
    (tmp_path / "a").write_bytes(b"a")
    spent = rivals.run_tool("bsdiff", tmp_path / "a", tmp_path / "a", tmp_path / "p", 0.0)
    assert spent.size is None
    assert "budget" in spent.note
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "not installed" in rivals.run_tool("zstd -19 --patch-from", tmp_path / "a", tmp_path / "a", tmp_path / "p", 9.0).note


def test_goals_are_lost_as_well_as_met(load: Any) -> None:
    size = load("patch_size")
    row = {
        "case": "fc1 10%", "ours": 100, "ours_low_rank_sections": 0, "ours_sparse_sections": 90, "estimate_sparse": 80,
        "rivals": {"bsdiff": 170, "xdelta3 -9": 400, "bitmap + int8 + zstd": 120},
    }  # fmt: skip
    found = {goal["name"].split(": ")[1][:7]: goal for goal in size.goals([row])}
    assert {key: goal["met"] for key, goal in found.items()} == {"smaller": False, "weight ": True, "sparse ": False}
    assert found["smaller"]["value"] == 1.7
    assert "bsdiff" in found["smaller"]["name"]


def test_resampling_keeps_density_steps_and_the_order_of_rows(load: Any, tmp_path: Path) -> None:
    vitl = load("patch_vitl")
    rng = np.random.default_rng(2)
    heavy = np.where(rng.random((40, 30)) < np.linspace(0.01, 0.6, 40)[:, None], rng.integers(1, 5, (40, 30)), 0).astype(np.int16)
    made = vitl.resample([heavy], (80, 60), rng)
    assert made.shape == (80, 60)
    assert (made != 0).mean() == (heavy != 0).mean()  # whole tiles only, so exactly
    assert set(np.unique(made)) == set(np.unique(heavy))
    left, right = (np.sort((part != 0).sum(1)) for part in (made[:, :30], made[:, 30:]))
    assert np.array_equal(left, right)
    order = np.corrcoef((made[:, :30] != 0).sum(1), (made[:, 30:] != 0).sum(1))[0, 1]
    assert order > 0.99  # a row has its rank in every tile


def test_a_tiny_case_goes_through_patch_and_target(load: Any, tmp_path: Path) -> None:
    vitl, case = load("patch_vitl"), load("patch_case")
    rng = np.random.default_rng(3)
    low = LowRankPart(
        np.arange(16, dtype=np.int64), np.arange(32, dtype=np.int64), rng.integers(-9, 9, (16, 2)).astype(np.int8),
        rng.integers(-9, 9, (2, 32)).astype(np.int8), 2.0**-16,
    )  # fmt: skip
    bundle = vitl.make_bundle(tmp_path / "bundle", blocks=2, width=32, hidden=64, embedding=(4, 4))
    deltas = vitl.make_deltas(bundle, [_delta(rng), TensorDelta("q", (32, 32), low_rank=low)])
    made = case.make_case("tiny", bundle, deltas, tmp_path / "case")
    assert len(made.deltas) == 2 * 4
    assert made.new.stat().st_size == made.old.stat().st_size
    assert made.new.read_bytes() != made.old.read_bytes()
    assert case.section_bytes(made.patch, "sparse") > 0
    size = load("patch_size")
    old, new, ours = size.slice_case(made, tmp_path / "slice")
    assert old.stat().st_size == new.stat().st_size
    assert old.read_bytes() != new.read_bytes()
    assert ours == len(made.patch.data)  # the slice holds both blocks, so all that was changed
    row = size.own_figures(made)
    assert row["ours"] == made.eep.stat().st_size
    assert "bitmap + int8 + zstd" in size.table(row)


def test_the_readme_holds_the_recorded_sizes(load: Any) -> None:
    table = load("patch_table")
    page, record = table.PAGE.read_text("utf-8"), json.loads(table.RECORD.read_text("utf-8"))
    assert table.page_with_table(page, record) == page, "run python benchmarks/patch_table.py"
    record["rows"][0]["ours"] += 1
    assert table.page_with_table(page, record) != page
    with pytest.raises(ValueError, match="no place"):
        table.page_with_table("no marks", record)
