"""Frozen result types of an edit, shared by the edit, its gate, the report and the command line.

Guarantees: plain numbers and strings only, `to_json`/`from_json` round trip.  Errors are balanced errors (mean over
classes of the share misjudged), 0..1; AUC is the area under the ROC curve for two classes, None otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Interval:
    """A 95 % interval [low, high]."""

    low: float
    high: float


@dataclass(frozen=True)
class SetResult:
    """One held-out set before and after: n images, balanced errors, AUCs, accuracies with Wilson 95 % intervals, the
    paired flips (`fixed`: wrong then right, `broken`: right then wrong) and the exact McNemar p-value; `change` is the
    paired 95 % interval of the error change after - before; `shares_*` the share of images given each verdict."""

    name: str
    n: int
    error_before: float
    error_after: float
    auc_before: float | None
    auc_after: float | None
    wrong_before: Interval
    wrong_after: Interval
    fixed: int
    broken: int
    mcnemar_p: float
    change: Interval
    shares_before: tuple[tuple[str, float], ...] = ()
    shares_after: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class GateVerdict:
    """`verdict` is `pass`, `fail` or `undecided`; `reasons` are sentences; `limit` the allowed control drop (0..1)."""

    verdict: str
    reasons: tuple[str, ...]
    limit: float


@dataclass(frozen=True)
class EditMetrics:
    """All an edit reports: held-out sets, gate, cost and the census of changed weights.  `edit_seconds` is None in a Delta's
    record: the same edit gives the same bytes, however long it took."""

    target: SetResult
    control: SetResult | None
    unrelated: SetResult | None
    gate: GateVerdict
    edit_seconds: float | None
    changed_count: int
    changed_share: float
    outside_mask: int
    total_weights: int

    def to_json(self) -> dict[str, Any]:
        """Plain JSON object."""
        return asdict(self)


def set_result_from_json(row: Mapping[str, Any]) -> SetResult:
    """Inverse of `asdict` for SetResult."""
    intervals = {key: Interval(**row[key]) for key in ("wrong_before", "wrong_after", "change")}
    shares = {key: tuple((str(name), float(share)) for name, share in row.get(key, ())) for key in ("shares_before", "shares_after")}
    return SetResult(**{**row, **intervals, **shares})


def metrics_from_json(value: Mapping[str, Any]) -> EditMetrics:
    """Inverse of `EditMetrics.to_json`."""
    sets = {k: set_result_from_json(value[k]) if value[k] else None for k in ("target", "control", "unrelated")}
    gate = GateVerdict(value["gate"]["verdict"], tuple(value["gate"]["reasons"]), value["gate"]["limit"])
    return EditMetrics(**{**value, **sets, "gate": gate})
