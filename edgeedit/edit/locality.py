"""Which coordinates may change: one gradient pass over the shots scores them, a budget takes the top ones.

For a budget of C entries the mask that takes the C largest |g| maximises ||m * g||^2, so it is the first-order optimal
choice: a masked gradient step of size eta lowers the loss by eta * ||m * g||^2 + O(eta^2) (LoRSU, section 3).  Heads are
equal-sized groups and are ranked by the sum of g^2 over their q, k and v rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from edgeedit.encoder.encoder import Encoder

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Locality:
    """`entries`: fc1 parameter -> ascending flat positions (int64); `rows`: q/k/v parameter -> ascending rows (int64);
    `head_scores` (blocks, heads) sums of squared gradient; `chosen` (blocks, heads) bool."""

    entries: Mapping[str, Array]
    rows: Mapping[str, Array]
    head_scores: Array
    chosen: Array


def top_entries(gradient: Array, share: float) -> Array:
    """Ascending flat positions of the largest |g|; ties are broken by position, so the choice is repeatable."""
    count = max(1, round(share * gradient.size))
    order = np.argsort(-np.abs(gradient.reshape(-1)), kind="stable")[:count]
    return np.sort(order).astype(np.int64)


def mean_gradients(encoder: Encoder, loss: Callable[[slice], torch.Tensor], count: int, batch: int) -> dict[str, Array]:
    """Mean gradient (float32) of `loss` over `count` samples for every editable parameter; `loss(rows)` is a mean."""
    named = {name: encoder.parameters_by_name()[name] for name in encoder.editable()}
    for parameter in encoder.parameters():
        parameter.requires_grad_(False)
    for parameter in named.values():
        parameter.requires_grad_(True)
    totals = {name: torch.zeros_like(p) for name, p in named.items()}
    for start in range(0, count, batch):
        rows = slice(start, min(start + batch, count))
        found = torch.autograd.grad(loss(rows), list(named.values()))
        for name, gradient in zip(named, found, strict=True):
            totals[name] += gradient * ((rows.stop - rows.start) / count)
    for parameter in named.values():
        parameter.requires_grad_(False)
    return {name: total.numpy() for name, total in totals.items()}


def choose(encoder: Encoder, gradients: Mapping[str, Array], share: float, heads: int) -> Locality:
    """Top `share` of fc1 entries per block and top `heads` heads per block."""
    entries = {encoder.fc1_name(b): top_entries(gradients[encoder.fc1_name(b)], share) for b in range(encoder.blocks)}
    scores = np.zeros((encoder.blocks, encoder.heads))
    for block in range(encoder.blocks):
        for head in range(encoder.heads):
            rows = encoder.head_rows(head)
            scores[block, head] = sum(float((gradients[n][rows].astype(np.float64) ** 2).sum()) for n in encoder.qkv_names(block))
    chosen = np.zeros(scores.shape, dtype=bool)
    taken: dict[str, Array] = {}
    for block in range(encoder.blocks):
        best = np.sort(np.argsort(-scores[block], kind="stable")[: min(heads, encoder.heads)])
        chosen[block, best] = True
        if best.size:
            own = np.concatenate([np.arange(encoder.head_rows(h).start, encoder.head_rows(h).stop) for h in best]).astype(np.int64)
            taken.update(dict.fromkeys(encoder.qkv_names(block), own))
    return Locality(entries, taken, scores, chosen)
