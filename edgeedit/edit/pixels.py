"""Pictures and pixel arrays that were normalised otherwise than the recipe expects, told by their statistics.

Guarantees: only what no camera makes is refused, never a set that is merely dark, bright, flat or black and white.  What statistics
cannot tell (pictures stretched to full contrast, say) passes; a reader's own record of its normalisation is compared elsewhere.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgeedit.bundle import Preprocess
from edgeedit.errors import InputError

Array = np.ndarray[Any, Any]
CAST = 3  # largest 8-bit value of a standardised (mean 0, spread 1) or 0..1 number that was cast; a negative one wraps to 253 or more
SLACK, FEW = 0.25, 0.01  # part of the legal range beyond it, and share of pixels there, that interpolation may cause


def check_levels(counts: Array) -> None:
    """Refuse pictures whose 8-bit values are cast small numbers; `counts` (256,) int64 over all pixels of a set.

    Such a set has values up to 3, none from 4 to 252, and not only the 0 and 255 of black-and-white pictures."""
    if counts[1 : CAST + 1].any() and not counts[CAST + 1 : 256 - CAST].any():
        raise InputError(
            f"images are not pictures of 8 bits: expected values over 0..255, got none from {CAST + 1} to {255 - CAST}",
            hint="0..1 or standardised numbers were stored as bytes; store the pictures as the camera gives them, edgeedit normalises",
        )


def check_pixels(pixels: Array, preprocess: Preprocess) -> None:
    """Refuse an array (n, 3, s, s) that `preprocess` cannot have made of pictures; raises InputError."""
    mean, std = (np.asarray(v, dtype=np.float32).reshape(3, 1, 1) for v in (preprocess.mean, preprocess.std))
    wanted = f"expected (picture / 255 - {preprocess.mean}) / {preprocess.std}"
    hint = "make the array with load_pixels(shots, encoder.preprocess)"
    if not np.isfinite(pixels).all():
        raise InputError("pixels are not finite: expected numbers, got NaN or infinity", hint="check the images")
    grey = pixels * std + mean  # 0..1 for a picture
    if ((grey < -SLACK) | (grey > 1 + SLACK)).mean() > FEW:
        raise InputError(f"pixels are normalised otherwise: {wanted}, got values from {pixels.min():.3g} to {pixels.max():.3g}", hint=hint)
    low, high = pixels.min(), pixels.max()
    if any(preprocess.mean) and 0 <= low < high <= 1:
        steps = pixels * 255  # whole numbers only where a picture was divided by 255 and not normalised
        if np.abs(steps - np.rint(steps)).max() < 1e-3:
            raise InputError(f"pixels are normalised otherwise: {wanted}, got a picture / 255 as it is", hint=hint)
