"""The gauge against counts by hand and against scipy, scikit-learn and the edit's own statistics; bands; settings; the account."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_page import COST, DEVICE

from edgeedit.delta import Delta
from edgeedit.errors import InputError
from edgeedit.report.facts import Verdict, cosine_drift
from edgeedit.report.gauge import band, defects, gauge, wilson
from edgeedit.report.html import render_report, save_report
from edgeedit.report.record import Given, build
from edgeedit.report.roi import account
from edgeedit.report.settings import Bands, Costs, ReportSettings, load_settings, read_settings


def rows(pairs: list[tuple[str, str]]) -> list[Verdict]:
    return [Verdict("target", str(i), str(i), label, verdict, verdict, None, None) for i, (label, verdict) in enumerate(pairs)]


def test_gauge_counts_misses_and_false_alarms_by_hand() -> None:
    pairs = [("crack", "crack")] * 6 + [("crack", "ok")] * 2 + [("dirt", "crack")] * 1 + [("ok", "ok")] * 9 + [("ok", "dirt")] * 3
    found = gauge(rows(pairs), ("crack", "dirt"), Bands())["after"]
    assert (found["miss"]["count"], found["miss"]["n"]) == (2, 9)  # dirt read as a crack is a wrong verdict, not a miss
    assert (found["false_alarm"]["count"], found["false_alarm"]["n"]) == (3, 12)
    assert (found["effectiveness"]["count"], found["effectiveness"]["n"]) == (15, 21)
    assert found["miss"]["band"] == found["effectiveness"]["band"] == "bad"


def test_kappa_is_scikit_learns_and_intervals_are_scipys() -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    for _ in range(20):
        truth, verdict = (rng.choice(["a", "b", "c"], 40).tolist() for _ in range(2))
        found = gauge(rows(list(zip(truth, verdict, strict=True))), ("a",), Bands())["after"]
        assert found["kappa"]["value"] == pytest.approx(sklearn.cohen_kappa_score(truth, verdict))
        right = found["effectiveness"]
        expected = stats.binomtest(right["count"], 40).proportion_ci(method="wilson")
        assert wilson(right["count"], 40) == pytest.approx((expected.low, expected.high))
        assert (right["low"], right["high"]) == pytest.approx((expected.low, expected.high))


def test_a_gauge_without_defects_or_without_chance_leaves_figures_out() -> None:
    assert gauge(rows([("a", "a")] * 3), (), Bands())["after"] == {
        "effectiveness": {"count": 3, "n": 3, "value": 1.0, "low": wilson(3, 3)[0], "high": 1.0, "band": "good"},
        "kappa": None,
    }
    assert gauge(rows([("ok", "ok")] * 3), ("nok",), Bands())["after"]["miss"] is None


@pytest.mark.parametrize(
    ("figure", "value", "expected"),
    [
        *(("effectiveness", value, word) for value, word in ((0.90, "good"), (0.8999, "marginal"), (0.80, "marginal"), (0.7999, "bad"))),
        *(("miss", value, word) for value, word in ((0.02, "good"), (0.0201, "marginal"), (0.05, "marginal"), (0.0501, "bad"))),
        *(("false_alarm", value, word) for value, word in ((0.05, "good"), (0.0501, "marginal"), (0.10, "marginal"), (0.1001, "bad"))),
        *(("kappa", value, word) for value, word in ((0.90, "good"), (0.89, "marginal"), (0.70, "marginal"), (0.69, "bad"))),
    ],
)
def test_default_bands_are_aiags(figure: str, value: float, expected: str) -> None:
    assert band(figure, value, Bands()) == expected


def test_bands_and_defects_of_the_settings_change_the_report(delta: Delta) -> None:
    default = build(delta, Given())
    assert default["gauge"]["defective_from"] == "name"
    assert default["sets"]["target"]["gauge"]["after"]["miss"]["band"] == "bad"
    stated = build(delta, Given(settings=read_settings({"gauge": {"defective": ["intact"], "miss": [0.2, 0.5]}})))
    after = stated["sets"]["target"]["gauge"]["after"]
    assert after["miss"]["band"] == "good"
    assert after["miss"]["count"] == default["sets"]["target"]["gauge"]["after"]["false_alarm"]["count"]
    assert defects(["a", "b"], ReportSettings()) == ((), "")
    assert defects(["NOK", "ok"], ReportSettings()) == (("NOK",), "name")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"gague": {}}, r"\[gague\] is wrong: expected change, gauge or costs"),
        ({"change": {"ID": "x"}}, r"\[change\] ID is wrong"),
        ({"change": {"id": 7}}, r"\[change\] id is wrong: expected a text"),
        ({"change": 7}, r"\[change\] is wrong: expected a table"),
        ({"gauge": {"miss": [0.05, 0.02]}}, "the good one not above the acceptable one"),
        ({"gauge": {"kappa": [0.7, 0.9]}}, "the good one not below the acceptable one"),
        ({"gauge": {"kappa": [0.9]}}, "two limits"),
        ({"gauge": {"effectiveness": [90, 80]}}, r"two shares in 0\.\.1"),
        ({"gauge": {"defective": "nok"}}, "a list of class names"),
        ({"costs": {"truck_roll": -1}}, r"\[costs\] truck_roll is wrong: expected a number of at least 0"),
        ({"costs": {"truck_roll": True}}, "a number of at least 0"),
        ({"costs": {"cameras": 1.5}}, "a whole number of at least 1"),
        ({"costs": {"megabyte": float("nan")}}, "a number of at least 0"),
    ],
)
def test_wrong_settings_are_named(value: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_settings(value)


def test_settings_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "report.toml"
    path.write_text('[change]\nid = "CR-1"\nmade_on = 2026-05-04\n[gauge]\nmiss = [0.01, 0.03]\n[costs]\ncameras = 3\n', "utf-8")
    found = load_settings(path)
    assert (found.change.id, found.change.made_on, found.bands.miss, found.costs.cameras) == ("CR-1", "2026-05-04", (0.01, 0.03), 3)
    path.write_text("[change\n", "utf-8")
    with pytest.raises(InputError, match="expected a TOML file"):
        load_settings(path)


def test_the_account_is_computed_from_stated_and_measured_figures(delta: Delta, settings: ReportSettings, tmp_path: Path) -> None:
    # Without edit_seconds in the Delta's own record, as `edit` writes it, the caller's stand in.
    unclocked = Delta(delta.tensors, {**delta.info, "metrics": {**delta.info["metrics"], "edit_seconds": None}})
    found = build(unclocked, Given(cost=COST, device=DEVICE, settings=settings))["account"]
    patch = 144.9 / 3600 * 2.5 + 40 * 0.412345 * 0.01 + 40 * 3.42 / 60_000 * 180
    usual = 40 * 88.412345 * 0.01 + 40 * 4.5 * 180 + 2 * 420
    assert found["patch"] == pytest.approx(patch)
    assert found["usual"] == pytest.approx(usual)
    assert found["saved"] == pytest.approx(usual - patch)
    assert found["complete"]
    save_report(unclocked, tmp_path / "r.html", cost=COST, device=DEVICE, settings=settings)
    source = (tmp_path / "r.html").read_text("utf-8")
    assert f">{usual - patch:,.2f}<".replace(",", "\u202f") in source


def test_an_item_without_its_factors_is_named_and_in_no_sum() -> None:
    assert account(Costs(cameras=4), 10, 1000, 10_000, 2) is None  # no unit cost, no account
    found = account(Costs(currency="EUR", megabyte=1.0, cameras=2), None, 500_000, 2_000_000, None)
    assert found is not None
    assert (found["patch"], found["usual"], found["saved"], found["complete"]) == (1.0, 4.0, 3.0, False)
    missing = {row["what"]: row["missing"] for row in found["items"] if row["missing"]}
    assert missing["Edit on the server"] == ["server seconds", "cost of an hour"]
    assert missing["Truck rolls"] == ["visits avoided", "cost of a visit"]


def test_drift_histograms_count_every_image_once() -> None:
    rng = np.random.default_rng(0)
    values = {"target": 1 - rng.random(300) / 5, "control": 1 - rng.random(200) / 50}
    sets = {name: [Verdict(name, str(i), "", "a", "a", "a", None, None, float(c)) for i, c in enumerate(v)] for name, v in values.items()}
    found = cosine_drift(sets)
    assert found is not None
    for name, own in values.items():
        row = found["sets"][name]
        counts = [sum(low <= c < high or c == high == found["edges"][-1] for c in own) for low, high in itertools.pairwise(found["edges"])]
        assert row["counts"] == counts
        assert sum(row["counts"]) == row["n"] == len(own)
        assert row["median"] == pytest.approx(float(np.median(own)))
    assert cosine_drift({"target": [Verdict("target", "a", "", "a", "a", "a", None, None)]}) is None
    one = cosine_drift({"target": [Verdict("target", "a", "", "a", "a", "a", None, None, 1.0)]})
    assert one is not None
    assert sum(one["sets"]["target"]["counts"]) == 1


def test_a_figure_in_a_worse_band_is_named_on_page_one(delta: Delta) -> None:
    """The demo's own case: fewer errors in the mean, bought with misses that a mean over classes does not show."""
    rows = [{**row, "before": "defective", "after": "intact"} for row in delta.info["verdicts"] if row["set"] == "target"]
    traded = Delta(delta.tensors, {**delta.info, "verdicts": rows})
    words = render_report(traded)
    assert "In a worse band than before: Miss rate (defect passed) on target." in words
    assert "In a worse band" not in render_report(Delta(delta.tensors, {**delta.info, "verdicts": rows[:0]}))
    same = [{**row, "after": row["before"]} for row in delta.info["verdicts"]]
    assert "In a worse band" not in render_report(Delta(delta.tensors, {**delta.info, "verdicts": same}))
