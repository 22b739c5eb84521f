"""A delta that fails its gate is not written; its figures are."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from edgeedit.delta import Delta, SparsePart, TensorDelta
from edgeedit.edit.saving import rejected_path, save_judged
from edgeedit.metrics import EditMetrics, GateVerdict, Interval, SetResult


def test_a_failed_edit_leaves_figures_and_no_delta(tmp_path: Path) -> None:
    row = SetResult("target", 9, 0.1, 0.2, None, None, Interval(0, 1), Interval(0, 1), 0, 1, 1.0, Interval(0, 0.3))
    failed = EditMetrics(row, None, None, GateVerdict("fail", ("target error did not fall",), 0.02), 1.0, 1, 0.1, 0, 10)
    delta = Delta(
        (TensorDelta("w", (4,), SparsePart(np.array([1], np.int64), np.array([3], np.int16), 0.5)),), {"metrics": failed.to_json()}
    )
    out = tmp_path / "fix.delta"
    save_judged(delta, replace(failed, gate=GateVerdict("undecided", (), 0.02)), out)
    assert out.exists() and not rejected_path(out).exists()
    save_judged(delta, failed, out)
    assert not out.exists(), "the delta of an earlier run stayed"
    assert json.loads(rejected_path(out).read_text("utf-8"))["metrics"]["gate"]["verdict"] == "fail"
    save_judged(delta, replace(failed, gate=GateVerdict("pass", (), 0.02)), out)
    assert out.exists() and not rejected_path(out).exists()
