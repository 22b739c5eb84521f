"""Thumbnails of images named in a Delta, as data URIs.

Guarantees: never raises for an image that is missing, damaged, too large or not a regular file: the answer is None
and the report shows the file's name.  Needs pillow only when called.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeedit.limits import MAX_IMAGE_PIXELS

SIDE = 168  # pixels of the longer side; printed at about 26 mm that is 160 dpi
_QUALITY = 80
_RED, _BLUE, _COVER = (200, 40, 30), (25, 90, 170), 200  # of a full cell, with its opacity of 255


def _small(image: str, side: int) -> Any:
    """The picture in RGB with its longer side at most `side` pixels, or None when it cannot be shown."""
    try:
        from PIL import Image
    except ModuleNotFoundError:
        return None
    try:
        path = Path(image)
        if not path.is_file():  # also keeps pipes and devices from being read
            return None
        with Image.open(path) as picture:
            if picture.width * picture.height > MAX_IMAGE_PIXELS:
                return None
            # The same conversion as the encoder's input, so the reader of the report sees what the encoder saw.
            small = picture.convert("RGB")
        small.thumbnail((side, side))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None  # pillow reports damaged files with any of these
    return small


def _uri(picture: Any, kind: str) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, kind.upper(), **({"quality": _QUALITY, "optimize": True} if kind == "jpeg" else {"optimize": True}))
    return f"data:image/{kind};base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def thumbnail(image: str, side: int = SIDE) -> str | None:
    """`data:image/jpeg;base64,...` of the image file, its longer side at most `side` pixels; None when it cannot be shown."""
    small = _small(image, side)
    return None if small is None else _uri(small, "jpeg")


def heat(image: str, cells: Sequence[Sequence[float]], limit: float) -> str:
    """A data URI of `cells` (square, any size; red above zero, blue below, full colour at `limit`) over the grey picture, over white
    where it cannot be shown.  Raises ModuleNotFoundError without pillow."""
    from PIL import Image

    small = _small(image, SIDE)
    grey = (small if small is not None else Image.new("RGB", (SIDE, SIDE), "white")).convert("L").resize((SIDE, SIDE))
    values = np.clip(np.asarray(cells, dtype=np.float64) / (limit or 1.0), -1, 1)
    colour = np.where(values[..., None] > 0, np.array(_RED), np.array(_BLUE))
    cover = np.concatenate([colour, np.rint(_COVER * np.abs(values)[..., None])], axis=2).astype(np.uint8)
    over = Image.fromarray(cover, "RGBA").resize((SIDE, SIDE), Image.Resampling.NEAREST)
    return _uri(Image.alpha_composite(grey.convert("RGBA"), over).convert("RGB"), "jpeg")
