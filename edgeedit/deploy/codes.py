"""Lowers a float change onto the codes of an int8 tensor (Q/DQ: weight = scale * code, zero point 0).

Guarantees: only elements that the change names move; every new code lies in -127..127 (or is the old one), so that the device's
integer addition never leaves int8; what the codes cannot say is counted, not hidden.  Does not choose scales: they stay.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgeedit.bundle import MappedTensor
from edgeedit.delta import SparsePart, TensorDelta
from edgeedit.errors import InputError
from edgeedit.rounding import changed_elements, low_rank_product

Array = np.ndarray[Any, Any]
MAX_CODE = 127  # of a symmetric code; -128 stays where the quantiser put it


@dataclass(frozen=True)
class Survival:
    """What became of a change: elements it `declared`, elements whose code `moved`, those `clipped` at the end of the range,
    `share` of the change along its own direction (1 is all, 0 none; <applied, wanted> / <wanted, wanted>) and `error`, the
    relative distance |applied - wanted| / |wanted|, both in weights."""

    declared: int
    moved: int
    clipped: int
    share: float
    error: float

    def to_json(self) -> dict[str, Any]:
        """Plain JSON object."""
        return {
            "declared": self.declared,
            "moved": self.moved,
            "clipped": self.clipped,
            "share": round(self.share, 6),
            "error": round(self.error, 6),
        }

    def sentence(self, name: str) -> str:
        """One line for people, about the tensor `name`."""
        return (
            f"int8 {name}: {self.moved} of {self.declared} codes move, {self.clipped} clipped; "
            f"{100 * self.share:.1f} % of the change survives, relative error {self.error:.3f}"
        )


def broadcast_scales(scales: Array, axis: int, shape: tuple[int, ...], name: str) -> Array:
    """The scales of a tensor as float64, broadcastable to `shape`; raises InputError when they do not fit or are not positive."""
    flat = scales.astype(np.float64).reshape(-1)
    if not 0 <= axis < len(shape) or flat.size not in (1, shape[axis]) or not np.isfinite(flat).all() or (flat <= 0).any():
        raise InputError(f"scales of {name} do not fit: expected 1 or one positive scale for each index of dimension {axis} of {shape}")
    return flat.reshape([flat.size if place == axis else 1 for place in range(len(shape))])


def scales_of(tensor: MappedTensor, weights: Mapping[str, Array]) -> Array:
    """The scales of an int8 tensor from the deployed `weights`, broadcastable float64; raises InputError when they are missing or
    do not fit."""
    if tensor.scales not in weights:
        raise InputError(f"int8 tensor {tensor.name} has no scales: expected a deployed tensor, got {tensor.scales!r}")
    return broadcast_scales(weights[tensor.scales], tensor.axis, tensor.shape, tensor.name)


def decode_codes(codes: Array, tensor: MappedTensor, weights: Mapping[str, Array]) -> Array:
    """scale * code in float32, as DequantizeLinear gives it: the product is exact in float64 and rounded once."""
    result: Array = (codes * scales_of(tensor, weights)).astype(np.float32)
    return result


def lower_codes(change: TensorDelta, codes: Array, scales: Array, source: Array | None = None) -> tuple[TensorDelta | None, Survival]:
    """The change in codes, None when no code moves, and what survives of it.

    `change` is in the deployed layout, `codes` int8 of its shape, `scales` broadcastable float64.  With `source` (float32, same
    shape: the weights before the change, of which `codes` are the rounding) the new code is the one nearest to the changed
    weight, as if the changed encoder were quantised again; without it, it is the code plus the nearest whole number of scales,
    and whatever is below half a scale is lost."""
    wanted = np.zeros(change.shape, np.float64)
    if change.sparse is not None:
        wanted.reshape(-1)[change.sparse.index] = change.sparse.step * change.sparse.q.astype(np.float64)
    if change.low_rank is not None:
        wanted[np.ix_(change.low_rank.rows, change.low_rank.cols)] += change.low_rank.scale * low_rank_product(change.low_rank).astype(
            np.float64
        )
    declared = changed_elements(change)
    goal = np.rint((source.astype(np.float64) + wanted) / scales) if source is not None else codes + np.rint(wanted / scales)
    fitting = np.where(goal == codes, goal, np.clip(goal, -MAX_CODE, MAX_CODE))
    q = np.where(declared & (wanted != 0), fitting - codes, 0).astype(np.int16)
    index = np.flatnonzero(q).astype(np.int64)
    applied = q * scales
    size = float((wanted * wanted).sum())
    survival = Survival(
        int(declared.sum()),
        int(index.size),
        int((declared & (goal != fitting)).sum()),
        float((applied * wanted).sum()) / size if size else 1.0,
        float(np.sqrt(((applied - wanted) ** 2).sum() / size)) if size else 0.0,
    )
    if not index.size:
        return None, survival
    return TensorDelta(change.name, change.shape, SparsePart(index, q.reshape(-1)[index], 1.0)), survival
