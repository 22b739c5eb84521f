"""Training of chosen values by the obvious means: a whole differentiable weight per touched tensor, autograd for the rest.

Slow and large; an independent reference for `edgeedit.edit.selection`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.func import functional_call

from edgeedit.edit.quantize import rounded_low_rank, rounded_values
from edgeedit.edit.selection import WRAPPED, Selected


class DenseSelected(Selected):
    """The same parameters; the changed weights are built by scatter and index_add and substituted by `functional_call`."""

    def weights(self, rounded: bool) -> dict[str, torch.Tensor]:
        """Name -> base + change, differentiable; in integer form with gradients straight through."""
        chosen, result = self.selection, {}
        for name, values in chosen.entries().items():
            index, base = chosen.index[name], chosen.base[name]
            used = values + (rounded_values(values.detach(), chosen.bits) - values.detach()) if rounded else values
            result[name] = base.reshape(-1).scatter_add(0, index, used).reshape(base.shape)
        for name, (a, b) in chosen.factors().items():
            change = a @ b
            if rounded:
                change = change + (rounded_low_rank(a.detach(), b.detach()) - change.detach())
            base = chosen.base[name]
            if name in chosen.rows:
                result[name] = base.index_add(0, chosen.rows[name], change)
            else:
                result[name] = base.index_add(1, chosen.columns[name], change)
        return result

    def run(self, images: torch.Tensor, then: Callable[[torch.Tensor], float], *, rounded: bool) -> float:
        """See Trainable."""
        weights = {WRAPPED + name: weight for name, weight in self.weights(rounded).items()}
        reached: float = functional_call(self.inner, weights, (images, then, self.amp))
        return reached
