"""The method `lorsu`: LoRSU (arXiv 2502.04098), gradient-chosen first-FFN entries and attention heads, rank 8.

Defaults were chosen on validation splits only (`benchmarks/edit_validation.py`), never on held-out images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from edgeedit.edit.methods.local import Local


@dataclass(frozen=True)
class Lorsu(Local):
    """`Settings` as they stand: 10 % of fc1, two heads per block, rank 8."""

    name: ClassVar[str] = "lorsu"
