"""`Floors`: numbers that a device never accepts anything below, kept where a lost cache cannot lower them.

Names, each optionally followed by `@` and the epoch of the keys that it was raised under (so that a number which a thief
raised does not outlive the thief's key): `tuf:<role>` a metadata version, `patch-sequence` the sequence of a rollout
document, `clock` Unix seconds.  The device's store implements this; nothing here writes a file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class Floors(Protocol):
    """Durable and monotonic."""

    def floor(self, name: str) -> int:
        """The floor of that name; 0 when it was never raised."""

    def raise_floors(self, values: Mapping[str, int]) -> None:
        """Raise them together, durably when it returns; a value below the present floor changes nothing."""
