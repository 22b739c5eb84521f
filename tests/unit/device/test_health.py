"""Probes before the swap, and the watch over a trial: a generation that is sick on live frames never becomes the head."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeedit.bundle import Bundle, load_bundle, save_bundle
from edgeedit.device import health as gate
from edgeedit.device import runtime as running
from edgeedit.device.engines.protocol import Staged
from edgeedit.device.health import Health
from edgeedit.device.runtime import Runtime, Swap
from edgeedit.device.store import Store
from edgeedit.errors import RefusedError

Array = np.ndarray[Any, Any]


class FakeEngine:
    """The tiny network in numpy; `sick` changes answers on live frames once the weights are not the first ones."""

    def __init__(self, forward: Callable[..., Array], weights: Mapping[str, Array], sick: Callable[[Array, Array], Array]) -> None:
        self.weights = {n: np.array(a) for n, a in weights.items()}
        self.first = {n: a.copy() for n, a in self.weights.items()}
        self._forward, self._sick, self.frames, self.staged = forward, sick, 0, 0

    def run(self, pixels: Array) -> Array:
        self.frames += 1
        answer = self._forward(self.weights, pixels).astype(np.float32)
        return answer if all(np.array_equal(self.first[n], a) for n, a in self.weights.items()) else self._sick(pixels, answer)

    def swap(self, new: Mapping[str, Array]) -> None:
        for name, array in new.items():
            self.weights[name][...] = array

    def stage(self, new: Mapping[str, Array]) -> Staged:
        held = {**{n: a.copy() for n, a in self.weights.items()}, **new}

        def beside(pixels: Array) -> Array:
            self.staged += 1
            return self._forward(held, pixels).astype(np.float32)

        return Staged(lambda: self.swap(new), beside)

    def describe(self) -> str:
        return "fake"


@pytest.fixture
def store(world: Any, tmp_path: Path) -> Path:
    """A provisioned store."""
    Store.create(tmp_path / "store", world.bundle.path, [world.public]).close()
    return tmp_path / "store"


def _open(store: Path, reference: Any, sick: Callable[[Array, Array], Array] = lambda _, a: a, **settings: Any) -> Runtime:
    def engine(_: Bundle, weights: Mapping[str, Array]) -> FakeEngine:
        return FakeEngine(reference, weights, sick)

    return Runtime(store, **{"poll_seconds": 0, "engine": engine, **settings})


def _stage(store: Path, data: bytes) -> None:
    with Store.open(store) as opened:
        opened.stage(data)


def _probes_first(store: Path) -> None:
    save_bundle(replace(load_bundle(store / "base"), probes_first=True))


def _is_live(probes: Array, pixels: Array) -> bool:
    return not any(np.array_equal(pixels[0], p) for p in probes)


@pytest.fixture
def camera() -> Iterator[Callable[[Runtime], None]]:
    """Serves frames (that are no probes) in a thread until the test ends."""
    stop, threads = threading.Event(), []
    frame = np.random.default_rng(3).normal(size=(1, 3, 4, 4)).astype(np.float32)

    def serve(runtime: Runtime) -> None:
        while not stop.wait(0.001):
            try:
                runtime.run(frame)
            except RefusedError:
                continue

    def begin(runtime: Runtime) -> None:
        threads.append(threading.Thread(target=serve, args=(runtime,), daemon=True))
        threads[-1].start()

    yield begin
    stop.set()
    for thread in threads:
        thread.join(30)


def test_probes_before_the_swap_leave_one_after_it(world: Any, store: Path, reference: Any) -> None:
    _probes_first(store)
    _stage(store, world.patch(1))
    with _open(store, reference) as runtime:
        swap = runtime.step()
        assert swap is not None and (swap.state, swap.probed) == ("confirmed", "before")
        assert (runtime.engine.staged, runtime.engine.frames) == (len(world.bundle.probes()), 1)  # type: ignore[attr-defined]


def test_a_wrong_generation_never_goes_live_where_probes_come_first(world: Any, store: Path, reference: Any) -> None:
    _probes_first(store)
    _stage(store, world.patch(1, wrong_probe=True))
    with _open(store, reference) as runtime:
        swap = runtime.step()
        assert swap is not None and (swap.state, swap.exit_code, swap.swap_ms) == ("reverted", 7, 0.0)
        assert runtime.engine.frames == 0 and runtime.generation == 0  # type: ignore[attr-defined]
    with Store.open(store) as opened:
        assert opened.generation(1).state == "reverted" and "probe 0" in opened.generation(1).reason


def test_a_second_engine_proves_weights_that_are_written_in_place(world: Any, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real engine: it has no second binding, so one of its own answers the probes; without the memory they run after the swap."""
    _probes_first(store)
    data = world.patch(1)
    for expected in ("before", "after"):
        _stage(store, data)
        with Runtime(store, threads=1, poll_seconds=0) as runtime, monkeypatch.context() as patched:
            if expected == "after":
                patched.setattr(running, "start_memory", lambda _: 2**62)
            swap = runtime.step()
            assert swap is not None and (swap.state, swap.probed) == ("confirmed", expected)
        with Store.open(store) as opened:
            opened.rollback()


def test_an_output_that_is_not_finite_on_a_live_frame_reverts(
    world: Any, store: Path, reference: Any, camera: Callable[[Runtime], None]
) -> None:
    probes = world.bundle.probes()

    def nan(pixels: Array, answer: Array) -> Array:
        return np.full_like(answer, np.nan) if _is_live(probes, pixels) else answer

    with _open(store, reference, nan, poll_seconds=3600, health=Health(frames=5, seconds=30)) as runtime:
        camera(runtime)
        _stage(store, world.patch(1))
        swap = runtime.step()
        assert swap is not None and (swap.state, swap.exit_code) == ("reverted", 7) and "not finite" in swap.reason
        assert runtime.generation == 0 and np.isfinite(runtime.run(probes[:1]).output).all()


def test_an_engine_that_refuses_a_live_frame_reverts(world: Any, store: Path, reference: Any, camera: Callable[[Runtime], None]) -> None:
    probes = world.bundle.probes()

    def refuse(pixels: Array, answer: Array) -> Array:
        if _is_live(probes, pixels):
            raise RefusedError("engine failed on a frame")
        return answer

    with _open(store, reference, refuse, poll_seconds=3600, health=Health(frames=5, seconds=30)) as runtime:
        camera(runtime)
        _stage(store, world.patch(1))
        swap = runtime.step()
        assert swap is not None and swap.state == "reverted" and "failed on a frame" in swap.reason


def test_a_generation_that_is_always_slower_reverts(world: Any, store: Path, reference: Any) -> None:
    def slow(_: Array, answer: Array) -> Array:
        time.sleep(0.1)
        return answer

    with _open(store, reference, slow, health=Health(frames=6, slowdown=2.0, slack_ms=20)) as runtime:
        for _ in range(8):
            runtime.run(world.bundle.probes()[:1])
        _stage(store, world.patch(1))
        swap = runtime.step()
        assert swap is not None and swap.state == "reverted" and "frames are slow" in swap.reason


def test_one_fast_frame_shows_that_the_machine_was_busy(world: Any, store: Path, reference: Any) -> None:
    count = iter(range(100))

    def busy(_: Array, answer: Array) -> Array:
        time.sleep(0.0 if next(count) == 5 else 0.06)
        return answer

    with _open(store, reference, busy, health=Health(frames=8, slowdown=2.0, slack_ms=40)) as runtime:
        for _ in range(8):
            runtime.run(world.bundle.probes()[:1])
        _stage(store, world.patch(1))
        swap = runtime.step()
        assert swap is not None and swap.state == "confirmed"


def test_memory_that_grows_during_the_watch_reverts(world: Any, store: Path, reference: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = iter([100 << 20, 190 << 20])
    monkeypatch.setattr(gate, "resident_bytes", lambda: next(sizes, 190 << 20))
    _stage(store, world.patch(1))
    with _open(store, reference, health=Health(frames=2, growth_mb=64)) as runtime:
        swap = runtime.step()
        assert swap is not None and swap.state == "reverted" and "memory grew" in swap.reason


def test_frames_of_the_camera_count_and_are_on_trial(world: Any, store: Path, reference: Any, camera: Callable[[Runtime], None]) -> None:
    seen: list[Swap] = []
    with _open(store, reference, poll_seconds=3600, on_swap=seen.append, health=Health(frames=20, seconds=60)) as runtime:
        trial: list[bool] = []
        run = runtime.engine.run
        runtime.engine.run = lambda pixels: (trial.append(runtime.on_trial), run(pixels))[1]  # type: ignore[method-assign]
        camera(runtime)
        _stage(store, world.patch(1))
        swap = runtime.step()
        assert swap is not None and swap.state == "confirmed" and seen == [swap]
        assert sum(trial) >= 20 and not runtime.on_trial


def test_an_idle_camera_is_stood_in_for_by_probes(world: Any, store: Path, reference: Any) -> None:
    _stage(store, world.patch(1))
    with _open(store, reference, poll_seconds=3600, health=Health(frames=10, seconds=0.2)) as runtime:
        swap = runtime.step()
        assert swap is not None and swap.state == "confirmed"
        assert runtime.engine.frames == 10  # type: ignore[attr-defined]  # the four probes are frames of the trial too


def test_a_withdrawal_during_the_watch_ends_it(world: Any, store: Path, reference: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "BEAT_SECONDS", 0.0)
    data = world.patch(1)
    _stage(store, data)
    with _open(store, reference, poll_seconds=3600, health=Health(frames=10, seconds=60)) as runtime, Store.open(store) as opened:
        digest = opened.current()[1].patch  # type: ignore[union-attr]
        timer = threading.Timer(0.3, partial(opened.withdraw, digest, sequence=1, reason="halt"))
        timer.start()
        swap = runtime.step()
        timer.join(30)
        assert swap is not None and swap.state == "reverted" and "withdrawn" in swap.reason
        assert runtime.generation == 0 and opened.generation(1).state == "withdrawn"


def test_settings_come_from_the_bundle(world: Any) -> None:
    bundle = replace(world.bundle, soak_frames=7, soak_seconds=2.5, max_slowdown=4.0, max_growth_mb=99)
    assert Health.of(bundle) == Health(7, 2.5, 4.0, growth_mb=99)
