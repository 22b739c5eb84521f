"""Target losses behind one signature `loss(features, labels) -> scalar`: frozen head or prototypes, frozen text tower.

Guarantees: gradients reach the features only.  A language model's answer loss plugs in by implementing `TargetLoss`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch.nn import functional

from edgeedit.edit.readers import Reader
from edgeedit.errors import InputError

Array = np.ndarray[Any, Any]


class TargetLoss(Protocol):
    """What the shots are trained on; a frozen language model's answer loss implements it too."""

    def __call__(self, features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Mean loss of `features` (n, width) float32 for `labels` (n,) int64; a scalar."""


@dataclass(frozen=True)
class HeadLoss:
    """Cross-entropy through a frozen linear head or frozen prototypes."""

    reader: Reader

    def __call__(self, features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy."""
        return functional.cross_entropy(self.reader.logits(features), labels)


@dataclass(frozen=True)
class TextLoss:
    """Class-aware contrastive loss against frozen class texts, `text` float32 (classes, width).

    Every class has ONE text, so two images of a class share their positive and are never each other's negative (the
    pairwise loss of CLIP with arange labels makes them so).  `softmax` (CLIP): mean of image-to-text cross-entropy and
    text-to-image log-likelihood averaged over all images of the text's class.  `sigmoid` (SigLIP): log-sigmoid of
    z (scale cos + bias), z = +1 for the own class and -1 for others, summed over texts, averaged over images."""

    text: Array
    kind: str = "softmax"
    scale: float = 100.0
    bias: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in ("softmax", "sigmoid"):
            raise InputError(f"contrastive loss is unknown: expected softmax or sigmoid, got {self.kind}")
        if self.text.ndim != 2 or not np.isfinite(self.text).all() or not (np.linalg.norm(self.text, axis=1) > 0).all():
            raise InputError(f"class texts are not usable: expected a finite (classes, width) array, got shape {self.text.shape}")

    def __call__(self, features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Contrastive loss of a batch."""
        text = functional.normalize(torch.from_numpy(self.text).to(features), dim=1)
        scores = self.scale * functional.normalize(features, dim=1) @ text.T + self.bias
        own = functional.one_hot(labels, len(text)).to(scores)
        if self.kind == "sigmoid":
            return -functional.logsigmoid((2 * own - 1) * scores).sum(dim=1).mean()
        present = own.sum(dim=0) > 0
        by_text = -(scores.log_softmax(dim=0) * own).sum(dim=0)[present] / own.sum(dim=0)[present]
        return (functional.cross_entropy(scores, labels) + by_text.mean()) / 2
