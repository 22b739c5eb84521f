"""The baseline: what clean days looked like, learnt from their windows, moved to another generation, or read from a file.

The frames that a Monitor keeps of clean days are what embeddings are compared with.  So a generation that was swapped in has its
own reference as soon as those frames have gone through it, and the thresholds stay: both sides of the comparison moved alike.
Guarantees: the same windows give the same baseline; a file is read back bit for bit and without pickle, and one that is damaged,
too large or of another camera is refused with an EdgeEditError, never half taken.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from edgeedit.device.monitor.cause import LEVEL
from edgeedit.device.monitor.detector import Calibration, Rate, calibrate
from edgeedit.device.monitor.projection import PROJECTED
from edgeedit.device.monitor.reservoir import Kept, Reservoir
from edgeedit.device.monitor.signals import KINDS, Expected, Window, window_signals
from edgeedit.errors import IntegrityError, MismatchError
from edgeedit.files import replace_file
from edgeedit.limits import MAX_BASELINE_BYTES
from edgeedit.mmd import mmd_test

Array = np.ndarray[Any, Any]
KEPT = 192  # frames kept of clean days
_KEPT_BYTES = 16 << 20  # of their packed pictures
_VERSION = 2  # 1 had no charts of small shifts
FAR = 0.25  # population stability index from which a shift is usually acted on; it only words a warning here
_CHARTS = ("most", "warn", "alarm")


@dataclass(frozen=True)
class Clean:
    """What one generation says of the frames kept of clean days: `rows` float32 (n, PROJECTED); `verdicts` int64 (n,), -1 unknown;
    `margins` float32 (n,), NaN unknown."""

    rows: Array
    verdicts: Array
    margins: Array


@dataclass(frozen=True)
class Baseline:
    """`clean` of the generation that answers; `shares` float64 (classes,) of the verdicts of clean days, None without a reader."""

    clean: Clean
    shares: Array | None
    calibration: Calibration

    @cached_property
    def expected(self) -> Expected:
        """What the embedding signals compare with."""
        return Expected(self.clean.rows)

    def signals(self, window: Window) -> dict[str, float]:
        """Every signal of a window that can be told."""
        return window_signals(window, self.expected, self.shares)


class CleanDays:
    """Windows of clean days as they come, and a sample of their frames."""

    def __init__(self) -> None:
        self.windows: list[Window] = []
        self._reservoir = Reservoir(KEPT, _KEPT_BYTES)

    def add(self, window: Window, packed: Sequence[bytes]) -> None:
        """One more window, with its packed pictures."""
        self.windows.append(window)
        for row, verdict, margin, picture in zip(window.rows, window.verdicts, window.margins, packed, strict=True):
            self._reservoir.add(Kept(picture, row, int(verdict), float(margin)))

    def learn(self, rate: Rate) -> tuple[Baseline, list[bytes]]:
        """The baseline, and the packed pictures of the frames that were kept; raises InputError for too few windows."""
        kept = self._reservoir.kept
        clean = Clean(*(np.array([getattr(k, name) for k in kept]) for name in ("row", "verdict", "margin")))
        return learn(self.windows, clean, rate), [k.picture for k in kept]


def learn(windows: Sequence[Window], clean: Clean, rate: Rate) -> Baseline:
    """The baseline of clean windows in their order and of the few frames kept of them; raises InputError for too few windows."""
    verdicts = np.concatenate([window.verdicts for window in windows])
    known = verdicts[verdicts >= 0]
    shares = np.bincount(known) / len(known) if len(known) else None
    expected = Expected(clean.rows)
    signals = [window_signals(window, expected, shares) for window in windows]
    return Baseline(clean, shares, calibrate(signals, rate, frames=len(windows[0].rows)))


def unlike(reference: Array, clean: Clean) -> str:
    """In what the frames of clean days are far from the server's `reference` rows (n, PROJECTED), "" where they are not."""
    index = Expected(reference).signals(clean.rows)["psi"]
    value, p = mmd_test(reference, clean.rows)
    if index <= FAR or p > LEVEL:
        return ""
    return f"clean days are unlike the server's images: expected a PSI of at most {FAR}, got {index:.2f}; MMD^2 {value:.3g}, p {p:.3g}"


def moved(old: Baseline, clean: Clean) -> Baseline:
    """The baseline of another generation, which says `clean` of the same frames: what verdicts and margins changed on them is added
    to what clean days had."""
    shares, of = old.shares, old.calibration
    if shares is not None:
        size = max(len(shares), int(clean.verdicts.max(initial=0)) + 1, int(old.clean.verdicts.max(initial=0)) + 1)
        after, before = (np.bincount(c.verdicts[c.verdicts >= 0], minlength=size) for c in (clean, old.clean))
        shares = np.maximum(np.pad(shares, (0, size - len(shares))) + (after - before) / max(1, len(clean.verdicts)), 0.0)
        shares = shares / shares.sum()
    mean, spread = of.mean.copy(), of.spread.copy()
    if "margin" in of.names and np.isfinite(clean.margins).any():
        place = of.names.index("margin")
        mean[place] += np.nanmean(clean.margins) - np.nanmean(old.clean.margins)
        wider = float(np.nanstd(clean.margins) / max(float(np.nanstd(old.clean.margins)), 1e-9))
        spread[place] = max(spread[place] * wider, KINDS["margin"].floor)
    return Baseline(clean, shares, of.moved(mean, spread))


def save_baseline(path: Path, baseline: Baseline, about: Mapping[str, Any], pictures: Sequence[bytes]) -> None:
    """Write durably.  `about` is plain JSON that says of which camera, with the `generation` of `clean`; `pictures` are the packed
    frames of clean days, in the order of `clean`.  Raises RefusedError (exit 6) when the disk refuses."""
    of, clean = baseline.calibration, baseline.clean
    head = {"version": _VERSION, "names": of.names, "falls": of.falls, "about": dict(about), "sizes": [len(p) for p in pictures]}
    arrays = {"rows": clean.rows, "verdicts": clean.verdicts, "margins": clean.margins, "mean": of.mean, "spread": of.spread}
    arrays |= {name: getattr(of, name) for name in _CHARTS}
    arrays["shares"] = np.zeros(0) if baseline.shares is None else baseline.shares
    arrays["head"] = np.frombuffer(json.dumps(head, sort_keys=True).encode(), dtype=np.uint8)
    arrays["pictures"] = np.frombuffer(b"".join(pictures), dtype=np.uint8)
    data = io.BytesIO()
    np.savez(data, **arrays)  # type: ignore[arg-type]
    replace_file(path, data.getbuffer())


def load_baseline(path: Path, about: Mapping[str, Any]) -> tuple[Baseline, list[bytes], int] | None:
    """(baseline, packed frames, generation) of a file, None where there is none.

    Raises MismatchError when it was learnt under something else than `about`, IntegrityError when it is no baseline."""
    try:
        if path.stat().st_size > MAX_BASELINE_BYTES:
            raise IntegrityError(f"{path} is no baseline: expected at most {MAX_BASELINE_BYTES} bytes", hint="remove it to learn anew")
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        head = json.loads(arrays["head"].tobytes())
        generation = int(head["about"].pop("generation"))
        if head["version"] not in (1, _VERSION) or head["about"] != json.loads(json.dumps(dict(about))):
            raise MismatchError(f"{path} was learnt elsewhere: expected {dict(about)}, got {head['about']}", hint="it is learnt anew")
        names, falls = tuple(head["names"]), tuple(head["falls"])
        made = Calibration.of_large_shifts if head["version"] == 1 else Calibration
        of = made(names, falls, arrays["mean"], arrays["spread"], *(arrays[name] for name in _CHARTS))
        clean = Clean(arrays["rows"], arrays["verdicts"], arrays["margins"])
        shares = arrays["shares"] if len(arrays["shares"]) else None
        ends = np.cumsum([0, *head["sizes"]])
        packed = arrays["pictures"].tobytes()
        pictures = [packed[a:b] for a, b in pairwise(ends)]
        _check(of, clean, len(pictures), int(ends[-1]) == len(packed))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise IntegrityError(
            f"{path} is no baseline: expected the file of a Monitor, got {error!r}", hint="remove it to learn anew"
        ) from error
    return Baseline(clean, shares, of), pictures, generation


def _check(of: Calibration, clean: Clean, pictures: int, whole: bool) -> None:
    """Raise ValueError unless the shapes fit each other and the numbers are finite."""
    charts, signals, rows = len(of.sides), len(of.names), len(clean.rows)
    shapes = [(of.mean, signals), (of.spread, signals), (of.most, charts), (of.warn, charts), (of.alarm, charts)]
    if any(a.shape != (size,) or a.dtype != np.float64 or not np.isfinite(a).all() for a, size in shapes):
        raise ValueError("numbers of the calibration")
    if not set(of.falls) <= set(of.names) <= set(KINDS) or not (of.spread > 0).all():
        raise ValueError("names of the signals")
    if clean.rows.shape != (rows, PROJECTED) or rows != pictures or not np.isfinite(clean.rows).all() or not whole:
        raise ValueError("frames of clean days")
    if clean.verdicts.shape != (rows,) or clean.verdicts.dtype != np.int64 or clean.margins.shape != (rows,):
        raise ValueError("verdicts of clean days")
