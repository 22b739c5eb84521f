"""Every localized method: locality, training of the chosen values, rounding to the integer form.

Guarantees: the result is a set of TensorDeltas inside the Locality; control images that choose alpha are not trained on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch

from edgeedit.delta import TensorDelta
from edgeedit.edit.cost import delta_bytes
from edgeedit.edit.importance import importance
from edgeedit.edit.locality import Locality, scored_names, select
from edgeedit.edit.methods.alpha import Labelled, best_alpha, choose_alpha, split_control
from edgeedit.edit.methods.method import Task, Update
from edgeedit.edit.quantize import low_rank_part, sparse_part
from edgeedit.edit.scores import accumulate
from edgeedit.edit.selection import Selection
from edgeedit.edit.settings import Settings
from edgeedit.edit.train import train
from edgeedit.encoder.encoder import Encoder
from edgeedit.encoder.values import with_values
from edgeedit.errors import InputError
from edgeedit.rounding import apply_delta

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Local(Settings):
    """Settings that are a method: subclasses give a name and other defaults."""

    name: ClassVar[str] = "local"
    local: ClassVar[bool] = True

    def update(self, task: Task) -> Update:
        """Select, train, round; raises InputError when training diverges or nothing changed."""
        found = scores(task, self)
        locality = select(task.base, found, self)
        held = importance(task.base, found, locality)
        del found  # as large as the encoder: not needed while training
        kept, chooses = split_control(task.control) if self.interpolate else (task.control, None)
        trained, judges = self._split_former(task)
        data = replace(task.data(kept), former=trained)
        selection = train(task.base, locality, data, task.reader, self, task.seed, task.progress, task.loss)
        notes: dict[str, Any] = {}
        alpha, at = 1.0, _at(task, locality, selection, self.bits)
        if chooses is not None:
            alpha, flips = choose_alpha(task.base, at, task.reader, chooses, task.limit)
            notes = {"alpha": alpha, "control_flips": flips}
        if judges is not None:
            alpha, losses = best_alpha(at, task.loss, (task.pixels, task.labels), judges, alpha)
            notes |= {"alpha": alpha, "former_loss": losses}
        tensors = round_selection(task.base, locality, selection, self.bits, alpha)
        return Update(delta_bytes(tensors), tensors=tensors, locality=locality, notes=notes, importance=held)

    def _split_former(self, task: Task) -> tuple[Labelled | None, Labelled | None]:
        """Former shots that are trained on, and those that choose alpha."""
        if task.former is None or self.former_use == "train":
            return task.former, None
        pixels, labels = task.former
        # Class by class: in a set whose classes alternate, every second image would be of one class.
        trains = torch.zeros(len(labels), dtype=torch.bool, device=labels.device)
        for label in labels.unique():
            trains[torch.nonzero(labels == label)[::2, 0]] = True
        if self.former_use == "alpha" or trains.all():
            return None, task.former
        return (pixels[trains], labels[trains]), (pixels[~trains], labels[~trains])


def scores(task: Task, settings: Settings) -> dict[str, Array]:
    """The scores that the selection of `settings` needs, from the task's shots."""
    return score(task.base, lambda rows: task.loss(task.base(task.pixels[rows]), task.labels[rows]), len(task.pixels), settings)


def score(base: Encoder, loss: Callable[[slice], torch.Tensor], count: int, settings: Settings) -> dict[str, Array]:
    """`accumulate` with the names and the kind of `settings`, in float32."""
    names = scored_names(base, settings)
    return accumulate(base, loss, count, settings.batch, kind=settings.score, names=names)


def _at(task: Task, locality: Locality, selection: Selection, bits: int) -> Callable[[float], Encoder]:
    def at(alpha: float) -> Encoder:
        tensors = round_selection(task.base, locality, selection, bits, alpha)
        new: Mapping[str, Array] = {t.name: apply_delta(task.values[t.name], t) for t in tensors}
        return with_values(task.base, new).to(task.pixels.device)

    return at


def round_selection(encoder: Encoder, locality: Locality, selection: Selection, bits: int, alpha: float = 1.0) -> tuple[TensorDelta, ...]:
    """alpha x the trained values in integer form, sorted by name; raises InputError when they are not finite or all zero."""
    sparse, low = selection.deltas()
    if not all(np.isfinite(array).all() for array in (*sparse.values(), *(x for pair in low.values() for x in pair))):
        raise InputError("training diverged: expected finite weights, got NaN or infinity", hint="lower the learning rates")
    shapes = {name: tuple(p.shape) for name, p in encoder.parameters_by_name().items()}
    made = []
    for name, values in sparse.items():
        part = sparse_part(locality.entries[name], values if alpha == 1.0 else values * np.float32(alpha), bits)
        if part is not None:
            made.append(TensorDelta(name, shapes[name], sparse=part))
    for name, (a, b) in low.items():
        rows = locality.rows[name] if name in locality.rows else np.arange(shapes[name][0], dtype=np.int64)
        factors = low_rank_part(rows, a if alpha == 1.0 else a * np.float32(alpha), b)
        if factors is not None:
            if name in locality.columns:
                factors = replace(factors, cols=locality.columns[name])
            made.append(TensorDelta(name, shapes[name], low_rank=factors))
    if not made:
        raise InputError("edit changed nothing: expected non-zero steps", hint="raise the learning rate or the number of steps")
    return tuple(sorted(made, key=lambda t: t.name))
