"""Scores of weights from the shots: signed mean gradient, Fisher (sum of squared per-sample gradients), |w g|.

Guarantees: sums are float32 whatever the arithmetic of the pass; under float16 autocast the loss is scaled before and
the gradient unscaled after, so that small gradients do not underflow into ties.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch

from edgeedit.edit.blocks import checkpointed
from edgeedit.encoder.encoder import Encoder
from edgeedit.errors import InputError

Array = np.ndarray[Any, Any]
SCALE = 2.0**24  # of the loss under float16 at first; quartered until no gradient overflows


def part_name(encoder: Encoder, part: str, block: int) -> str:
    """Weight name of a recipe part (q, k, v, o, fc1, fc2) in a block; raises InputError when the model has none."""
    known = encoder.parameters_by_name()
    for pattern in encoder.recipe.names[part]:
        name = pattern.format(block=block) + ".weight"
        if name in known:
            return name
    raise InputError(f"recipe {encoder.recipe.name} does not fit this model: expected one of {', '.join(encoder.recipe.names[part])}")


def accumulate(
    encoder: Encoder,
    loss: Callable[[slice], torch.Tensor],
    count: int,
    batch: int,
    *,
    kind: str = "mean",
    names: Sequence[str] | None = None,
    amp: str = "off",
) -> dict[str, Array]:
    """Score (float32, the weight's shape) of `names` (default: every editable weight) over `count` samples.

    `loss(rows)` is a mean over rows.  `mean`: (1/n) sum g_i, signed.  `fisher`: sum of g_i^2, one pass per sample, as a
    non-negative number whose root is returned, so that squares of every score are comparable.  `snip`: |w mean g|."""
    every = encoder.parameters_by_name()
    named = {name: every[name] for name in (encoder.editable() if names is None else names)}
    for parameter in encoder.parameters():
        parameter.requires_grad_(False)
    for parameter in named.values():
        parameter.requires_grad_(True)
    totals = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in named.items()}
    size, device = (1 if kind == "fisher" else batch), next(iter(named.values())).device.type
    with checkpointed(encoder, size > 1), _short_products(device):  # a float32 pass over a batch would be the peak of the whole edit
        for start in range(0, count, size):
            rows = slice(start, min(start + size, count))
            share = 1.0 if kind == "fisher" else (rows.stop - rows.start) / count
            with torch.autocast(device, getattr(torch, amp) if amp != "off" else torch.bfloat16, enabled=amp != "off"):
                value = loss(rows)
            add = _add_scaled if amp == "float16" else _add
            add(value, named, totals, partial(_term, kind, share))
    for parameter in named.values():
        parameter.requires_grad_(False)
    if kind == "fisher":
        totals = {name: total.sqrt() for name, total in totals.items()}
    elif kind == "snip":
        totals = {name: (total * named[name].detach()).abs() for name, total in totals.items()}
    return {name: total.cpu().numpy() for name, total in totals.items()}


@contextmanager
def _short_products(device: str) -> Iterator[None]:
    """On a GPU float32 products of TF32 factors (10 bits of mantissa, sums in float32): much faster there, and finer than the bfloat16
    that training uses."""
    before = torch.get_float32_matmul_precision()
    if device == "cuda":
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _term(kind: str, share: float, gradient: torch.Tensor) -> torch.Tensor:
    """What a pass adds to a score."""
    return gradient.square() if kind == "fisher" else gradient * share


def _add(
    value: torch.Tensor,
    named: Mapping[str, torch.Tensor],
    totals: Mapping[str, torch.Tensor],
    term: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    """Adds gradients as the backward pass makes them, so that the gradient of one weight at a time exists."""

    def take(total: torch.Tensor, parameter: torch.Tensor) -> None:
        if parameter.grad is not None:
            total.add_(term(parameter.grad))
        parameter.grad = None

    handles = [p.register_post_accumulate_grad_hook(partial(take, totals[name])) for name, p in named.items()]
    try:
        torch.autograd.backward(value, inputs=list(named.values()))
    finally:
        for handle in handles:
            handle.remove()


def _add_scaled(
    value: torch.Tensor,
    named: Mapping[str, torch.Tensor],
    totals: Mapping[str, torch.Tensor],
    term: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    """float16: all gradients at once, because one that overflows calls for another pass at a smaller scale."""
    scale = SCALE
    while True:
        found = torch.autograd.grad(value * scale, list(named.values()), retain_graph=True)
        if scale <= 1 or all(bool(torch.isfinite(g).all()) for g in found):
            break
        scale /= 4
    for name, gradient in zip(named, found, strict=True):
        totals[name].add_(term(gradient.float() / scale))
