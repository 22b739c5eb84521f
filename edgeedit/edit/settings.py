"""`Settings`: every hyper-parameter of a localized edit, frozen and checked; a method is a subclass with its own defaults.

Guarantees: an object that exists is in range.  Holds no data and knows no encoder.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from edgeedit.errors import InputError

SCORES = ("mean", "fisher", "snip")
SCOPES = ("layer", "global")
UNITS = ("entries", "neurons")
OPTIMISERS = ("adam", "adamw", "sgd")
AMP = ("bfloat16", "float16", "off")
COMPILERS = ("off", "inductor", "aot_eager")
FORMER_USES = ("alpha", "train", "both")


@dataclass(frozen=True)
class Settings:
    """Selection: `share` of FFN weights (per block, or of the whole encoder with `scope` global) in `unit`s of single
    fc1 entries or hidden neurons (fc1 row + fc2 column), ranked by `score`; `heads` (per block, or per block on average
    with `scope` global) whose q, k, v rows take rank-`rank` updates, with `output_columns` also their columns of the
    output projection; `share_input`: q, k, v of a block share the input-side factor.

    Training: learning rates; `steps` optimiser steps of `batch` shots and `batch` control images; `distill`, `kl`, `drift` weigh
    feature distillation, KL through the frozen reader, and the squared size of the change; `project` removes that many principal
    directions (a quarter of the width at most) of the control images' activations from what the change reads; `patterns` synthetic
    images a step are only distilled; `augment` flips and transposes shots (wrong where orientation carries the label, as in reading
    text); the last `rounding_steps` steps compute with the integer form; `interpolate` scales the change by the largest alpha that
    a part of the control images, kept out of training, accepts; `former_use` is what former shots are for, where there are any: they
    choose `alpha` (see `alpha.best_alpha`), or are trained on (`train`), or every second one of a class each (`both`); a method that is
    not localized trains on them; `compiler` is the backend of `torch.compile` for the passes of
    training (inductor needs a C++ compiler; on a CPU it does not pay).
    Form: `bits` (step = rms of the non-zero change x 2^(2-bits))."""

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
    score: str = "mean"
    scope: str = "layer"
    unit: str = "entries"
    output_columns: bool = False
    share_input: bool = False
    optimiser: str = "adam"
    momentum: float = 0.0
    weight_decay: float = 0.0
    amp: str = "bfloat16"
    checkpoint: bool = False
    compiler: str = "off"
    augment: bool = True
    drift: float = 0.0
    project: int = 0
    rounding_steps: int = 0
    interpolate: bool = False
    former_use: str = "both"

    def __post_init__(self) -> None:
        sizes = self.heads >= 0 and 1 <= self.rank <= 1024 and self.steps >= 1 and self.batch >= 1 and self.patterns >= 0
        rates = all(math.isfinite(v) and v > 0 for v in (self.lr, self.lr_low_rank))
        weights = all(math.isfinite(v) and v >= 0 for v in (self.distill, self.kl, self.drift, self.weight_decay, self.momentum))
        counts = self.project >= 0 and 0 <= self.rounding_steps <= self.steps and self.momentum < 1
        some = 0 <= self.share <= 1 and (self.share > 0 or self.heads > 0)
        if not (some and sizes and rates and weights and counts and 2 <= self.bits <= 8):
            raise InputError(
                f"method settings are out of range: got {self}",
                hint="share in (0, 1] (or 0 with heads), heads >= 0, rank 1..1024, learning rates > 0, weights >= 0, bits 2..8",
            )
        for name, allowed in (
            ("score", SCORES),
            ("scope", SCOPES),
            ("unit", UNITS),
            ("optimiser", OPTIMISERS),
            ("amp", AMP),
            ("compiler", COMPILERS),
            ("former_use", FORMER_USES),
        ):
            if getattr(self, name) not in allowed:
                raise InputError(f"method setting {name} is unknown: expected one of {', '.join(allowed)}, got {getattr(self, name)}")
