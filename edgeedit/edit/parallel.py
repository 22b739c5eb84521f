"""The processes that train one edit together, as `torchrun` or `accelerate launch` start them; accelerate does the talking.

Guarantees: every process walks through the same batches in the same order and computes its part of each, the gradients are
averaged before each step, so all hold the same values bit for bit; one process alone behaves as if this file were not there.
Selection and judging are done by every process for itself.  accelerate is imported only where there are several processes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch

from edgeedit.edit.settings import Settings
from edgeedit.errors import InputError


@dataclass(frozen=True)
class Team:
    """Process number `rank` of `size`; `device` is where this one trains."""

    rank: int = 0
    size: int = 1
    device: str = "cpu"

    def check(self, settings: Settings) -> None:
        """Raise InputError unless every process gets equally many images of each kind, so that a mean of means is the mean."""
        if settings.batch % self.size or settings.patterns % self.size:
            raise InputError(
                f"batch cannot be shared: expected batch and patterns to be multiples of {self.size} processes, "
                f"got {settings.batch} and {settings.patterns}",
                hint="start another number of processes",
            )

    def part(self, rows: torch.Tensor) -> torch.Tensor:
        """This process's share of `rows`: every `size`-th from number `rank` on."""
        return rows[self.rank :: self.size]

    def average(self, parameters: Sequence[torch.Tensor]) -> None:
        """Replace the gradients of `parameters` by their mean over the processes, in one message."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        if self.size == 1 or not gradients:
            return
        from accelerate.utils import reduce

        whole = reduce(torch.cat([g.reshape(-1) for g in gradients]), reduction="mean")
        for gradient, part in zip(gradients, whole.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))


@cache
def team() -> Team:
    """The team that this process was started in; raises InputError when it is one of several and accelerate is missing."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Team()
    try:
        from accelerate import PartialState
    except ImportError as error:
        raise InputError("several processes need accelerate: expected it, got none", hint="pip install 'edgeedit[parallel]'") from error
    state = PartialState(cpu=not torch.cuda.is_available())
    return Team(state.process_index, state.num_processes, str(state.device))
