"""Alpha-interpolation (WiSE-FT, PAINT): the largest part of a change that control images accept.

Guarantees: decides on images that training did not see and that never judge; needs no labels (agreement with the base).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from edgeedit.edit.readers import Reader
from edgeedit.encoder.encoder import Encoder
from edgeedit.errors import InputError

ALPHAS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)


def split_control(control: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(for training, for choosing alpha): every fourth image chooses; raises InputError below eight images."""
    if len(control) < 8:
        raise InputError(f"control is too small to choose alpha: expected 8 images or more, got {len(control)}")
    chooses = torch.arange(len(control)) % 4 == 3
    return control[~chooses], control[chooses]


def choose_alpha(
    base: Encoder, at: Callable[[float], Encoder], reader: Reader, control: torch.Tensor, limit: float
) -> tuple[float, dict[str, float]]:
    """(largest alpha whose share of flipped verdicts is at most `limit`, flips by alpha); the smallest when none is."""

    def verdicts(encoder: Encoder) -> np.ndarray:
        with torch.no_grad():
            rows = torch.cat([encoder(part).float() for part in control.split(32)])
            found: np.ndarray = reader.logits(rows).argmax(1).cpu().numpy()
            return found

    start, flips = verdicts(base), {}
    for alpha in ALPHAS:
        flips[f"{alpha:g}"] = float((verdicts(at(alpha)) != start).mean())
        if flips[f"{alpha:g}"] <= limit:
            return alpha, flips
    return ALPHAS[-1], flips
