"""`edgeedit demo --vlm` on the real encoder, projector and language model, with few steps and few held-out images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from edgeedit.edit.lorsu import Lorsu
from edgeedit.edit.shots import Shots, make_shots
from edgeedit.flows.vlm import demo


def _every(shots: Shots, step: int) -> Shots:
    rows = list(range(0, len(shots.paths), step))
    return make_shots([shots.paths[i] for i in rows], shots.labels[rows], shots.classes, [shots.groups[i] for i in rows], shots.pairs)


@pytest.mark.slow
def test_a_wrong_answer_enters_at_the_encoder_and_is_repaired_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sets = demo.vlm_scenario(0)
    # Shots from the train blocks judge here: a test must not look at what the demo's seeds hold out.
    rows = {"shots": slice(0, None, 2), "target_heldout": slice(1, None, 2)}
    of = sets.shots
    halves = {
        name: make_shots(of.paths[part], of.labels[part], of.classes, of.groups[part], of.pairs) for name, part in rows.items()
    }  # fmt: skip
    small = replace(
        sets,
        **halves,
        control=_every(sets.control, 8),
        control_heldout=_every(sets.control_heldout, 12),
        unrelated_heldout=_every(sets.unrelated_heldout, 7),
    )
    monkeypatch.setattr(demo, "vlm_scenario", lambda _: small)
    value = demo.run_vlm_demo(tmp_path / "out", [0], lambda *_: None, Lorsu(steps=6, batch=8, patterns=2))
    run = value["runs"][0]
    assert run["changed_weights"]["outside_mask"] == 0 < run["changed_weights"]["count"]
    assert run["vlm"]["base_on_control"]["reads_images"], run["vlm"]
    assert run["vlm"]["base_on_shapes"]["reads_images"], run["vlm"]
    assert run["target_error"]["before"] > run["control_error"]["before"] + 0.1, "the base does not misread the new cells"
    if run["apply"] is not None:
        assert run["device_equals_server"] and run["rollback_exact"]
        assert (run["apply"]["state"], run["apply"]["frames_lost"], run["apply"]["frames_torn"]) == ("confirmed", 0, 0)
    table = demo.vlm_table(value, tmp_path / "out")
    assert "the answers use the image" in table and "language side unchanged" in table
    stored = (tmp_path / "out" / "seed-0" / "run.json").stat().st_mtime_ns
    demo.run_vlm_demo(tmp_path / "out", [0], lambda *_: None)
    assert (tmp_path / "out" / "seed-0" / "run.json").stat().st_mtime_ns == stored, "a finished seed was run again"
