"""The vision system as an attribute gauge: effectiveness, miss rate, false alarm rate and kappa, with bands.

Guarantees: shares are counted from stored verdicts, with Wilson 95 % intervals; which classes are defects is what the user said, or a
class name that says so itself, and the report tells which; without either there is no miss and no false alarm.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from edgeedit.report.facts import Verdict, kappa
from edgeedit.report.settings import Bands, ReportSettings

_Z = 1.959963984540054
_SAY_SO = frozenset({"defect", "defective", "nok", "ng", "not ok", "bad", "faulty", "reject", "scrap", "fail"})
_HIGHER_IS_BETTER = ("effectiveness", "kappa")
FIGURES = ("effectiveness", "miss", "false_alarm", "kappa")


def wilson(count: int, n: int) -> tuple[float, float]:
    """Wilson 95 % interval of count / n (Wilson 1927); n > 0."""
    share, z2 = count / n, _Z * _Z
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def defects(classes: Sequence[str], settings: ReportSettings) -> tuple[tuple[str, ...], str]:
    """(classes that count as a defect, where that comes from: `stated`, `name` or empty)."""
    if settings.defective:
        return settings.defective, "stated"
    named = tuple(name for name in classes if name.strip().lower() in _SAY_SO)
    return (named, "name") if named and len(named) < len(set(classes)) else ((), "")


def band(name: str, value: float, bands: Bands) -> str:
    """`good`, `marginal` or `bad`."""
    good, fair = getattr(bands, name)
    if name in _HIGHER_IS_BETTER:
        return "good" if value >= good else "marginal" if value >= fair else "bad"
    return "good" if value <= good else "marginal" if value <= fair else "bad"


def _share(name: str, count: int, n: int, bands: Bands) -> dict[str, Any] | None:
    if not n:
        return None
    low, high = wilson(count, n)
    return {"count": count, "n": n, "value": count / n, "low": low, "high": high, "band": band(name, count / n, bands)}


def _one(rows: Sequence[Verdict], when: str, bad: Sequence[str], bands: Bands) -> dict[str, Any]:
    pairs = [(row.label, getattr(row, when)) for row in rows]
    found: dict[str, Any] = {"effectiveness": _share("effectiveness", sum(a == b for a, b in pairs), len(pairs), bands)}
    if bad:
        defective = [verdict for label, verdict in pairs if label in bad]
        intact = [verdict for label, verdict in pairs if label not in bad]
        found["miss"] = _share("miss", sum(verdict not in bad for verdict in defective), len(defective), bands)
        found["false_alarm"] = _share("false_alarm", sum(verdict in bad for verdict in intact), len(intact), bands)
    agreed = kappa(pairs)
    found["kappa"] = None if agreed is None else {"n": len(pairs), "value": agreed, "band": band("kappa", agreed, bands)}
    return found


def gauge(rows: Sequence[Verdict], bad: Sequence[str], bands: Bands) -> dict[str, Any]:
    """`before` and `after`, each with the figures that can be counted: value, n, interval, band."""
    return {when: _one(rows, when, bad, bands) for when in ("before", "after")}


def bands_json(bands: Bands) -> dict[str, Any]:
    """The bands for `report.json`: figure -> {good, acceptable}."""
    return {name: dict(zip(("good", "acceptable"), limits, strict=True)) for name, limits in asdict(bands).items()}
