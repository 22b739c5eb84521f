"""The method `attention`: the safe preset, low rank on two heads per block and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from edgeedit.edit.methods.local import Local


@dataclass(frozen=True)
class Attention(Local):
    """Attention only: SPU's table 2 has it a point lower in gain at a third of the control drop."""

    name: ClassVar[str] = "attention"
    share: float = 0.0
