"""Synthetic images: smooth random colour patterns, for probes and for retention where no real image is at hand.

Guarantees: the same seed gives the same pixels; nothing is downloaded.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgeedit.bundle import Preprocess

Array = np.ndarray[Any, Any]
WAVES = 12  # per image and channel


def synthetic_pixels(preprocess: Preprocess, count: int, seed: int) -> Array:
    """Smooth random colour patterns with a little noise, normalised; float32 (count, 3, size, size)."""
    generator = np.random.default_rng(seed)
    axis = np.linspace(0.0, 1.0, preprocess.size)
    shape = (count, 3, WAVES)
    amplitude = generator.normal(size=shape)
    down, across = (generator.uniform(-6.0, 6.0, shape) for _ in range(2))  # periods per image
    phase = generator.uniform(0.0, 2 * np.pi, shape)
    angle_down = np.exp(2j * np.pi * down[..., None] * axis)
    angle_across = amplitude[..., None] * np.exp(2j * np.pi * across[..., None] * axis + 1j * phase[..., None])
    image = np.einsum("ncwi,ncwj->ncij", angle_down, angle_across).real
    image += generator.normal(0.0, 0.3, image.shape)
    low, high = (edge(image, axis=(2, 3), keepdims=True) for edge in (np.min, np.max))
    mean, std = (np.asarray(values).reshape(1, 3, 1, 1) for values in (preprocess.mean, preprocess.std))
    pixels: Array = (((image - low) / (high - low)) - mean) / std
    return pixels.astype(np.float32)
