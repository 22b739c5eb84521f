"""What the verdict leans on: occlusion maps of single images, and the nearest images that the edit was made with.

Guarantees: a map needs nothing but passes of the encoder (no attention weights, which are no evidence); the window takes whole patches;
before and after of one image are measured in the same unit, logits.  Says where, never why.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from edgeedit.edit.evaluate import features
from edgeedit.edit.readers import Reader
from edgeedit.encoder.encoder import Encoder

Array = np.ndarray[Any, Any]
CELLS = 7  # of one side of a map, at most
CAUTION = (
    "An occlusion map says how much the margin of the true class falls when a grey window covers that place of this one image. "
    "It does not prove why the encoder decides so, nor that the next image is read in the same way; "
    "windows that act only together stay unseen."
)


def window_of(encoder: Encoder) -> int:
    """Side of the covering window in pixels: whole patches, so that a map has at most CELLS x CELLS places."""
    patch = encoder.preprocess.size // encoder.side
    return patch * -(-encoder.side // CELLS)


def occlusion(encoder: Encoder, reader: Reader, pixels: Array, labels: Array) -> Array:
    """Fall of the margin of the true class (its logit minus the best other one) when one window is the mean colour; float32
    (n, cells, cells), positive where the covered place speaks for the truth.  `pixels` float32 (n, 3, s, s), `labels` int64 (n,)."""
    window, size = window_of(encoder), encoder.preprocess.size
    places = range(0, size, window)
    maps = np.empty((len(pixels), len(places), len(places)), np.float32)
    for number, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        covered = np.repeat(image[None], 1 + len(places) ** 2, axis=0)
        for place, (top, left) in enumerate((y, x) for y in places for x in places):
            covered[1 + place, :, top : top + window, left : left + window] = 0.0  # normalised: the mean colour
        margins = margin(reader, features(encoder, covered), np.full(len(covered), label))
        maps[number] = (margins[0] - margins[1:]).reshape(len(places), len(places))
    return maps


def margin(reader: Reader, rows: Array, labels: Array) -> Array:
    """Logit of the label minus the largest other logit of its question, float32 (n,)."""
    logits = reader.verdict_logits(reader.logits_numpy(rows), labels).astype(np.float32)
    own = logits[np.arange(len(rows)), labels]
    others = logits.copy()
    others[np.arange(len(rows)), labels] = -np.inf
    result: Array = own - others.max(axis=1)
    return result


def nearest(rows: Array, stored: Array, mean: Array, count: int) -> list[list[tuple[int, float]]]:
    """For each of `rows` (n, width) the (number, cosine) of its `count` nearest of `stored` (m, width), both centred by `mean`."""

    def unit(values: Array) -> Array:
        centred = values.astype(np.float64) - mean
        result: Array = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)
        return result

    cosines = unit(rows) @ unit(stored).T
    order = np.argsort(-cosines, axis=1, kind="stable")[:, :count]
    return [[(int(i), float(own[i])) for i in best] for own, best in zip(cosines, order, strict=True)]


def spread_over(count: int, limit: int) -> Sequence[int]:
    """At most `limit` of `count` positions, evenly spaced and always the same."""
    return list(range(count)) if count <= limit else [round(i * (count - 1) / (limit - 1)) for i in range(limit)] if limit > 1 else [0]
