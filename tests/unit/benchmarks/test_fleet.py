"""The fleet benchmark's own judgement of canary counts, which is also their test for every size of fleet."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from edgeedit.ota.server import release
from edgeedit.ota.server.release import Wanted


def test_canaries_are_exact_for_every_fleet_of_1_to_10000_cameras(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[3] / "benchmarks"))
    fleet = importlib.import_module("fleet")
    assert fleet.exact_sizes(10_000) == 10_000

    def floored(want: Wanted, known: int) -> int:
        asked = want.count if want.permille is None else known * want.permille // 1000
        return min(max(1, asked or 1), known)

    # A share rounded down is exact only where it is whole, or where the five of the canary are more.
    monkeypatch.setattr(release, "quota", floored)
    assert fleet.exact_sizes(1000) == sum(n % 20 == 0 or n < 100 for n in range(1, 1001))
