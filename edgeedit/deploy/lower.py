"""Lowers a Delta of named parameters onto the deployed tensors of a Bundle.

Guarantees: the new tensors come from the same rule and core as on the device; `parent` and `result` are fingerprints over
all deployed tensors, so a device that holds anything else will refuse.  Does not sign, and does not change the Bundle.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from edgeedit.bundle import Bundle, MappedTensor
from edgeedit.codec.apply import apply_delta
from edgeedit.delta import Delta, TensorDelta
from edgeedit.deploy.codes import Survival, lower_codes, scales_of
from edgeedit.deploy.materialize import check_weights
from edgeedit.digest import TensorDigest, digest_array, fingerprint
from edgeedit.errors import InputError, MismatchError
from edgeedit.rounding import transpose_delta

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Lowered:
    """A Delta in deployed names and layout.  `before`, `after` (SHA-256), `dtypes` and `new` are keyed by the deployed names
    of `deltas`; `parent` and `result` are the fingerprints of all deployed tensors; `survival` tells of each int8 tensor that was
    to change (one whose codes all stay is not in `deltas`) how much of the change its codes can say."""

    deltas: tuple[TensorDelta, ...]
    before: Mapping[str, str]
    after: Mapping[str, str]
    dtypes: Mapping[str, str]
    parent: str
    result: str
    new: Mapping[str, Array]
    survival: Mapping[str, Survival] = field(default_factory=dict)


def check_encoder(delta: Delta, bundle: Bundle, keys: Sequence[str] = ("source_digest",)) -> None:
    """Raises MismatchError unless the delta was made on the encoder, that is on the generation, that the Bundle holds; `keys` are the
    properties of a Bundle that must agree."""
    made_for = delta.info.get("encoder") or {}
    for key in keys:
        if made_for.get(key) != (expected := getattr(bundle, key)):
            raise MismatchError(
                f"delta does not belong to the bundle: expected encoder {key} {expected}, got {made_for.get(key)}",
                hint="take the bundle that the edit was made with; of a second edit, the materialized one",
            )


def lower_tensor(change: TensorDelta, tensor: MappedTensor) -> TensorDelta:
    """One change in the layout of its deployed tensor; raises MismatchError when it may not or cannot be changed."""
    if not tensor.editable:
        raise MismatchError(f"parameter may not be edited: got {change.name}", hint="the bundle marks which parameters a patch may touch")
    shape = tensor.shape[::-1] if tensor.transposed else tensor.shape
    if change.shape != shape:
        raise MismatchError(f"delta does not fit {change.name}: expected shape {shape}, got {change.shape}")
    return transpose_delta(change, tensor.name) if tensor.transposed else replace(change, name=tensor.name)


def _in_codes(
    changes: tuple[TensorDelta, ...], bundle: Bundle, weights: Mapping[str, Array], source: Mapping[str, Array] | None
) -> tuple[tuple[TensorDelta, ...], dict[str, Survival]]:
    """Changes of int8 tensors as codes, the others as they are; raises InputError when nothing is left."""
    table, survival, kept = bundle.tensor_map.by_name(), {}, []
    for change in changes:
        tensor = table[change.name]
        if tensor.dtype != "int8":
            kept.append(change)
            continue
        scales = scales_of(tensor, weights)
        values = None if source is None else source[tensor.parameter]
        if values is not None and tensor.transposed:
            values = values.T
        lowered, survival[tensor.name] = lower_codes(change, weights[tensor.name], scales, values)
        if lowered is not None:
            kept.append(lowered)
    if not kept:
        raise InputError(
            "no int8 code changes: expected at least one weight to move by half a scale",
            hint="make a stronger edit, or export in float16 or bfloat16",
        )
    return tuple(kept), survival


def lower(delta: Delta, bundle: Bundle, weights: Mapping[str, Array], source: Mapping[str, Array] | None = None) -> Lowered:
    """Translate `delta` and compute the tensors it leads to.

    `weights` are all deployed tensors of the parent generation (deployed name -> array in the bundle's dtypes and shapes):
    `bundle.weights()`, or those with earlier patches applied.  `source` are the float32 parameters (by parameter name) that the
    delta changes; with them an int8 code is rounded from the changed weight, see `lower_codes`.  Raises MismatchError when
    delta, bundle and weights do not belong together, InputError when a parameter is not deployed or no int8 code changes,
    IntegrityError when a new weight is not finite.
    """
    check_encoder(delta, bundle, ("source_digest", "precision"))
    check_weights(bundle, weights)
    deltas = tuple(lower_tensor(change, bundle.tensor_map.by_parameter(change.name)) for change in delta.tensors)
    deltas, survival = _in_codes(deltas, bundle, weights, source)
    new = {change.name: apply_delta(weights[change.name], change) for change in deltas}
    rows = {t.name: TensorDigest(t.name, t.dtype, t.shape, digest_array(weights[t.name])) for t in bundle.tensor_map.tensors}
    after = {name: digest_array(array) for name, array in new.items()}
    changed = {name: replace(rows[name], sha256=digest) for name, digest in after.items()}
    return Lowered(
        deltas,
        {name: rows[name].sha256 for name in new},
        after,
        {name: rows[name].dtype for name in new},
        fingerprint(rows.values()),
        fingerprint({**rows, **changed}.values()),
        new,
        survival,
    )
