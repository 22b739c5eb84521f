"""The change record of a report: provenance, what was not tested, and the summary written as `report.json`.

Guarantees: plain strings and strict JSON; nothing is added that the Delta or the caller did not state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgeedit.delta import Delta
from edgeedit.metrics import EditMetrics
from edgeedit.report.facts import Verdict, confusion, flips, plain, verdict_json, wrong_count
from edgeedit.report.view import FEW, Rows, judged_sets, of_set, section
from edgeedit.report.words import number

SCHEMA_VERSION = 1
_PATCH_LABELS = {"patch_digest": "Patch digest", "parent": "Parent fingerprint", "result": "Result fingerprint", "signers": "Signed by"}
UNDO = "edgeedit rollback --store DIR"


def _setting(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(_setting(own) for own in value)
    return str(value)


def _settings(values: Mapping[str, Any]) -> str:
    return "; ".join(f"{key} {_setting(value)}" for key, value in values.items())


def provenance_rows(delta: Delta, cost: Mapping[str, Any] | None) -> Rows:
    """(what, value) of everything that says where this change comes from; absent facts are left out."""
    info = delta.info
    encoder, reader, shots, control = (section(info, key) for key in ("encoder", "reader", "shots", "control"))
    facts: list[tuple[str, Any]] = [
        ("Encoder recipe", encoder.get("recipe")),
        ("Encoder source digest", encoder.get("source_digest")),
        ("Reader (frozen)", _settings({k: reader[k] for k in ("kind", "classes") if k in reader})),
        ("Reader digest", reader.get("digest")),
        ("Shots", f"{shots['n']} labelled images" if "n" in shots else None),
        ("Shots digest", shots.get("digest")),
        ("Control images used in the edit", control.get("n")),
        ("Control digest", control.get("digest")),
        ("Method", _settings(section(info, "method"))),
        ("Seed", info.get("seed")),
        ("Versions", _settings(section(info, "versions"))),
        ("Weight matrices changed", f"{len(delta.tensors)}: {', '.join(t.name for t in delta.tensors)}"),
    ]
    for key, label in _PATCH_LABELS.items():
        value = (cost or {}).get(key, info.get(key))
        facts.append((label, ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else value))
    return [(label, str(value)) for label, value in facts if value not in (None, "")]


def licence_notes(info: Mapping[str, Any]) -> list[str]:
    """Licence notes of the data, as stated."""
    notes = info.get("licence_notes") or ()
    return [notes] if isinstance(notes, str) else [str(note) for note in notes]


def limits(delta: Delta, metrics: EditMetrics | None, verdicts: Sequence[Verdict], device: Mapping[str, Any] | None) -> list[str]:
    """Sentences: what was not tested."""
    rows = ["Only the held-out images counted above were judged: other cameras, lamps, products and seasons were not."]
    kind = section(delta.info, "reader").get("kind")
    reader = f"A frozen {kind} reader" if kind else "A frozen reader"
    rows.append(f"{reader} judged the encoder's features; a language model behind the encoder was not run.")
    precision = section(delta.info, "encoder").get("precision")
    if precision:
        rows.append(f"Only the precision {precision} was judged.")
    if metrics is None:
        return ["Nothing was judged on held-out images.", *rows[2:]]
    if metrics.control is None:
        rows.append("No control images were held out: whether the repair broke something of the same job is not known.")
    if metrics.unrelated is None:
        rows.append("No unrelated images were held out: whether the repair broke a different job is not known.")
    for result in judged_sets(metrics):
        own = of_set(verdicts, result.name)
        if result.n < FEW:
            rows.append(f"The {result.name} set is small ({result.n} images): its figures are coarse.")
        if not own:
            rows.append(f"No single verdicts of the {result.name} set are stored: it has no confusion table, no flips and no groups here.")
        elif len({row.group for row in own}) == len(own):
            rows.append(f"Each {result.name} image is its own group: the interval takes the images as independent of each other.")
        if result.name != "target" and own and wrong_count(result.wrong_before, result.n) == 0:
            rows.append(f"Every {result.name} image counted as right before (without a label, the verdict before is the truth).")
    if number(device, "swap_ms") is None:
        rows.append("Swap time, frames and the equality of device and server are not part of this report.")
    rows.append("Head scores say where the edit was allowed to act. They do not explain why the encoder erred.")
    return rows


def summary(
    delta: Delta, metrics: EditMetrics | None, verdicts: Sequence[Verdict], cost: Mapping[str, Any] | None, device: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The content of `report.json`: strict JSON, every flip of every set, no pictures."""
    sets = {}
    for result in judged_sets(metrics):
        own = of_set(verdicts, result.name)
        confused = confusion(own, section(delta.info, "reader").get("classes") or ())
        sets[result.name] = {
            "misjudged_before": wrong_count(result.wrong_before, result.n),
            "misjudged_after": wrong_count(result.wrong_after, result.n),
            "kappa_before": confused.kappa_before,
            "kappa_after": confused.kappa_after,
            "flips": [verdict_json(row) for row in flips(own)],
        }
    kept = ("encoder", "reader", "shots", "control", "method", "seed", "versions", "survival", "licence_notes")
    value: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "verdict": metrics.gate.verdict if metrics else None,
        "reasons": metrics.gate.reasons if metrics else [],
        "metrics": metrics.to_json() if metrics else None,
        "sets": sets,
        "cost": cost,
        "device": device,
        "provenance": {key: delta.info[key] for key in kept if key in delta.info},
        "tensors": [tensor.name for tensor in delta.tensors],
        "not_tested": limits(delta, metrics, verdicts, device),
        "undo": UNDO,
    }
    result_json: dict[str, Any] = plain(value)
    return result_json
