"""What a chain of updates gained, moved and forgot, update by update, and what to do next.

Guarantees: figures come from a judged chain (`continual`) or from the updates' own records, and what neither holds is None; advice names
the measured figure that it rests on.
"""

from __future__ import annotations

import statistics as plain
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from edgeedit.edit.continual import backward_transfer, summary
from edgeedit.edit.drift import Advice, advise, pace
from edgeedit.errors import InputError
from edgeedit.limits import MAX_CHAIN

Array = np.ndarray[Any, Any]
ENOUGH = 4  # sessions below which no interval of forgetting is taken for anything
ORDER = ("retrain", "squash", "slower", "measure", "go on")


@dataclass(frozen=True)
class Limits:
    """What a chain may cost: `drift` shift of the features in units of the base's spread, `forgetting` mean accuracy that later updates may
    take from earlier repairs and `control` rise of the control error along the chain (0..1), `length` patches that a device takes."""

    drift: float = 1.0
    forgetting: float = 0.01
    control: float = 0.05
    length: int = MAX_CHAIN

    def __post_init__(self) -> None:
        shares = (self.forgetting, self.control)
        if not self.drift > 0 or not all(0 <= share <= 1 for share in shares):
            raise InputError(f"limits are out of range: expected drift above 0 and shares in 0..1, got {self.drift} and {shares}")


@dataclass(frozen=True)
class Step:
    """One update: error on its own held-out images before and after, `gain` their difference, `forgotten` the rise of that error from then
    to the end of the chain, mean error on all sessions, control error, shift against the base and lowest CKA of a block; None: not
    measured."""

    name: str
    before: float
    after: float
    gain: float
    forgotten: float | None = None
    mean_error: float | None = None
    control: float | None = None
    shift: float | None = None
    cka: float | None = None


def measured(
    names: Sequence[str],
    matrix: Array,
    control: Sequence[float],
    shift: Sequence[float],
    cka: Sequence[Sequence[float]] | None = None,
    limits: Limits | None = None,
) -> dict[str, Any]:
    """One JSON object about a judged chain of T updates: `matrix` (T + 1, T) errors, row 0 the base; `control` (T + 1,) errors; `shift`
    (T,) after each update.  Raises InputError when they do not belong together."""
    count = len(names)
    if not count or matrix.shape != (count + 1, count) or len(control) != count + 1 or len(shift) != count:
        raise InputError(f"chain is inconsistent: expected a row for the base and each of {count} updates, got {matrix.shape}")
    if not (np.isfinite(matrix).all() and np.isfinite(control).all() and np.isfinite(shift).all()):
        raise InputError("chain has a figure that is not a number: expected finite errors and shifts")
    steps = [
        Step(
            name,
            float(matrix[t, t]),
            float(matrix[t + 1, t]),
            float(matrix[t, t] - matrix[t + 1, t]),
            float(matrix[-1, t] - matrix[t + 1, t]),
            float(matrix[t + 1].mean()),
            float(control[t + 1]),
            float(shift[t]),
            min(cka[t]) if cka else None,
        )
        for t, name in enumerate(names)
    ]
    gains = [step.gain for step in steps]
    return {
        "measured": True,
        "length": count,
        "base": {"mean_error": float(matrix[0].mean()), "control": float(control[0])},
        "updates": [asdict(step) for step in steps],
        "summary": dict(summary(matrix, np.asarray(control))),
        "bwt": list(backward_transfer(matrix)),
        "pace": [row.to_json() for row in pace(gains, shift)],
        "advice": [asdict(row) for row in recommend(gains, shift, backward_transfer(matrix), control[-1] - control[0], limits or Limits())],
    }


def recorded(steps: Sequence[Step], limits: Limits | None = None) -> dict[str, Any]:
    """The same of what the updates' own records say: gains, but neither drift nor forgetting."""
    bounds, gains = limits or Limits(), [step.gain for step in steps]
    if not steps:
        raise InputError("chain is empty: expected at least one update, got none")
    found = []
    if _no_gain(gains):
        found.append(Advice("retrain", "the last three updates together did not lower any error", None))
    if len(steps) >= bounds.length - 1:
        found.append(Advice("squash", f"chain holds {len(steps)} patches: a device takes {bounds.length}", None))
    found.append(Advice("measure", "drift and forgetting are not in the updates' records", None))
    return {"measured": False, "length": len(steps), "updates": [asdict(s) for s in steps], "advice": [asdict(row) for row in found]}


def recommend(
    gains: Sequence[float], shift: Sequence[float], bwt: tuple[float, float, float], control: float, limits: Limits
) -> tuple[Advice, ...]:
    """What to do, the most urgent first: retrain, squash, slower (collect more mistakes for one update) or go on.

    Beside `advise`: where the interval of the backward transfer `bwt` (value, low, high) lies below zero, forgetting is a fact.  Updates
    that forget as much as they gain are no repair any more (retrain); a loss above the limit asks for fewer, larger updates, since the
    images of one update are learnt together.  `control` is the rise of the control error along the chain: above its limit, retrain."""
    length = len(gains)
    first = advise(gains, shift, length, limits.length, limits.drift)
    found = [first] if first.action != "go on" else []
    lost, gained = -bwt[0], plain.fmean(gains)
    if control > limits.control:
        reason = f"the control error rose by {control:.3f} along the chain: the limit is {limits.control:.3f}"
        found.append(Advice("retrain", reason, first.every))
    if length >= ENOUGH and bwt[2] < 0:
        text = f"later updates took {lost:.3f} of accuracy from earlier repairs (95 % {-bwt[2]:.3f} .. {-bwt[1]:.3f})"
        if lost >= gained:
            found.append(Advice("retrain", f"{text}, an update gives {gained:.3f}", first.every))
        elif lost > limits.forgetting:
            found.append(Advice("slower", f"{text}: the limit is {limits.forgetting:.3f}", 2))
    if first.every == 2 and not any(row.action == "slower" for row in found):
        found.append(Advice("slower", "the later half of the updates gains less than half as much for its drift as the earlier half", 2))
    return tuple(sorted(found or [first], key=lambda row: ORDER.index(row.action)))


def _no_gain(gains: Sequence[float]) -> bool:
    return len(gains) >= 6 and sum(gains[-3:]) <= 0
