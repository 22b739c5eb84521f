"""Probe inputs, and what they are expected to give: the torch encoder with exactly the rounded weights.

Guarantees: the weights of `edited_encoder` are, element for element, those a device computes from the patch (one rule,
`rounding.apply_delta`); the arithmetic of the forward pass stays float32.  Does not run the deployed graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeedit.bundle import Bundle
from edgeedit.delta import Delta
from edgeedit.deploy.codes import decode_codes
from edgeedit.deploy.compare import run_encoder
from edgeedit.encoder.values import parameter_values, with_values
from edgeedit.errors import InputError, MismatchError
from edgeedit.limits import MAX_PROBES
from edgeedit.rounding import apply_delta, widen

if TYPE_CHECKING:
    from edgeedit.encoder.encoder import Encoder

Array = np.ndarray[Any, Any]
DEFAULT_PROBES = 16
MARGIN = 10.0  # a probe must move by this many tolerances to tell the edited encoder from its parent
# Where the tolerance was measured on both encoders: a device that lies a whole tolerance off still misses the expectation by two.
MARGIN_MEASURED = 3.0


def check_inputs(probes: Array, size: int) -> None:
    """Raise InputError unless `probes` is finite float32 (1..256, 3, size, size)."""
    legal = probes.ndim == 4 and probes.shape[1:] == (3, size, size) and 0 < len(probes) <= MAX_PROBES
    if not legal or probes.dtype != np.float32 or not np.isfinite(probes).all():
        raise InputError(
            f"probes are not usable: expected finite float32 (1..{MAX_PROBES}, 3, {size}, {size}), got {probes.dtype} {probes.shape}",
            hint="normalise the images with the encoder's own preprocessing",
        )


def edited_encoder(encoder: Encoder, delta: Delta | None, precision: str) -> Encoder:
    """A copy of the encoder with each weight rounded to `precision` and `delta` applied; it computes in float32.

    Raises MismatchError when the delta names a parameter that the encoder lacks or whose shape differs.
    """
    return with_values(encoder, edited_values(encoder, delta, precision))


def edited_values(encoder: Encoder, delta: Delta | None, precision: str) -> dict[str, Array]:
    """The parameters of `edited_encoder`, name -> array in `precision`; raises MismatchError as it does."""
    values = dict(parameter_values(encoder, precision))
    for change in delta.tensors if delta is not None else ():
        if change.name not in values or values[change.name].shape != change.shape:
            got = values[change.name].shape if change.name in values else "no such parameter"
            raise MismatchError(f"delta does not fit the encoder: expected {change.name} {change.shape}, got {got}")
        values[change.name] = apply_delta(values[change.name], change)
    return values


def expectations(encoder: Encoder, delta: Delta | None, bundle: Bundle) -> Array:
    """Expected features on the bundle's probes, float32 (n, width); `delta` None gives those of the parent."""
    return run_encoder(edited_encoder(encoder, delta, bundle.precision), bundle.probes())


def deployed_values(parameters: Mapping[str, Array], bundle: Bundle, weights: Mapping[str, Array]) -> dict[str, Array]:
    """`parameters` (name -> float32) with the deployed tensors `weights` (deployed name -> array, all of the bundle's) in the place
    of those that they hold: int8 codes as scale * code, every other dtype widened.

    Raises InputError when the scales of an int8 tensor are missing or do not fit."""
    values = dict(parameters)
    for tensor in bundle.tensor_map.tensors:
        if not tensor.parameter:
            continue
        value = weights[tensor.name]
        if tensor.dtype == "int8":
            value = decode_codes(value, tensor, weights)
        single = widen(value)
        values[tensor.parameter] = np.ascontiguousarray(single.T if tensor.transposed else single).reshape(values[tensor.parameter].shape)
    return values


def deployed_encoder(encoder: Encoder, bundle: Bundle, weights: Mapping[str, Array]) -> Encoder:
    """A copy of the encoder with `deployed_values`; it computes in float32."""
    return with_values(encoder, deployed_values(parameter_values(encoder, "float32"), bundle, weights))


def deployed_expectations(encoder: Encoder, bundle: Bundle, weights: Mapping[str, Array]) -> Array:
    """Features on the bundle's probes, float32 (n, width), of `deployed_encoder`."""
    return run_encoder(deployed_encoder(encoder, bundle, weights), bundle.probes())


def check_probes(old_outputs: Array, new_outputs: Array, tolerance: float, margin: float = MARGIN) -> None:
    """Raise InputError unless at least one probe tells the edited encoder from its parent: |new - old| >= margin x tolerance."""
    if old_outputs.shape != new_outputs.shape or old_outputs.size == 0:
        raise InputError(f"probes do not compare: expected shape {old_outputs.shape}, got {new_outputs.shape}")
    moved = float(np.abs(new_outputs.astype(np.float64) - old_outputs.astype(np.float64)).max())
    # `not >=` also refuses a NaN.
    if not moved >= margin * tolerance:
        raise InputError(
            f"no probe sees the edit: expected a change of at least {margin * tolerance:.3g}, got {moved:.3g}",
            hint="export the bundle with probe images like those that the edit repairs",
        )
