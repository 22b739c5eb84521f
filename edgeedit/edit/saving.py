"""How a judged edit is written: a Delta that passed or is undecided, or the figures of one that failed.

Guarantees: after a failed gate no Delta lies under the asked name, also none of an earlier run.
"""

from __future__ import annotations

from pathlib import Path

from edgeedit.delta import Delta
from edgeedit.files import write_json
from edgeedit.metrics import EditMetrics


def rejected_path(out: Path) -> Path:
    """Where the figures of a delta that failed its gate are written."""
    return out.with_name(out.name + ".rejected.json")


def save_judged(delta: Delta, metrics: EditMetrics, out: Path) -> None:
    """Write the delta unless its gate failed; then write its figures, and remove an older delta of that name."""
    if metrics.gate.verdict == "fail":
        write_json(rejected_path(out), {"schema_version": 1, **delta.info})
        # A delta of an earlier run under this name would be taken for this one.
        out.unlink(missing_ok=True)
        return
    rejected_path(out).unlink(missing_ok=True)
    delta.save(out)
