"""Floors in the store: numbers that only rise (metadata versions, patch sequence, clock), durable when `raise_floors` returns.

Implements `edgeedit.ota.client.floors.Floors`.  Guarantees: no call lowers a floor, whoever calls at the same time; a set of
values is raised whole or not at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from edgeedit.device import state
from edgeedit.errors import IntegrityError

_LARGEST = 2**63 - 1  # what the database holds


class StoreFloors:
    """Floors of the store whose database is `path`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def floor(self, name: str) -> int:
        """The value, 0 when it was never raised."""
        with state.transaction(self._path, write=False) as db:
            row = db.execute("SELECT value FROM floor WHERE name = ?", (name,)).fetchone()
        return 0 if row is None else int(row[0])

    def raise_floors(self, values: Mapping[str, int]) -> None:
        """Raise each floor that is below its new value.  Raises IntegrityError for a number that cannot be one, RefusedError."""
        for name, value in values.items():
            if not 0 <= value <= _LARGEST:
                raise IntegrityError(f"floor {name} is impossible: expected 0..2^63-1, got {value}")
        # A poll without news must not cost a flush of the disk.
        if all(self.floor(name) >= value for name, value in values.items()):
            return
        with state.transaction(self._path, write=True) as db:
            for name, value in values.items():
                change = "INSERT INTO floor VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = max(value, excluded.value)"
                db.execute(change, (name, value))
