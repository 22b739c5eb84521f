"""The demo's whole chain on the real encoder and real images, with few steps and few held-out images to stay short."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from report_browser import print_pdf, text_of
from report_page import check_numbers

from edgeedit.edit.lorsu import Lorsu
from edgeedit.edit.run import EditResult, edit
from edgeedit.edit.shots import Shots, make_shots
from edgeedit.errors import GateError
from edgeedit.flows import demo
from edgeedit.flows.demo_pages import table
from edgeedit.flows.elpv import development_scenario
from edgeedit.metrics import GateVerdict


def _every(shots: Shots, step: int) -> Shots:
    rows = list(range(0, len(shots.paths), step))
    return make_shots([shots.paths[i] for i in rows], shots.labels[rows], shots.classes, [shots.groups[i] for i in rows])


@pytest.mark.slow
def test_mistake_repair_patch_swap_and_rollback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The development blocks: a test must not look at what the demo's seeds hold out.
    data = development_scenario(0)
    small = replace(
        data,
        target_heldout=_every(data.target_heldout, 3),
        unrelated_train=_every(data.unrelated_train, 3),
        unrelated_heldout=_every(data.unrelated_heldout, 20),
    )
    monkeypatch.setattr(demo, "scenario", lambda _: small)
    monkeypatch.setattr(demo, "Lorsu", lambda: Lorsu(steps=15))
    value = demo.run_demo(tmp_path / "out", [0], lambda *_: None)
    run = value["runs"][0]
    assert run["target_error"]["after"] < run["target_error"]["before"]
    assert run["changed_weights"]["outside_mask"] == 0 < run["changed_weights"]["count"]
    assert run["device_equals_server"] and run["rollback_exact"]
    apply = run["apply"]
    assert (apply["state"], apply["frames_lost"], apply["frames_torn"]) == ("confirmed", 0, 0)
    assert apply["frames_by_model"]["old"] > 0 and apply["frames_by_model"]["new"] > 0
    assert run["patch_bytes"] < run["encoder_bytes"] / 40
    left = {p.name for p in (tmp_path / "out").iterdir()}
    assert {"fix.eep", "report.html", "commands.txt", "pictures", "demo.json"} <= left
    assert len(list((tmp_path / "out" / "pictures").glob("*.png"))) == 6
    source = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert "CC BY-NC-SA" in source
    page = check_numbers(source, json.loads((tmp_path / "out" / "report.json").read_text("utf-8")))
    assert "The camera as a gauge" in page.words and len(source.encode()) < 5_000_000
    print_pdf(tmp_path / "out" / "report.html", tmp_path / "report.pdf", tmp_path / "profile")
    first = text_of(tmp_path / "report.pdf", 1, 1)
    assert all(text in first for text in ("Whatwaswrong", "Howtoundo", "Thecameraasagauge", "Signature"))
    assert "Errorandretention" in text_of(tmp_path / "report.pdf", 2, 2)
    before = (tmp_path / "out" / "seed-0" / "run.json").stat().st_mtime_ns
    again = demo.run_demo(tmp_path / "out", [0], lambda *_: None)
    assert (tmp_path / "out" / "seed-0" / "run.json").stat().st_mtime_ns == before, "a finished seed was run again"
    assert json.loads(json.dumps(again["mean"])) == json.loads(json.dumps(value["mean"]))


@pytest.mark.slow
def test_a_seed_whose_gate_fails_is_shown_but_never_packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = development_scenario(0)
    names = ("target_heldout", "control_heldout", "unrelated_train", "unrelated_heldout")
    small = replace(data, **{name: _every(getattr(data, name), 10) for name in names})

    def failing(*args: Any, **kwargs: Any) -> EditResult:
        result = edit(*args, **kwargs)
        return replace(result, metrics=replace(result.metrics, gate=GateVerdict("fail", ("control error rose by at least 0.1",), 0.02)))

    monkeypatch.setattr(demo, "scenario", lambda _: small)
    monkeypatch.setattr(demo, "Lorsu", lambda: Lorsu(steps=1))
    monkeypatch.setattr(demo, "edit", failing)
    value = demo.run_demo(tmp_path / "out", [0], lambda *_: None)
    assert value["mean"]["target_error"]["after"] == value["runs"][0]["target_error"]["after"]
    assert "no seed passed the gate" in table(value, tmp_path / "out")
    assert not [p.name for p in (tmp_path / "out").rglob("*") if p.suffix in (".eep", ".delta")], "something deployable was written"
    with pytest.raises(GateError, match="control error rose"):
        demo.check_gates(value)
