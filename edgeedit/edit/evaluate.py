"""Judging an encoder on held-out images: its features, a reader's labels, and one set before and after an edit.

Guarantees: error, AUC and share of each verdict of a set are computed together from the same logits, (n, classes).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from edgeedit.edit.pixels import check_pixels
from edgeedit.edit.readers import Reader
from edgeedit.edit.shots import Shots
from edgeedit.edit.statistics import auc, balanced_error, mcnemar, paired_change, verdict_shares, wilson
from edgeedit.encoder.encoder import Encoder
from edgeedit.errors import InputError
from edgeedit.metrics import SetResult

Array = np.ndarray[Any, Any]
BATCH = 32  # images per forward pass


def features(encoder: Encoder, pixels: Array) -> Array:
    """Features in float32 arithmetic, (n, width), computed where the encoder is; `pixels` float32 (n, 3, s, s).

    Raises InputError when they are not finite, or when the pixels are not what the recipe's normalisation makes."""
    check_pixels(pixels, encoder.preprocess)
    device = encoder.device
    with torch.inference_mode():
        batches = (torch.from_numpy(np.ascontiguousarray(pixels[i : i + BATCH])) for i in range(0, len(pixels), BATCH))
        parts = [encoder(batch.to(device)).cpu().numpy() for batch in batches]
    rows: Array = np.concatenate(parts)
    if not np.isfinite(rows).all():
        raise InputError("features are not finite: expected numbers, got NaN or infinity", hint="check the images and the encoder")
    return rows


def row_cosines(before: Array, after: Array) -> list[float]:
    """Cosine of each image's features before and after, six decimals; two arrays (n, width)."""
    a, b = before.astype(np.float64), after.astype(np.float64)
    lengths = np.maximum(np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1), 1e-12)
    return [round(float(value), 6) for value in (a * b).sum(axis=1) / lengths]


def reader_labels(shots: Shots, reader: Reader) -> Array:
    """Labels as the reader's class numbers; raises InputError naming a class that the reader does not know."""
    unknown = sorted(set(shots.classes) - set(reader.classes))
    if unknown:
        raise InputError(f"label is unknown to the reader: expected one of {list(reader.classes)}, got {unknown[0]}")
    table = np.array([reader.classes.index(name) for name in shots.classes], dtype=np.int64)
    return table[shots.labels] if shots.classes else shots.labels


def judge(name: str, shots: Shots, labels: Array, reader: Reader, before: Array, after: Array) -> SetResult:
    """Compare logits before and after, (n, classes), on one held-out set with labels >= 0."""
    verdicts = before.argmax(1), after.argmax(1)
    wrong = verdicts[0] != labels, verdicts[1] != labels
    fixed, broken = int((wrong[0] & ~wrong[1]).sum()), int((~wrong[0] & wrong[1]).sum())
    areas: list[float | None] = [None, None]
    if len(reader.classes) == 2 and len(np.unique(labels)) == 2:
        areas = [auc(labels, logits[:, 1] - logits[:, 0]) for logits in (before, after)]
    return SetResult(
        name,
        int(labels.size),
        balanced_error(labels, verdicts[0]),
        balanced_error(labels, verdicts[1]),
        areas[0],
        areas[1],
        wilson(int(wrong[0].sum()), int(labels.size)),
        wilson(int(wrong[1].sum()), int(labels.size)),
        fixed,
        broken,
        mcnemar(fixed, broken),
        paired_change(labels, wrong[0], wrong[1], shots.groups),
        tuple(zip(reader.classes, verdict_shares(verdicts[0], len(reader.classes)), strict=True)),
        tuple(zip(reader.classes, verdict_shares(verdicts[1], len(reader.classes)), strict=True)),
    )
