"""The page: self-contained, well formed, escaped, small, and its figures are the Delta's."""

from __future__ import annotations

import copy
import html
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from report_page import COST, DEVICE, Page, check_self_contained

from edgeedit.delta import Delta
from edgeedit.errors import InputError
from edgeedit.metrics import metrics_from_json
from edgeedit.report.html import render_report, save_report
from edgeedit.report.words import bare_percent, percent, points, signed_points

HOSTILE = "\"><script>alert('x')</script><img src=x onerror=alert(1)>{{ 7*7 }} http://evil.example/"


def with_info(delta: Delta, **changes: Any) -> Delta:
    return replace(delta, info={**delta.info, **changes})


def with_metrics(delta: Delta, **changes: Any) -> Delta:
    return with_info(delta, metrics={**delta.info["metrics"], **changes})


def test_page_is_self_contained_well_formed_and_the_same_every_time(delta: Delta) -> None:
    source = render_report(delta, cost=COST, device=DEVICE)
    page = check_self_contained(source)
    assert source == render_report(delta, cost=COST, device=DEVICE)
    blocks = (
        "Error and retention",
        "Confusion",
        "Verdicts that changed",
        "Worst groups",
        "Cost",
        "Where the encoder was edited",
        "As deployed",
    )
    more = (
        "Limits",
        "How to undo",
        "Provenance and approvals",
        "Licence notes",
        "edgeedit rollback --store DIR",
        "Undecided",
        "The camera as a gauge",
    )
    for heading in (*blocks, *more):
        assert heading in page.words, heading
    assert "@page" in source
    assert "@media print" in source


def test_figures_are_those_of_the_metrics(delta: Delta) -> None:
    words = Page(render_report(delta, cost=COST, device=DEVICE)).words
    metrics = metrics_from_json(delta.info["metrics"])
    assert metrics.control is not None
    for row in (metrics.target, metrics.control):
        expected = [
            percent(row.error_before),
            percent(row.error_after),
            points(row.error_after - row.error_before),
            f"{signed_points(row.change.low)} to {points(row.change.high)}",
        ]
        expected += [f"{bare_percent(side.low)} to {percent(side.high)}" for side in (row.wrong_before, row.wrong_after)]
        expected += [f"{row.fixed} repaired, {row.broken} newly wrong", "0.713", "0.934"]
        for text in expected:
            assert " ".join(text.split()) in words, text
    for text in (
        "43.3 %",
        "11.7 %",
        "26 of 60",
        "7 of 60",
        "5 of 80",
        "6 of 80",
        "exact McNemar p 0.012",
        "at most 2.0 pt",
        "may have risen by up to 3.1 pt",
        "41.3 s",
        "81 234",
    ):
        assert text in words, text
    for text in ("412 kB", "412 345 bytes", "88.4 MB", "3.42 ms", "1530 ms", "512", "41.2 %", "0.00012", "3f9ac0d1", "ab" * 32, "2.1e−06"):
        assert text in words, text


def test_the_plane_and_the_populations_are_those_of_the_delta(delta: Delta) -> None:
    words = Page(render_report(delta)).words
    for text in ("Where the features lie", "Target 60 31.2 % 11.1 % +0.0612 0.005", "11.1 % −0.0021 0.612", "−0.0017 0.816"):
        assert text in words, text
    assert "Where the features lie" not in Page(render_report(with_info(delta, movement={}))).words


@pytest.mark.parametrize(
    "change",
    [
        lambda value: value["target"].pop("explained"),
        lambda value: value["target"].update(explained=[0.5]),
        lambda value: value.update(unrelated=[1]),
        lambda value: value["target"].update(n=61),
        lambda value: value["target"].pop("p"),
        lambda value: value["control"]["after"][3].pop(),
        lambda value: value["control"]["after"].__setitem__(0, [0.0, float("inf")]),
    ],
)
def test_a_malformed_movement_is_refused(delta: Delta, change: Callable[[dict[str, Any]], Any]) -> None:
    value = copy.deepcopy(delta.info["movement"])
    change(value)
    with pytest.raises(InputError, match="features of each set moved"):
        render_report(with_info(delta, movement=[1]))
    with pytest.raises(InputError, match="features of each set moved"):
        render_report(with_info(delta, movement=value))


def test_confusion_and_kappa_follow_from_the_verdicts(delta: Delta) -> None:
    words = Page(render_report(delta)).words
    # 60 target images, 30 per class, 13 wrong each before; after: 20 repaired evenly, 1 defective one broken.
    for text in ("17 → 27 (+10)", "13 → 3 (−10)", "13 → 4 (−9)", "17 → 26 (+9)", "43.3 % → 10.0 %", "43.3 % → 13.3 %"):
        assert text in words, text
    assert re.search(r"kappa 0\.13 0\.77", words)


def test_every_flip_is_listed_bad_ones_first(delta: Delta) -> None:
    source = render_report(delta)
    cards = Page(source).cards[3:]  # the first three are the examples of page 1
    assert cards == ["broken"] + ["fixed"] * 20 + ["broken"] * 2 + ["fixed"]
    listed = source[source.index("Verdicts that changed") :]
    for row in delta.info["verdicts"]:
        assert (Path(row["image"]).name in listed) == (row["before"] != row["after"]), row["image"]
    assert "control-078.png</span></div>" in listed  # a missing picture shows its name


def test_flips_are_capped_with_the_rest_counted_and_the_page_stays_small(delta: Delta) -> None:
    rows = [row for row in delta.info["verdicts"] if row["set"] == "target"]
    flipped = [
        {**row, "set": name, "before": "defective", "after": "intact", "label": "intact"}
        for name in ("target", "control", "unrelated")
        for row in rows
    ]
    flipped[50]["label"] = "defective"
    source = render_report(with_info(delta, verdicts=flipped), cost=COST, device=DEVICE)
    page = check_self_contained(source)
    assert page.cards[3:27] == ["broken"] + ["fixed"] * 23
    assert page.words.count("36 more changed verdicts") == 3
    assert source.count("data:image/jpeg;base64,") == 3 + 3 * 24
    assert len(source.encode()) < 5_000_000


def test_hostile_names_and_labels_stay_text(delta: Delta) -> None:
    rows = [
        {**row, "image": HOSTILE, "group": HOSTILE, "label": row["label"] + HOSTILE, "after": row["after"] + HOSTILE}
        for row in delta.info["verdicts"]
    ]
    gate = {"verdict": HOSTILE, "reasons": [HOSTILE], "limit": 0.02}
    tensors = (replace(delta.tensors[0], name=HOSTILE),)
    info = {
        **delta.info,
        "verdicts": rows,
        "licence_notes": [HOSTILE],
        "method": {HOSTILE: HOSTILE},
        "versions": {"a": HOSTILE},
        "seed": HOSTILE,
    }
    info |= {
        "metrics": {**info["metrics"], "gate": gate},
        "survival": {HOSTILE: 0.5},
        "encoder": {"precision": HOSTILE, "source_digest": HOSTILE},
    }
    source = render_report(Delta(tensors, info), cost={"signers": [HOSTILE]}, device={HOSTILE: HOSTILE})
    page = check_self_contained(source)
    assert html.escape("<script>alert") in source
    assert "<script>alert('x')</script>" in page.words
    assert "{{ 7*7 }}" in page.words
    assert ">49<" not in source


@pytest.mark.parametrize("info", [{}, {"metrics": None, "verdicts": None, "locality": None, "reader": None, "survival": {}}])
def test_a_delta_that_was_never_judged_says_so(delta: Delta, info: dict[str, Any]) -> None:
    page = check_self_contained(render_report(Delta(delta.tensors, info), cost=None, device=None))
    assert "Not judged" in page.words
    assert "Nothing was judged on held-out images." in page.words


def test_only_a_target_and_no_verdicts(delta: Delta) -> None:
    target = {**delta.info["metrics"]["target"], "auc_before": None, "auc_after": None}
    gate = {"verdict": "pass", "reasons": [], "limit": 0.02}
    bare = Delta(delta.tensors, {"metrics": {**delta.info["metrics"], "target": target, "control": None, "unrelated": None, "gate": gate}})
    page = check_self_contained(render_report(bare, cost=None, device=None))
    assert "AUC" not in page.words
    assert "26 of 60" in page.words  # read back from the Wilson interval
    assert page.words.count("not tested") == 3  # two tiles and the heading of the limits
    assert "No control images were held out" in page.words
    assert "The verdicts of this set were not stored." in page.words


def test_nan_is_never_printed_as_a_figure(delta: Delta, tmp_path: Path) -> None:
    nan = float("nan")
    target = {**delta.info["metrics"]["target"], "auc_before": nan, "auc_after": nan, "change": {"low": nan, "high": nan}}
    save_report(with_metrics(delta, target=target), tmp_path / "r.html", cost={"patch_bytes": float("nan")}, device={"swap_ms": None})
    assert not re.search(r"\bnan\b", Page((tmp_path / "r.html").read_text("utf-8")).words.lower())
    assert json.loads((tmp_path / "report.json").read_text("utf-8"))["metrics"]["target"]["auc_before"] is None


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"device_equals_server": False}, "did not give the server's weights"),
        ({"rollback_exact": False}, "did not bring"),
        ({"frames_torn": 2}, "2 frames were answered"),
    ],
)
def test_a_failed_device_check_stands_on_page_one(delta: Delta, change: dict[str, Any], text: str) -> None:
    words = Page(render_report(delta, device={**DEVICE, **change})).words
    assert words.index("Do not release") < words.index(text) < words.index("What was wrong")
    assert "Do not release" not in Page(render_report(delta, device=DEVICE)).words


def test_a_passed_gate_shows_what_carried_it_and_a_failed_one_its_reason(delta: Delta) -> None:
    passed = Page(render_report(with_metrics(delta, gate={"verdict": "pass", "reasons": [], "limit": 0.02}))).words
    assert "Error on target 43.3 % before, 11.7 % after; 95 % interval of the change −42.0 to −21.0 pt" in passed
    failed = Page(render_report(with_metrics(delta, gate={"verdict": "fail", "reasons": ["control error rose"], "limit": 0.02}))).words
    assert "This repair must not be released." in failed
    assert "control error rose" in failed


def test_many_classes_become_a_list_of_mistakes(delta: Delta) -> None:
    rows = [
        {**row, "label": f"kind {i % 12}", "before": f"kind {i % 12}", "after": f"kind {(i + (i < 4)) % 12}"}
        for i, row in enumerate(delta.info["verdicts"])
    ]
    words = Page(render_report(with_info(delta, verdicts=rows))).words
    assert "Many classes: the most frequent mistakes only" in words
    assert "kind 1 kind 2 0 1" in words


def test_broken_pictures_show_their_name(delta: Delta, tmp_path: Path) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 40)
    rows = [{**row, "image": str(bad) if i % 2 else "nul\0.png"} for i, row in enumerate(delta.info["verdicts"])]
    source = render_report(with_info(delta, verdicts=rows))
    assert "data:image/jpeg" not in source
    assert ">bad.png</span></div>" in source


@pytest.mark.parametrize(
    "change",
    [{"verdicts": [{"set": "target"}]}, {"verdicts": [7]}, {"metrics": {"target": 3}}, {"locality": {"blocks": [{"block": 0}]}}],
)
def test_malformed_info_is_an_input_error(delta: Delta, tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="cannot report"):
        save_report(with_info(delta, **change), tmp_path / "r.html")
    assert not list(tmp_path.glob("r.html")) + list(tmp_path.glob("report.json"))


def test_save_writes_the_summary_beside_the_page(delta: Delta, tmp_path: Path) -> None:
    save_report(delta, tmp_path / "fix.html", cost=COST, device=DEVICE)
    value = json.loads((tmp_path / "report.json").read_text("utf-8"))
    assert (tmp_path / "fix.html").read_text("utf-8") == render_report(delta, cost=COST, device=DEVICE)
    assert value["schema_version"] == 2
    assert value["verdict"] == "undecided"
    assert metrics_from_json(value["metrics"]) == metrics_from_json(delta.info["metrics"])
    assert value["cost"] == COST
    assert value["device"] == DEVICE
    assert [row["flip"] for row in value["sets"]["control"]["flips"]] == ["broken", "broken", "fixed"]
    assert value["sets"]["target"]["misjudged_before"] == 26
    assert not list(tmp_path.glob(".*"))
