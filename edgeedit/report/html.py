"""The report of an edit: one self-contained HTML page that prints well, and `report.json` beside it.

Guarantees: no script, no address on a network, every string of a Delta escaped; at most 105 small pictures, so the page
stays below 5 MB; every number of the page is in `report.json`; the same input gives the same bytes.  Does not judge: it
shows what the edit measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from edgeedit.delta import Delta
from edgeedit.files import replace_file, write_json
from edgeedit.report import details, page_one
from edgeedit.report.cards import card
from edgeedit.report.language import load_texts
from edgeedit.report.record import Given, build
from edgeedit.report.settings import ReportSettings
from edgeedit.report.sheet import Sheet


def _environment() -> jinja2.Environment:
    loader = jinja2.PackageLoader("edgeedit.report", "templates")
    return jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)


def _subtitle(sheet: Sheet, language: str) -> Any:
    stated = (("change_id", "id"), ("product", "product"), ("station", "station"))
    rows = [sheet.say(key, name=sheet.text(f"change.{name}")) for key, name in stated if sheet.value(f"change.{name}")]
    return sheet.join([*rows, sheet.say("subtitle"), *([] if language == "en" else [sheet.say("details_note")])])


def _render(report: Mapping[str, Any], language: str) -> str:
    sheet = Sheet(report, load_texts(language))
    english = Sheet(report, load_texts("en"))
    return _environment().get_template("report.html.j2").render(
        language=language,
        say=sheet.say,
        subtitle=_subtitle(sheet, language),
        headline=page_one.headline(sheet),
        alarms=page_one.alarms(sheet),
        tiles=page_one.tiles(sheet),
        story=page_one.story(sheet),
        gauge=page_one.gauge(sheet),
        examples=[card(sheet, f"examples.{place}") for place in range(len(report["examples"]))],
        **details.blocks(english),
    )  # fmt: skip


def _given(
    cost: Mapping[str, Any] | None, device: Mapping[str, Any] | None, explanation: Mapping[str, Any] | None, settings: ReportSettings | None
) -> Given:
    return Given(cost or {}, device or {}, explanation, settings or ReportSettings())


def render_report(
    delta: Delta,
    *,
    cost: Mapping[str, Any] | None = None,
    device: Mapping[str, Any] | None = None,
    explanation: Mapping[str, Any] | None = None,
    settings: ReportSettings | None = None,
    language: str = "en",
) -> str:
    """One HTML page about `delta`; `cost`, `device`, `explanation` and `settings` as in `Given`.

    `language` is that of page one (en, de, ja, zh).  Raises InputError when the Delta's metrics, verdicts or locality, or the explanation,
    are malformed, and for an unknown language."""
    return _render(build(delta, _given(cost, device, explanation, settings)), language)


def save_report(
    delta: Delta,
    path: Path,
    *,
    cost: Mapping[str, Any] | None = None,
    device: Mapping[str, Any] | None = None,
    explanation: Mapping[str, Any] | None = None,
    settings: ReportSettings | None = None,
    language: str = "en",
) -> None:
    """Write the page to `path` and `report.json` beside it, both durably.

    Raises InputError as `render_report` does and RefusedError when the disk refuses; then nothing half-written is left."""
    report = build(delta, _given(cost, device, explanation, settings))
    page = _render(report, language)
    replace_file(path, page.encode("utf-8"))
    write_json(path.with_name("report.json"), report)
