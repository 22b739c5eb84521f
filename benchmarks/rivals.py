"""Rivals of the edit that share no code with it beside the reader: one dense training loop, PEFT's LoRA, interpolation.

Every rival gets the same shots, control images, augmentation (flips and transposes), number of steps, batch, schedule
and retention losses as our default, so that what differs is which weights move.  Only the learning rate is its own.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from edgeedit.edit.readers import Reader
from edgeedit.encoder.encoder import Encoder

Array = np.ndarray[Any, Any]
STEPS, BATCH, WARM_UP = 30, 16, 4
DISTILL, KL = 5.0, 1.0
LORA_RANK = 8


@dataclass(frozen=True)
class Trained:
    """An edited copy of the encoder and what shipping the change would take, in bytes."""

    encoder: Encoder
    size: int


@dataclass(frozen=True)
class Data:
    """Normalised pixels float32 (n, 3, s, s); labels int64 in the reader's numbers."""

    shots: torch.Tensor
    labels: torch.Tensor
    control: torch.Tensor


def _turned(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    rows = []
    for image in images:
        across, down, swap = torch.randint(0, 2, (3,), generator=generator).tolist()
        turned = image.flip([d for d, on in ((1, down), (2, across)) if on])
        rows.append(turned.transpose(1, 2) if swap else turned)
    return torch.stack(rows)


def _order(count: int, generator: torch.Generator, steps: int) -> torch.Tensor:
    rounds = math.ceil(steps * BATCH / count)
    return torch.cat([torch.randperm(count, generator=generator) for _ in range(rounds)])[: steps * BATCH].view(steps, BATCH)


def descend(encoder: Encoder, parameters: list[torch.nn.Parameter], data: Data, reader: Reader, lr: float, seed: int, steps: int) -> None:
    """Train `parameters` of `encoder` in place: cross-entropy of the frozen reader, feature distillation and KL on control."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        base = torch.cat([encoder(part).float() for part in data.control.split(32)])
    spread = torch.from_numpy(reader.std)
    shots, kept = _order(len(data.shots), generator, steps), _order(len(data.control), generator, steps)
    optimiser = torch.optim.Adam(parameters, lr=lr)
    for step in range(steps):
        warm = (step + 1) / WARM_UP
        optimiser.param_groups[0]["lr"] = lr * min(warm, 0.5 + 0.5 * math.cos(math.pi * max(0, step - WARM_UP) / max(1, steps - WARM_UP)))
        images = torch.cat([_turned(data.shots[shots[step]], generator), data.control[kept[step]]])
        with torch.autocast("cpu", torch.bfloat16):
            rows = encoder(images).float()
        seen, control, old = rows[:BATCH], rows[BATCH:], base[kept[step]]
        loss = functional.cross_entropy(reader.logits(seen), data.labels[shots[step]])
        loss = loss + DISTILL * (((control - old) / spread) ** 2).mean()
        before, after = reader.logits(old).log_softmax(1), reader.logits(control).log_softmax(1)
        loss = loss + KL * (before.exp() * (before - after)).sum(1).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


def dense(encoder: Encoder, data: Data, reader: Reader, lr: float, seed: int, steps: int = STEPS, *, only: str = "") -> Trained:
    """Fine-tune every parameter whose name contains `only` (all when empty); shipped as float16 values."""
    twin = copy.deepcopy(encoder)
    chosen = []
    for name, parameter in twin.parameters_by_name().items():
        parameter.requires_grad_(only in name and not name.endswith("mask_token"))
        if parameter.requires_grad:
            chosen.append(parameter)
    descend(twin, chosen, data, reader, lr, seed, steps)
    return Trained(twin, 2 * sum(p.numel() for p in chosen))


def lora(encoder: Encoder, data: Data, reader: Reader, lr: float, seed: int, steps: int = STEPS) -> Trained:
    """PEFT's LoRA on q, k, v and fc1 of every block, merged; shipped as float16 factors."""
    from peft import LoraConfig, get_peft_model

    twin = copy.deepcopy(encoder)
    torch.manual_seed(seed)
    targets = [name.removesuffix(".weight") for name in twin.editable()]
    wrapped: Any = get_peft_model(twin.wrapped, LoraConfig(r=LORA_RANK, lora_alpha=LORA_RANK, lora_dropout=0.0, target_modules=targets))  # type: ignore[arg-type]
    twin.wrapped = wrapped
    chosen = [p for p in twin.parameters() if p.requires_grad]
    descend(twin, chosen, data, reader, lr, seed, steps)
    twin.wrapped = wrapped.merge_and_unload()
    return Trained(twin, 2 * sum(p.numel() for p in chosen))


def interpolated(base: Encoder, tuned: Trained, alpha: float) -> Trained:
    """WiSE-FT: base + alpha x (tuned - base) for every weight."""
    twin = copy.deepcopy(tuned.encoder)
    old = base.parameters_by_name()
    with torch.no_grad():
        for name, parameter in twin.parameters_by_name().items():
            parameter.copy_(old[name] + alpha * (parameter - old[name]))
    return Trained(twin, tuned.size)
