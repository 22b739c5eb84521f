"""`bench` and `doctor` on a store: figures that belong together, nothing changed, faults named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgeedit.device import doctor
from edgeedit.device.bench import Window, bench
from edgeedit.device.store import Store
from edgeedit.errors import InputError


@pytest.fixture
def store(world: Any, tmp_path: Path) -> Path:
    Store.create(tmp_path / "store", world.bundle.path, [world.public]).close()
    return tmp_path / "store"


def test_bench_measures_and_leaves_the_store_alone(store: Path) -> None:
    def head() -> str:
        with Store.open(store) as opened:
            return opened.head().result

    before = head()
    result = bench(store, frames=20, threads=1)
    assert head() == before
    assert (result.before.frames, result.after.frames) == (20, 20) and result.during.frames >= 1
    assert result.swaps >= 2 and result.swaps % 2 == 0  # there and back
    assert 0 < result.before.p50_ms <= result.before.p95_ms <= result.before.p99_ms
    assert result.engine == "onnxruntime aliased"


def test_window_figures_are_those_of_its_times() -> None:
    window = Window.of([1.0, 2.0, 3.0, 4.0, 10.0])
    assert (window.frames, window.fps, window.p50_ms) == (5, 250.0, 3.0)
    assert 4.0 < window.p95_ms < window.p99_ms <= 10.0


def test_too_few_frames_are_refused(store: Path) -> None:
    with pytest.raises(InputError, match="at least 4"):
        bench(store, frames=3)


def test_doctor_says_which_tensors_can_be_changed(store: Path) -> None:
    checks = {check.name: check for check in doctor.examine(store)}
    assert "2 patchable tensors changed in place by exchange of pages: 2 proven live, all reported" in checks["engine"].text
    assert checks["engine"].level == "OK"


@pytest.mark.parametrize(
    ("installed", "name", "level", "said"),
    [
        ({"onnxruntime": "1.2", "onnxruntime-gpu": "1.2"}, "onnxruntime", "FAIL", "both"),
        ({}, "onnxruntime", "WARN", "not installed"),
        ({"tensorrt": "11.3.0"}, "tensorrt", "WARN", "bias"),
        ({"tensorrt": "8.5.2"}, "tensorrt", "WARN", "JetPack 5"),
        ({"tensorrt": "10.3.0"}, "tensorrt", "OK", "10.3.0"),
        ({"tensorrt-rtx": "1.7.1"}, "tensorrt", "OK", "tensorrt_rtx 1.7.1"),
    ],
)
def test_doctor_judges_installed_libraries(
    monkeypatch: pytest.MonkeyPatch, installed: dict[str, str], name: str, level: str, said: str
) -> None:
    monkeypatch.setattr(doctor, "_version", installed.get)
    check = next(c for c in doctor.examine(None) if c.name == name)
    assert (check.level, said in check.text) == (level, True)
    assert bool(check.fix) == (level != "OK")


def test_clock_before_the_release_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.time, "time", lambda: 1_000_000.0)
    check = next(c for c in doctor.examine(None) if c.name == "clock")
    assert check.level == "FAIL" and check.fix
