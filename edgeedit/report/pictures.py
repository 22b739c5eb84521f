"""Thumbnails of images named in a Delta, as data URIs.

Guarantees: never raises for an image that is missing, damaged, too large or not a regular file: the answer is None
and the report shows the file's name.  Needs pillow only when called.
"""

from __future__ import annotations

import base64
import io
from pathlib import Path

from edgeedit.limits import MAX_IMAGE_PIXELS

SIDE = 168  # pixels of the longer side; printed at about 26 mm that is 160 dpi
_QUALITY = 80


def thumbnail(image: str) -> str | None:
    """`data:image/jpeg;base64,...` of the image file, or None when it cannot be shown."""
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
        small.thumbnail((SIDE, SIDE))
        buffer = io.BytesIO()
        small.save(buffer, "JPEG", quality=_QUALITY, optimize=True)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None  # pillow reports damaged files with any of these
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
