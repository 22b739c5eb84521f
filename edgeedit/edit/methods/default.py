"""The method `edgeedit`: 5 % of every first FFN matrix and two heads a block, away from what control images excite.

The change reads none of the 32 principal directions of the control images; the last steps run in the integer form.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from edgeedit.edit.methods.local import Local


@dataclass(frozen=True)
class Default(Local):
    """Our own, chosen on five development cells under a rule written before the runs (DECISIONS, 2026-11-26).  The demo uses `lorsu`."""

    name: ClassVar[str] = "edgeedit"
    share: float = 0.05
    lr_low_rank: float = 2e-3
    project: int = 32
    patterns: int = 4
    rounding_steps: int = 8
