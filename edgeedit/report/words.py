"""How numbers are written in a report: percent, percentage points, p-values, bytes, milliseconds.

Guarantees: one place for every format; a missing, NaN or infinite number is written as `NONE`, never as a figure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from edgeedit.metrics import Interval

NONE = "not measured"
_MINUS = "\N{MINUS SIGN}"
_SPACE = "\N{NO-BREAK SPACE}"


def number(source: Mapping[str, Any] | None, key: str) -> float | None:
    """The finite number under `key`, or None (also for text, booleans, NaN and infinity)."""
    value = (source or {}).get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return value


def _signed(value: float, digits: int) -> str:
    rounded = round(value, digits)
    return f"{rounded:+.{digits}f}".replace("-", _MINUS) if rounded else f"{0:.{digits}f}"


def _finite(value: Interval) -> bool:
    return math.isfinite(value.low) and math.isfinite(value.high)


def percent(value: float | None) -> str:
    """A share 0..1 as percent with one decimal."""
    return NONE if value is None or not math.isfinite(value) else f"{100 * value:.1f}{_SPACE}%"


def small_percent(value: float | None) -> str:
    """A share 0..1 that may be tiny: enough decimals for two significant digits."""
    if value is None or not math.isfinite(value):
        return NONE
    digits = 2 if value <= 0 or value >= 0.001 else min(8, 1 - math.floor(math.log10(100 * value)))
    return f"{100 * value:.{digits}f}{_SPACE}%"


def points(value: float) -> str:
    """A change of a share, -1..1, in percentage points with sign."""
    return NONE if not math.isfinite(value) else f"{_signed(100 * value, 1)}{_SPACE}pt"


def interval(value: Interval) -> str:
    """A 95 % interval of a share in percent."""
    if not _finite(value):
        return NONE
    return f"{100 * value.low:.1f} to {100 * value.high:.1f}{_SPACE}%"


def change_interval(value: Interval) -> str:
    """A 95 % interval of a change in percentage points."""
    if not _finite(value):
        return NONE
    return f"{_signed(100 * value.low, 1)} to {_signed(100 * value.high, 1)}{_SPACE}pt"


def quoted(text: str) -> str:
    """A class name inside a sentence."""
    return f"\N{LEFT DOUBLE QUOTATION MARK}{text}\N{RIGHT DOUBLE QUOTATION MARK}"


def decimal(value: float | None, digits: int = 3) -> str:
    """A plain number with fixed decimals."""
    return NONE if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def difference(before: float | None, after: float | None) -> str:
    """after - before of two plain numbers, with sign; empty when one of them is missing."""
    if before is None or after is None or not math.isfinite(after - before):
        return ""
    return _signed(after - before, 3)


def p_value(value: float) -> str:
    """A p-value."""
    if not math.isfinite(value):
        return NONE
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def count(value: float | None) -> str:
    """A whole number with thousands separated."""
    return NONE if value is None else f"{round(value):,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def size(value: float | None) -> str:
    """Bytes in decimal units, with the unit a person would choose."""
    if value is None:
        return NONE
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= factor:
            return f"{value / factor:.{0 if value >= 100 * factor else 1}f}{_SPACE}{unit}"
    return f"{round(value)}{_SPACE}bytes"


def milliseconds(value: float | None) -> str:
    """A duration given in milliseconds."""
    if value is None:
        return NONE
    if value >= 10_000:
        return f"{value / 1000:.1f}{_SPACE}s"
    return f"{value:.{2 if value < 10 else 0}f}{_SPACE}ms"
