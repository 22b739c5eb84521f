"""How far an edited encoder has moved from its base: linear CKA per block, shift of the features, agreement at the border.

Guarantees: all figures compare the same images before and after; 1 means unchanged for CKA and agreement, 0 means unchanged
for a shift.  Nothing here needs labels.
"""

from __future__ import annotations

import statistics as plain
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from edgeedit.edit.evaluate import BATCH, features
from edgeedit.encoder.encoder import Encoder
from edgeedit.errors import InputError
from edgeedit.mmd import mmd_test

Array = np.ndarray[Any, Any]
BORDER = 0.05  # gap of the two largest probabilities below which an image is borderline (Where-to-Edit, arXiv 2411.01948)

SHOWN_ROWS = 256  # images of a set on the plane and in the test of its populations; evenly spaced, so that classes keep their shares


@dataclass(frozen=True)
class Drift:
    """`cka` one value per block (0..1); `shift` root mean square change of the features in units of the base's spread;
    `cosine` mean cosine distance of the centred features (0..2)."""

    cka: tuple[float, ...]
    shift: float
    cosine: float


def linear_cka(x: Array, y: Array) -> float:
    """Linear centred kernel alignment of two (n, width) sets of rows (Kornblith et al. 2019):
    |Yc'Xc|_F^2 / (|Xc'Xc|_F |Yc'Yc|_F).  Raises InputError when the rows do not belong together or do not vary."""
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y) or len(x) < 2:
        raise InputError(f"rows do not belong together: expected two sets of the same images, got {x.shape} and {y.shape}")
    a, b = (rows.astype(np.float64) - rows.mean(axis=0, dtype=np.float64) for rows in (x, y))
    scale = float(np.linalg.norm(a.T @ a) * np.linalg.norm(b.T @ b))
    if scale == 0:
        raise InputError("rows do not vary: expected images with different features, got one point")
    return float(np.linalg.norm(b.T @ a) ** 2 / scale)


def block_rows(encoder: Encoder, pixels: Array) -> list[Array]:
    """Mean token of every block's output, (n, model width) each; `pixels` float32 (n, 3, s, s)."""
    found: list[list[torch.Tensor]] = [[] for _ in range(encoder.blocks)]

    def keep(block: int) -> Any:
        def hook(_module: Any, _given: Any, output: Any) -> None:
            tokens = output[0] if isinstance(output, tuple) else output
            found[block].append(tokens.detach().float().mean(dim=1).cpu())

        return hook

    handles = [encoder.wrapped.get_submodule(_block_name(encoder, b)).register_forward_hook(keep(b)) for b in range(encoder.blocks)]
    try:
        with torch.inference_mode():
            for start in range(0, len(pixels), BATCH):
                encoder(torch.from_numpy(np.ascontiguousarray(pixels[start : start + BATCH])).to(encoder.device))
    finally:
        for handle in handles:
            handle.remove()
    return [torch.cat(parts).numpy() for parts in found]


def _block_name(encoder: Encoder, block: int) -> str:
    """Module that holds one block: the part of a first-FFN name up to and including the block's number."""
    pattern = encoder.names["fc1"]
    return pattern[: pattern.index("{block}") + len("{block}")].format(block=block)


def embedding_shift(before: Array, after: Array) -> tuple[float, float]:
    """(root mean square change in units of the base's spread per feature, mean cosine distance of the centred rows)."""
    mean, spread = before.mean(axis=0, dtype=np.float64), np.maximum(before.std(axis=0, dtype=np.float64), 1e-6)
    moved = float(np.sqrt((((after - before) / spread) ** 2).mean()))
    a, b = before - mean, after - mean
    lengths = np.maximum(np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1), 1e-12)
    return moved, float(1 - ((a * b).sum(axis=1) / lengths).mean())


def feature_movement(before: Mapping[str, Array], after: Mapping[str, Array]) -> dict[str, Any]:
    """How the features of each set moved, as plain JSON by set; `before` and `after` hold features (n, width) of the same images by set.

    `explained`: shares of the variance of the set's base features on the two axes of its plane, their main directions (PCA; one plane
    for all sets would be that of the set which lies furthest away).  `n` images, `before` and `after` their places [x, y] in units of
    the base's spread on the first axis, and the squared MMD of the two populations with its permutation `p` (Gretton et al. 2012): one
    half of the images, drawn once, by the base, the other half patched, as the test wants samples that know nothing of each other.
    A set of fewer than four images, or whose base features do not vary, is left out."""
    found: dict[str, Any] = {}
    for name in before:
        own, moved = _shown(before[name]), _shown(after[name])
        mean, axes, shares = _main_plane(own) if len(own) >= 4 else (own, own[:0], [])
        if not axes.size:
            continue
        halves = np.array_split(np.random.default_rng(0).permutation(len(own)), 2)
        value, p = mmd_test(own[halves[0]], moved[halves[1]])
        places = ([[round(float(v), 3) for v in row] for row in (side - mean) @ axes] for side in (own, moved))
        figures = {"n": len(own), "explained": [round(share, 6) for share in shares], "mmd": round(value, 6), "p": round(p, 6)}
        found[name] = {**figures, **dict(zip(("before", "after"), places, strict=True))}
    return found


def _shown(rows: Array) -> Array:
    picked: Array = rows[np.unique(np.linspace(0, len(rows) - 1, min(len(rows), SHOWN_ROWS)).round().astype(int))].astype(np.float64)
    return picked


def _main_plane(rows: Array) -> tuple[Array, Array, list[float]]:
    """(mean, two axes as columns scaled so that the first coordinate has unit spread, shares of the variance); no axes for one point."""
    mean = rows.mean(axis=0)
    centred = rows - mean
    # Rows are few and features may be many (the tokens a language model reads): the Gram matrix is the small one.
    values, vectors = np.linalg.eigh(centred @ centred.T)
    values, vectors = np.maximum(values[::-1][:2], 0.0), vectors[:, ::-1][:, :2]
    total = float((centred * centred).sum())
    if values[0] <= 1e-12 * max(1.0, total):
        return mean, np.zeros((rows.shape[1], 0)), []
    axes = centred.T @ vectors / np.where(values > 1e-12 * values[0], np.sqrt(np.maximum(values, 1e-300)), np.inf)
    # An axis may point either way: the side of its largest component is the positive one.
    axes = axes * np.where(axes[np.abs(axes).argmax(axis=0), [0, 1]] < 0, -1.0, 1.0)
    return mean, axes / np.sqrt(values[0] / len(rows)), [float(value / total) for value in values]


def drift(base: Encoder, edited: Encoder, pixels: Array, base_rows: tuple[list[Array], Array] | None = None) -> Drift:
    """Drift of `edited` against `base` on normalised `pixels`; `base_rows` are the base's (block rows, features) if known."""
    blocks, rows = base_rows if base_rows is not None else rows_of(base, pixels)
    new_blocks, new_rows = rows_of(edited, pixels)
    shift, cosine = embedding_shift(rows, new_rows)
    return Drift(tuple(linear_cka(a, b) for a, b in zip(blocks, new_blocks, strict=True)), shift, cosine)


def rows_of(encoder: Encoder, pixels: Array) -> tuple[list[Array], Array]:
    """(mean token of every block, features) of one encoder, for `drift`."""
    return block_rows(encoder, pixels), features(encoder, pixels)


def borderline_agreement(before: Array, after: Array, gap: float = BORDER) -> tuple[float | None, int]:
    """(share of the base's borderline images whose verdict stays, their number) from logits (n, classes).

    Borderline: the base's two largest probabilities lie closer than `gap`; (None, 0) when there is no such image."""
    shifted = np.exp(before - before.max(axis=1, keepdims=True))
    top = np.sort(shifted / shifted.sum(axis=1, keepdims=True), axis=1)[:, -2:]
    near = (top[:, 1] - top[:, 0]) < gap
    if not near.any():
        return None, 0
    return float((before[near].argmax(axis=1) == after[near].argmax(axis=1)).mean()), int(near.sum())


@dataclass(frozen=True)
class Advice:
    """`action` is `go on`, `squash` or `retrain`; `reason` a sentence; `every` the mistakes to collect for one update, or None."""

    action: str
    reason: str
    every: int | None


def advise(gains: Sequence[float], drifts: Sequence[float], length: int, max_length: int, max_drift: float) -> Advice:
    """What to do with a chain of `length` patches.  `gains[t]` is the fall of the target error by update t, `drifts[t]` the
    embedding shift against the base after it; `max_drift` the shift at which the base should be trained anew.

    Retrain when the shift is above `max_drift`, or when the last three updates together gain nothing; squash when the
    chain is nearly as long as a device takes.  How often: updates are worth it while gain per drift holds; where the
    later half's gain per drift is below half of the earlier half's, collect twice as many mistakes for one update."""
    if len(gains) != len(drifts) or not gains:
        raise InputError(f"chain is inconsistent: expected one gain and one drift for each update, got {len(gains)} and {len(drifts)}")
    every = _every(gains, drifts)
    if drifts[-1] > max_drift:
        return Advice("retrain", f"features moved by {drifts[-1]:.2f} of their spread: the limit is {max_drift:.2f}", every)
    if len(gains) >= 6 and sum(gains[-3:]) <= 0:
        return Advice("retrain", "the last three updates together did not lower any error", every)
    if length >= max_length - 1:
        return Advice("squash", f"chain holds {length} patches: a device takes {max_length}", every)
    return Advice("go on", f"features moved by {drifts[-1]:.2f} of their spread after {length} patches", every)


@dataclass(frozen=True)
class Pace:
    """What one update more costs and gives: `gain` fall of the target error, `drift` rise of the embedding shift, both mean
    per update over the last `updates` of the chain after update number `after`; `rate` gain per drift, None without drift."""

    after: int
    updates: int
    gain: float
    drift: float
    rate: float | None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON object."""
        return asdict(self)


def pace(gains: Sequence[float], drifts: Sequence[float], window: int = 5) -> tuple[Pace, ...]:
    """Gain per update against drift per update along a chain, in windows of `window` updates (the last may be shorter).

    `gains[t]` is the fall of the target error by update t, `drifts[t]` the shift against the base after it.  Raises InputError
    when the two do not belong together."""
    if len(gains) != len(drifts) or not gains or window < 1:
        raise InputError(f"chain is inconsistent: expected one gain and one drift for each update, got {len(gains)} and {len(drifts)}")
    steps = [b - a for a, b in zip([0.0, *drifts[:-1]], drifts, strict=True)]
    found = []
    for start in range(0, len(gains), window):
        own, moved = plain.fmean(gains[start : start + window]), plain.fmean(steps[start : start + window])
        count = len(gains[start : start + window])
        found.append(Pace(start + count, count, own, moved, own / moved if moved > 0 else None))
    return tuple(found)


def _every(gains: Sequence[float], drifts: Sequence[float]) -> int | None:
    if len(gains) < 4:
        return None
    steps = [b - a for a, b in zip([0.0, *drifts[:-1]], drifts, strict=True)]
    half = len(gains) // 2
    rates = [plain.fmean(gains[part]) / max(1e-9, plain.fmean(steps[part])) for part in (slice(0, half), slice(half, None))]
    return 2 if rates[0] > 0 and rates[1] < rates[0] / 2 else 1
