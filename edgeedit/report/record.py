"""`build`: everything that a report knows, as the one strict JSON object that is written as `report.json` and that the page is made of.

Guarantees: nothing is added that the Delta, its files or the user did not state; every flip of every set is in it; no pictures; the same
in every language.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from edgeedit.delta import Delta
from edgeedit.metrics import EditMetrics, SetResult
from edgeedit.report import facts
from edgeedit.report.explanation import check_explanation
from edgeedit.report.facts import SETS, Verdict, plain, wrong_count
from edgeedit.report.gauge import bands_json, defects, gauge
from edgeedit.report.limits import expectations, limits
from edgeedit.report.provenance import licence_notes, provenance_rows
from edgeedit.report.reasons import reason_rows
from edgeedit.report.roi import account
from edgeedit.report.settings import ReportSettings
from edgeedit.report.where import where
from edgeedit.report.words import number

SCHEMA_VERSION = 2
UNDO = "edgeedit rollback --store DIR"
CONFIDENCE = 0.95
EXAMPLES = 3
FLIPS_SHOWN = 24  # pictures per set
GAUGED = ("target", "control")  # judged by the one reader of the job
_DEVICE_SAYS = ("device_equals_server", "rollback_exact")
_FRAMES = ("frames_lost", "frames_torn")


@dataclass(frozen=True)
class Given:
    """What comes from outside the Delta.  `cost`: patch_bytes, encoder_bytes, edit_seconds, probe_tolerance, patch_digest, parent, result,
    signers, tensor_bytes (name -> bytes), compare (torch against the Bundle's graph), engine (that graph against its profile's engine);
    `device`: figures of `apply`, device_equals_server, rollback_exact, max_output_difference; `explanation`: what `edgeedit explain`
    wrote.  What is absent is left out."""

    cost: Mapping[str, Any] = field(default_factory=dict)
    device: Mapping[str, Any] = field(default_factory=dict)
    explanation: Mapping[str, Any] | None = None
    settings: ReportSettings = field(default_factory=ReportSettings)


def section(info: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """An object inside `info`, empty when it is missing or something else."""
    value = info.get(key)
    return value if isinstance(value, Mapping) else {}


def judged_sets(metrics: EditMetrics | None) -> list[SetResult]:
    """The sets that were judged, in report order."""
    found = [metrics.target, metrics.control, metrics.unrelated] if metrics else []
    return [row for row in found if row is not None]


def of_set(verdicts: Sequence[Verdict], name: str) -> list[Verdict]:
    """The verdicts of one set."""
    return [row for row in verdicts if row.set == name]


def _confusion(own: Sequence[Verdict], classes: Sequence[str]) -> dict[str, Any] | None:
    if not own:
        return None
    found = facts.confusion(own, classes)
    pairs = zip(found.before, found.after, strict=True)
    moved = [[a - b for b, a in zip(before, after, strict=True)] for before, after in pairs]
    misjudged = [
        {
            "n": sum(before),
            "before": 1 - before[i] / sum(before) if sum(before) else None,
            "after": 1 - after[i] / sum(before) if sum(before) else None,
        }
        for i, (before, after) in enumerate(zip(found.before, found.after, strict=True))
    ]
    return {**asdict(found), "difference": moved, "misjudged": misjudged}


def _set_json(result: SetResult, verdicts: Sequence[Verdict], classes: Sequence[str], bad: Sequence[str], settings: ReportSettings) -> Any:
    own = of_set(verdicts, result.name)
    changed = facts.flips(own)
    groups, count = facts.worst_groups(own)
    mistake = facts.commonest_mistake(own)
    areas = result.auc_before, result.auc_after
    shares = zip(result.shares_before, result.shares_after, strict=True)
    return {
        "n": result.n,
        "misjudged_before": wrong_count(result.wrong_before, result.n),
        "misjudged_after": wrong_count(result.wrong_after, result.n),
        "error_change": result.error_after - result.error_before,
        "auc_change": None if None in areas else (areas[1] or 0.0) - (areas[0] or 0.0),
        # A reader that calls everything defective has a fine AUC and a useless error: the three belong together.
        "shares": [{"name": name, "before": b, "after": a, "change": a - b} for (name, b), (_, a) in shares],
        "mistake": dict(zip(("truth", "verdict", "times"), mistake, strict=True)) if mistake else None,
        "confusion": _confusion(own, classes),
        "gauge": gauge(own, bad, settings.bands) if own and result.name in GAUGED else None,
        "groups": [asdict(row) for row in groups] if count < len(own) else [],
        "group_count": count,
        "listed": len(own),
        "flip_counts": {kind: sum(row.flip == kind for row in changed) for kind in ("broken", "still", "fixed")},
        "flips_not_shown": max(0, len(changed) - FLIPS_SHOWN),
        "flips": [facts.verdict_json(row) for row in changed],
    }


def _examples(verdicts: Sequence[Verdict]) -> list[dict[str, Any]]:
    """Up to three target images that were wrong before the edit, repaired ones first."""
    own = of_set(verdicts, "target")
    fixed = [row for row in facts.flips(own) if row.flip == "fixed"]
    wrong = [row for row in own if row.before != row.label and row.flip != "fixed"]
    return [facts.verdict_json(row) for row in (fixed + wrong)[:EXAMPLES]]


def _alarms(metrics: EditMetrics | None, device: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Findings that outweigh the gate, whatever it said: what, and the place of the figure."""
    rows: list[dict[str, Any]] = []
    if metrics and metrics.outside_mask:
        rows.append({"what": "outside", "figure": "metrics.outside_mask"})
    rows += [{"what": key, "figure": None} for key in _DEVICE_SAYS if device.get(key) is False]
    rows += [{"what": key, "figure": f"device.{key}"} for key in _FRAMES if number(device, key)]
    return rows


def _account(metrics: EditMetrics | None, given: Given) -> Mapping[str, Any] | None:
    own = given.settings.costs.server_seconds
    measured = metrics.edit_seconds if metrics and metrics.edit_seconds is not None else number(given.cost, "edit_seconds")
    patch, encoder = (number(given.cost, key) for key in ("patch_bytes", "encoder_bytes"))
    return account(given.settings.costs, measured if own is None else own, patch, encoder, number(given.device, "swap_ms"))


def build(delta: Delta, given: Given) -> dict[str, Any]:
    """The object; raises InputError when the Delta's metrics, verdicts or locality, or the explanation, are malformed."""
    metrics, verdicts = facts.read_metrics(delta.info), facts.read_verdicts(delta.info)
    check_explanation(given.explanation)
    classes = [str(name) for name in section(delta.info, "reader").get("classes") or ()]
    bad, source = defects(classes or sorted({row.label for row in verdicts}), given.settings)
    patch, encoder = (number(given.cost, key) for key in ("patch_bytes", "encoder_bytes"))
    value: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "verdict": metrics.gate.verdict if metrics else None,
        "reasons": reason_rows(metrics.gate.reasons) if metrics else [],
        "confidence": CONFIDENCE,
        "alarms": _alarms(metrics, given.device),
        "change": asdict(given.settings.change),
        "metrics": metrics.to_json() if metrics else None,
        "matrices": len(delta.tensors),
        "tensors": [tensor.name for tensor in delta.tensors],
        "sets": {row.name: _set_json(row, verdicts, classes, bad, given.settings) for row in judged_sets(metrics)},
        "examples": _examples(verdicts),
        "gauge": {"defective": list(bad), "defective_from": source, "bands": bands_json(given.settings.bands)},
        "drift": facts.cosine_drift({name: of_set(verdicts, name) for name in SETS}),
        "movement": facts.read_movement(delta.info),
        "where": where(delta, given.cost.get("tensor_bytes")),
        "cost": given.cost,
        "patch_share": patch / encoder if patch is not None and encoder else None,
        "account": _account(metrics, given),
        "device": given.device,
        "survival": section(delta.info, "survival"),
        "data": {key: section(delta.info, key) for key in ("shots", "former", "control")} | {"heldout": section(delta.info, "heldout")},
        "encoder": section(delta.info, "encoder"),
        "explanation": given.explanation,
        "provenance": provenance_rows(delta, given.cost),
        "licence_notes": licence_notes(delta.info),
        "not_tested": limits(delta, metrics, verdicts, given.device),
        "expectations": expectations(),
        "undo": UNDO,
    }
    result: dict[str, Any] = plain(value)
    return result
