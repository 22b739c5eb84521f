"""The README's section on the edit says what the committed results say: table, sentences below it, each figure worked out anew."""

from __future__ import annotations

import json
import re
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from edgeedit.flows.server import EditRequest

ROOT = Path(__file__).parents[3]
SETS = ("elpv", "elpv-camera", "fashion")
SHOTS = 10


def _load(name: str) -> Any:
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def section() -> str:
    page = (ROOT / "README.md").read_text("utf-8")
    return re.sub(r"\s+", " ", page.split("## How good the edit is\n")[1].split("\n## ")[0])


@pytest.fixture(scope="module")
def rows() -> dict[tuple[str, str], Any]:
    return {(r["set"], r["method"]): r for r in _load("edit_quality_gpu")["rows"] if r["shots"] == SHOTS}


def _cell(row: Any) -> str:
    return " / ".join(f"{100 * fmean(row[f'{side}_change']):+.1f}" for side in ("target", "control"))


def test_the_table_is_that_of_the_recorded_grid(section: str, rows: dict[tuple[str, str], Any]) -> None:
    shown = [[cell.strip() for cell in line] for line in re.findall(r"\| ([^|]+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \|", section)]
    assert shown[0] == ["method", *SETS, "kB"]
    assert {line[0] for line in shown[1:]} >= {"default", "lorsu", "attention", "spu", "lorsu-paper", "lora", "full", "refit base+shots"}
    for method, *cells, size in shown[1:]:
        own = [rows[name, method] for name in SETS]
        assert [r["seeds"] for r in own] == [[0, 1, 2, 3, 4]] * 3
        assert cells == [_cell(r) for r in own], method
        assert int(size) == round(fmean(r["bytes"] for r in own) / 1000), method


def test_the_sentences_below_the_table_hold(section: str, rows: dict[tuple[str, str], Any]) -> None:
    def mean(name: str, method: str, side: str) -> float:
        return fmean(rows[name, method][f"{side}_change"])

    for name in SETS:  # "beaten on every set by at least one other"
        own = mean(name, "default", "target"), mean(name, "default", "control")
        assert any(mean(name, m, "target") < own[0] and mean(name, m, "control") <= own[1] for n, m in rows if n == name)
    local = ("default", "fc1-10", "lorsu", "attention", "spu", "lorsu-paper")
    behind = max(100 * (mean(n, m, "target") - mean(n, "lora", "target")) for n in SETS for m in local)
    share = {m: fmean(rows[n, m]["bytes"] for n in SETS) / fmean(rows[n, "lora"]["bytes"] for n in SETS) for m in local}
    paper = share.pop("lorsu-paper")
    bytes_of = f"at {min(share.values()):.2f} to {max(share.values()):.2f} of its bytes (`lorsu-paper`: {paper:.2f})"
    assert f"repair at most {behind:.1f} points less than LoRA {bytes_of}" in section
    beats = next(g for g in _load("edit_quality_gpu")["goals"] if g["name"].startswith("beats the re-fitted reader"))
    assert {row["where"].split(",")[0] for row in beats["value"] if row["clear"]} == {"elpv"}
    assert "beats the re-fitted reader clearly on `elpv` only" in section


def test_the_chain_and_the_sessions_are_the_recorded_ones(section: str) -> None:
    chain = {row["method"]: row["summary"]["forgetting"] for row in _load("edit_chain_gpu")["rows"]}
    assert min(chain, key=lambda name: chain[name]) == "attention"
    assert f"({chain['attention']:.3f} of accuracy; default {chain['default']:.3f}, goal 0.01)" in section
    assert _load("edit_chain_gpu")["goals"][0]["goal"] == "<= 0.01"
    lost = [row["forgetting"] for row in _load("edit_classes_gpu")["rows"]]
    assert f"(five sessions of two classes: {min(lost):.2f} to {max(lost):.2f})" in section


def test_the_choice_of_the_default_is_the_recorded_one(section: str) -> None:
    """The rule of DECISIONS, 2026-11-27, on the stored cells; what `edit` takes is what won."""
    chosen, held = _load("edit_default"), _load("edit_default_heldout")
    for value in (chosen, held):
        for row in value["rows"]:
            figures: dict[str, list[float]] = {}
            for key, cell in value["cells"][row["method"]].items():
                fall = {part: cell[part]["error"][0] - cell[part]["error"][1] for part in ("target", "control", "unrelated")}
                figures.setdefault(key.split("/")[0], []).append(fall["target"] + 2 * fall["control"] + 2 * fall["unrelated"])
            assert row["figure"] == pytest.approx(fmean(fmean(v) for v in figures.values()), abs=1e-5)
            assert row["cells"] == sum(len(v) for v in figures.values())
    best = max(row["figure"] for row in chosen["rows"])
    stay = [row for row in chosen["rows"] if best - row["figure"] <= row["standard_error"]]
    assert min(stay, key=lambda row: row["bytes"])["method"] == "edgeedit" == EditRequest.method
    dev, test = ({row["method"]: f"{row['figure']:+.3f}" for row in value["rows"]} for value in (chosen, held))
    assert f"on {chosen['rows'][0]['cells']} other development cells" in section and held["rows"][0]["cells"] == 6
    assert f"it has {dev['edgeedit']}, SPU {dev['spu']}, `attention` {dev['attention']}, `lorsu` {dev['lorsu']}:" in section
    told = f"SPU {test['spu']}, LoRA {test['lora']}, DEFAULT {test['edgeedit']}, `lorsu` {test['lorsu']}, `attention` {test['attention']}"
    assert told in section and all(row["behind"] <= row["standard_error"] for row in held["rows"])


def test_the_cost_goals_are_recorded_with_their_machine() -> None:
    for name, machine in (("edit_cost_gpu", "H200"), ("edit_cost", "2 threads")):
        found = _load(name)
        assert machine in found["machine"]
        by = {row["name"]: row for row in found["rows"]}
        for goal in found["goals"]:
            key = {"peak memory of": "peak_bytes", "time of a step": "step", "seconds of": "seconds"}
            column = next(column for word, column in key.items() if goal["name"].startswith(word))
            own = next(row for n, row in by.items() if f"of {n}" in goal["name"])
            value = own[column] / (by["lora"][column] if "LoRA" in goal["name"] else 1.0)
            assert goal["value"] == pytest.approx(value, abs=1e-3) and goal["met"] == (goal["value"] <= goal["goal"])
