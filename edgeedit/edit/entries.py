"""The single weights of an edit by what the target loss loses without each of them.

Guarantees: every changed weight gets a first-order figure (the gradient times what putting it back changes); those that are listed are left
out one by one, exactly.  The encoder that is given is left unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from edgeedit.edit.components import BATCH, Component, Judged, Judgement, leave_one_out
from edgeedit.encoder.encoder import Encoder

Array = np.ndarray[Any, Any]
SHOWN = 20  # weights that an explanation lists


class Effects(NamedTuple):
    """Of one parameter: flat places of the changed weights (int64) and the estimated rise of the loss without each (float64)."""

    places: Array
    estimates: Array


def entry_effects(edited: Encoder, base: Mapping[str, Array], components: Sequence[Component], judged: Judged) -> dict[str, Effects]:
    """Parameter -> the estimated rise of the mean cross-entropy of the set's labels when one changed weight gets its `base` value
    (float32) back.  Exact in the limit of small changes."""
    masks: dict[str, Array] = {}
    for part in components:
        for name, mask in part.parts.items():
            masks[name] = masks[name] | mask if name in masks else mask
    if not masks:
        return {}
    known = edited.parameters_by_name()
    places = {name: np.flatnonzero(mask) for name, mask in masks.items()}
    sums = {name: np.zeros(own.size) for name, own in places.items()}
    asked = {name: known[name].requires_grad for name in masks}
    try:
        for name in masks:
            known[name].requires_grad_(True)
        for start in range(0, len(judged.pixels), BATCH):
            loss = _loss(edited, judged, slice(start, start + BATCH))
            slopes = torch.autograd.grad(loss, [known[name] for name in masks], materialize_grads=True)  # zero where no output depends
            for name, slope in zip(masks, slopes, strict=True):
                sums[name] += slope.detach().numpy().reshape(-1)[places[name]]
    finally:
        for name, before in asked.items():
            known[name].requires_grad_(before)
    found = {}
    for name, own in places.items():
        back = base[name].reshape(-1)[own].astype(np.float64) - known[name].detach().numpy().reshape(-1)[own]
        found[name] = Effects(own, sums[name] / len(judged.pixels) * back)
    return found


def _loss(edited: Encoder, judged: Judged, rows: slice) -> torch.Tensor:
    """Sum of the cross-entropies of some images, as `judge_rows` counts them."""
    labels = judged.labels[rows]
    logits = judged.reader.logits(edited(torch.from_numpy(np.ascontiguousarray(judged.pixels[rows])))).float()
    # Zero, or minus infinity for an answer to another question than the one that was asked.
    asked = judged.reader.verdict_logits(np.zeros(tuple(logits.shape), np.float32), labels)
    return torch.nn.functional.cross_entropy(logits + torch.from_numpy(asked), torch.from_numpy(labels), reduction="sum")


def entry_rows(
    edited: Encoder, base: Mapping[str, Array], components: Sequence[Component], judged: Judged, whole: Judgement, shown: int = SHOWN
) -> dict[str, Any]:
    """JSON object: the `shown` weights with the largest estimate of either sign (parameter, component, index), each left out by itself
    (`loss_rise`, by which they stand), and which share of the sum of all estimates' sizes they hold; as many changed weights at
    random hold `share_at_random` on average."""
    effects = entry_effects(edited, base, components, judged)
    sizes = np.concatenate([np.abs(own.estimates) for own in effects.values()]) if effects else np.zeros(0)
    if not sizes.size or not sizes.sum():
        return {"changed": int(sizes.size), "top": [], "share": 0.0, "share_at_random": 0.0}
    starts = np.cumsum([0, *(own.places.size for own in effects.values())])
    best = np.argsort(-sizes, kind="stable")[:shown]
    names = list(effects)
    rows: list[dict[str, Any]] = []
    single = []
    for place in best.tolist():
        number = int(np.searchsorted(starts, place, side="right")) - 1
        name, own = names[number], effects[names[number]]
        flat = int(own.places[place - starts[number]])
        mask = np.zeros(base[name].size, bool)
        mask[flat] = True
        mask = mask.reshape(base[name].shape)
        home = next(part for part in components if name in part.parts and part.parts[name].reshape(-1)[flat])
        index = [int(i) for i in np.unravel_index(flat, base[name].shape)]
        estimate = float(own.estimates[place - starts[number]])
        rows.append({"name": name, "component": home.name, "index": index, "estimate": estimate})
        single.append(Component(home.kind, home.block, home.head, {name: mask}, 1, 0.0))
    for row, effect in zip(rows, leave_one_out(edited, base, single, [judged]), strict=True):
        row["loss_rise"] = effect.sets[judged.name].loss - whole.loss
    rows.sort(key=lambda row: (-abs(row["loss_rise"]), row["name"], row["index"]))
    share = float(sizes[best].sum() / sizes.sum())
    return {"changed": int(sizes.size), "top": rows, "share": share, "share_at_random": len(rows) / sizes.size}
