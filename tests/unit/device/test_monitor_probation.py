"""Probation: a patch that changes a little more than it may is found on its first frames, one that changes less never is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest

from edgeedit.device.monitor.baseline import Clean
from edgeedit.device.monitor.cause import LEVEL, Harm
from edgeedit.device.monitor.probation import _BYTES, FRAMES, ROUNDS, Probation
from edgeedit.errors import RefusedError

Array = np.ndarray[Any, Any]
WINDOW = 32


def _clean(rng: np.random.Generator, count: int, shift: float = 0.0) -> Clean:
    return Clean(rng.normal(shift, 1.0, (count, 8)).astype(np.float32), np.zeros(count, np.int64), np.ones(count, np.float32))


def _rounds(seed: int, share: float, shift: Callable[[int], float] = lambda _: 0.0) -> list[Harm | None]:
    """What each round of a patch that flips `share` of the verdicts gives; `shift` moves the parent's world in a round."""
    rng = np.random.default_rng(seed)
    asked: list[int] = []

    def ask(pictures: Sequence[bytes]) -> Clean:
        asked.append(len(pictures))
        return _clean(rng, len(pictures), shift(len(asked)))

    first = int((rng.random(FRAMES) < share).sum())
    probation = Probation(ask, _clean(rng, FRAMES), Harm(first, FRAMES, 0.05))
    found = []
    for number in range((ROUNDS + 2) * FRAMES // WINDOW):
        harm = probation.window([b"picture"] * WINDOW, (rng.random(WINDOW) < share).astype(np.int64))
        if (number + 1) * WINDOW % FRAMES == 0:
            found.append(harm)
        else:
            assert harm is None
    assert asked == [FRAMES] * ROUNDS
    return found


def test_rounds_add_up_and_the_test_is_the_binomial_one() -> None:
    found = _rounds(0, 0.09)
    assert [harm.frames for harm in found[:ROUNDS] if harm] == [FRAMES * n for n in range(2, ROUNDS + 2)]
    assert found[ROUNDS:] == [None, None]
    for harm in found[:ROUNDS]:
        assert harm is not None
        assert harm.p == pytest.approx(binomtest(harm.flips, harm.frames, 0.05, "greater").pvalue, rel=1e-9)


@pytest.mark.parametrize(("share", "low", "high"), [(0.03, 0, 0), (0.04, 0, 0), (0.08, 0.9, 1), (0.1, 1, 1)])
def test_a_little_more_than_allowed_is_found_and_less_never(share: float, low: float, high: float) -> None:
    seeds = 40
    ends = sum(any(harm and harm.p <= LEVEL for harm in _rounds(seed, share)) for seed in range(seeds))
    assert low * seeds <= ends <= high * seeds


def test_kept_frames_alone_do_not_find_it() -> None:
    """Without probation a patch at 8 % passes more often than not: 192 frames cannot tell it from 5 %."""
    rng = np.random.default_rng(1)
    passed = sum(Harm(int(rng.binomial(FRAMES, 0.08)), FRAMES, 0.05).p > LEVEL for _ in range(200))
    assert passed > 100


def test_a_round_in_another_world_does_not_count() -> None:
    found = _rounds(0, 0.5, shift=lambda number: 3.0 if number != 2 else 0.0)
    assert [harm is None for harm in found[:ROUNDS]] == [number != 2 for number in range(1, ROUNDS + 1)]
    assert found[1] is not None and found[1].frames == 2 * FRAMES


def test_a_parent_that_cannot_be_asked_ends_it() -> None:
    def refuse(_: Sequence[bytes]) -> Clean:
        raise RefusedError("memory is short")

    probation = Probation(refuse, _clean(np.random.default_rng(0), FRAMES), Harm(0, FRAMES, 0.05))
    verdicts = np.zeros(FRAMES, np.int64)
    with pytest.raises(RefusedError):
        probation.window([b""] * FRAMES, verdicts)
    assert [probation.window([b""] * FRAMES, verdicts) for _ in range(20)] == [None] * 20


def test_large_pictures_end_a_round_before_its_number() -> None:
    asked: list[int] = []
    rng = np.random.default_rng(0)

    def ask(pictures: Sequence[bytes]) -> Clean:
        asked.append(len(pictures))
        return _clean(rng, len(pictures))

    probation = Probation(ask, _clean(rng, FRAMES), Harm(0, FRAMES, 0.05))
    for _ in range(4):
        probation.window([bytes(_BYTES // 8)] * 4, np.zeros(4, np.int64))
    assert asked == [8, 8]
