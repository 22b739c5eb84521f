"""What a report counts out of a Delta's stored verdicts: confusions, kappa, flips, groups.

Guarantees: pure functions over `Delta.info`; anything malformed raises InputError, never KeyError; order is
deterministic.  Does not judge: the gate did that when the edit was made.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import PurePath
from typing import Any

import numpy as np

from edgeedit.errors import InputError
from edgeedit.metrics import EditMetrics, Interval, metrics_from_json

SETS = ("target", "control", "unrelated")
WORST_GROUPS = 5
HISTOGRAM_BINS = 24
_RANK = {"broken": 0, "still": 1, "fixed": 2}
_HINT = "was the .delta made by `edgeedit edit`?"
_Z2 = 1.959963984540054**2


@dataclass(frozen=True)
class Verdict:
    """One held-out image: its truth, the verdicts before and after, the reader's share for the truth (0..1), and the cosine of its features
    before and after."""

    set: str
    image: str
    group: str
    label: str
    before: str
    after: str
    score_before: float | None
    score_after: float | None
    cosine: float | None = None

    @property
    def flip(self) -> str:
        """`broken`, `fixed`, `still` (another wrong verdict) or empty when the verdict did not change."""
        if self.before == self.after:
            return ""
        return "fixed" if self.after == self.label else "broken" if self.before == self.label else "still"


@dataclass(frozen=True)
class Confusion:
    """Counts [truth][verdict] before and after over `classes`; kappa against the truth, None where it is not defined."""

    classes: tuple[str, ...]
    before: tuple[tuple[int, ...], ...]
    after: tuple[tuple[int, ...], ...]
    kappa_before: float | None
    kappa_after: float | None


@dataclass(frozen=True)
class GroupRow:
    """One group of a set: images, misjudged before, misjudged after."""

    name: str
    n: int
    wrong_before: int
    wrong_after: int


def read_metrics(info: Mapping[str, Any]) -> EditMetrics | None:
    """The metrics, or None when the Delta was never judged; raises InputError when they are malformed."""
    value = info.get("metrics")
    if not value:
        return None
    try:
        return metrics_from_json(value)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"cannot report: expected the metrics of an edit, got {error!r}", hint=_HINT) from error


def _score(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def read_verdicts(info: Mapping[str, Any]) -> tuple[Verdict, ...]:
    """The stored verdicts in their order; raises InputError when they are malformed."""
    try:
        return tuple(_verdict(row) for row in info.get("verdicts") or ())
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"cannot report: expected verdicts with set, image, label, before and after, got {error!r}", hint=_HINT) from error


def _verdict(row: Mapping[str, Any]) -> Verdict:
    name, image, group, label, before, after = (str(row[key]) for key in ("set", "image", "group", "label", "before", "after"))
    return Verdict(name, image, group, label, before, after, *(_score(row.get(key)) for key in ("score_before", "score_after", "cosine")))


def wrong_count(wilson: Interval, n: int) -> int | None:
    """How many of `n` were misjudged, read back from the Wilson interval; None when the interval is of another kind."""
    share = (wilson.low + wilson.high) / 2 * (1 + _Z2 / n) - _Z2 / (2 * n) if n else math.nan
    if not math.isfinite(share) or abs(share * n - round(share * n)) > 0.01:
        return None
    return round(share * n)


def flips(rows: Iterable[Verdict]) -> tuple[Verdict, ...]:
    """Verdicts that changed, newly wrong ones first, then by the fall of the truth's score, then by image."""

    def rank(row: Verdict) -> tuple[int, float, str]:
        move = (row.score_after or 0.0) - (row.score_before or 0.0)
        return _RANK[row.flip], -move if row.flip == "fixed" else move, row.image

    return tuple(sorted((row for row in rows if row.flip), key=rank))


def kappa(pairs: Iterable[tuple[str, str]]) -> float | None:
    """Cohen's kappa of (truth, verdict) pairs; None where chance alone would agree always, or without pairs."""
    counted = Counter(pairs)
    names = sorted({name for pair in counted for name in pair})
    return _kappa([[counted[truth, verdict] for verdict in names] for truth in names])


def _kappa(counts: Sequence[Sequence[int]]) -> float | None:
    total = sum(map(sum, counts))
    if not total:
        return None
    agreed = sum(row[i] for i, row in enumerate(counts)) / total
    chance = sum(sum(row) * sum(other[i] for other in counts) for i, row in enumerate(counts)) / total**2
    return None if chance >= 1 else (agreed - chance) / (1 - chance)


def confusion(rows: Sequence[Verdict], known: Sequence[str]) -> Confusion:
    """Confusion before and after; classes in the order of `known`, then the others by name."""
    seen = {text for row in rows for text in (row.label, row.before, row.after)}
    classes = [name for name in known if name in seen]
    classes += sorted(seen - set(classes))
    pairs = Counter((row.label, row.before) for row in rows), Counter((row.label, row.after) for row in rows)
    before, after = (tuple(tuple(pair[truth, verdict] for verdict in classes) for truth in classes) for pair in pairs)
    return Confusion(tuple(classes), before, after, _kappa(before), _kappa(after))


def cosine_drift(sets: Mapping[str, Sequence[Verdict]]) -> dict[str, Any] | None:
    """Histograms of cosine(base, patched) over common edges: edges, and per set n, least, median, mean and counts; None where no set
    stored cosines."""
    known = {name: np.array([row.cosine for row in rows if row.cosine is not None]) for name, rows in sets.items()}
    known = {name: values for name, values in known.items() if values.size}
    if not known:
        return None
    low = min(float(values.min()) for values in known.values())
    high = max(1.0, *(float(values.max()) for values in known.values()))
    edges = np.linspace(low if low < high else high - 1e-6, high, HISTOGRAM_BINS + 1)
    found: dict[str, Any] = {"edges": [float(edge) for edge in edges], "sets": {}}
    for name, values in known.items():
        row = {"n": int(values.size), "least": float(values.min()), "median": float(np.median(values)), "mean": float(values.mean())}
        found["sets"][name] = {**row, "counts": [int(count) for count in np.histogram(values, edges)[0]]}
    return found


def read_movement(info: Mapping[str, Any]) -> dict[str, Any] | None:
    """Where the features of each set lay before and after (`edit.drift.feature_movement`), sets in report order; None where a Delta holds
    none (made by an older edit).  Raises InputError when it is malformed."""
    value = info.get("movement")
    if not value:
        return None
    try:
        known = dict(value)
        return {name: _movement(known[name]) for name in SETS if name in known} or None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"cannot report: expected how the features of each set moved, got {error!r}", hint=_HINT) from error


def _movement(row: Mapping[str, Any]) -> dict[str, Any]:
    shares = [float(share) for share in row["explained"]]
    places = {when: np.array(row[when], dtype=np.float64) for when in ("before", "after")}
    if len(shares) != 2 or any(own.shape != (int(row["n"]), 2) or not np.isfinite(own).all() for own in places.values()):
        raise ValueError("places that are not those of n images on a plane")
    figures = {"n": int(row["n"]), "explained": shares, "mmd": float(row["mmd"]), "p": float(row["p"])}
    return {**figures, **{when: own.tolist() for when, own in places.items()}}


def worst_groups(rows: Sequence[Verdict]) -> tuple[tuple[GroupRow, ...], int]:
    """The worst groups (largest rise of misjudged images, then largest share misjudged after) and the number of groups."""
    names: dict[str, list[Verdict]] = {}
    for row in rows:
        names.setdefault(row.group, []).append(row)
    table = [
        GroupRow(name, len(own), sum(r.before != r.label for r in own), sum(r.after != r.label for r in own))
        for name, own in sorted(names.items())
    ]
    table.sort(key=lambda g: (g.wrong_before - g.wrong_after, -g.wrong_after / g.n, g.name))
    return tuple(table[:WORST_GROUPS]), len(table)


def commonest_mistake(rows: Iterable[Verdict]) -> tuple[str, str, int] | None:
    """(truth, verdict before, how many) of the most frequent mistake before the edit; None when no one leads."""
    pairs = Counter((row.label, row.before) for row in rows if row.label != row.before)
    leading = pairs.most_common(2)
    if not leading or (len(leading) == 2 and leading[0][1] == leading[1][1]):
        return None
    (truth, verdict), times = leading[0]
    return truth, verdict, times


def plain(value: Any) -> Any:
    """`value` as strict JSON: NaN and infinity become null, tuples lists, unknown objects text."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(own) for key, own in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(own) for own in value]
    return value if value is None or isinstance(value, (str, int)) else str(value)


def verdict_json(row: Verdict) -> dict[str, Any]:
    """One verdict for `report.json`."""
    return {**asdict(row), "flip": row.flip, "name": PurePath(row.image).name or row.image}
