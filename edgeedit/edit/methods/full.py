"""The rivals `full` (every weight), `layer-norm` (normalisation weights only) and `full-interpolated` (WiSE-FT, PAINT).

Guarantees: the same loss, schedule and data as the localized methods; the result is whole tensors in fp16 size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn
from torch.func import functional_call

from edgeedit.edit.locality import Locality
from edgeedit.edit.methods.alpha import choose_alpha, split_control
from edgeedit.edit.methods.method import Task, Update
from edgeedit.edit.selection import WRAPPED, Pass
from edgeedit.edit.settings import Settings
from edgeedit.edit.train import fit
from edgeedit.encoder.encoder import Encoder
from edgeedit.encoder.values import with_values
from edgeedit.errors import InputError

Array = np.ndarray[Any, Any]
FP16 = 2  # bytes per weight that would be sent


class Whole:
    """A `Trainable`: copies of whole parameters in place of the encoder's own."""

    def __init__(self, encoder: Encoder, names: tuple[str, ...], amp: str) -> None:
        self.inner, self.amp = Pass(encoder), amp
        self.base = {name: encoder.parameters_by_name()[name].detach() for name in names}
        self.own = {name: nn.Parameter(value.clone()) for name, value in self.base.items()}

    def run(self, images: torch.Tensor, then: Callable[[torch.Tensor], float], *, rounded: bool) -> float:
        """See Trainable; there is no integer form."""
        del rounded
        reached: float = functional_call(self.inner, {WRAPPED + name: p for name, p in self.own.items()}, (images, then, self.amp))
        return reached

    def groups(self, settings: Settings) -> list[dict[str, Any]]:
        """One rate for all."""
        return [{"params": list(self.own.values()), "lr": settings.lr}]

    def size(self) -> torch.Tensor:
        """Squared norm of the change."""
        return torch.stack([(p - self.base[name]).square().sum() for name, p in self.own.items()]).sum()


@dataclass(frozen=True)
class Full(Settings):
    """Fine-tunes every weight of the encoder."""

    lr: float = 3e-5
    patterns: int = 0
    name: ClassVar[str] = "full"
    local: ClassVar[bool] = False

    def update(self, task: Task) -> Update:
        """Whole new tensors."""
        return _tune(task, self, tuple(task.values))


@dataclass(frozen=True)
class LayerNorm(Settings):
    """Fine-tunes the weights and biases of normalisation layers."""

    lr: float = 1e-3
    patterns: int = 0
    name: ClassVar[str] = "layer-norm"
    local: ClassVar[bool] = False

    def update(self, task: Task) -> Update:
        """Whole new vectors."""
        norms = [name for name, module in task.base.wrapped.named_modules() if isinstance(module, nn.LayerNorm)]
        return _tune(task, self, tuple(n for n in task.values if n.rpartition(".")[0] in norms))


@dataclass(frozen=True)
class FullInterpolated(Full):
    """The full fine-tune, drawn back towards the base until a part of the control images accepts it."""

    interpolate: bool = True
    name: ClassVar[str] = "full-interpolated"


def _tune(task: Task, settings: Settings, names: tuple[str, ...]) -> Update:
    if not names:
        raise InputError(f"method {getattr(settings, 'name', '')} finds nothing to train: expected parameters, got none")
    kept, chooses = split_control(task.control) if settings.interpolate else (task.control, None)
    model = Whole(task.base, names, settings.amp)
    generator = torch.Generator().manual_seed(task.seed)
    data = task.data(kept)
    fit(model, task.base, data, (task.reader, task.loss), settings, (task.seed, generator), task.progress)
    tuned = {name: p.detach().cpu().numpy() for name, p in model.own.items()}
    notes: dict[str, Any] = {}
    if chooses is not None:

        def mixed(alpha: float) -> dict[str, Array]:
            return {
                n: (v.astype(np.float32) + np.float32(alpha) * (tuned[n] - v.astype(np.float32)))
                for n, v in task.values.items()
                if n in tuned
            }

        def at(alpha: float) -> Encoder:
            return with_values(task.base, mixed(alpha)).to(task.pixels.device)

        alpha, flips = choose_alpha(task.base, at, task.reader, chooses, task.limit)
        tuned, notes = mixed(alpha), {"alpha": alpha, "control_flips": flips}
    return whole_update(task.base, tuned, FP16 * sum(v.size for v in tuned.values()), notes)


def whole_update(base: Encoder, values: dict[str, Array], payload: int, notes: dict[str, Any]) -> Update:
    """An Update of whole tensors; raises InputError when one is not finite."""
    if not all(np.isfinite(v).all() for v in values.values()):
        raise InputError("training diverged: expected finite weights, got NaN or infinity", hint="lower the learning rates")
    none = np.zeros((base.blocks, base.heads))
    return Update(payload, values=values, locality=Locality({}, {}, none, none.astype(bool), whole=frozenset(values)), notes=notes)
