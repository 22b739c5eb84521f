"""The method `edgeedit`: 5 % of the first FFN matrices under one budget for all blocks, two heads, and last steps in the integer form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from edgeedit.edit.methods.local import Local


@dataclass(frozen=True)
class Default(Local):
    """Candidate of our own: `lorsu` with half the entries, placed where the encoder needs them, rounding-aware.

    Its settings were set by reasoning, not by a sweep; the demo still uses `lorsu`."""

    name: ClassVar[str] = "edgeedit"
    share: float = 0.05
    scope: str = "global"
    rounding_steps: int = 8
