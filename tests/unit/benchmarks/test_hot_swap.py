"""The hot-swap benchmark's own judgement: what counts as torn, lost or met."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest


def _load() -> Any:
    path = Path(__file__).parents[3] / "benchmarks" / "hot_swap.py"
    spec = importlib.util.spec_from_file_location("hot_swap", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["hot_swap"] = module
    spec.loader.exec_module(module)
    return module


hot_swap = _load()
A, B, MIX = np.zeros(2, np.float32), np.ones(2, np.float32), np.array([0, 1], np.float32)


@pytest.mark.parametrize(
    ("frames", "torn"),
    [
        ([A, A, B, B, A, A, B], 0),
        ([A, A, MIX, B, A], 1),
        ([A, B, None, B, A, B], 0),  # a lost frame is not a torn one
        ([A, B, A, B, A], 1),  # the old model after its last phase
        ([B, B], 0),
    ],
)
def test_frames_of_another_moment_are_torn(frames: list[Any], torn: int) -> None:
    assert hot_swap.torn_frames(frames, [A.tobytes(), B.tobytes(), A.tobytes(), B.tobytes()]) == torn


def test_goals_name_what_was_missed() -> None:
    swap = {"shape": "b16", "precision": "float32", "mode": "aliased", "mask": 0.01, "lock_max_ms": 11.0, "bitwise": False}
    swap |= {"steady": 1.2, "times_default_rebuild": 199.0}
    frames = {"shape": "b16", "precision": "float32", "mode": "aliased", "frames": 9, "lost": 1, "torn": 1, "swaps": 30}
    frames |= {"p99_swap_ms": 1.2, "p99_quiet_ms": 1.0, "serving_lock_ms": 10.5}
    goals = hot_swap.goals_of([swap, frames])
    assert len(goals) == 8
    assert not any(goal["met"] for goal in goals)
    text = " ".join(goal["name"] for goal in goals)
    assert all(word in text for word in ("lost", "torn", "rebuild", "bitwise", "lock", "p99", "steady"))


def test_only_a_run_that_was_cut_off_goes_on(tmp_path: Path) -> None:
    import json

    head, path = {"commit": "c"}, tmp_path / "r.json"
    assert hot_swap.former_rows(path, head) == []
    path.write_text(json.dumps({**head, "complete": False, "rows": [{"shape": "b16"}]}), "utf-8")
    assert hot_swap.former_rows(path, head) == [{"shape": "b16"}]
    assert hot_swap.former_rows(path, {"commit": "d"}) == []
    path.write_text(json.dumps({**head, "complete": True, "rows": [{"shape": "b16"}]}), "utf-8")
    assert hot_swap.former_rows(path, head) == []


def test_a_tower_is_begun_only_where_its_like_would_end_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hot_swap.time, "perf_counter", lambda: 1000.0)
    assert not hot_swap.too_late("b16", {}, 0.0, 1200.0)
    assert not hot_swap.too_late("b16", {"b16": 200.0, "l14": 500.0}, 0.0, 1200.0)
    assert hot_swap.too_late("l14", {"b16": 200.0, "l14": 201.0}, 0.0, 1200.0)
