"""The method `spu`: SPU (CVPR 2024, arXiv 2308.12462), the top 10 % of every first FFN matrix by mean gradient, no heads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from edgeedit.edit.methods.local import Local


@dataclass(frozen=True)
class Spu(Local):
    """SPU's selection under a mask that does not leak: AdamW decays the change, never a frozen weight."""

    name: ClassVar[str] = "spu"
    heads: int = 0
    lr: float = 2e-4
    optimiser: str = "adamw"
    weight_decay: float = 0.2
    patterns: int = 0
