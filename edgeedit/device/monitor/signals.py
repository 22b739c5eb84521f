"""Signals: what a window of frames says, one number each, and the frames that become a window.

A Window is `frames` frames in the order in which they were taken.  Guarantees: a signal that cannot be told (no reference, no
verdicts) is absent, never zero; each knows the least spread that its own resolution allows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgeedit.device.monitor.projection import IMAGE_SIGNALS
from edgeedit.device.monitor.statistics import bin_edges, bin_shares, ks, psi
from edgeedit.mmd import kernel_scale, mmd, squared_distances, within

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Kind:
    """`name` of a signal; `both` whether a fall is an alarm too; `floor` the least spread of a window's value, in its own unit;
    `of_patch` whether another generation may change it."""

    name: str
    both: bool
    floor: float
    of_patch: bool = False


# Floors: a grey level is 1/255; a share moves by 1/frames at least; latency is a logarithm, so 0.02 is 2 %.
KINDS: Mapping[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("psi", False, 1e-3, of_patch=True),
        Kind("ks", False, 1e-3, of_patch=True),
        Kind("mmd", False, 1e-4, of_patch=True),
        Kind("mix", False, 1e-2, of_patch=True),
        Kind("margin", True, 1e-3, of_patch=True),
        Kind("overrides", False, 1e-2, of_patch=True),
        Kind("latency", False, 2e-2),
        Kind("brightness", True, 1 / 255),
        Kind("sharpness", True, 1e-3),
        Kind("saturation", True, 1e-3),
        Kind("unevenness", True, 1 / 255),
    )
}


@dataclass(frozen=True)
class Window:
    """`rows` float32 (n, PROJECTED); `images` float32 (n, 4), IMAGE_SIGNALS; `seconds` (n,) of the engine for each frame; `verdicts`
    int64 (n,), -1 unknown; `margins` float32 (n,), NaN unknown; `overrides` bool (n,)."""

    rows: Array
    images: Array
    seconds: Array
    verdicts: Array
    margins: Array
    overrides: Array


class Expected:
    """What embedding signals are compared with: clean `rows` (n, PROJECTED) of one generation."""

    def __init__(self, rows: Array) -> None:
        mean, spread = rows.mean(axis=0), np.maximum(rows.std(axis=0), 1e-9)
        self._mean, self._spread = mean, spread
        clean = ((rows - mean) / spread).astype(np.float64)
        self._clean = clean
        self._edges = bin_edges(clean)
        self._shares = bin_shares(clean, self._edges)
        self._scale = kernel_scale(clean)
        self._within = within(np.exp(-self._scale * squared_distances(clean, clean)))

    def signals(self, rows: Array) -> dict[str, float]:
        """psi and ks (means over the projections) and squared mmd of a window's rows."""
        scaled = ((rows - self._mean) / self._spread).astype(np.float64)
        return {
            "psi": float(psi(self._shares, bin_shares(scaled, self._edges)).mean()),
            "ks": float(ks(self._clean, scaled).mean()),
            "mmd": mmd(self._clean, scaled, self._scale, self._within),
        }


def mix_distance(shares: Array, verdicts: Array) -> float:
    """Total variation distance of a window's verdicts from the clean `shares` (classes,), 0..1; unknown ones are left out."""
    known = verdicts[(verdicts >= 0) & (verdicts < len(shares))]
    if not len(known):
        return 0.0
    return float(0.5 * np.abs(np.bincount(known, minlength=len(shares)) / len(known) - shares).sum())


def window_signals(window: Window, expected: Expected | None, shares: Array | None) -> dict[str, float]:
    """Every signal of a window that can be told."""
    found = expected.signals(window.rows) if expected is not None else {}
    if shares is not None:
        found["mix"] = mix_distance(shares, window.verdicts)
    if np.isfinite(window.margins).any():
        found["margin"] = float(np.nanmean(window.margins))
    found["overrides"] = float(window.overrides.mean())
    found["latency"] = float(np.log(max(float(np.median(window.seconds)), 1e-9)))
    return found | dict(zip(IMAGE_SIGNALS, window.images.mean(axis=0).tolist(), strict=True))
