"""What the change cost and what it saved, from measured figures and the user's own unit costs.

Guarantees: an item stands in the account only where every factor of it was measured or stated; the missing ones are named; no unit cost
is assumed.  Amounts are in the user's currency.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgeedit.report.settings import Costs


@dataclass(frozen=True)
class _Item:
    """One product: `factors` (name, value) are multiplied, `per` divides."""

    side: str
    what: str
    factors: tuple[tuple[str, float | None], ...]
    per: float = 1.0

    def to_json(self) -> dict[str, Any]:
        missing = [name for name, value in self.factors if value is None]
        amount = None
        if not missing:
            amount = 1.0 / self.per
            for _, value in self.factors:
                amount *= value or 0.0
        factors = [{"name": name, "value": value} for name, value in self.factors]
        return {"side": self.side, "what": self.what, "factors": factors, "amount": amount, "missing": missing}


def _items(costs: Costs, seconds: float | None, patch: float | None, encoder: float | None, swap: float | None) -> list[_Item]:
    cameras, megabyte, minute = (
        ("cameras", costs.cameras),
        ("cost of a megabyte", costs.megabyte),
        ("cost of a minute", costs.downtime_minute),
    )
    return [
        _Item("patch", "Edit on the server", (("server seconds", seconds), ("cost of an hour", costs.server_hour)), 3600),
        _Item("patch", "Transfer of the patch", (cameras, ("patch bytes", patch), megabyte), 1e6),
        _Item("patch", "Standstill for the swap", (cameras, ("swap milliseconds", swap), minute), 60_000),
        _Item("usual", "Transfer of the whole encoder", (cameras, ("encoder bytes", encoder), megabyte), 1e6),
        _Item("usual", "Standstill for rebuilding engines", (cameras, ("rebuild minutes", costs.rebuild_minutes), minute)),
        _Item("usual", "Truck rolls", (("visits avoided", costs.truck_rolls_avoided), ("cost of a visit", costs.truck_roll))),
    ]


def account(
    costs: Costs, seconds: float | None, patch: float | None, encoder: float | None, swap: float | None
) -> Mapping[str, Any] | None:
    """Items and sums of both ways, or None where the user stated no unit cost.

    `seconds` of the server, `patch` and `encoder` in bytes, `swap` in milliseconds; None where not measured."""
    if all(value is None for value in (costs.server_hour, costs.megabyte, costs.downtime_minute, costs.truck_roll)):
        return None
    rows = [item.to_json() for item in _items(costs, seconds, patch, encoder, swap)]
    sums = {side: [row["amount"] for row in rows if row["side"] == side and row["amount"] is not None] for side in ("patch", "usual")}
    totals = {side: sum(amounts) if amounts else None for side, amounts in sums.items()}
    saved = totals["usual"] - totals["patch"] if totals["usual"] is not None and totals["patch"] is not None else None
    complete = all(row["amount"] is not None for row in rows)
    return {
        "currency": costs.currency,
        "items": rows,
        "patch": totals["patch"],
        "usual": totals["usual"],
        "saved": saved,
        "complete": complete,
    }
