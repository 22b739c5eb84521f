"""The rivals `refit-shots` and `refit-base-shots`: a new reader on an untouched encoder.

Guarantees: the same logistic regression that fits readers elsewhere; needs a reader that can be replaced at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from edgeedit.edit.evaluate import features
from edgeedit.edit.methods.method import Task, Update
from edgeedit.edit.readers import fit_linear, fit_prototypes
from edgeedit.errors import InputError


@dataclass(frozen=True)
class RefitShots:
    """Fits the reader again on the shots alone."""

    name: ClassVar[str] = "refit-shots"
    local: ClassVar[bool] = False

    def update(self, task: Task) -> Update:
        """A reader of the same kind and classes; raises InputError when a class of the reader has no image."""
        return _refit(task, task.pixels, task.labels)


@dataclass(frozen=True)
class RefitBaseShots:
    """Fits the reader again on the images it was fitted on and the shots; needs those images with their labels."""

    name: ClassVar[str] = "refit-base-shots"
    local: ClassVar[bool] = False

    def update(self, task: Task) -> Update:
        """A reader of the same kind and classes; raises InputError without stored base images."""
        if task.stored_pixels is None or task.stored_labels is None:
            raise InputError("base images are missing: expected labelled images that the reader was fitted on, got none")
        return _refit(task, torch.cat([task.stored_pixels, task.pixels]), torch.cat([task.stored_labels, task.labels]))


def _refit(task: Task, pixels: torch.Tensor, labels: torch.Tensor) -> Update:
    fit = fit_linear if task.reader.kind == "linear" else fit_prototypes
    fitted = fit(features(task.base, pixels.cpu().numpy()), np.asarray(labels.cpu()), task.reader.classes)
    size = sum(a.nbytes for a in (fitted.mean, fitted.std, fitted.weight, fitted.bias))
    return Update(payload=size, reader=fitted)
