"""What a patch's probes expect and how far a device may lie from it, measured on the very weights that the patch makes.

In float32 and int8 a device computes in float32 and differs by rounding errors that are tiny beside any edit: the Bundle's tolerance
serves.  In float16 and bfloat16 the difference is a few rare values of the features, other ones for other weights: it is measured anew on
the changed graph and on its parent.  Does not decide whether an edit is good, only whether a device can show that it runs it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeedit.bundle import Bundle
from edgeedit.codec.probes import round_probes
from edgeedit.delta import Delta
from edgeedit.deploy.compare import run_encoder, run_graph
from edgeedit.deploy.materialize import write_weights
from edgeedit.deploy.probes import MARGIN_MEASURED, check_probes, deployed_expectations, edited_values, expectations
from edgeedit.deploy.tolerance import half_features, tolerance_of
from edgeedit.encoder.values import with_values

if TYPE_CHECKING:
    from edgeedit.encoder.encoder import Encoder

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Proof:
    """`expected` features on the Bundle's probes, float32 (n, width), as a patch carries them; `tolerance` in their unit."""

    expected: Array
    tolerance: float


def prove(encoder: Encoder, delta: Delta, bundle: Bundle, weights: Mapping[str, Array]) -> Proof:
    """What the probes must give with `weights` (every deployed tensor of the bundle with `delta` applied).

    Raises InputError when no probe tells them from the bundle's own, or when the precision is too coarse for the edited encoder."""
    if bundle.precision in ("float16", "bfloat16"):
        return _measured(encoder, delta, bundle, weights)
    if any(tensor.dtype == "int8" for tensor in bundle.tensor_map.tensors):
        former, expected = (deployed_expectations(encoder, bundle, held) for held in (bundle.weights(), weights))
    else:
        former, expected = (expectations(encoder, change, bundle) for change in (None, delta))
    expected = round_probes(expected, bundle.tolerance)  # before it is judged: the device compares with what the patch carries
    check_probes(former, expected, bundle.tolerance)
    return Proof(expected, bundle.tolerance)


def _measured(encoder: Encoder, delta: Delta, bundle: Bundle, weights: Mapping[str, Array]) -> Proof:
    pixels, precision = bundle.probes(), bundle.precision
    old, new = (edited_values(encoder, change, precision) for change in (None, delta))
    exact = run_encoder(with_values(encoder, new), pixels)
    others = [half_features(encoder, new, precision, pixels)]
    if precision == "float16":  # no CPU session runs bfloat16
        with tempfile.TemporaryDirectory(prefix="edgeedit-") as folder:
            write_weights(bundle, weights, Path(folder))
            others.append(run_graph(Path(folder), pixels))
    tolerance = tolerance_of(exact, others, precision)
    expected = round_probes(exact, tolerance)
    # However the parent is computed, it must be told apart.
    for former in (run_encoder(with_values(encoder, old), pixels), half_features(encoder, old, precision, pixels)):
        if former is not None:
            check_probes(former, expected, tolerance, MARGIN_MEASURED)
    return Proof(expected, tolerance)
