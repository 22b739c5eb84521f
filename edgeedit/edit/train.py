"""Training of the chosen values only: everything else is a frozen constant, so the optimiser holds no dense state.

Guarantees: the parameters of the optimiser are one vector per sparse weight (the chosen entries) and two factors per
low-rank part; no other element can change, whatever the optimiser.  Warm-up and cosine per STEP; no sample is dropped;
every random choice comes from the seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from edgeedit.edit.blocks import checkpointed, compiled
from edgeedit.edit.locality import Locality
from edgeedit.edit.losses import HeadLoss, TargetLoss
from edgeedit.edit.parallel import Team, team
from edgeedit.edit.projection import principal_directions
from edgeedit.edit.readers import Reader
from edgeedit.edit.selection import Selected, Selection
from edgeedit.edit.settings import Settings
from edgeedit.encoder.encoder import Encoder
from edgeedit.errors import InputError
from edgeedit.patterns import synthetic_pixels

Array = np.ndarray[Any, Any]
WARM_UP = 4  # steps
PATTERNS = 96  # synthetic images that stand for whatever else the encoder is used for


class Trainable(Protocol):
    """What `fit` trains: it runs images through the changed encoder and names its parameters with their rates."""

    def run(self, images: torch.Tensor, then: Callable[[torch.Tensor], float], *, rounded: bool) -> float:
        """Features of `images` passed on to `then`, which may go backward while the changed weights are in place."""

    def groups(self, settings: Settings) -> list[dict[str, Any]]:
        """Optimiser groups."""

    def size(self) -> torch.Tensor:
        """Squared norm of the change, differentiable."""


@dataclass(frozen=True)
class TrainData:
    """Normalised pixels float32 (n, 3, s, s) of shots with labels (reader's numbers), unlabelled control pixels, and shots of earlier
    edits with theirs."""

    shots: torch.Tensor
    labels: torch.Tensor
    control: torch.Tensor
    former: tuple[torch.Tensor, torch.Tensor] | None = None


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


def _optimiser(groups: list[dict[str, Any]], settings: Settings) -> torch.optim.Optimizer:
    used, decay = [g for g in groups if g["params"]], settings.weight_decay
    if settings.optimiser == "sgd":
        return torch.optim.SGD(used, lr=settings.lr, momentum=settings.momentum, weight_decay=decay)
    kind = torch.optim.AdamW if settings.optimiser == "adamw" else torch.optim.Adam
    return kind(used, betas=(0.9, 0.999), weight_decay=decay)


def train(
    encoder: Encoder,
    locality: Locality,
    data: TrainData,
    reader: Reader,
    method: Settings,
    seed: int,
    progress: Callable[[int, int, str], None] | None,
    loss: TargetLoss | None = None,
) -> Selection:
    """Train the chosen values; returns them."""
    generator = torch.Generator().manual_seed(seed)
    names = (*locality.entries, *locality.rows)
    directions = min(method.project, encoder.width // 4)  # a narrow encoder would be left without any change
    kept = principal_directions(encoder, data.control, names, directions) if directions else None
    selection = Selection(encoder, locality, method.rank, generator, share_input=method.share_input, directions=kept, bits=method.bits)
    fit(Selected(encoder, selection, method.amp), encoder, data, (reader, loss or HeadLoss(reader)), method, (seed, generator), progress)
    return selection


def fit(
    model: Trainable,
    encoder: Encoder,
    data: TrainData,
    judge: tuple[Reader, TargetLoss],
    settings: Settings,
    random: tuple[int, torch.Generator],
    progress: Callable[[int, int, str], None] | None,
) -> None:
    """Train `model` in place.  Loss: the target loss on shots, feature distillation (mean squared, in units of the reader's feature
    spread) and KL to the base's verdicts on control images, the size of the change; where there are shots of earlier edits, the
    target loss on as many of them as on new ones (rehearsal; Chaudhry et al. 2019).  Of every batch this process computes
    its part, where it is one of several (see `parallel`); raises InputError when training diverges."""
    (reader, loss), (seed, generator), us = judge, random, team()
    us.check(settings)
    optimiser = _optimiser(model.groups(settings), settings)
    peak = [g["lr"] for g in optimiser.param_groups]
    scaler = torch.amp.GradScaler(data.shots.device.type, enabled=settings.amp == "float16")
    retain = _Retention(encoder, data.control, reader, settings, seed)
    shots = _batches(len(data.shots), settings.batch, settings.steps, generator)
    kept = _batches(len(data.control), settings.batch, settings.steps, generator)
    seen = retain.batches(generator)
    former = _Former(data, settings, generator)
    with checkpointed(encoder, settings.checkpoint), compiled(encoder, settings.compiler):
        for step in range(settings.steps):
            for group, lr in zip(optimiser.param_groups, peak, strict=True):
                group["lr"] = lr * _schedule(step, settings.steps)
            own = data.shots[shots[step]]
            own = us.part(augment(own, generator) if settings.augment else own)
            labels, old, new = data.labels[us.part(shots[step])], us.part(kept[step]), us.part(seen[step])
            again, known = former.part(step, us)
            images = torch.cat([own, again, data.control[old], retain.patterns[new]])
            optimiser.zero_grad(set_to_none=True)

            def backward(
                features: torch.Tensor, labels: Any = labels, known: Any = known, old: Any = old, new: Any = new, step: int = step
            ) -> float:
                cut, end = len(labels), len(labels) + len(known)
                total = loss(features[:cut], labels) + retain.loss(features[end:], old, new)
                if len(known):
                    total = total + loss(features[cut:end], known)
                if settings.drift:
                    total = total + settings.drift * model.size()
                reached = float(total.detach())
                if not math.isfinite(reached):
                    raise InputError(
                        f"training diverged at step {step + 1}: expected a finite loss, got {reached}", hint="lower the learning rates"
                    )
                scaler.scale(total).backward()
                return reached

            reached = model.run(images, backward, rounded=step >= settings.steps - settings.rounding_steps)
            us.average([p for group in optimiser.param_groups for p in group["params"]])
            scaler.step(optimiser)
            scaler.update()
            if progress is not None:
                progress(step + 1, settings.steps, f"training, loss {reached:.3f}")


class _Former:
    """Batches of the shots of earlier edits; empty ones, and no random number drawn, where there are none."""

    def __init__(self, data: TrainData, settings: Settings, generator: torch.Generator) -> None:
        self._pixels, self._labels = data.former or (data.shots[:0], data.labels[:0])
        nothing = [torch.empty(0, dtype=torch.int64)] * settings.steps
        self._batches = _batches(len(self._pixels), settings.batch, settings.steps, generator) if data.former else nothing
        self._generator, self._turned = generator, settings.augment and data.former is not None

    def part(self, step: int, us: Team) -> tuple[torch.Tensor, torch.Tensor]:
        """This process's pixels and labels of a step."""
        rows = self._batches[step]
        pixels = augment(self._pixels[rows], self._generator) if self._turned else self._pixels[rows]
        return us.part(pixels), self._labels[us.part(rows)]


class _Retention:
    """What must stay: the base's features of control images and patterns, and its verdicts on control images."""

    def __init__(self, encoder: Encoder, control: torch.Tensor, reader: Reader, settings: Settings, seed: int) -> None:
        self.reader, self.settings = reader, settings
        self.spread = torch.from_numpy(reader.std).to(control)
        self.base = _base_features(encoder, control, settings.amp)
        with torch.no_grad():  # once: a reader may be a whole language model
            self.verdicts = torch.cat([reader.logits(part).log_softmax(1) for part in self.base.split(32)])
        if not settings.patterns:  # making them takes seconds at 336 pixels
            self.patterns = control[:0]
            return
        self.patterns = torch.from_numpy(synthetic_pixels(encoder.preprocess, PATTERNS, seed)).to(control)
        self.pattern_features = _base_features(encoder, self.patterns, settings.amp)
        self.pattern_spread = self.pattern_features.std(dim=0).clamp_min(1e-6)

    def batches(self, generator: torch.Generator) -> list[torch.Tensor]:
        """Index batches of patterns, empty ones without patterns."""
        if not self.settings.patterns:
            return [torch.empty(0, dtype=torch.int64)] * self.settings.steps
        return _batches(PATTERNS, self.settings.patterns, self.settings.steps, generator)

    def loss(self, features: torch.Tensor, kept: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        """Distillation and KL of control features followed by pattern features."""
        control, base, settings = features[: len(kept)], self.base[kept], self.settings
        total = settings.distill * (((control - base) / self.spread) ** 2).mean()
        before, after = self.verdicts[kept], self.reader.logits(control).log_softmax(1)
        total = total + settings.kl * nn.functional.kl_div(after, before, reduction="batchmean", log_target=True)
        if settings.patterns:
            change = (features[len(kept) :] - self.pattern_features[seen]) / self.pattern_spread
            total = total + settings.distill * (change**2).mean()
        return total


def _base_features(encoder: Encoder, pixels: torch.Tensor, amp: str) -> torch.Tensor:
    """The base's features under the arithmetic of training, so that distillation starts at exactly zero change."""
    kind = getattr(torch, amp) if amp != "off" else torch.bfloat16
    with torch.no_grad(), torch.autocast(pixels.device.type, kind, enabled=amp != "off"):
        return torch.cat([encoder(part).float() for part in pixels.split(32)])
