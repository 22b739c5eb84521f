"""What only the user knows: the change record (who, why, when), what counts as a defect, the bands of the gauge, unit costs.

Guarantees: read from a mapping or a TOML file; an unknown table or field, a wrong type, a band whose limits are in the wrong order or
a negative cost is an InputError that names it.  Nothing here has a default except the bands.
"""

from __future__ import annotations

import datetime
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from edgeedit.errors import InputError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_HINT = "see the section on the report in README.md"


@dataclass(frozen=True)
class Change:
    """The change record, all texts; dates are ISO 8601."""

    id: str = ""
    product: str = ""
    station: str = ""
    reason: str = ""
    requested_by: str = ""
    made_by: str = ""
    made_on: str = ""
    approved_by: str = ""
    approved_on: str = ""
    expires: str = ""


@dataclass(frozen=True)
class Bands:
    """(good, acceptable) limits of each figure, shares 0..1.  Effectiveness and kappa are good at or above the first and bad below
    the second, miss and false alarm the other way round.  The defaults are those of AIAG's Measurement Systems Analysis for
    attribute gauges."""

    effectiveness: tuple[float, float] = (0.90, 0.80)
    miss: tuple[float, float] = (0.02, 0.05)
    false_alarm: tuple[float, float] = (0.05, 0.10)
    kappa: tuple[float, float] = (0.90, 0.70)


@dataclass(frozen=True)
class Costs:
    """Unit costs in `currency` and what they are multiplied with; None where the user did not say."""

    currency: str = ""
    cameras: int | None = None
    server_seconds: float | None = None
    server_hour: float | None = None
    megabyte: float | None = None
    downtime_minute: float | None = None
    rebuild_minutes: float | None = None
    truck_roll: float | None = None
    truck_rolls_avoided: float | None = None


@dataclass(frozen=True)
class ReportSettings:
    """All settings; `defective` are the classes that count as a defect, empty where the user did not say."""

    change: Change = field(default_factory=Change)
    bands: Bands = field(default_factory=Bands)
    defective: tuple[str, ...] = ()
    costs: Costs = field(default_factory=Costs)


def _wrong(what: str, expected: str, got: object) -> InputError:
    return InputError(f"report settings: {what} is wrong: expected {expected}, got {str(got)[:80]}", hint=_HINT)


def _table(value: Mapping[str, Any], name: str, known: set[str]) -> Mapping[str, Any]:
    found = value.get(name, {})
    if not isinstance(found, Mapping):
        raise _wrong(f"[{name}]", "a table", found)
    for key in found:
        if key not in known:
            raise _wrong(f"[{name}] {key}", f"one of {', '.join(sorted(known))}", key)
    return found


def _text(value: Any, what: str) -> str:
    if isinstance(value, (datetime.date, datetime.datetime)):
        return value.isoformat()
    if not isinstance(value, str) or len(value) > 400:
        raise _wrong(what, "a text of at most 400 characters", value)
    return value


def _number(value: Any, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
        raise _wrong(what, "a number of at least 0", value)
    return value


def _band(name: str, value: Any) -> tuple[float, float]:
    what = f"[gauge] {name}"
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise _wrong(what, "two limits, good and acceptable", value)
    good, fair = (float(_number(limit, what)) for limit in value)
    higher = name in ("effectiveness", "kappa")
    if good > 1 or fair > 1 or (good < fair if higher else good > fair):
        raise _wrong(what, f"two shares in 0..1, the good one {'not below' if higher else 'not above'} the acceptable one", value)
    return good, fair


def read_settings(value: Mapping[str, Any]) -> ReportSettings:
    """Settings of a mapping with the tables `change`, `gauge` and `costs`, each optional."""
    for name in value:
        if name not in ("change", "gauge", "costs"):
            raise _wrong(f"[{name}]", "change, gauge or costs", name)
    change = _table(value, "change", {f.name for f in fields(Change)})
    gauge = _table(value, "gauge", {f.name for f in fields(Bands)} | {"defective"})
    costs = _table(value, "costs", {f.name for f in fields(Costs)})
    defective = gauge.get("defective", ())
    if not isinstance(defective, (list, tuple)) or not all(isinstance(name, str) for name in defective):
        raise _wrong("[gauge] defective", "a list of class names", defective)
    cameras = costs.get("cameras")
    if cameras is not None and (isinstance(cameras, bool) or not isinstance(cameras, int) or cameras < 1):
        raise _wrong("[costs] cameras", "a whole number of at least 1", cameras)
    numbers: dict[str, Any] = {
        key: own if key == "cameras" else _number(own, f"[costs] {key}") for key, own in costs.items() if key != "currency"
    }
    return ReportSettings(
        Change(**{key: _text(own, f"[change] {key}") for key, own in change.items()}),
        Bands(**{key: _band(key, own) for key, own in gauge.items() if key != "defective"}),
        tuple(defective),
        Costs(currency=_text(costs.get("currency", ""), "[costs] currency"), **numbers),
    )


def load_settings(path: Path) -> ReportSettings:
    """Settings of a TOML file; raises InputError when it cannot be read or is wrong."""
    try:
        value = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"cannot read {path}: expected a TOML file, got {error}", hint=_HINT) from error
    return read_settings(value)
