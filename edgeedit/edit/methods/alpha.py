"""Alpha-interpolation (WiSE-FT, PAINT): how much of a change is kept, by images that training did not see.

`choose_alpha`: the largest part that unlabelled control images accept (agreement with the base).  `best_alpha`: the part that is
best for new and former shots together.  Guarantees: neither looks at an image that judges the edit.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch

from edgeedit.edit.losses import TargetLoss
from edgeedit.edit.readers import Reader
from edgeedit.encoder.encoder import Encoder
from edgeedit.errors import InputError

ALPHAS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
FORMER_ALPHAS = (1.0, 0.75, 0.5, 0.375, 0.25, 0.125, 0.0625)
Labelled = tuple[torch.Tensor, torch.Tensor]
FORMER_MOST = 128  # former shots that choose at most: each costs a forward pass per alpha


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


def best_alpha(
    at: Callable[[float], Encoder], loss: TargetLoss, shots: Labelled, former: Labelled, most: float = 1.0
) -> tuple[float, dict[str, float]]:
    """(alpha, at most `most`, with the least mean loss over new and former shots together; that loss by alpha).

    A few shots fit exactly, so the whole change overshoots: what it does to former shots, which this training has not seen, tells how
    far it holds for more than its own.  Pixels float32 (n, 3, s, s) with labels int64 (n,)."""
    rows = torch.linspace(0, len(former[1]) - 1, min(len(former[1]), FORMER_MOST)).round().long()
    pixels, labels = torch.cat([shots[0], former[0][rows]]), torch.cat([shots[1], former[1][rows]])
    found = {alpha: _mean_loss(at(alpha), loss, pixels, labels) for alpha in FORMER_ALPHAS if alpha <= most}
    finite = [alpha for alpha, reached in found.items() if math.isfinite(reached)]
    best = min(finite or FORMER_ALPHAS[-1:], key=lambda alpha: found[alpha])
    return best, {f"{alpha:g}": round(reached, 6) for alpha, reached in found.items()}


def _mean_loss(encoder: Encoder, loss: TargetLoss, pixels: torch.Tensor, labels: torch.Tensor) -> float:
    with torch.no_grad():
        parts = zip(pixels.split(32), labels.split(32), strict=True)
        return sum(float(loss(encoder(images).float(), own)) * len(own) for images, own in parts) / len(labels)
