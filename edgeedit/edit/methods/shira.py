"""The method `shira`: SHiRA-like (arXiv 2406.13175), 1 % of the first FFN matrices by |w g|, no heads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from edgeedit.edit.methods.local import Local


@dataclass(frozen=True)
class Shira(Local):
    """One per cent of the entries over the whole encoder by |w g|."""

    name: ClassVar[str] = "shira"
    share: float = 0.01
    heads: int = 0
    lr: float = 5e-4
    score: str = "snip"
    scope: str = "global"
    patterns: int = 0
