"""The method `lorsu-paper`: LoRSU at the sizes of its README (rank 64, two heads, 10 % of each first FFN matrix, shared input factor)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from edgeedit.edit.methods.local import Local


@dataclass(frozen=True)
class LorsuPaper(Local):
    """The paper's sizes under our loss and schedule: without its unmasked biases and its dense projection."""

    name: ClassVar[str] = "lorsu-paper"
    rank: int = 64
    share_input: bool = True
    patterns: int = 0
