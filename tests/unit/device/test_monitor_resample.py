"""Windows drawn from clean days: all equally often, following each other as they did; and thresholds where windows depend."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edgeedit.device.monitor import detector
from edgeedit.device.monitor.baseline import Baseline, Clean, load_baseline, moved, save_baseline
from edgeedit.device.monitor.detector import LEAST_CAP, STILL, Detector, Rate, calibrate
from edgeedit.device.monitor.projection import PROJECTED
from edgeedit.device.monitor.resample import Alone, Draw, Following


def _runs(rng: np.random.Generator, count: int, keep: float = 0.75) -> np.ndarray:
    """A mean that stays for a run of windows, mostly 0, sometimes 2.5 (a module of dark cells), plus noise: (count, 1)."""
    level, found = 0.0, np.empty(count)
    for number in range(count):
        if rng.random() > keep:
            level = 2.5 * (rng.random() < 0.08)
        found[number] = level + 0.3 * rng.normal()
    return found[:, None]


def test_following_draws_each_window_equally_often_and_keeps_runs() -> None:
    values = _runs(np.random.default_rng(0), 256)
    draw, rng = Following(values), np.random.default_rng(1)
    place, seen, drawn = rng.integers(0, 256, 500), np.zeros(256), []
    for _ in range(400):
        place = draw.after(place, rng)
        seen += np.bincount(place, minlength=256)
        drawn.append(values[place, 0])
    shares = seen / seen.mean()
    assert shares.min() > 0.8 and shares.max() < 1.2, "a window that is drawn too seldom is missing in the tail"
    own = np.corrcoef(values[:-1, 0], values[1:, 0])[0, 1]
    months = np.array(drawn)
    got = np.corrcoef(months[:-1].ravel(), months[1:].ravel())[0, 1]
    assert got == pytest.approx(own, abs=0.12)


def test_one_drawn_window_repeats_the_clean_days_when_it_has_no_neighbour_but_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeedit.device.monitor.resample.NEIGHBOURS", 1)
    draw, rng = Following(np.arange(40.0)[:, None] ** 2), np.random.default_rng(0)
    assert draw.after(np.arange(40), rng).tolist() == [*range(1, 40), 0]


def _alarms(cameras: int) -> int:
    called = 0
    for number in range(cameras):
        rng = np.random.default_rng(number)
        days, month = ([{"mix": float(v)} for v in _runs(rng, count)[:, 0]] for count in (384, 1200))
        watch = Detector(calibrate(days, Rate(1200, 0.1), frames=16))
        called += any(call.level == "alarm" for row in month for call in watch.step(row))
    return called


def test_runs_of_windows_ring_no_more_alarms_than_stated(monkeypatch: pytest.MonkeyPatch) -> None:
    # 7 of 20 has a probability of 0.2 % at the stated tenth.
    assert _alarms(20) < 7
    one: Draw = Alone(384)
    monkeypatch.setattr(detector, "Following", lambda values: one)
    assert _alarms(20) > 10, "these months must be ones that a bootstrap of single windows gets wrong"


def test_a_signal_that_stood_still_calls_after_a_run_and_not_before() -> None:
    rng = np.random.default_rng(2)
    still = calibrate([{"unevenness": 0.1 + 0.0005 * rng.normal()} for _ in range(128)], Rate(2000), frames=16)
    assert (still.most == LEAST_CAP).all() and (still.alarm >= STILL * (LEAST_CAP - still.allowances)).all()
    watch = Detector(still)
    calls = [[c.level for c in watch.step({"unevenness": 0.5})] for _ in range(3 * STILL)]
    first = next(number for number, levels in enumerate(calls) if "alarm" in levels)
    assert STILL <= first < 2 * STILL


def test_a_camera_that_learnt_before_there_were_charts_of_small_shifts_keeps_its_thresholds(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    made = calibrate([{"margin": float(v)} for v in rng.normal(size=128)], Rate(400, 0.1), frames=16)
    clean = Clean(rng.normal(size=(3, PROJECTED)).astype(np.float32), np.array([0, 1, 1]), np.zeros(3, np.float32))
    save_baseline(tmp_path / "m.npz", Baseline(clean, np.array([0.3, 0.7]), made), {"generation": 2}, [b"a", b"bc", b""])
    with np.load(tmp_path / "m.npz") as stored:
        arrays = {name: stored[name] for name in stored.files}
    head = json.loads(arrays["head"].tobytes()) | {"version": 1}
    arrays["head"] = np.frombuffer(json.dumps(head).encode(), np.uint8)
    arrays |= {name: arrays[name][:2] for name in ("most", "warn", "alarm")}
    np.savez(tmp_path / "m.npz", **arrays)
    found = load_baseline(tmp_path / "m.npz", {})
    assert found is not None and found[1:] == ([b"a", b"bc", b""], 2)
    again, watch = found[0].calibration, Detector(found[0].calibration)
    assert np.array_equal(again.alarm[:2], made.alarm[:2]) and np.array_equal(again.most, made.most)
    assert not any(watch.step({"margin": again.mean[0] - 0.9 * again.spread[0]}) for _ in range(500)), "not seen until it learns anew"
    new = Detector(made)
    assert any(new.step({"margin": made.mean[0] - 0.9 * made.spread[0]}) for _ in range(500))
    assert any(call.level == "alarm" for _ in range(30) for call in watch.step({"margin": -3.0}))


def test_under_another_generation_only_what_no_patch_changes_is_watched_for_small_shifts() -> None:
    rng = np.random.default_rng(5)
    made = calibrate([{"margin": float(a), "brightness": float(b)} for a, b in rng.normal(size=(384, 2))], Rate(400, 0.1), frames=16)
    clean = Clean(np.zeros((40, PROJECTED), np.float32), np.zeros(40, np.int64), rng.normal(size=40).astype(np.float32))
    other = Clean(clean.rows, clean.verdicts, clean.margins + np.float32(3.0))
    of = moved(Baseline(clean, None, made), other).calibration
    assert of.mean[of.names.index("margin")] == pytest.approx(made.mean[made.names.index("margin")] + 3.0, abs=1e-5)

    def called(by: int, name: str) -> bool:
        watch, at = Detector(of), of.names.index(name)
        values = dict(zip(of.names, of.mean.tolist(), strict=True)) | {name: float(of.mean[at] - (0.6, 3.0)[by] * of.spread[at])}
        return any(call.level == "alarm" for _ in range(400) for call in watch.step(values))

    assert [called(0, "margin"), called(0, "brightness")] == [False, True]
    assert [called(1, "margin"), called(1, "brightness")] == [True, True]
