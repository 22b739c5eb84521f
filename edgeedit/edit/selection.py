"""The chosen values as the only parameters, and the encoder's own weights changed in place for the length of one pass.

Guarantees: memory beyond the encoder's is proportional to the selection; after every pass, also one that raised, the
encoder holds its base weights bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from edgeedit.edit.linear import COLUMNS, ENTRIES, ROWS, Routes, Trained
from edgeedit.edit.locality import Locality
from edgeedit.edit.projection import EntryProjection
from edgeedit.edit.quantize import rounded_low_rank, rounded_values
from edgeedit.edit.settings import Settings
from edgeedit.encoder.encoder import Encoder

Array = np.ndarray[Any, Any]
WRAPPED = "encoder.wrapped."


class Selection(nn.Module):
    """The trainable values on top of frozen weights: `sparse` name -> (values, index), `low_rank` name -> (A, B, rows).

    `share_input`: the q, k, v of a block use one input-side factor B.  Columns of an output projection take A.B too, with
    A over all its rows.  `directions`: weight -> orthonormal (width, n) that the change must not read."""

    def __init__(
        self,
        encoder: Encoder,
        locality: Locality,
        rank: int,
        generator: torch.Generator,
        *,
        share_input: bool = False,
        directions: Mapping[str, torch.Tensor] | None = None,
        bits: int = 4,
    ) -> None:
        super().__init__()
        frozen = encoder.parameters_by_name()
        self.base = {name: frozen[name].detach() for name in (*locality.entries, *locality.rows, *locality.columns)}
        if not all(weight.is_contiguous() for weight in self.base.values()):
            raise ValueError("contiguous weights expected: entries are places in a flat view")
        device = next(iter(frozen.values())).device
        self.index = {name: torch.from_numpy(index).to(device) for name, index in locality.entries.items()}
        self.rows = {name: torch.from_numpy(rows).to(device) for name, rows in locality.rows.items()}
        self.columns = {name: torch.from_numpy(columns).to(device) for name, columns in locality.columns.items()}
        self.directions, self.bits = dict(directions or {}), bits
        self.away = {
            name: EntryProjection(index, (self.base[name].shape[0], self.base[name].shape[1]), self.directions[name])
            for name, index in self.index.items()
            if name in self.directions
        }
        self.kept = {name: self.base[name].view(-1)[index] for name, index in self.index.items()}
        self.kept |= {name: self.base[name][rows] for name, rows in self.rows.items()}
        self.kept |= {name: self.base[name][:, columns] for name, columns in self.columns.items()}
        self.values = nn.ParameterList([nn.Parameter(torch.zeros(index.numel(), device=device)) for index in self.index.values()])
        self.a, self.b = nn.ParameterList(), nn.ParameterList()
        self.own_b: dict[str, int] = {}  # which factor B a weight uses
        first = {name: encoder.qkv_names(b)[0] for b in range(encoder.blocks) for name in encoder.qkv_names(b)}
        for name in (*self.rows, *self.columns):
            height, width = (self.rows[name].numel() if name in self.rows else self.base[name].shape[0]), self.width(name)
            # As in LoRA: one factor random, the other zero, so training starts at the base.
            self.a.append(nn.Parameter(torch.zeros(height, rank, device=device)))
            leader = first.get(name, name) if share_input else name
            if leader == name or leader not in self.own_b:
                self.own_b[name] = len(self.b)
                self.b.append(nn.Parameter((torch.randn(rank, width, generator=generator) / math.sqrt(width)).to(device)))
            else:
                self.own_b[name] = self.own_b[leader]

    def width(self, name: str) -> int:
        """Inputs that the low-rank part of a weight reads."""
        return self.columns[name].numel() if name in self.columns else int(self.base[name].shape[1])

    def entries(self) -> dict[str, torch.Tensor]:
        """Name -> values of the chosen entries after the projection away from protected directions."""
        own = zip(self.index, self.values, strict=True)
        return {name: self.away[name](values) if name in self.away else values for name, values in own}

    def factors(self) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """Name -> (A, B) after the projection away from protected directions."""
        found = {}
        for name, a in zip((*self.rows, *self.columns), self.a, strict=True):
            b = self.b[self.own_b[name]]
            if name in self.directions:
                b = b - (b @ self.directions[name]) @ self.directions[name].T
            found[name] = (a, b)
        return found

    def _changes(self, *, rounded: bool) -> Iterator[tuple[str, torch.Tensor]]:
        """Name -> change of the chosen entries, rows or columns, one weight at a time; `rounded`: in integer form."""
        for name, values in self.entries().items():
            yield name, rounded_values(values, self.bits) if rounded else values
        for name, (a, b) in self.factors().items():
            yield name, rounded_low_rank(a, b) if rounded else a @ b

    def _put(self, name: str, values: torch.Tensor) -> None:
        weight = self.base[name]
        if name in self.index:
            weight.view(-1).index_copy_(0, self.index[name], values)
        else:
            dim, where = (0, self.rows[name]) if name in self.rows else (1, self.columns[name])
            weight.index_copy_(dim, where, values)

    @contextmanager
    def placed(self, *, rounded: bool = False) -> Iterator[None]:
        """The encoder's own tensors hold base + trained values inside, and the base bit for bit after."""
        try:
            with torch.no_grad():
                for name, change in self._changes(rounded=rounded):
                    self._put(name, self.kept[name] + change)
            yield
        finally:
            with torch.no_grad():
                for name, kept in self.kept.items():
                    self._put(name, kept)

    def trained(self) -> dict[str, Trained]:
        """Weight name -> form and place of what trains of it."""
        forms = ((ENTRIES, self.index), (ROWS, self.rows), (COLUMNS, self.columns))
        return {name: Trained(form, where) for form, places in forms for name, where in places.items()}

    def deltas(self) -> tuple[dict[str, Array], dict[str, tuple[Array, Array]]]:
        """Trained values: FFN name -> vector; low-rank name -> (A, B), float32."""
        sparse = {name: v.detach().cpu().numpy() for name, v in self.entries().items()}
        low = {name: (a.detach().cpu().numpy(), b.detach().cpu().numpy()) for name, (a, b) in self.factors().items()}
        return sparse, low

    def size(self) -> torch.Tensor:
        """Squared norm of the change."""
        parts = [v.square().sum() for v in self.entries().values()] + [(a @ b).square().sum() for a, b in self.factors().values()]
        return torch.stack(parts).sum()


class Pass(nn.Module):
    """Features and what follows in ONE call, so that recomputed activations still see the changed weights.

    Every `Trainable` runs its images through one."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, images: torch.Tensor, then: Callable[[torch.Tensor], float], amp: str) -> float:
        """What `then` makes of the features (float32) of `images`; `amp` is the dtype of autocast, or off."""
        with torch.autocast(images.device.type, getattr(torch, amp) if amp != "off" else torch.bfloat16, enabled=amp != "off"):
            found = self.encoder(images).float()
        return then(found)


class Selected:
    """A `Trainable`: an encoder with a Selection."""

    def __init__(self, encoder: Encoder, selection: Selection, amp: str) -> None:
        self.inner, self.selection, self.amp = Pass(encoder), selection, amp
        self.trained = selection.trained()
        self.routes = Routes(encoder.wrapped, encoder.block_names(), self.trained)

    def run(self, images: torch.Tensor, then: Callable[[torch.Tensor], float], *, rounded: bool) -> float:
        """See Trainable."""
        factors = self.selection.factors()
        for name, values in self.selection.entries().items():
            self.trained[name].first = values
        for name, (a, b) in factors.items():
            self.trained[name].first, self.trained[name].second = a, b
        with self.selection.placed(rounded=rounded), self.routes:
            reached: float = self.inner(images, then, self.amp)
        return reached

    def groups(self, settings: Settings) -> list[dict[str, Any]]:
        """Sparse values and factors with a rate each."""
        chosen = self.selection
        return [{"params": list(chosen.values), "lr": settings.lr}, {"params": [*chosen.a, *chosen.b], "lr": settings.lr_low_rank}]

    def size(self) -> torch.Tensor:
        """See Trainable."""
        return self.selection.size()
