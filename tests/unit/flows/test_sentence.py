"""The demo's sentence about its rival claims a win only when the paired interval shows one."""

from __future__ import annotations

from typing import Any

from edgeedit.flows.demo import sentence


def _runs(*pairs: tuple[float, float]) -> list[dict[str, Any]]:
    return [{"reader_refit": {"target_error": rival}, "target_error": {"after": ours}} for rival, ours in pairs]


def test_one_seed_never_wins() -> None:
    assert "not shown" in sentence(_runs((0.5, 0.2)))


def test_a_mean_advantage_within_the_spread_is_no_win() -> None:
    text = sentence(_runs((0.290, 0.296), (0.363, 0.287), (0.352, 0.344), (0.334, 0.275)))
    assert "not shown" in text and "+0.034" in text


def test_a_clear_advantage_is_said() -> None:
    assert sentence(_runs((0.40, 0.30), (0.41, 0.30), (0.39, 0.30))).startswith("The edit is better")
