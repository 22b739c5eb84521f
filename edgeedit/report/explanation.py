"""The explanation block: what `edgeedit explain` measured, beside the random baseline, with what it does not prove.

Guarantees: every figure is the explanation's; a malformed one is an InputError; without a part of it that part is left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from edgeedit.errors import InputError
from edgeedit.report.pictures import heat, thumbnail
from edgeedit.report.sheet import Sheet

COMPONENTS_SHOWN = 10
NEIGHBOURS_SIDE = 72  # pixels
_SETS = ("target", "control")
_HINT = "make it with `edgeedit explain -o FILE`"


def check_explanation(value: Mapping[str, Any] | None) -> None:
    """Raises InputError when `value` is not what `edgeedit explain` writes."""
    if value is None:
        return
    try:
        if value["schema_version"] != 1:
            raise InputError(f"explanation is of another version: expected 1, got {value['schema_version']}", hint=_HINT)
        _check_parts(value)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise InputError(f"cannot report: expected an explanation, got {error!r}", hint=_HINT) from error


def _check_parts(value: Mapping[str, Any]) -> None:
    for row in value["components"]:
        str(row["name"]), [float(row[name]["loss_rise"]) for name in _SETS if name in row], float(row["energy_share"])
    for row in value["drift"].values():
        [float(cka) for cka in row["cka"]], float(row["shift"]), float(row["cosine"])
    [int(value["census"][key]) for key in ("changed", "elements", "outside")]
    for row in (value.get("saliency") or {}).get("images", ()):
        for when in ("before", "after"):
            sides = {len(line) for line in row[when]}
            if sides != {len(row[when])} or not all(math.isfinite(float(cell)) for line in row[when] for cell in line):
                raise ValueError("a map that is no square of numbers")
    for row in (value.get("neighbours") or {}).get("images", ()):
        for when in ("before", "after"):
            [(str(near["image"]), str(near["label"]), float(near["cosine"])) for near in row[when]]


def _effect(sheet: Sheet, path: str, name: str) -> tuple[Markup, Markup]:
    if sheet.value(f"{path}.{name}") is None:
        return Markup("\N{EM DASH}"), Markup("\N{EM DASH}")
    return sheet.show(f"{path}.{name}.loss_rise", "signed4"), sheet.show(f"{path}.{name}.more_misjudged", "signed_count")


def _components(sheet: Sheet) -> list[dict[str, Markup]]:
    rows = []
    for place in range(min(COMPONENTS_SHOWN, len(sheet.value("explanation.components")))):
        path = f"explanation.components.{place}"
        target, control = _effect(sheet, path, "target"), _effect(sheet, path, "control")
        rows.append(
            {
                "name": sheet.text(f"{path}.name"),
                "energy": sheet.show(f"{path}.energy_share", "percent"),
                "target": target[0],
                "misjudged": target[1],
                "control": control[0],
            }
        )
    return rows


def _baseline(sheet: Sheet) -> Markup | None:
    path = "explanation.importance"
    if any(not isinstance(sheet.value(f"{path}.{key}"), float) for key in ("covered", "random_mean", "random_high")):
        return None
    figures = {key: sheet.show(f"{path}.{key}", "percent") for key in ("covered", "random_mean", "random_high")}
    text = "The chosen places hold {covered} of the measured importance; as many places chosen at random hold {random_mean}"
    return sheet.fill(text + " (nearly always below {random_high}).", **figures)


def _moved(sheet: Sheet) -> list[dict[str, Any]]:
    rows = []
    for name, found in sheet.value("explanation.drift").items():
        path = f"explanation.drift.{name}"
        lowest = min(range(len(found["cka"])), key=found["cka"].__getitem__)
        rows.append(
            {
                "name": Markup('<span data-key="explanation.drift" translate="no">{}</span>').format(name),
                "n": sheet.show(f"{path}.n", "count"),
                "cka": sheet.show(f"{path}.cka.{lowest}", "decimal4"),
                "shift": sheet.show(f"{path}.shift", "decimal3"),
                "cosine": sheet.show(f"{path}.cosine", "decimal4"),
            }
        )
    return rows


def _maps(sheet: Sheet) -> dict[str, Any] | None:
    found = sheet.value("explanation.saliency")
    if not found or not found["images"]:
        return None
    rows = []
    for place, row in enumerate(found["images"]):
        path = f"explanation.saliency.images.{place}"
        rows.append(
            {
                "picture": thumbnail(row["image"]),
                "maps": [heat(row["image"], row[when], found["limit"]) for when in ("before", "after")],
                "verdict": sheet.fill(
                    "{before} \N{RIGHTWARDS ARROW} {after}",
                    before=sheet.text(f"{path}.verdict_before"),
                    after=sheet.text(f"{path}.verdict_after"),
                ),
                "label": sheet.text(f"{path}.label"),
            }
        )
    limit = sheet.show("explanation.saliency.limit", "significant")
    return {
        "rows": rows,
        "limit": limit,
        "caution": sheet.text("explanation.saliency.caution"),
        "unit": sheet.text("explanation.saliency.unit"),
    }


def _neighbours(sheet: Sheet) -> dict[str, Any] | None:
    found = sheet.value("explanation.neighbours")
    if not found or not found["images"]:
        return None
    rows = []
    for place, row in enumerate(found["images"]):
        path = f"explanation.neighbours.images.{place}"
        near = {
            when: [
                {
                    "picture": thumbnail(other["image"], NEIGHBOURS_SIDE),
                    "right": other["label"] == row["label"],
                    "label": sheet.text(f"{path}.{when}.{i}.label"),
                    "cosine": sheet.show(f"{path}.{when}.{i}.cosine", "decimal2"),
                }
                for i, other in enumerate(row[when])
            ]
            for when in ("before", "after")
        }
        rows.append({"picture": thumbnail(row["image"], NEIGHBOURS_SIDE), "label": sheet.text(f"{path}.label"), **near})
    shares = {key: sheet.show(f"explanation.neighbours.agree_{key}", "whole_percent") for key in ("before", "after")}
    return {"rows": rows, "searched": sheet.show("explanation.neighbours.searched", "count"), **shares}


def explanation_view(sheet: Sheet) -> dict[str, Any] | None:
    """Everything that the template shows of an explanation; None without one."""
    if sheet.value("explanation") is None:
        return None
    census = {key: sheet.show(f"explanation.census.{key}", "count") for key in ("changed", "elements", "outside")}
    return {
        "census": sheet.fill(
            "{changed} of {elements} weights differ bit for bit; {outside} of them outside the declared places.", **census
        ),
        "baseline": _baseline(sheet),
        "components": _components(sheet),
        "more": len(sheet.value("explanation.components")) > COMPONENTS_SHOWN,
        "drift": _moved(sheet),
        "maps": _maps(sheet),
        "neighbours": _neighbours(sheet),
    }
