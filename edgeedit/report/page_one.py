"""Page one in the reader's language: verdict, what, why, who, when, on which data, how to undo, and the gauge.

Guarantees: every sentence is of the catalogue and every figure of the sheet; a fact that nobody stated is said to be not stated.
"""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from edgeedit.report.facts import SETS
from edgeedit.report.gauge import FIGURES
from edgeedit.report.record import GAUGED
from edgeedit.report.sheet import Sheet

Pairs = list[tuple[Markup, Markup]]
_VERDICTS = ("pass", "fail", "undecided")
_BANDS = ("good", "marginal", "bad")


def _set(sheet: Sheet, name: str) -> Markup:
    return sheet.say(f"set_{name}")


def _reason(sheet: Sheet, place: int) -> Markup:
    row = sheet.value(f"reasons.{place}")
    own = f"metrics.{row['set']}"
    if row["kind"] == "other" or (row["kind"] != "no_control" and sheet.value(own) is None):
        return sheet.text(f"reasons.{place}.text")
    return sheet.say(
        f"reason_{row['kind']}",
        set=_set(sheet, row["set"]),
        before=sheet.show(f"{own}.error_before", "percent"),
        after=sheet.show(f"{own}.error_after", "percent"),
        confidence=sheet.show("confidence", "whole_percent"),
        change=sheet.change(f"{own}.change"),
        fixed=sheet.show(f"{own}.fixed", "count"),
        broken=sheet.show(f"{own}.broken", "count"),
        p=sheet.show(f"{own}.mcnemar_p", "p"),
        low=sheet.show(f"{own}.change.low", "points_of"),
        high=sheet.show(f"{own}.change.high", "points_of"),
        limit=sheet.show("metrics.gate.limit", "points_of"),
    )


def _carried(sheet: Sheet, name: str) -> Markup:
    own = f"metrics.{name}"
    return sheet.say(
        "reason_carried",
        set=_set(sheet, name),
        before=sheet.show(f"{own}.error_before", "percent"),
        after=sheet.show(f"{own}.error_after", "percent"),
        confidence=sheet.show("confidence", "whole_percent"),
        change=sheet.change(f"{own}.change"),
    )


def headline(sheet: Sheet) -> dict[str, Any]:
    """Verdict, its sentence, and the reasons; for a pass the figures that carried it."""
    verdict = sheet.value("verdict")
    kind = verdict if verdict in _VERDICTS else "other" if verdict else "none"
    reasons = [_reason(sheet, place) for place in range(len(sheet.value("reasons")))]
    if verdict and not reasons:
        reasons = [_carried(sheet, name) for name in SETS if name in sheet.value("sets")]
    limit = sheet.say("limit", limit=sheet.show("metrics.gate.limit", "points_of")) if verdict else None
    word = sheet.text("verdict") if kind == "other" else sheet.say(f"verdict_{kind}")
    return {"kind": kind, "word": word, "sentence": sheet.say(f"sentence_{kind}"), "reasons": reasons, "limit": limit}


def alarms(sheet: Sheet) -> list[Markup]:
    """Findings that outweigh the gate."""
    return [
        sheet.say(f"alarm_{row['what']}", n=sheet.show(row["figure"], "count") if row["figure"] else "") for row in sheet.value("alarms")
    ]


def tiles(sheet: Sheet) -> list[tuple[Markup, Markup, Markup]]:
    """The measures in large figures: (label, figure, note)."""
    rows = []
    for name in SETS:
        own = f"metrics.{name}"
        if name not in sheet.value("sets"):
            rows.append((sheet.say(f"tile_{name}"), Markup("\N{EM DASH}"), sheet.say("not_tested")))
            continue
        figure = sheet.show(f"{own}.error_before", "share") + Markup(" \N{RIGHTWARDS ARROW} ") + sheet.show(f"{own}.error_after", "percent")
        confidence = sheet.show("confidence", "whole_percent")
        rows.append(
            (sheet.say(f"tile_{name}"), figure, sheet.say("tile_change", change=sheet.change(f"{own}.change"), confidence=confidence))
        )
    return rows + _last_tile(sheet)


def _last_tile(sheet: Sheet) -> list[tuple[Markup, Markup, Markup]]:
    size = sheet.show("cost.patch_bytes", "size") if sheet.value("cost.patch_bytes") else None
    if sheet.value("device.swap_ms") is not None:
        note = sheet.say("tile_patch_note", size=size) if size else sheet.say("tile_between")
        return [(sheet.say("tile_swap"), sheet.show("device.swap_ms", "milliseconds"), note)]
    if size:
        return [(sheet.say("tile_patch"), size, sheet.say("tile_sent"))]
    if sheet.value("metrics") is None:
        return []
    note = sheet.say("tile_weights_note", n=sheet.show("metrics.changed_count", "count"))
    return [(sheet.say("tile_weights"), sheet.show("metrics.changed_share", "small_percent"), note)]


def story(sheet: Sheet) -> Pairs:
    """An auditor's questions: (question, answer)."""
    rows: Pairs = []
    judged = sheet.value("metrics") is not None
    if judged:
        rows.append((sheet.say("what_wrong"), _wrong(sheet)))
    rows.append((sheet.say("what_changed"), _changed(sheet)))
    if judged:
        rows.append((sheet.say("effect"), _effect(sheet)))
    rows.append((sheet.say("why"), sheet.text("change.reason") if sheet.value("change.reason") else sheet.say("why_not_stated")))
    rows += [(sheet.say("who"), _who(sheet)), (sheet.say("when"), _when(sheet)), (sheet.say("data"), _data(sheet))]
    return [*rows, (sheet.say("undo"), _undo(sheet))]


def _wrong(sheet: Sheet) -> Markup:
    own, known = "sets.target", sheet.value("sets.target.misjudged_before") is not None
    parts = [
        sheet.say(
            "wrong" if known else "wrong_unknown",
            wrong=sheet.show(f"{own}.misjudged_before", "count"),
            n=sheet.show(f"{own}.n", "count"),
            error=sheet.show("metrics.target.error_before", "percent"),
        )
    ]
    if sheet.value(f"{own}.mistake"):
        truth, verdict = (sheet.text(f"{own}.mistake.{key}") for key in ("truth", "verdict"))
        parts.append(sheet.say("mistake", truth=truth, verdict=verdict, times=sheet.show(f"{own}.mistake.times", "count")))
    return sheet.join(parts)


def _changed(sheet: Sheet) -> Markup:
    matrices = sheet.show("matrices", "count")
    if sheet.value("metrics") is None:
        return sheet.say("changed_unjudged", matrices=matrices)
    return sheet.say(
        "changed_outside" if sheet.value("metrics.outside_mask") else "changed",
        count=sheet.show("metrics.changed_count", "count"),
        total=sheet.show("metrics.total_weights", "count"),
        share=sheet.show("metrics.changed_share", "small_percent"),
        outside=sheet.show("metrics.outside_mask", "count"),
        matrices=matrices,
    )


def _effect(sheet: Sheet) -> Markup:
    parts = []
    for name in SETS:
        if name not in sheet.value("sets"):
            continue
        own = f"metrics.{name}"
        unknown = "_unknown" if name == "target" and sheet.value("sets.target.misjudged_after") is None else ""
        parts.append(
            sheet.say(
                f"effect_{name}{unknown}",
                n=sheet.show(f"sets.{name}.n", "count"),
                wrong=sheet.show(f"sets.{name}.misjudged_after", "count"),
                error=sheet.show(f"{own}.error_after", "percent"),
                before=sheet.show(f"{own}.error_before", "percent"),
                after=sheet.show(f"{own}.error_after", "percent"),
                fixed=sheet.show(f"{own}.fixed", "count"),
                broken=sheet.show(f"{own}.broken", "count"),
            )
        )
    return sheet.join(parts)


def _who(sheet: Sheet) -> Markup:
    parts = [
        sheet.say(key, name=sheet.text(f"change.{key}"))
        for key in ("requested_by", "made_by", "approved_by")
        if sheet.value(f"change.{key}")
    ]
    signers = sheet.value("cost.signers")
    if isinstance(signers, list) and signers:
        keys = sheet.list([sheet.show(f"cost.signers.{i}", "short") for i in range(len(signers))])
        parts.append(sheet.say("signed_by", keys=keys))
    return sheet.join(parts) if parts else sheet.say("who_not_stated")


def _when(sheet: Sheet) -> Markup:
    dates = [key for key in ("made_on", "approved_on", "expires") if sheet.value(f"change.{key}")]
    return sheet.join([sheet.say(key, date=sheet.text(f"change.{key}")) for key in dates]) if dates else sheet.say("when_not_stated")


def _data(sheet: Sheet) -> Markup:
    parts = []
    if sheet.value("data.shots.n") is not None:
        parts.append(
            sheet.say(
                "data_edit",
                shots=sheet.show("data.shots.n", "count"),
                digest=sheet.show("data.shots.digest", "short"),
                control=sheet.show("data.control.n", "count"),
                control_digest=sheet.show("data.control.digest", "short"),
            )
        )
    if sheet.value("data.former.n") is not None:
        parts.append(sheet.say("data_former", n=sheet.show("data.former.n", "count"), digest=sheet.show("data.former.digest", "short")))
    held = []
    for name in (name for name in SETS if name in sheet.value("sets")):
        path = f"data.heldout.{name}.digest"
        key = "data_set" if sheet.value(path) else "data_set_plain"
        held.append(sheet.say(key, n=sheet.show(f"sets.{name}.n", "count"), set=_set(sheet, name), digest=sheet.show(path, "short")))
    if held:
        parts.append(sheet.say("data_judged", sets=sheet.list(held)))
    return sheet.join(parts) if parts else sheet.say("data_none")


def _undo(sheet: Sheet) -> Markup:
    parts = [sheet.say("undo_text", command=Markup("<code>") + sheet.text("undo") + Markup("</code>"))]
    exact = sheet.value("device.rollback_exact")
    if isinstance(exact, bool):
        parts.append(sheet.say("undo_tried" if exact else "undo_failed"))
    return sheet.join(parts)


def gauge(sheet: Sheet) -> dict[str, Any] | None:
    """The gauge's rows: (figure, per set and moment: value, interval, band), and the notes under it; None without verdicts."""
    sets = [name for name in GAUGED if sheet.value(f"sets.{name}.gauge")]
    if not sets:
        return None
    rows = []
    for figure in FIGURES:
        cells = [_cell(sheet, f"sets.{name}.gauge.{when}.{figure}", figure) for name in sets for when in ("before", "after")]
        if any(cells):
            rows.append((sheet.say(f"gauge_{figure}"), cells))
    heads = [(_set(sheet, name), sheet.show(f"sets.{name}.n", "count")) for name in sets]
    return {"sets": heads, "rows": rows, "notes": _notes(sheet), "worse": _worse(sheet, sets)}


def _worse(sheet: Sheet, sets: list[str]) -> Markup | None:
    """The figures that fell into a worse band; None when none did."""
    found = []
    for name, figure in ((name, figure) for name in sets for figure in FIGURES):
        before, after = (sheet.value(f"sets.{name}.gauge.{when}.{figure}") for when in ("before", "after"))
        if before and after and _BANDS.index(after["band"]) > _BANDS.index(before["band"]):
            found.append(sheet.say("gauge_of_set", figure=sheet.say(f"gauge_{figure}"), set=_set(sheet, name)))
    return sheet.say("gauge_worse", names=sheet.list(found)) if found else None


def _cell(sheet: Sheet, path: str, figure: str) -> dict[str, Any] | None:
    value = sheet.value(path)
    if not value:
        return None
    span = sheet.span(path) if figure != "kappa" else None
    shown = sheet.show(f"{path}.value", "decimal2" if figure == "kappa" else "percent")
    return {"value": shown, "span": span, "band": value["band"], "word": sheet.say(f"gauge_{value['band']}")}


def _notes(sheet: Sheet) -> Markup:
    def limits(figure: str, style: str) -> Markup:
        return sheet.show(f"gauge.bands.{figure}.good", style) + Markup(" / ") + sheet.show(f"gauge.bands.{figure}.acceptable", style)

    named = {figure: limits(figure, "decimal2" if figure == "kappa" else "percent") for figure in FIGURES}
    names = sheet.list([sheet.text(f"gauge.defective.{i}") for i in range(len(sheet.value("gauge.defective")))])
    said = {"stated": "gauge_defective", "name": "gauge_guessed"}.get(sheet.value("gauge.defective_from"), "gauge_unknown")
    return sheet.join([sheet.say(said, names=names), sheet.say("gauge_bands", **named)])
