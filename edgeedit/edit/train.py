"""Training of the chosen values only: everything else is a frozen constant, so the optimiser holds no dense state.

Guarantees: the parameters of the optimiser are one vector per fc1 (the chosen entries) and two factors per q/k/v (the
chosen rows); no other element can change.  Adam without weight decay; warm-up and cosine per STEP; every random choice
comes from the seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.func import functional_call

from edgeedit.edit.locality import Locality
from edgeedit.edit.lorsu import Lorsu
from edgeedit.edit.readers import Reader
from edgeedit.encoder.encoder import Encoder
from edgeedit.errors import InputError
from edgeedit.patterns import synthetic_pixels

Array = np.ndarray[Any, Any]
WARM_UP = 4  # steps
PATTERNS = 96  # synthetic images that stand for whatever else the encoder is used for
WRAPPED = "wrapped."


class Selection(nn.Module):
    """The trainable values on top of frozen weights: `sparse` name -> (values, index), `low_rank` name -> (A, B, rows)."""

    def __init__(self, encoder: Encoder, locality: Locality, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        frozen = encoder.parameters_by_name()
        self.base = {name: frozen[name].detach() for name in (*locality.entries, *locality.rows)}
        self.index = {name: torch.from_numpy(index) for name, index in locality.entries.items()}
        self.rows = {name: torch.from_numpy(rows) for name, rows in locality.rows.items()}
        self.values = nn.ParameterList([nn.Parameter(torch.zeros(index.numel())) for index in self.index.values()])
        self.a, self.b = nn.ParameterList(), nn.ParameterList()
        for name, rows in self.rows.items():
            width = self.base[name].shape[1]
            # As in LoRA: one factor random, the other zero, so training starts at the base.
            self.a.append(nn.Parameter(torch.zeros(rows.numel(), rank)))
            self.b.append(nn.Parameter(torch.randn(rank, width, generator=generator) / math.sqrt(width)))

    def weights(self) -> dict[str, torch.Tensor]:
        """Parameter name -> base + trained values, differentiable."""
        result = {}
        for (name, index), values in zip(self.index.items(), self.values, strict=True):
            base = self.base[name]
            result[name] = (base.reshape(-1).scatter_add(0, index, values)).reshape(base.shape)
        for (name, rows), a, b in zip(self.rows.items(), self.a, self.b, strict=True):
            result[name] = self.base[name].index_add(0, rows, a @ b)
        return result

    def deltas(self) -> tuple[dict[str, Array], dict[str, tuple[Array, Array]]]:
        """Trained values: fc1 name -> vector; q/k/v name -> (A, B), float32."""
        sparse = {name: v.detach().numpy() for name, v in zip(self.index, self.values, strict=True)}
        low = {name: (a.detach().numpy(), b.detach().numpy()) for name, a, b in zip(self.rows, self.a, self.b, strict=True)}
        return sparse, low


@dataclass(frozen=True)
class TrainData:
    """Normalised pixels float32 (n, 3, s, s) of shots with labels (reader's numbers), and unlabelled control pixels."""

    shots: torch.Tensor
    labels: torch.Tensor
    control: torch.Tensor


def augment(pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Random flips and transposes, one choice per image: what an inspection camera's picture survives."""
    choice = torch.randint(0, 8, (len(pixels),), generator=generator).tolist()
    result = []
    for image, code in zip(pixels, choice, strict=True):
        turned = image.flip(-1) if code & 1 else image
        turned = turned.flip(-2) if code & 2 else turned
        result.append(turned.transpose(-1, -2) if code & 4 else turned)
    return torch.stack(result)


def _schedule(step: int, steps: int) -> float:
    if step < WARM_UP:
        return (step + 1) / WARM_UP
    return 0.5 * (1 + math.cos(math.pi * (step - WARM_UP) / max(1, steps - WARM_UP)))


def _batches(count: int, size: int, steps: int, generator: torch.Generator) -> list[torch.Tensor]:
    """Index batches that walk through shuffled epochs without dropping a sample."""
    need = steps * size
    order = torch.cat([torch.randperm(count, generator=generator) for _ in range(-(-need // count))])
    return list(order[:need].split(size))


def train(
    encoder: Encoder,
    locality: Locality,
    data: TrainData,
    reader: Reader,
    method: Lorsu,
    seed: int,
    progress: Callable[[int, int, str], None] | None,
) -> Selection:
    """Train the chosen values; returns them.  Loss: cross-entropy of the frozen reader on shots, feature distillation
    (mean squared, in units of the reader's feature spread) and KL to the base's verdicts on control images."""
    generator = torch.Generator().manual_seed(seed)
    selection = Selection(encoder, locality, method.rank, generator)
    groups = [{"params": list(selection.values), "lr": method.lr}, {"params": [*selection.a, *selection.b], "lr": method.lr_low_rank}]
    optimiser = torch.optim.Adam([g for g in groups if g["params"]], betas=(0.9, 0.999), weight_decay=0.0)
    peak = [g["lr"] for g in optimiser.param_groups]
    spread = torch.from_numpy(reader.std)
    base_features = _base_features(encoder, data.control)
    shots = _batches(len(data.shots), method.batch, method.steps, generator)
    kept = _batches(len(data.control), method.batch, method.steps, generator)
    patterns = torch.from_numpy(synthetic_pixels(encoder.preprocess, PATTERNS, seed))
    pattern_features = _base_features(encoder, patterns)
    pattern_spread = pattern_features.std(dim=0).clamp_min(1e-6)
    seen = (
        _batches(PATTERNS, method.patterns, method.steps, generator)
        if method.patterns
        else [torch.empty(0, dtype=torch.int64)] * method.steps
    )
    for step in range(method.steps):
        for group, lr in zip(optimiser.param_groups, peak, strict=True):
            group["lr"] = lr * _schedule(step, method.steps)
        images = torch.cat([augment(data.shots[shots[step]], generator), data.control[kept[step]], patterns[seen[step]]])
        weights = _prefixed(selection.weights())
        with torch.autocast("cpu", torch.bfloat16):
            features = functional_call(encoder, weights, (images,)).float()
        cut, end = len(shots[step]), len(shots[step]) + len(kept[step])
        loss = _loss(features[:cut], features[cut:end], data.labels[shots[step]], base_features[kept[step]], reader, method, spread)
        if method.patterns:
            loss = loss + method.distill * (((features[end:] - pattern_features[seen[step]]) / pattern_spread) ** 2).mean()
        reached = float(loss.detach())
        if not math.isfinite(reached):
            raise InputError(
                f"training diverged at step {step + 1}: expected a finite loss, got {reached}", hint="lower the learning rates"
            )
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        if progress is not None:
            progress(step + 1, method.steps, f"training, loss {reached:.3f}")
    return selection


def _prefixed(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {WRAPPED + name: weight for name, weight in weights.items()}


def _base_features(encoder: Encoder, pixels: torch.Tensor) -> torch.Tensor:
    """The base's features under the arithmetic of training, so that distillation starts at exactly zero change."""
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        return torch.cat([encoder(part).float() for part in pixels.split(32)])


def _loss(
    shots: torch.Tensor,
    control: torch.Tensor,
    labels: torch.Tensor,
    base: torch.Tensor,
    reader: Reader,
    method: Lorsu,
    spread: torch.Tensor,
) -> torch.Tensor:
    target = nn.functional.cross_entropy(reader.logits(shots), labels)
    distill = (((control - base) / spread) ** 2).mean()
    before, after = reader.logits(base).log_softmax(1), reader.logits(control).log_softmax(1)
    divergence = nn.functional.kl_div(after, before, reduction="batchmean", log_target=True)
    return target + method.distill * distill + method.kl * divergence
