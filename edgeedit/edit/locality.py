"""Which coordinates may change: one gradient pass over the shots scores them, a budget takes the top ones.

For a budget of C entries the mask that takes the C largest |g| maximises ||m * g||^2, so it is the first-order optimal
choice: a masked gradient step of size eta lowers the loss by eta * ||m * g||^2 + O(eta^2) (LoRSU, section 3).  The same
holds under one budget for all blocks, and for equal-sized groups (hidden neurons, heads) ranked by their sum of g^2.
With the Fisher score or |w g| the same rule is a heuristic.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch

from edgeedit.edit.scores import accumulate, part_name
from edgeedit.edit.settings import Settings
from edgeedit.encoder.encoder import Encoder

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Locality:
    """`entries`: FFN parameter -> ascending flat positions (int64); `rows`: q/k/v parameter -> ascending rows (int64);
    `head_scores` (blocks, heads) sums of squared gradient; `chosen` (blocks, heads) bool; `columns`: output projection ->
    ascending columns (int64); `whole`: parameters of which anything may change (rivals only)."""

    entries: Mapping[str, Array]
    rows: Mapping[str, Array]
    head_scores: Array
    chosen: Array
    columns: Mapping[str, Array] = field(default_factory=dict)
    whole: frozenset[str] = frozenset()

    def declared(self, name: str, shape: tuple[int, ...]) -> Array:
        """Boolean array: what may change of the parameter `name`."""
        mask = np.full(shape, name in self.whole)
        if name in self.entries:
            mask.reshape(-1)[self.entries[name]] = True
        if name in self.rows:
            mask[self.rows[name]] = True
        if name in self.columns:
            mask[:, self.columns[name]] = True
        return mask


def top_entries(gradient: Array, share: float) -> Array:
    """Ascending flat positions of the largest |g|; ties are broken by position, so the choice is repeatable."""
    return _top(gradient.reshape(-1), max(1, round(share * gradient.size)))


def _top(scores: Array, count: int) -> Array:
    # Not a full sort: of the hundred million scores of a large encoder that alone took ten seconds.
    size = np.abs(scores)
    if count == 0 or count >= size.size:
        return np.arange(min(count, size.size), dtype=np.int64)
    edge = np.partition(size, size.size - count)[size.size - count]
    sure = np.flatnonzero(size > edge)
    found: Array = np.sort(np.concatenate([sure, np.flatnonzero(size == edge)[: count - sure.size]])).astype(np.int64)
    return found


def mean_gradients(encoder: Encoder, loss: Callable[[slice], torch.Tensor], count: int, batch: int) -> dict[str, Array]:
    """Mean gradient (float32) of `loss` over `count` samples for every editable parameter; `loss(rows)` is a mean."""
    return accumulate(encoder, loss, count, batch)


def scored_names(encoder: Encoder, settings: Settings) -> tuple[str, ...]:
    """Parameters whose gradients the selection needs; blocks that no reader reads are no part of an Encoder."""
    parts = (*(("fc1", "fc2") if settings.unit == "neurons" else ("fc1",)), "q", "k", "v")
    return tuple(part_name(encoder, part, block) for block in range(encoder.blocks) for part in parts)


def select(encoder: Encoder, scores: Mapping[str, Array], settings: Settings) -> Locality:
    """The coordinates that `settings` take, by `scores` of `scored_names`."""
    blocks = range(encoder.blocks)
    entries: dict[str, Array] = {}
    if settings.share > 0:
        entries = (_neurons if settings.unit == "neurons" else _entries)(encoder, scores, settings)
    head_scores = np.zeros((encoder.blocks, encoder.heads))
    for block in blocks:
        for head in range(encoder.heads):
            rows = encoder.head_rows(head)
            head_scores[block, head] = sum(float((scores[n][rows].astype(np.float64) ** 2).sum()) for n in encoder.qkv_names(block))
    chosen = _heads(head_scores, settings)
    taken: dict[str, Array] = {}
    columns: dict[str, Array] = {}
    for block in blocks:
        best = [int(head) for head in np.flatnonzero(chosen[block])]
        if best:
            own = np.concatenate([np.arange(encoder.head_rows(h).start, encoder.head_rows(h).stop) for h in best]).astype(np.int64)
            taken.update(dict.fromkeys(encoder.qkv_names(block), own))
            if settings.output_columns:
                columns[part_name(encoder, "o", block)] = own
    return Locality(entries, taken, head_scores, chosen, columns)


def _heads(scores: Array, settings: Settings) -> Array:
    chosen = np.zeros(scores.shape, dtype=bool)
    count = min(settings.heads, scores.shape[1])
    if settings.scope == "global":
        chosen.reshape(-1)[_top(scores.reshape(-1), count * len(scores))] = True
        return chosen
    for block in range(len(scores)):
        chosen[block, np.argsort(-scores[block], kind="stable")[:count]] = True
    return chosen


def _split(scores: Mapping[str, Array], settings: Settings) -> dict[str, Array]:
    """Name -> positions in the flattened scores: the top share of each, or of all together."""
    if settings.scope == "layer":
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # numpy lets go of the lock while it partitions
            return dict(zip(scores, pool.map(partial(top_entries, share=settings.share), scores.values()), strict=True))
    flat = np.concatenate([score.reshape(-1) for score in scores.values()])
    best, found, start = top_entries(flat, settings.share), {}, 0
    for name, score in scores.items():
        own = best[(best >= start) & (best < start + score.size)] - start
        if own.size:
            found[name] = own
        start += score.size
    return found


def _entries(encoder: Encoder, scores: Mapping[str, Array], settings: Settings) -> dict[str, Array]:
    return _split({encoder.fc1_name(b): scores[encoder.fc1_name(b)] for b in range(encoder.blocks)}, settings)


def _neurons(encoder: Encoder, scores: Mapping[str, Array], settings: Settings) -> dict[str, Array]:
    """Hidden neuron = its row of fc1 and its column of fc2, ranked by the sum of squares over both."""
    energy = {}
    for block in range(encoder.blocks):
        first, second = (scores[part_name(encoder, part, block)].astype(np.float64) for part in ("fc1", "fc2"))
        energy[block] = np.sqrt((first**2).sum(axis=1) + (second**2).sum(axis=0))
    chosen = _split({str(block): value for block, value in energy.items()}, settings)
    entries: dict[str, Array] = {}
    for block, neurons in ((int(key), value) for key, value in chosen.items()):
        one, two = part_name(encoder, "fc1", block), part_name(encoder, "fc2", block)
        width, hidden = scores[one].shape[1], scores[two].shape[1]
        entries[one] = (neurons[:, None] * width + np.arange(width)).reshape(-1).astype(np.int64)
        entries[two] = np.sort((np.arange(scores[two].shape[0])[:, None] * hidden + neurons).reshape(-1)).astype(np.int64)
    return entries


def choose(encoder: Encoder, gradients: Mapping[str, Array], share: float, heads: int) -> Locality:
    """Top `share` of fc1 entries per block and top `heads` heads per block."""
    return select(encoder, gradients, Settings(share=share, heads=heads))
