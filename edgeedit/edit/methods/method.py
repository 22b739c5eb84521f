"""What a method is: settings with a `name` that turn a `Task` into an `Update`.

Guarantees: every method and rival has the same call, so that `edit` judges all of them alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import numpy as np
import torch

from edgeedit.delta import TensorDelta
from edgeedit.edit.locality import Locality
from edgeedit.edit.losses import TargetLoss
from edgeedit.edit.readers import Reader
from edgeedit.edit.train import TrainData
from edgeedit.encoder.encoder import Encoder

Array = np.ndarray[Any, Any]
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Task:
    """All that a method may see.  `base` holds the deployed weights and stays unchanged; pixels float32 (n, 3, s, s) on
    its device; `labels` int64 in the reader's numbering; `values` are the deployed weights; `stored_*` are features and
    labels of images the reader was fitted on, where the customer still has them; `former` pixels and labels of the shots of earlier
    edits; `limit` the allowed control drop."""

    base: Encoder
    values: Mapping[str, Array]
    pixels: torch.Tensor
    labels: torch.Tensor
    control: torch.Tensor
    reader: Reader
    loss: TargetLoss
    seed: int
    limit: float
    stored_pixels: torch.Tensor | None = None
    stored_labels: torch.Tensor | None = None
    former: tuple[torch.Tensor, torch.Tensor] | None = None
    progress: Progress | None = None

    def data(self, control: torch.Tensor | None = None) -> TrainData:
        """What training sees; `control` in the place of all control pixels."""
        return TrainData(self.pixels, self.labels, self.control if control is None else control, self.former)


@dataclass(frozen=True)
class Update:
    """What a method found: either `tensors` (integer form, inside `locality`), or `values` (whole new float32 tensors),
    or another `reader`, or nothing.  `payload` is the size in bytes of what a device would have to receive: an entropy
    estimate for `tensors`, fp16 for a rival's factors or weights, float32 for a reader.  `notes` go to the record; `importance`
    is what the locality holds of the shots' gradient."""

    payload: int
    tensors: tuple[TensorDelta, ...] = ()
    values: Mapping[str, Array] = field(default_factory=dict)
    reader: Reader | None = None
    locality: Locality | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)
    importance: Mapping[str, Any] | None = None


class Method(Protocol):
    """Frozen settings and what they do.  `local`: claims that nothing outside a declared mask changes."""

    name: ClassVar[str]
    local: ClassVar[bool]
    __dataclass_fields__: ClassVar[dict[str, Any]]

    def update(self, task: Task) -> Update:
        """Find the change; raises InputError when it diverges or finds none."""
