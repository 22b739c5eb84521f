"""Who runs what: one table of the fleet, its releases and the repository's expiries; as JSON, text or one static page.

Guarantees: everything shown comes from verified documents and signed receipts; the page has no script, no outside address, and escapes all
that a device wrote.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from edgeedit.ota.client.rollout import stage_of
from edgeedit.ota.server.ledger import Ledger, as_time
from edgeedit.ota.server.release import judge, read_rollouts
from edgeedit.ota.server.repository import as_json, status
from edgeedit.ota.server.tree import Tree

SILENT_DAYS = 7


def fleet_view(ledger: Ledger, tree: Tree | None, *, site: str | None = None, silent_days: int = SILENT_DAYS) -> dict[str, Any]:
    """Devices, releases and expiries as one JSON-able object."""
    now = ledger.now()
    documents = [] if tree is None else _documents(tree, site)
    latest = ledger.latest()
    rows = []
    for row in ledger.fleet(site):
        last = latest.get(row.device.id)
        release = last.release if last else ""
        document = next((d for d in documents if d.release == release and d.site == row.site), None)
        stage = stage_of(document, row.device) if document else None
        rows.append(
            {
                "device": row.device.id,
                "site": row.site,
                "profile": row.device.profile,
                "line": row.device.line,
                "release": release,
                "state": last.state if last else "never heard of",
                "generation": last.generation if last else None,
                "patch": last.patch if last else "",
                "reason": last.reason if last else "",
                "stage": stage.name if stage else "",
                "heard": as_time(last.time) if last else "",
                "silent": last is None or now - last.time > silent_days * 86_400,
            }
        )
    releases = [
        {**judge(d, ledger).__dict__, "site": d.site, "profile": d.profile, "state": d.state, "sequence": d.sequence} for d in documents
    ]
    return {
        "time": as_time(now),
        "devices": rows,
        "states": dict(Counter(row["state"] for row in rows)),
        "silent": [row["device"] for row in rows if row["silent"]],
        "failures": [row for row in rows if row["state"] == "reverted"],
        "releases": releases,
        "expiries": [] if tree is None else as_json(status(tree)),
    }


def _documents(tree: Tree, site: str | None) -> list[Any]:
    sites = [name.partition("-")[2] for name in tree.role_names() if name.startswith("rollouts-")]
    return [document for name in sites if site in (None, name) for document in read_rollouts(tree, name).values()]


def as_text(view: dict[str, Any], *, limit: int = 50) -> str:
    """The table for a terminal: releases, then devices (those with something to tell first), then what expires."""
    lines = [
        f"{len(view['devices'])} devices, {len(view['silent'])} silent: " + ", ".join(f"{n} {s}" for s, n in sorted(view["states"].items()))
    ]
    for row in view["releases"]:
        lines.append(
            f"release {row['release']} at {row['site']}: {row['state']}, stage {row['stage']}, {row['devices']} devices, "
            f"{row['confirmed']} confirmed, {row['reverted']} reverted, {row['silent']} silent; {row['verdict']}"
        )
    lines.append(f"{'device':<24} {'line':<10} {'release':<16} {'state':<14} {'gen':>4}  heard")
    order = sorted(view["devices"], key=lambda r: (r["state"] != "reverted", not r["silent"], r["device"]))
    for row in order[:limit]:
        number = "" if row["generation"] is None else row["generation"]
        mark = " silent" if row["silent"] else ""
        words = f"{row['device']:<24} {row['line']:<10} {row['release']:<16} {row['state']:<14} {number:>4}"
        lines.append(f"{words}  {row['heard']}{mark}  {row['reason']}")
    if len(order) > limit:
        lines.append(f"... and {len(order) - limit} more: --json or --html shows all")
    lines += [f"{row['name']} expires in {row['days_left']:.1f} days" for row in view["expiries"][:3]]
    return "\n".join(lines)


_PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Fleet {{ view.time }}</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'"><style>
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:70rem;padding:0 1rem;color:#1b1f24;background:#fff}
h1{font-size:1.5rem}h2{font-size:1.1rem;margin-top:2rem}table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{text-align:left;padding:.25rem .6rem;border-bottom:1px solid #dfe3e8;overflow-wrap:anywhere}th{font-weight:600;color:#57606a}
.bar{display:flex;height:1rem;background:#eceff2;border-radius:3px;overflow:hidden}.ok{background:#2f7d4f}.bad{background:#b3261e}
.warn{color:#8a5a00;font-weight:600}.fail{color:#b3261e;font-weight:600}@media print{body{margin:0;max-width:none}}
</style></head><body><h1>Fleet on {{ view.time }}</h1>
<p>{{ view.devices|length }} devices; {% for state, n in view.states|dictsort %}{{ n }} {{ state }}{{ ", " if not loop.last }}{% endfor %};
<span class="{{ 'warn' if view.silent }}">{{ view.silent|length }} silent</span>.</p>
<h2>Releases</h2><table><tr><th>release<th>site<th>profile<th>state<th>stage<th>devices<th>confirmed<th>reverted<th>silent<th>progress<th>next</tr>
{% for r in view.releases %}<tr><td>{{ r.release }}<td>{{ r.site }}<td>{{ r.profile }}
<td class="{{ 'fail' if r.state in ('halted', 'withdrawn') }}">{{ r.state }}<td>{{ r.stage }}<td>{{ r.devices }}<td>{{ r.confirmed }}
<td class="{{ 'fail' if r.reverted }}">{{ r.reverted }}<td>{{ r.silent }}
<td><div class="bar" role="img" aria-label="{{ r.confirmed }} of {{ r.devices }}">
<span class="ok" style="width:{{ 100 * r.confirmed // (r.devices or 1) }}%"></span>
<span class="bad" style="width:{{ 100 * r.reverted // (r.devices or 1) }}%"></span></div>
<td>{{ r.verdict }}{% for why in r.reasons %}; {{ why }}{% endfor %}</tr>{% else %}<tr><td colspan="11">none</tr>{% endfor %}</table>
<h2>Failures</h2><table><tr><th>device<th>line<th>release<th>reason<th>heard</tr>
{% for d in view.failures %}<tr><td>{{ d.device }}<td>{{ d.line }}<td>{{ d.release }}<td>{{ d.reason }}<td>{{ d.heard }}</tr>
{% else %}<tr><td colspan="5">none</tr>{% endfor %}</table>
<h2>Signatures</h2><table><tr><th>role<th>expires<th>days left<th>targets</tr>
{% for e in view.expiries %}<tr><td>{{ e.name }}<td>{{ e.expires }}
<td class="{{ 'fail' if e.days_left < 1 else 'warn' if e.days_left < 7 and e.name != 'timestamp' }}">
{{ e.days_left }}<td>{{ e.targets if e.targets is not none }}</tr>{% endfor %}</table>
<h2>Devices</h2><table><tr><th>device<th>site<th>line<th>profile<th>stage<th>release<th>state<th>generation<th>heard</tr>
{% for d in view.devices %}<tr><td>{{ d.device }}<td>{{ d.site }}<td>{{ d.line }}<td>{{ d.profile }}<td>{{ d.stage }}<td>{{ d.release }}
<td class="{{ 'fail' if d.state == 'reverted' }}">{{ d.state }}<td>{{ d.generation if d.generation is not none }}
<td class="{{ 'warn' if d.silent }}">{{ d.heard or 'never' }}</tr>{% endfor %}</table></body></html>
"""


def as_html(view: dict[str, Any]) -> str:
    """One page, no script; everything in it is escaped."""
    import jinja2

    return jinja2.Environment(autoescape=True).from_string(_PAGE).render(view=view)
