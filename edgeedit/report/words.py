"""How numbers are written in a report: percent, percentage points, p-values, bytes, durations, amounts.

Guarantees: one place for every format; a missing, NaN or infinite number is written as `NONE`, never as a figure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

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


def points_of(value: float) -> str:
    """A limit of a share in percentage points, without sign."""
    return f"{100 * value:.1f}{_SPACE}pt"


def whole_percent(value: float) -> str:
    """A share 0..1 as whole percent."""
    return f"{100 * value:.0f}{_SPACE}%"


def signed_points(value: float) -> str:
    """A change of a share, -1..1, in percentage points with sign and without unit."""
    return NONE if not math.isfinite(value) else _signed(100 * value, 1)


def bare_percent(value: float) -> str:
    """A share 0..1 in percent without unit, where the unit follows later."""
    return NONE if not math.isfinite(value) else f"{100 * value:.1f}"


def signed(value: float, digits: int) -> str:
    """A plain number with sign and fixed decimals."""
    return NONE if not math.isfinite(value) else _signed(value, digits)


def decimal(value: float | None, digits: int = 3) -> str:
    """A plain number with fixed decimals."""
    return NONE if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def p_value(value: float) -> str:
    """A p-value."""
    if not math.isfinite(value):
        return NONE
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def count(value: float | None) -> str:
    """A whole number with thousands separated."""
    return NONE if value is None else f"{round(value):,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def signed_count(value: float) -> str:
    """A whole number with sign and thousands separated."""
    return ("+" if value > 0 else _MINUS if value < 0 else "") + count(abs(value))


def seconds(value: float) -> str:
    """A duration given in seconds."""
    return f"{value:.1f}{_SPACE}s"


def significant(value: float) -> str:
    """A number of any size with three significant digits."""
    return f"{value:.3g}".replace("-", _MINUS)


def plain_number(value: float) -> str:
    """A number as it was given: whole ones with thousands separated, others with at most six significant digits."""
    return count(value) if float(value).is_integer() else f"{value:.6g}"


def money(value: float) -> str:
    """An amount with two decimals and thousands separated; the currency stands beside it."""
    whole = f"{abs(value):,.2f}".replace(",", "\N{NARROW NO-BREAK SPACE}")
    return f"{_MINUS}{whole}" if round(value, 2) < 0 else whole


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
