"""The report of an edit: one self-contained HTML page that prints well, and `report.json` beside it.

Guarantees: no script, no address on a network, every string of a Delta escaped; at most 72 thumbnails, so the page
stays below 5 MB; the same input gives the same bytes.  Does not judge: it shows what the edit measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from edgeedit.delta import Delta
from edgeedit.files import replace_file, write_json
from edgeedit.report import charts, record, view
from edgeedit.report.facts import read_metrics, read_verdicts


def _environment() -> jinja2.Environment:
    loader = jinja2.PackageLoader("edgeedit.report", "templates")
    return jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)


def render_report(delta: Delta, *, cost: Mapping[str, Any] | None = None, device: Mapping[str, Any] | None = None) -> str:
    """One HTML page about `delta`.

    `cost` may hold patch_bytes, encoder_bytes, probe_tolerance, patch_digest, parent, result and signers; `device` the
    demo's `apply` figures with device_equals_server, rollback_exact and max_output_difference.  What is absent is left
    out.  Raises InputError when the Delta's metrics, verdicts or locality are malformed."""
    metrics, verdicts = read_metrics(delta.info), read_verdicts(delta.info)
    sets = view.judged_sets(metrics)
    classes = [str(name) for name in view.section(delta.info, "reader").get("classes") or ()]
    return _environment().get_template("report.html.j2").render(
        headline=view.headline(metrics),
        warnings=view.warnings(metrics, device),
        story=view.story(delta, metrics, verdicts),
        tiles=view.tiles(metrics, cost, device),
        examples=view.examples(verdicts),
        effect_chart=charts.effect_chart(sets, metrics.gate.limit) if metrics else None,
        sets=[view.set_view(row, verdicts, classes) for row in sets],
        where_chart=charts.where_chart(view.section(delta.info, "locality")),
        cost=view.cost_rows(metrics, cost, device),
        deployed=view.deployed_rows(delta, cost, device),
        provenance=record.provenance_rows(delta, cost),
        licences=record.licence_notes(delta.info),
        limits=record.limits(delta, metrics, verdicts, device),
        undo=record.UNDO,
    )  # fmt: skip


def save_report(delta: Delta, path: Path, *, cost: Mapping[str, Any] | None = None, device: Mapping[str, Any] | None = None) -> None:
    """Write the page to `path` and its summary to `report.json` beside it, both durably.

    Raises InputError for a malformed Delta and RefusedError when the disk refuses; then nothing half-written is left."""
    page = render_report(delta, cost=cost, device=device)
    content = record.summary(delta, read_metrics(delta.info), read_verdicts(delta.info), cost, device)
    replace_file(path, page.encode("utf-8"))
    write_json(path.with_name("report.json"), content)
