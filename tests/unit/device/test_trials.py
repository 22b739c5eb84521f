"""Trials that do not go well: engines that fail, claims that are lost, memory that is short, callbacks that raise."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeedit.bundle import Bundle
from edgeedit.device import owner as owners
from edgeedit.device import prepare as preparing
from edgeedit.device.apply import apply_patch
from edgeedit.device.runtime import Runtime, Swap
from edgeedit.device.store import Store
from edgeedit.digest import fingerprint
from edgeedit.errors import EdgeEditError, InputError, IntegrityError, RefusedError

Array = np.ndarray[Any, Any]


class FakeEngine:
    """The tiny network in numpy, with faults to switch on: `off` is added to every output, `error` is raised."""

    def __init__(self, forward: Callable[[dict[str, Array], Array], Array], weights: Mapping[str, Array]) -> None:
        self.weights = {name: np.array(array) for name, array in weights.items()}
        self._forward, self.off, self.seconds = forward, 0.0, 0.0
        self.error: Exception | None = None

    def run(self, pixels: Array) -> Array:
        """Features."""
        if self.error is not None:
            raise self.error
        time.sleep(self.seconds)
        return (self._forward(self.weights, pixels) + self.off).astype(np.float32)

    def swap(self, new: Mapping[str, Array]) -> None:
        """Copy."""
        for name, array in new.items():
            self.weights[name][...] = array

    def stage(self, new: Mapping[str, Array]) -> Callable[[], None]:
        """Nothing to prepare."""
        return lambda: self.swap(new)


@pytest.fixture
def store(world: Any, tmp_path: Path) -> Path:
    """A provisioned store."""
    Store.create(tmp_path / "store", world.bundle.path, [world.public]).close()
    return tmp_path / "store"


@pytest.fixture
def start(store: Path, reference: Any) -> Callable[..., Runtime]:
    """Start a Runtime with a fake engine, polling by hand."""

    def engine(_: Bundle, weights: Mapping[str, Array]) -> FakeEngine:
        return FakeEngine(reference, weights)

    return lambda **settings: Runtime(store, **{"poll_seconds": 0, "engine": engine, **settings})


def _stage(store: Path, data: bytes) -> int:
    with Store.open(store) as opened:
        return opened.stage(data).id


def _is_base(runtime: Runtime, world: Any) -> bool:
    base = world.bundle.weights()
    same = all(np.array_equal(a.view(np.uint8), np.ascontiguousarray(base[n]).view(np.uint8)) for n, a in runtime.engine.weights.items())
    return same and (runtime.generation, runtime.on_trial) == (0, False)


def _spy(runtime: Any, look: Callable[[], Any]) -> list[Any]:
    """What `look` returned at every frame that the engine ran."""
    seen: list[Any] = []
    run = runtime.engine.run

    def looking(pixels: Array) -> Array:
        seen.append(look())
        answer: Array = run(pixels)
        return answer

    runtime.engine.run = looking
    return seen


@pytest.mark.parametrize("error", [RefusedError("session failed"), ValueError("not ours")])
def test_engine_that_fails_in_the_probes_gets_its_weights_back(world: Any, store: Path, start: Any, error: Exception) -> None:
    with start() as runtime:
        number, swap = _stage(store, world.patch(1)), runtime.engine.swap

        def fail_after(new: Mapping[str, Array]) -> None:
            swap(new)
            runtime.engine.error = error if runtime.engine.error is None else None

        runtime.engine.swap = fail_after
        with pytest.raises(type(error)):
            runtime.step()
        assert _is_base(runtime, world)
        runtime.engine.swap = swap
        healed = runtime.step()
        assert healed is not None and (healed.generation, healed.state) == (number, "confirmed")
        with Store.open(store) as opened:
            assert opened.generation(number).attempts == 2


@pytest.mark.parametrize("bad", [1.0, float("nan"), float("inf")])
def test_second_runtime_that_fails_takes_both_back(world: Any, store: Path, start: Any, bad: float) -> None:
    with start() as good, start() as weak:
        number = _stage(store, world.patch(1))
        assert good.step().state == "confirmed"
        weak.engine.off = bad
        with np.errstate(invalid="ignore"):
            swap = weak.step()
        assert (swap.generation, swap.state, swap.exit_code) == (number, "reverted", 7)
        assert _is_base(weak, world)
        assert good.step().state == "followed"
        assert _is_base(good, world)
        assert good.step() is None and weak.step() is None


def test_unproven_answers_say_so_also_where_another_runtime_confirmed(world: Any, store: Path, start: Any) -> None:
    with start() as first, start() as second:
        _stage(store, world.patch(1))
        for runtime in (first, second):
            seen = _spy(runtime, partial(getattr, runtime, "on_trial"))
            assert runtime.step().state == "confirmed"
            assert seen == [True] * 4
            assert not runtime.run(world.bundle.probes()).on_trial


def test_trial_withdrawn_meanwhile_is_not_confirmed(world: Any, store: Path, start: Any) -> None:
    with start() as runtime:
        _stage(store, world.patch(1))
        runtime.step()
        second, run = _stage(store, world.patch(2)), runtime.engine.run

        def rollback_meanwhile(pixels: Array) -> Array:
            runtime.engine.run = run
            with Store.open(store) as opened:
                opened.rollback()
            answer: Array = run(pixels)
            return answer

        runtime.engine.run = rollback_meanwhile
        swap = runtime.step()
        assert (swap.generation, swap.state) == (second, "reverted") and "withdrawn" in swap.reason
        assert runtime.generation == 1 and not runtime.on_trial
        assert runtime.step().state == "followed"
        assert _is_base(runtime, world)


def test_one_trial_is_tried_by_one_runtime_at_a_time(world: Any, store: Path, start: Any) -> None:
    with start() as first, start() as second:
        number, seen = _stage(store, world.patch(1)), _spy(first, second.step)
        assert first.step().state == "confirmed"
        assert seen == [None] * 4
        with Store.open(store) as opened:
            assert opened.generation(number).attempts == 1


def test_claim_lasts_as_long_as_there_is_progress(world: Any, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = owners.new_owner(), owners.new_owner()
    now = [1000.0]
    monkeypatch.setattr(owners, "uptime", lambda: now[0])
    monkeypatch.setattr("edgeedit.device.store.uptime", lambda: now[0])
    with Store.open(store) as opened:
        number = opened.stage(world.patch(1)).id
        assert opened.claim(number, one)
        for _ in range(5):
            now[0] += owners.CLAIM_SECONDS - 1
            assert not opened.claim(number, two)
            assert opened.beat(number, one)
        now[0] += owners.CLAIM_SECONDS + 1
        assert opened.claim(number, two)
        assert not opened.beat(number, one) and not opened.confirm(number, one) and not opened.revert(number, "late", owner=one)
        assert opened.confirm(number, two)


def test_slow_trial_notes_its_progress(world: Any, store: Path, start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeedit.device.runtime.BEAT_SECONDS", 0.0)
    beats: list[bool] = []
    beat = Store.beat

    def counting(self: Store, number: int, owner: str) -> bool:
        beats.append(beat(self, number, owner))
        return beats[-1]

    monkeypatch.setattr(Store, "beat", counting)
    with start() as runtime:
        _stage(store, world.patch(1))
        assert runtime.step().state == "confirmed"
    assert beats == [True] * 6  # two tensors, four probes


def test_owner_of_an_earlier_life_is_gone() -> None:
    own = owners.new_owner()
    boot, space, pid, started, token = own.split("/")
    now = owners.uptime()
    assert not owners.is_gone(own, now)
    assert owners.is_gone(own, now - owners.CLAIM_SECONDS)
    assert owners.is_gone(f"another-boot/{space}/{pid}/{started}/{token}", now)
    assert owners.is_gone(f"{boot}/{space}/{pid}/{int(started) - 1}/{token}", now), "same number, another process"
    assert owners.is_gone(f"{boot}/{space}/{2**22 + 7}/{started}/{token}", now)
    assert not owners.is_gone(f"{boot}/another-space/{2**22 + 7}/1/{token}", now), "a container's processes are judged by progress"
    assert int(pid) == os.getpid()


def test_short_memory_is_exit_6_before_anything_is_loaded(
    world: Any, store: Path, start: Callable[..., Runtime], tmp_path: Path, tree: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "p.eep").write_bytes(world.patch(1))
    monkeypatch.setattr(preparing, "available_memory", lambda: 4096)
    before = tree(store)
    with pytest.raises(RefusedError, match="memory is short") as caught:
        apply_patch(store, tmp_path / "p.eep", threads=1)
    assert caught.value.exit_code == 6 and tree(store) == before

    def engine(*_: Any) -> FakeEngine:
        raise AssertionError("an engine was started")

    with pytest.raises(RefusedError, match="memory is short"):
        start(engine=engine)


def test_memory_that_runs_short_later_reverts_the_trial(
    world: Any, store: Path, start: Callable[..., Runtime], monkeypatch: pytest.MonkeyPatch
) -> None:
    with start() as runtime:
        _stage(store, world.patch(1))
        monkeypatch.setattr(preparing, "available_memory", lambda: 4096)
        swap = runtime.step()
        assert swap is not None and (swap.state, swap.exit_code) == ("reverted", 6) and _is_base(runtime, world)


@pytest.mark.parametrize("field", ["after", "result"])
def test_patch_that_comes_out_differently_is_exit_5(world: Any, store: Path, tmp_path: Path, field: str) -> None:
    lie: dict[str, Any] = {"result": "5" * 64}
    if field == "after":
        # A consistent lie: the result is the fingerprint of the digests that the patch claims.
        lie["after"] = {"first": "3" * 64, "second": "4" * 64}
        rows = world.bundle.tensor_map.tensors
        lie["result"] = fingerprint(replace(t.digest(), sha256=lie["after"].get(t.name, t.sha256)) for t in rows)
    (tmp_path / "p.eep").write_bytes(world.patch(1, **lie))
    with pytest.raises(IntegrityError, match="tensor first came out wrong" if field == "after" else "result came out wrong") as caught:
        apply_patch(store, tmp_path / "p.eep", threads=1)
    assert caught.value.exit_code == 5
    with Store.open(store) as opened:
        assert (opened.head().id, opened.trial()) == (0, None)


def test_callback_that_raises_does_not_end_the_following(world: Any, store: Path, start: Any) -> None:
    seen: list[Swap] = []
    both = threading.Event()

    def raises(swap: Swap) -> None:
        seen.append(swap)
        if len(seen) == 2:
            both.set()
        raise ValueError("a fault of the application")

    with start(poll_seconds=0.02, on_swap=raises) as runtime:
        _stage(store, world.patch(1))
        deadline = time.monotonic() + 20
        while runtime.generation != 1 or runtime.on_trial:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        _stage(store, world.patch(2))
        assert both.wait(20)
    assert [swap.state for swap in seen] == ["confirmed", "confirmed"]


def test_busy_camera_does_not_keep_a_swap_waiting(world: Any, store: Path, start: Any) -> None:
    with start() as runtime:
        runtime.engine.seconds = 0.01
        frames, waited, stop = [0], [], threading.Event()

        def camera() -> None:
            while not stop.is_set():
                runtime.run(world.bundle.probes()[:1])
                frames[0] += 1

        thread = threading.Thread(target=camera, daemon=True)
        thread.start()
        try:
            for _ in range(20):
                time.sleep(0.013)
                before = frames[0]
                with runtime._turn, runtime._frame:
                    waited.append(frames[0] - before)
        finally:
            stop.set()
            thread.join(30)
    assert max(waited) <= 2, waited


def test_polling_makes_no_files(store: Path, start: Any) -> None:
    with start() as runtime:
        runtime.step()
        before = {p.name: p.stat().st_ino for p in store.iterdir()}
        for _ in range(3):
            runtime.step()
        assert {p.name: p.stat().st_ino for p in store.iterdir()} == before and "state.sqlite-wal" in before
    assert not list(store.glob("state.sqlite-*"))


def test_wrong_pixels_are_named(world: Any, store: Path) -> None:
    with Runtime(store, threads=1, poll_seconds=0) as runtime:
        for pixels in (np.zeros((1, 3, 5, 4), np.float32), np.zeros((1, 3, 4, 4)), np.zeros((3, 4, 4), np.float32)):
            with pytest.raises(InputError, match="wrong pixels"):
                runtime.run(pixels)


def test_model_that_does_not_load_is_refused(world: Any, store: Path) -> None:
    (store / "base" / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(EdgeEditError, match="refuses the model") as caught:
        Runtime(store, poll_seconds=0)
    assert caught.value.exit_code == 6


def test_trial_that_the_engine_cannot_stage_is_reverted_with_its_reason(world: Any, store: Path, reference: Any) -> None:
    with Store.open(store) as opened:
        generation = opened.stage(world.patch(1))
    engine = FakeEngine(reference, world.bundle.weights())

    def refuse(_: Mapping[str, Array]) -> Callable[[], None]:
        raise RefusedError("no memory for a second engine")

    engine.stage = refuse  # type: ignore[method-assign]
    with Runtime(store, poll_seconds=0, engine=lambda *_: engine) as runtime:
        swap = runtime.step()
        assert swap is not None and (swap.state, swap.exit_code) == ("reverted", 6)
        assert runtime.generation != generation.id
    with Store.open(store) as opened:
        assert opened.generation(generation.id).state == "reverted"
