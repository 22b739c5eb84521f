"""Expected probe outputs as whole multiples of a power of two that is small beside the tolerance (FORMAT 5).

A device compares |output - expected| with the tolerance, so bits far below it prove nothing.  The step is at most half of the
tolerance: rounding moves an expectation by at most a quarter of it, and a tolerance is four times what was measured (deploy/export.py).
Whoever packs rounds first and judges the rounded numbers; the coding itself is exact.  Every probe but the first is coded as the
difference to the one before: images of one camera have much in common.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from edgeedit.codec import planes
from edgeedit.errors import IntegrityError
from edgeedit.limits import MAX_SCALE_EXP, MIN_SCALE_EXP

Array = np.ndarray[Any, Any]
_WHOLE = 1 << 24  # integers up to here are exact in float32


def probe_step(tolerance: float) -> float:
    """The largest power of two that is at most half of `tolerance`, held inside the range of a scale."""
    _, exponent = math.frexp(tolerance / 2)
    return 2.0 ** min(max(exponent - 1, MIN_SCALE_EXP), MAX_SCALE_EXP)


def round_probes(expected: Array, tolerance: float) -> Array:
    """`expected` (float32) rounded to whole multiples of `probe_step(tolerance)`; as it is where one is too large for that."""
    step = probe_step(tolerance)
    whole = np.rint(expected.astype(np.float64) / step)
    if not np.isfinite(whole).all() or np.abs(whole).max(initial=0.0) > _WHOLE or step > tolerance / 2:
        return expected
    rounded: Array = (whole * step + 0.0).astype(np.float32)  # + 0.0: no negative zero
    return rounded


def encode_probes(expected: Array, step: float) -> bytes | None:
    """The section of `expected` (float32, 2-D), or None when a value is not a whole multiple of `step` or is a negative zero."""
    with np.errstate(over="ignore"):
        whole = expected.astype(np.float64) / step
    lossless = np.isfinite(whole).all() and (whole == np.rint(whole)).all() and np.abs(whole).max() <= _WHOLE
    if not lossless or np.signbit(expected[expected == 0]).any():
        return None
    return planes.pack(np.diff(whole.astype(np.int64), axis=0, prepend=0).reshape(-1), 4)


def decode_probes(data: bytes, count: int, width: int, step: float) -> Array:
    """Expected outputs, float32 (count, width), of a section with `step`; raises IntegrityError."""
    whole = np.cumsum(planes.unpack(data, count * width, 4, "probe section").reshape(count, width), axis=0)
    if int(np.abs(whole).max()) > _WHOLE:
        raise IntegrityError(f"probe section has a wrong value: expected integers of at most {_WHOLE}")
    result: Array = whole.astype(np.float32) * np.float32(step)
    return result
