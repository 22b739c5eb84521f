"""The method: LoRSU (arXiv 2502.04098), gradient-chosen first-FFN entries and attention heads, as frozen settings.

Defaults were chosen on validation splits only (`benchmarks/edit_validation.py`), never on held-out images.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from edgeedit.errors import InputError


@dataclass(frozen=True)
class Lorsu:
    """`share` of first-FFN entries per block; `heads` per block whose q, k, v rows take rank-`rank` updates; learning
    rates; `steps` optimiser steps of `batch` shots and `batch` control images; weights of feature distillation and of
    KL through the frozen reader; `patterns` synthetic images per step that are only distilled; `bits` of the
    integer form (step = rms of the delta x 2^(2-bits))."""

    share: float = 0.1
    heads: int = 2
    rank: int = 8
    lr: float = 1e-4
    lr_low_rank: float = 1e-3
    steps: int = 30
    batch: int = 16
    distill: float = 5.0
    kl: float = 1.0
    bits: int = 4
    patterns: int = 8

    def __post_init__(self) -> None:
        sizes = self.heads >= 0 and 1 <= self.rank <= 1024 and self.steps >= 1 and self.batch >= 1 and self.patterns >= 0
        rates = all(math.isfinite(v) and v > 0 for v in (self.lr, self.lr_low_rank))
        weights = all(math.isfinite(v) and v >= 0 for v in (self.distill, self.kl))
        if not (0 < self.share <= 1 and sizes and rates and weights and 2 <= self.bits <= 8):
            raise InputError(
                f"method settings are out of range: got {self}",
                hint="share in (0, 1], heads >= 0, rank 1..1024, learning rates > 0, weights >= 0, bits 2..8",
            )
