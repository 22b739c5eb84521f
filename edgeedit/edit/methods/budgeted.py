"""From a byte budget and shots to settings: scores the shots once, then asks `budget` what fits.

Guarantees: looks at the shots only; the encoder is left unchanged.
"""

from __future__ import annotations

from typing import TypeVar

import torch

from edgeedit.edit.budget import Choice, curve, fit_budget
from edgeedit.edit.evaluate import reader_labels
from edgeedit.edit.losses import HeadLoss
from edgeedit.edit.methods.local import Local, score
from edgeedit.edit.readers import Reader
from edgeedit.edit.shots import Shots, load_pixels
from edgeedit.encoder.encoder import Encoder
from edgeedit.encoder.values import parameter_values, with_values
from edgeedit.errors import InputError

L = TypeVar("L", bound=Local)


def plan(encoder: Encoder, shots: Shots, reader: Reader, method: L, *, precision: str, budget: int) -> tuple[L, tuple[Choice, ...]]:
    """(`method` with the share, heads, rank and bits that fit `budget` bytes, the curve around it).

    Raises InputError when nothing fits or the shots do not suit the reader."""
    labels = reader_labels(shots, reader)
    if (labels < 0).any() or reader.mean.size != encoder.width:
        raise InputError("budget cannot be planned: expected labelled shots and a reader of this encoder")
    base, pixels = with_values(encoder, parameter_values(encoder, precision)), torch.from_numpy(load_pixels(shots, encoder.preprocess))
    known, loss = torch.from_numpy(labels), HeadLoss(reader)
    found = score(base, lambda rows: loss(base(pixels[rows]), known[rows]), len(known), method)
    return fit_budget(base, found, method, budget)[0], curve(base, found, method, budget)
