"""The pages after page one, in English: error and retention, confusion, flips, groups, drift, where edited, as deployed, cost, limits,
provenance.

Guarantees: a block without data is empty, never guessed; every figure comes from the sheet.
"""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from edgeedit.report import charts
from edgeedit.report.cards import card
from edgeedit.report.deployed import account_view, cost_rows, deployed_rows
from edgeedit.report.explanation import explanation_view
from edgeedit.report.facts import SETS
from edgeedit.report.record import FLIPS_SHOWN
from edgeedit.report.sheet import Sheet

MATRIX_CLASSES = 8  # above this a confusion matrix does not fit the page
PAIRS_SHOWN = 12
TITLES = {"target": "Target", "control": "Control", "unrelated": "Unrelated"}
MEANINGS = {
    "target": "images of the kind that was misread",
    "control": "images that were read well before and must stay so",
    "unrelated": "images of a different job",
}
_APPROVALS = {
    "id": "Change",
    "product": "Product",
    "station": "Station",
    "reason": "Reason",
    "requested_by": "Requested by",
    "made_by": "Made by",
    "made_on": "Made on",
    "approved_by": "Approved by",
    "approved_on": "Approved on",
}


def _count_of(sheet: Sheet, name: str, when: str) -> Markup:
    path = f"sets.{name}.misjudged_{when}"
    if sheet.value(path) is None:
        return sheet.fill("of {n}", n=sheet.show(f"sets.{name}.n", "count"))
    return sheet.fill("{wrong} of {n}", wrong=sheet.show(path, "count"), n=sheet.show(f"sets.{name}.n", "count"))


def _measures(sheet: Sheet, name: str) -> list[tuple[str | Markup, ...]]:
    """One set's table: (figure, before, after, difference)."""
    own, of = f"metrics.{name}", f"sets.{name}"
    confidence = sheet.show("confidence", "whole_percent")
    change = sheet.fill(
        "{change} ({c}: {span})", change=sheet.show(f"{of}.error_change", "points"), c=confidence, span=sheet.change(f"{own}.change")
    )
    flips = sheet.fill(
        "{fixed} repaired, {broken} newly wrong", fixed=sheet.show(f"{own}.fixed", "count"), broken=sheet.show(f"{own}.broken", "count")
    )
    rows: list[tuple[str | Markup, ...]] = [
        ("Error (mean over classes)", sheet.show(f"{own}.error_before", "percent"), sheet.show(f"{own}.error_after", "percent"), change),
        ("Images misjudged", _count_of(sheet, name, "before"), _count_of(sheet, name, "after"), flips),
        (
            sheet.fill("Share misjudged, Wilson {c}", c=confidence),
            sheet.span(f"{own}.wrong_before"),
            sheet.span(f"{own}.wrong_after"),
            sheet.fill("exact McNemar p {p}", p=sheet.show(f"{own}.mcnemar_p", "p")),
        ),
    ]
    if sheet.value(f"{own}.auc_before") is not None or sheet.value(f"{own}.auc_after") is not None:
        areas = (sheet.show(f"{own}.auc_{when}", "decimal3") for when in ("before", "after"))
        rows.append(("AUC", *areas, sheet.show(f"{of}.auc_change", "signed3")))
    for place in range(min(4, len(sheet.value(f"{of}.shares")))):
        path = f"{of}.shares.{place}"
        figures = (sheet.show(f"{path}.{when}", "percent") for when in ("before", "after"))
        rows.append((sheet.fill("Judged {name}", name=sheet.text(f"{path}.name")), *figures, sheet.show(f"{path}.change", "points")))
    kappas = [f"{of}.confusion.kappa_{when}" for when in ("before", "after")]
    if all(sheet.value(path) is not None for path in kappas):
        rows.append(("Agreement with the truth, kappa", *(sheet.show(path, "decimal2") for path in kappas), Markup("")))
    return rows


def _matrix(sheet: Sheet, name: str) -> list[dict[str, Any]]:
    path = f"sets.{name}.confusion"
    found, rows = sheet.value(path), []
    for i in range(len(found["classes"])):
        cells = [
            {
                "pair": sheet.pair(f"{path}.before.{i}.{j}", f"{path}.after.{i}.{j}", "count"),
                "difference": sheet.show(f"{path}.difference.{i}.{j}", "signed_count"),
                "moved": found["difference"][i][j],
                "right": i == j,
            }
            for j in range(len(found["classes"]))
        ]
        own = f"{path}.misjudged.{i}"
        shares = sheet.pair(f"{own}.before", f"{own}.after", "percent") if sheet.value(f"{own}.n") else Markup("\N{EM DASH}")
        rows.append({"truth": sheet.text(f"{path}.classes.{i}"), "cells": cells, "n": sheet.show(f"{own}.n", "count"), "misjudged": shares})
    return rows


def _pairs(sheet: Sheet, name: str) -> list[tuple[Markup, ...]]:
    path = f"sets.{name}.confusion"
    found = sheet.value(path)
    classes, before, after = found["classes"], found["before"], found["after"]
    order = range(len(classes))
    wrong = [(i, j) for i in order for j in order if i != j and (before[i][j] or after[i][j])]
    wrong.sort(key=lambda at: (-max(before[at[0]][at[1]], after[at[0]][at[1]]), classes[at[0]], classes[at[1]]))
    return [
        (
            *(sheet.text(f"{path}.classes.{k}") for k in (i, j)),
            *(sheet.show(f"{path}.{when}.{i}.{j}", "count") for when in ("before", "after")),
        )
        for i, j in wrong[:PAIRS_SHOWN]
    ]


def _groups(sheet: Sheet, name: str) -> list[dict[str, Any]]:
    rows = []
    for place, group in enumerate(sheet.value(f"sets.{name}.groups")):
        path = f"sets.{name}.groups.{place}"
        counts = {
            key: sheet.show(f"{path}.{at}", "count") for key, at in (("n", "n"), ("before", "wrong_before"), ("after", "wrong_after"))
        }
        rows.append({"name": sheet.text(f"{path}.name"), "worse": group["wrong_after"] > group["wrong_before"], **counts})
    return rows


def _set_view(sheet: Sheet, name: str) -> dict[str, Any]:
    path = f"sets.{name}"
    found = sheet.value(path)
    confused = found["confusion"]
    fits = confused is not None and len(confused["classes"]) <= MATRIX_CLASSES
    return {
        "title": TITLES[name],
        "meaning": MEANINGS[name],
        "n": sheet.show(f"{path}.n", "count"),
        "rows": _measures(sheet, name),
        "classes": [sheet.text(f"{path}.confusion.classes.{i}") for i in range(len(confused["classes"]))] if confused else [],
        "matrix": _matrix(sheet, name) if fits else [],
        "pairs": _pairs(sheet, name) if confused and not fits else [],
        "cards": [card(sheet, f"{path}.flips.{place}") for place in range(min(FLIPS_SHOWN, len(found["flips"])))],
        "flip_counts": [
            (sheet.say(f"flip_{kind}"), sheet.show(f"{path}.flip_counts.{kind}", "count"))
            for kind in ("broken", "still", "fixed")
            if found["flip_counts"][kind]
        ],
        "rest": sheet.show(f"{path}.flips_not_shown", "count") if found["flips_not_shown"] else None,
        "listed": bool(found["listed"]),
        "groups": _groups(sheet, name),
        "group_count": sheet.show(f"{path}.group_count", "count"),
    }


def _drift(sheet: Sheet) -> dict[str, Any] | None:
    if not sheet.value("drift"):
        return None
    rows = [
        {
            "title": TITLES[name],
            "n": sheet.show(f"drift.sets.{name}.n", "count"),
            **{key: sheet.show(f"drift.sets.{name}.{key}", "decimal4") for key in ("least", "median", "mean")},
        }
        for name in SETS
        if name in sheet.value("drift.sets")
    ]
    return {"chart": charts.drift_chart(sheet.value("drift")), "rows": rows}


def _movement(sheet: Sheet) -> dict[str, Any] | None:
    if not sheet.value("movement"):
        return None
    rows = [
        {
            "title": TITLES[name],
            "n": sheet.show(f"movement.{name}.n", "count"),
            "shares": [sheet.show(f"movement.{name}.explained.{axis}", "percent") for axis in (0, 1)],
            "mmd": sheet.show(f"movement.{name}.mmd", "signed4"),
            "p": sheet.show(f"movement.{name}.p", "p"),
        }
        for name in SETS
        if name in sheet.value("movement")
    ]
    return {"chart": charts.plane_chart(sheet.value("movement")), "rows": rows}


def _where(sheet: Sheet) -> dict[str, Any] | None:
    found = sheet.value("where")
    if not found["blocks"]:
        return None
    rows = []
    for place in range(len(found["blocks"])):
        path = f"where.blocks.{place}"
        counts = {key: sheet.show(f"{path}.{key}", "count") for key in ("block", "chosen", "entries")}
        known = found["blocks"][place]["bytes"] is not None
        size = sheet.show(f"{path}.bytes", "count") if known else Markup("\N{EM DASH}")
        rows.append({**counts, "share": sheet.show(f"{path}.fc1_share", "small_percent"), "bytes": size})
    right = "bytes in the patch" if found["measured"] else "weights changed"
    return {"chart": charts.where_chart(found), "rows": rows, "right": right}


def _approvals(sheet: Sheet) -> list[tuple[str, Markup]]:
    stated = [(label, sheet.text(f"change.{key}")) for key, label in _APPROVALS.items() if sheet.value(f"change.{key}")]
    return stated or [("Change record", Markup("not stated; `edgeedit report --settings FILE` takes one"))]


def _limits(sheet: Sheet) -> list[Markup]:
    rows = [sheet.text(f"not_tested.{place}") for place in range(len(sheet.value("not_tested")))]
    if sheet.value("change.expires"):
        return [
            *rows,
            sheet.fill("This report holds until {date}; after it the change must be judged again.", date=sheet.text("change.expires")),
        ]
    return [*rows, Markup("No expiry is stated: judge again whenever lamp, optics, product or camera changes, and when the monitor warns.")]


def blocks(sheet: Sheet) -> dict[str, Any]:
    """Everything that the template of the details shows."""
    found = sheet.value("sets")
    return {
        "confidence": sheet.show("confidence", "whole_percent"),
        "effect_chart": charts.effect_chart(sheet.report) if found else None,
        "sets": [_set_view(sheet, name) for name in SETS if name in found],
        "drift": _drift(sheet),
        "movement": _movement(sheet),
        "where": _where(sheet),
        "explanation": explanation_view(sheet),
        "deployed": deployed_rows(sheet),
        "cost": cost_rows(sheet),
        "account": account_view(sheet),
        "limits": _limits(sheet),
        "approvals": _approvals(sheet),
        "provenance": [(row["label"], sheet.text(f"provenance.{place}.value")) for place, row in enumerate(sheet.value("provenance"))],
        "licences": [sheet.text(f"licence_notes.{place}") for place in range(len(sheet.value("licence_notes")))],
        "expectations": [
            {key: sheet.text(f"expectations.{place}.{key}") for key in row} for place, row in enumerate(sheet.value("expectations"))
        ],
    }
