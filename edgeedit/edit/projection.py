"""Projection of a change away from what control images excite: low-rank factors and single entries of a weight.

Guarantees: with U the orthonormal principal directions of what a weight reads on control images, the projected change D has
D U = 0 up to rounding, and no entry outside the selection is needed for it.  Both projections are differentiable.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import nn

from edgeedit.encoder.encoder import Encoder

CHUNK = 8192  # entries whose outer products are held at once


def principal_directions(encoder: Encoder, control: torch.Tensor, names: Sequence[str], count: int) -> dict[str, torch.Tensor]:
    """Weight -> orthonormal (width, count): the top eigenvectors of the second moment of what it reads on control images."""
    moments: dict[str, torch.Tensor] = {}
    leaders: dict[str, str] = {}
    last: list[tuple[str, torch.Tensor]] = []

    def hook(name: str, _: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        # q, k and v read one and the same tensor, one after another: what the first of them found holds for all.
        if last and inputs[0] is last[0][1]:
            leaders[name] = last[0][0]
            return
        last[:] = [(name, inputs[0])]
        leaders[name] = name
        rows = inputs[0].reshape(-1, inputs[0].shape[-1]).double()
        moments[name] = moments.get(name, 0) + rows.T @ rows

    hooks = [encoder.wrapped.get_submodule(n.removesuffix(".weight")).register_forward_pre_hook(partial(hook, n)) for n in names]
    try:
        with torch.no_grad():
            for part in control.split(32):
                encoder(part)
    finally:
        for handle in hooks:
            handle.remove()
    last.clear()
    found = {name: torch.linalg.eigh(moment).eigenvectors[:, -count:].to(control) for name, moment in moments.items()}
    return {name: found[leaders[name]] for name in names}


class EntryProjection:
    """The orthogonal projection of chosen entries of a (height, width) weight onto the changes that do not read `directions`.

    A row r with chosen columns S takes v - U_S (U_S' U_S)^+ U_S' v, so v U_S = 0 and nothing outside S is needed.  A row
    with no more entries than directions is left without a change."""

    def __init__(self, index: torch.Tensor, shape: tuple[int, int], directions: torch.Tensor) -> None:
        self.rows, columns = index // shape[1], index % shape[1]
        self.height, self.read = shape[0], directions[columns]  # (n, count): what each entry reads of the directions
        count = directions.shape[1]
        gram = torch.zeros(shape[0], count, count, dtype=torch.float64, device=index.device)
        for rows, read in zip(self.rows.split(CHUNK), self.read.double().split(CHUNK), strict=True):
            gram.index_add_(0, rows, read[:, :, None] * read[:, None, :])
        self.inverse = torch.linalg.pinv(gram, hermitian=True, rtol=1e-9).to(directions.dtype)

    def __call__(self, values: torch.Tensor) -> torch.Tensor:
        """Projected `values` (n,), in the order of `index`."""
        seen = values.new_zeros(self.height, self.read.shape[1]).index_add(0, self.rows, values[:, None] * self.read)
        back = torch.einsum("rij,rj->ri", self.inverse, seen)
        return values - (self.read * back[self.rows]).sum(dim=1)
