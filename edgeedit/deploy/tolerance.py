"""How far a device's features may lie from the expected ones: measured, never guessed.

The tolerance is a multiple of the largest difference that the same weights show on the server when they are computed in another way:
by the deployed graph in ONNX Runtime and, below float32, by torch with every intermediate result in the deployed precision, as a device
with native half-precision kernels computes (x86-64 computes most of a float16 graph in float32).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeedit.deploy.compare import difference, run_encoder
from edgeedit.deploy.graph import TORCH_DTYPES, Borders
from edgeedit.encoder.values import with_values
from edgeedit.errors import InputError

if TYPE_CHECKING:
    from edgeedit.encoder.encoder import Encoder

Array = np.ndarray[Any, Any]
SAFETY = 4.0  # tolerance = this many times the measured difference, so that another CPU of the same kind stays inside
# Least tolerance and largest difference, both times the RMS of the features; an int8 graph computes in float32.
FLOOR: Mapping[str, float] = {"float32": 1e-5, "float16": 1e-3, "bfloat16": 8e-3, "int8": 1e-5}
ABSURD: Mapping[str, float] = {"float32": 1e-3, "float16": 5e-2, "bfloat16": 0.25, "int8": 1e-3}
# Of a graph that is run for its structure; a bfloat16 one is run in float32, where only its constants are rounded.
STRUCTURE: Mapping[str, float] = {**ABSURD, "bfloat16": 5e-2}


def scale_of(features: Array) -> float:
    """Root mean square of features, at least 1e-6."""
    return max(float(np.sqrt(np.mean(np.square(features, dtype=np.float64)))), 1e-6)


def half_features(encoder: Encoder, values: Mapping[str, Array], precision: str, pixels: Array) -> Array | None:
    """Features float32 (n, width) with every intermediate result in `precision`; None where that is float32 or int8."""
    if precision not in ("float16", "bfloat16"):
        return None
    dtype = TORCH_DTYPES[precision]
    return run_encoder(Borders(with_values(encoder, values, dtype), dtype), pixels)


def tolerance_of(expected: Array, others: Iterable[Array | None], precision: str) -> float:
    """The tolerance (output units) that covers `others`, computed in other ways from the same weights; raises InputError when one is
    not finite or absurdly far from `expected`: no probe could then prove anything."""
    scale, worst = scale_of(expected), 0.0
    for other in (o for o in others if o is not None):
        worst = max(worst, difference(expected, other).max_abs if np.isfinite(other).all() else np.inf)
    if worst > ABSURD[precision] * scale:
        raise InputError(
            f"encoder is too coarse in {precision}: expected features within {ABSURD[precision] * scale:.3g} of float32's, got {worst:.3g}",
            hint="export in float32" if precision == "bfloat16" else "export in float32, or for a bfloat16 device",
        )
    return max(SAFETY * worst, FLOOR[precision] * scale)
