"""What was not tested, and which expectations of others the report supports.

Guarantees: sentences follow from what is missing in the Delta and from the caller; the table says `supports`, it claims no conformity.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgeedit.delta import Delta
from edgeedit.metrics import EditMetrics
from edgeedit.report.facts import Verdict, wrong_count
from edgeedit.report.words import number

FEW = 30  # images below which a set is called small
_EXPECTATIONS = (
    ("IATF 16949, 8.5.6.1", "a change is documented, validated before use, its evidence kept", "page one, error and retention, provenance"),
    ("IATF 16949, 8.5.6.1.1", "an alternate control is checked when it starts again", "as deployed: probes with known answers"),
    ("IATF 16949, 7.1.5.1.1 (MSA)", "the gauge is judged as a gauge: effectiveness, miss rate, false alarms", "the camera as a gauge"),
    ("EU AI Act, Art. 12 and 18", "events are recorded and documentation is kept", "report.json, the signed patch, the sealed log"),
    ("EU Cyber Resilience Act", "updates are authenticated and can be undone", "provenance, how to undo"),
    ("ISO/IEC 42001, A.6.2.6 and A.6.2.8", "operation is monitored and events are logged", "limits and expiry, the field monitor"),
)


def expectations() -> list[dict[str, str]]:
    """Rows of the table `what this report supports`: source, what it expects, where it stands here."""
    return [dict(zip(("source", "expects", "where"), row, strict=True)) for row in _EXPECTATIONS]


def _about_set(name: str, n: int, own: Sequence[Verdict], wrong: int | None) -> list[str]:
    rows = []
    if n < FEW:
        rows.append(f"The {name} set is small ({n} images): its figures are coarse.")
    if not own:
        rows.append(f"No single verdicts of the {name} set are stored: it has no confusion table, no flips and no groups here.")
    elif len({row.group for row in own}) == len(own):
        rows.append(f"Each {name} image is its own group: the interval takes the images as independent of each other.")
    if name != "target" and own and wrong == 0:
        rows.append(f"Every {name} image counted as right before (without a label, the verdict before is the truth).")
    return rows


def limits(delta: Delta, metrics: EditMetrics | None, verdicts: Sequence[Verdict], device: Mapping[str, Any]) -> list[str]:
    """Sentences: what was not tested."""
    reader, encoder = (delta.info.get(key) for key in ("reader", "encoder"))
    kind = reader.get("kind") if isinstance(reader, Mapping) else None
    precision = encoder.get("precision") if isinstance(encoder, Mapping) else None
    rows = ["Only the held-out images counted above were judged: other cameras, lamps, products and seasons were not."]
    named = f"A frozen {kind} reader" if kind else "A frozen reader"
    rows.append(f"{named} judged the encoder's features; a language model behind the encoder was not run.")
    if precision:
        rows.append(f"Only the precision {precision} was judged.")
    if metrics is None:
        return ["Nothing was judged on held-out images.", *rows[2:]]
    if metrics.control is None:
        rows.append("No control images were held out: whether the repair broke something of the same job is not known.")
    if metrics.unrelated is None:
        rows.append("No unrelated images were held out: whether the repair broke a different job is not known.")
    for result in (metrics.target, metrics.control, metrics.unrelated):
        if result is not None:
            own = [row for row in verdicts if row.set == result.name]
            rows += _about_set(result.name, result.n, own, wrong_count(result.wrong_before, result.n))
    if number(device, "swap_ms") is None:
        rows.append("Swap time, frames and the equality of device and server are not part of this report.")
    rows.append("Each image was shown once, so the camera's own repeatability is not in these figures.")
    rows.append("Head scores say where the edit was allowed to act. They do not explain why the encoder erred.")
    return rows
