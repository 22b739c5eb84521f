"""What is kept of a frame: its features through a fixed random projection, and how bright, sharp, saturated and even the picture is.

Guarantees: the projection is the same on every platform and numpy version, as it uses a generator's raw bits only.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgeedit.bundle import Preprocess
from edgeedit.errors import InputError

Array = np.ndarray[Any, Any]
PROJECTED = 32  # numbers to which the features of a frame are projected
IMAGE_SIGNALS = ("brightness", "sharpness", "saturation", "unevenness")
SEED = 20_261_125
_GRID = 8  # blocks a side for the unevenness
_FULL, _EMPTY = 250 / 255, 5 / 255  # a pixel beyond these holds no picture any more


class Projection:
    """A random projection by signs (Achlioptas 2003): rows float32 (n, width) -> float32 (n, PROJECTED)."""

    def __init__(self, width: int, seed: int = SEED) -> None:
        # Raw bits: numpy promises their stream, and not that of its distributions.
        words = np.random.PCG64(seed).random_raw(-(-width * PROJECTED // 64)).astype("<u8")
        signs = np.unpackbits(words.view(np.uint8), bitorder="little")[: width * PROJECTED].reshape(width, PROJECTED)
        self._matrix = (signs.astype(np.float32) * 2 - 1) / np.float32(np.sqrt(width))

    def __call__(self, rows: Array) -> Array:
        """Project; raises InputError when the width is another."""
        if rows.ndim != 2 or rows.shape[1] != len(self._matrix):
            raise InputError(f"features do not fit the projection: expected (n, {len(self._matrix)}), got {rows.shape}")
        projected: Array = rows.astype(np.float32, copy=False) @ self._matrix
        return projected


def image_signals(picture: Array) -> Array:
    """IMAGE_SIGNALS of 8-bit pictures uint8 (n, 3, s, s), as float32 (n, 4), from the green channel on 0..1.

    brightness: mean; sharpness: mean |difference of neighbours| in a row over the picture's standard deviation (defocus lowers it);
    saturation: share of pixels that are full or empty; unevenness: standard deviation of the means of an 8 x 8 grid (dirt, shadows)."""
    green = picture[:, 1].astype(np.float32) / np.float32(255)
    count, side = green.shape[:2]
    sharpness = np.abs(np.diff(green, axis=2)).mean(axis=(1, 2)) / np.maximum(green.std(axis=(1, 2)), 1e-3)
    saturation = ((green >= _FULL) | (green <= _EMPTY)).mean(axis=(1, 2))
    grid = min(_GRID, side)
    block = side // grid
    blocks = green[:, : block * grid, : block * grid].reshape(count, grid, block, grid, block).mean(axis=(2, 4))
    uneven = blocks.reshape(count, -1).std(axis=1)
    return np.stack([green.mean(axis=(1, 2)), sharpness, saturation, uneven], axis=1).astype(np.float32)


def to_picture(pixels: Array, preprocess: Preprocess) -> Array:
    """Normalised pixels float32 (n, 3, s, s) as the 8-bit picture uint8 that they were made of."""
    mean, std = (np.asarray(v, dtype=np.float32).reshape(1, 3, 1, 1) for v in (preprocess.mean, preprocess.std))
    picture: Array = (np.clip(pixels * std + mean, 0.0, 1.0) * 255).round().astype(np.uint8)
    return picture


def to_pixels(picture: Array, preprocess: Preprocess) -> Array:
    """The way back: uint8 (n, 3, s, s) to normalised float32."""
    mean, std = (np.asarray(v, dtype=np.float32).reshape(1, 3, 1, 1) for v in (preprocess.mean, preprocess.std))
    pixels: Array = (picture.astype(np.float32) / np.float32(255) - mean) / std
    return pixels
