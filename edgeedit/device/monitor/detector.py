"""The detector: thresholds from clean days for a stated rate of false alarms, and the charts that use them.

Every signal of a window is standardised by its clean days and goes into two CUSUMs (four where a fall is an alarm too): one sees a large
shift soon, the other a small one late, which frames that come in runs hide in single windows.  The thresholds
come from a bootstrap of the clean windows: months are drawn from them, together for all signals, and each drawn camera also
draws the clean days that it would have estimated from, so the error of the estimate is paid for.  They are drawn twice, as if windows
did not depend on each other and as they followed each other (`resample.py`), and the higher threshold holds: frames that come in runs
make sums far longer than their shuffled windows do.  A value beyond the furthest clean one counts as that one: clean days say nothing
about their own tail.  The greatest sum of a month follows a Gumbel law; all charts get the same share of SPENT of the stated rate.
Guarantees: no threshold is a constant of this code; the same windows and seed give the same thresholds; numpy only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from edgeedit.device.monitor.resample import Alone, Draw, Following
from edgeedit.device.monitor.signals import KINDS
from edgeedit.device.monitor.statistics import Cusum
from edgeedit.errors import InputError

Array = np.ndarray[Any, Any]
ALLOWANCES = (1.0, 0.25)  # half the shift that a chart is best at, in standard deviations of a clean window; descending
LEAST_CAP = 2 * ALLOWANCES[0]  # a chart takes in as many spreads at least
SPENT = 0.5  # of the stated rate: a law learnt from a few hundred windows is itself wrong by a little, mostly to the low side
BLOCK = 8  # consecutive windows whose mean shows slow swings of clean days, for which the spread is widened
_NEVER = 1e9  # a threshold that no sum reaches
STILL = 8  # windows at their cap that a chart needs whose clean days stayed so near their mean that no sum of them tells a law
CAMERAS = 400  # drawn cameras behind the thresholds
DRAWN = 1500  # windows drawn for each; a longer month is reached by the Gumbel law
LEAST_WINDOWS = 32
_EULER = 0.5772156649


@dataclass(frozen=True)
class Rate:
    """`alarms` and `warnings`: probability that a camera without any change calls one within a month of `month` windows."""

    month: int
    alarms: float = 0.1
    warnings: float = 0.5


@dataclass(frozen=True)
class Calibration:
    """Charts are `names` upwards, then those of `falls` downwards; `mean` and `spread` (signals,); `most`, the furthest clean value in
    spreads, and the thresholds (charts,)."""

    names: tuple[str, ...]
    falls: tuple[str, ...]
    mean: Array
    spread: Array
    most: Array
    warn: Array
    alarm: Array

    def charts(self, values: Array) -> Array:
        """Signals (..., signals) as standardised charts (..., charts)."""
        scaled = (values - self.mean) / self.spread
        down = [self.names.index(name) for name in self.falls]
        charts: Array = np.minimum(_per_chart(scaled, -scaled[..., down]), self.most)
        return charts

    @property
    def sides(self) -> tuple[tuple[str, bool], ...]:
        """(signal, whether a fall) of each chart."""
        return (*((name, False) for name in self.names), *((name, True) for name in self.falls)) * len(ALLOWANCES)

    @property
    def allowances(self) -> Array:
        """Allowance of each chart."""
        return np.repeat(ALLOWANCES, len(self.names) + len(self.falls))

    def moved(self, mean: Array, spread: Array) -> Calibration:
        """For another generation, whose clean windows have this `mean` and `spread`.  Charts of small shifts of what a patch can change
        say nothing any more: a mean that was not learnt from windows of this generation is wrong by a small shift itself."""
        silent = np.array([KINDS[name].of_patch for name, _ in self.sides]) & (self.allowances < ALLOWANCES[0])
        warn, alarm = (np.where(silent, _NEVER, limits) for limits in (self.warn, self.alarm))
        return replace(self, mean=mean, spread=spread, warn=warn, alarm=alarm)

    @classmethod
    def of_large_shifts(cls, *learnt: Any) -> Calibration:
        """From the fields of a camera that learnt before there were charts of small shifts: those say nothing."""
        names, falls, mean, spread, most, warn, alarm = learnt
        silent = np.full(len(alarm) * (len(ALLOWANCES) - 1), _NEVER)
        return cls(names, falls, mean, spread, np.tile(most, len(ALLOWANCES)), *(np.concatenate([v, silent]) for v in (warn, alarm)))


def _per_chart(up: Array, down: Array) -> Array:
    """Values of the sides (..., signals) and (..., falls) in the order of the charts."""
    charts: Array = np.concatenate([up, down] * len(ALLOWANCES), axis=-1)
    return charts


def calibrate(windows: Sequence[Mapping[str, float]], rate: Rate, *, frames: int, seed: int = 0) -> Calibration:
    """Thresholds from the signals of clean windows in their order; `frames` of a window bound how finely a share is known.

    Raises InputError when there are fewer than LEAST_WINDOWS."""
    if len(windows) < LEAST_WINDOWS:
        raise InputError(f"too few clean windows: expected at least {LEAST_WINDOWS}, got {len(windows)}", hint="wait for more frames")
    names = tuple(name for name in KINDS if all(name in window for window in windows))
    values = np.array([[window[name] for name in names] for window in windows])
    floors = np.array([_floor(name, values[:, column], frames) for column, name in enumerate(names)])
    falls = tuple(name for name in names if KINDS[name].both)
    slow = _slow(values)
    mean, spread = values.mean(axis=0), np.maximum(values.std(axis=0, ddof=1) * slow, floors)
    plain = Calibration(names, falls, mean, spread, np.array(np.inf), np.zeros(0), np.zeros(0))
    # Twice the allowance at least: a signal that stood still on clean days must be able to call too.
    furthest = plain.charts(values).max(axis=0)
    most = np.maximum(furthest, LEAST_CAP)
    length = min(rate.month, DRAWN)
    drawn = [_drawn_peaks(plain, values, (floors, slow), draw, length, seed) for draw in (Alone(len(values)), Following(values))]
    least = np.where(furthest < LEAST_CAP, STILL * (most - plain.allowances), 0.0)
    warn, alarm = (
        np.maximum(least, np.maximum(*(_thresholds(peaks, rate.month, chance) for peaks in drawn)))
        for chance in (rate.warnings, SPENT * rate.alarms)
    )
    return Calibration(names, falls, mean, spread, most, warn, alarm)


def _floor(name: str, column: Array, frames: int) -> float:
    if name != "overrides":
        return KINDS[name].floor
    # Clean days may hold no override at all: the spread of a share is that of a binomial with one more hit.
    hits, shown = float(column.sum() * frames), len(column) * frames
    share = (hits + 1) / (shown + 2)
    return float(np.sqrt(share * (1 - share) / frames))


def _slow(values: Array) -> Array:
    """By how much slow swings widen the spread of each signal (batch means): 1 where clean windows do not depend on each other."""
    whole = values[: len(values) // BLOCK * BLOCK]
    batches = whole.reshape(-1, BLOCK, values.shape[1]).mean(axis=1)
    slow: Array = np.maximum(1.0, batches.std(axis=0, ddof=1) * np.sqrt(BLOCK) / np.maximum(values.std(axis=0, ddof=1), 1e-12))
    return slow


def _drawn_peaks(plain: Calibration, values: Array, least: tuple[Array, Array], draw: Draw, length: int, seed: int) -> Array:
    """Greatest sum of each chart in a drawn month of `length` windows, (CAMERAS, charts)."""
    rng = np.random.default_rng(seed)
    count, (floors, slow) = len(values), least
    place = rng.integers(0, count, CAMERAS)
    days = np.empty((CAMERAS, count), dtype=np.int64)
    for day in range(count):
        days[:, day] = place = draw.after(place, rng)
    drawn = values[days]
    means, spreads = drawn.mean(axis=1), np.maximum(drawn.std(axis=1, ddof=1) * slow, floors)
    down = [plain.names.index(name) for name in plain.falls]
    # What each drawn camera would have taken for its furthest clean value.
    ends = (drawn - means[:, None]) / spreads[:, None]
    most = np.maximum(_per_chart(ends.max(axis=1), -ends[..., down].min(axis=1)), LEAST_CAP)
    sums = Cusum(most.size, np.tile(plain.allowances, CAMERAS))
    peaks = np.zeros(most.shape)
    for _ in range(length):
        place = draw.after(place, rng)
        scaled = (values[place] - means) / spreads
        charts = np.minimum(_per_chart(scaled, -scaled[:, down]), most)
        np.maximum(peaks, sums.step(charts.ravel()).reshape(peaks.shape), out=peaks)
    return peaks


def _thresholds(peaks: Array, month: int, chance: float) -> Array:
    """For each chart the sum that a clean month passes with its share of `chance`, all charts taken together."""
    scale = np.maximum(peaks.std(axis=0, ddof=1) * np.sqrt(6) / np.pi, 1e-6)
    place = peaks.mean(axis=0) - _EULER * scale
    # How unlikely each camera's own peaks are by its charts' laws; the least likely one is what would call.
    least = (1.0 - np.exp(-np.exp(-(peaks - place) / scale))).min(axis=1)
    share = float(np.quantile(least, chance))
    longer = np.log(max(1.0, month / min(month, DRAWN)))
    limits: Array = place + scale * (longer - np.log(-np.log1p(-min(max(share, 1e-9), 1 - 1e-9))))
    return limits


@dataclass(frozen=True)
class Call:
    """A chart that passed a threshold: `level` warn or alarm, `signal`, `down` for a fall, the sum and its threshold, the value."""

    level: str
    signal: str
    down: bool
    sum: float
    threshold: float
    value: float

    def sentence(self) -> str:
        """For people."""
        way = "fell" if self.down else "rose"
        return f"{self.signal} {way}: expected a CUSUM of at most {self.threshold:.1f}, got {self.sum:.1f} (last value {self.value:.4g})"


class Detector:
    """Charts of one calibration.  A chart calls once until its sum is back at zero, and not what the chart of a larger allowance says."""

    def __init__(self, calibration: Calibration, former: Detector | None = None) -> None:
        """`former` is the detector of another generation of the same camera: charts that no patch can change go on from there."""
        self.calibration = calibration
        self._cusum = Cusum(len(calibration.alarm), calibration.allowances)
        self._called: Array = np.zeros(len(calibration.alarm), dtype=np.int64)  # 1 warned, 2 alarmed
        if former is not None:
            stays = np.array([not KINDS[name].of_patch for name, _ in calibration.sides])
            self._cusum.sums[stays], self._called[stays] = former._cusum.sums[stays], former._called[stays]

    def sums(self) -> dict[str, float]:
        """Signal -> its greatest sum over its alarm threshold; 1 is an alarm."""
        found: dict[str, float] = {}
        for number, (name, _) in enumerate(self.calibration.sides):
            share = float(self._cusum.sums[number] / self.calibration.alarm[number])
            found[name] = max(found.get(name, 0.0), share)
        return found

    def step(self, signals: Mapping[str, float]) -> list[Call]:
        """Take a window; a signal that is missing in it leaves its charts as they are."""
        of = self.calibration
        values = np.array([signals.get(name, np.nan) for name in of.names])
        charts = of.charts(values)
        sums = self._cusum.step(np.where(np.isfinite(charts), charts, of.allowances))
        # Bounded, so that a chart comes back soon after the cause has gone; one of a small allowance falls slowly.
        self._cusum.sums = sums = np.minimum(sums, (1.0 + of.allowances) * of.alarm)
        self._called[sums <= 0.0] = 0
        calls, width = [], len(of.sides) // len(ALLOWANCES)
        for level, (word, limits) in enumerate((("warn", of.warn), ("alarm", of.alarm)), start=1):
            for number in np.flatnonzero((sums > limits) & (self._called < level)):
                self._called[number] = level
                if (self._called[number % width : number : width] >= level).any():
                    continue
                name, down = of.sides[number]
                value = float(values[of.names.index(name)])
                calls.append(Call(word, name, down, float(sums[number]), float(limits[number]), value))
        return calls
