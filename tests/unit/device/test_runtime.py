"""Runtime and engine: swapped session = fresh session bit for bit, no torn frame, two Runtimes take one patch, probes revert."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeedit.bundle import load_bundle
from edgeedit.device.doctor import examine
from edgeedit.device.engines.ort import OrtEngine
from edgeedit.device.runtime import Runtime, Swap
from edgeedit.device.status import status_of
from edgeedit.device.store import Store
from edgeedit.errors import RefusedError


@pytest.fixture
def store(world: Any, tmp_path: Path) -> Path:
    """A provisioned store."""
    Store.create(tmp_path / "store", world.bundle.path, [world.public]).close()
    return tmp_path / "store"


def _stage(store: Path, data: bytes) -> int:
    with Store.open(store) as opened:
        return opened.stage(data).id


def _frames(count: int = 6) -> np.ndarray[Any, Any]:
    return np.random.default_rng(9).normal(size=(count, 3, 4, 4)).astype(np.float32)


def test_engine_agrees_with_numpy(world: Any, reference: Any) -> None:
    bundle = load_bundle(world.bundle.path)
    engine = OrtEngine(bundle, bundle.weights(), threads=1)
    assert np.allclose(engine.run(_frames()), reference(world.weights, _frames()), atol=1e-5)


def test_swapped_session_equals_a_fresh_one_bit_for_bit(world: Any, store: Path) -> None:
    with Runtime(store, threads=1, poll_seconds=0) as runtime:
        old = runtime.run(_frames()).output.copy()
        _stage(store, world.patch(1))
        swap = runtime.step()
        assert swap is not None and swap.state == "confirmed"
        answer = runtime.run(_frames())
        assert (answer.generation, answer.on_trial) == (1, False)
        fresh = OrtEngine(world.bundle, world.weights, threads=1)
        assert np.array_equal(answer.output, fresh.run(_frames()))
        assert not np.array_equal(answer.output, old)
        with Store.open(store) as opened:
            opened.rollback()
        assert runtime.step() is not None
        assert np.array_equal(runtime.run(_frames()).output.view(np.uint8), old.view(np.uint8))


def test_chain_of_three_survives_a_restart(world: Any, store: Path) -> None:
    with Runtime(store, threads=1, poll_seconds=0) as runtime:
        for seed in (1, 2, 3):
            _stage(store, world.patch(seed))
            swap = runtime.step()
            assert swap is not None and swap.state == "confirmed"
        running = runtime.run(_frames()).output.copy()
    with Runtime(store, threads=1, poll_seconds=0) as runtime:
        assert runtime.generation == 3
        assert np.array_equal(runtime.run(_frames()).output, running)
        assert all(np.array_equal(runtime.engine.weights[n], a) for n, a in world.weights.items())
    assert len(status_of(store)["chain"]) == 3


def test_two_runtimes_take_one_patch_and_one_rollback(world: Any, store: Path) -> None:
    with Runtime(store, threads=1, poll_seconds=0) as one, Runtime(store, threads=1, poll_seconds=0) as two:
        _stage(store, world.patch(1))
        first, second = one.step(), two.step()
        assert first is not None and second is not None
        assert one.generation == two.generation == 1
        assert np.array_equal(one.run(_frames()).output, two.run(_frames()).output)
        with Store.open(store) as opened:
            opened.rollback()
        one.step()
        two.step()
        assert one.generation == two.generation == 0


def test_failed_probe_restores_every_bit(world: Any, store: Path) -> None:
    with Runtime(store, threads=1, poll_seconds=0) as runtime:
        before = {n: a.copy() for n, a in runtime.engine.weights.items()}
        _stage(store, world.patch(1, wrong_probe=True))
        swap = runtime.step()
        assert swap is not None and swap.state == "reverted" and "probe" in swap.reason
        assert runtime.generation == 0
        assert all(np.array_equal(a.view(np.uint8), before[n].view(np.uint8)) for n, a in runtime.engine.weights.items())


def test_no_frame_is_torn_while_patches_come_and_go(world: Any, store: Path) -> None:
    frames = _frames()
    models: dict[int, np.ndarray[Any, Any]] = {}
    answers: list[tuple[int, np.ndarray[Any, Any], int]] = []
    stop = threading.Event()
    with Runtime(store, threads=1, poll_seconds=0) as runtime:

        def serve() -> None:
            number = 0
            while not stop.is_set():
                i = number % len(frames)
                answer = runtime.run(frames[i : i + 1])
                answers.append((i, answer.output.copy(), answer.generation))
                number += 1

        def remember() -> None:
            models[runtime.generation] = np.concatenate([runtime.run(frames[i : i + 1]).output for i in range(len(frames))])

        remember()
        camera = threading.Thread(target=serve, daemon=True)
        camera.start()
        data = world.patch(1)
        try:
            for _ in range(10):
                _stage(store, data)
                runtime.step()
                remember()
                with Store.open(store) as opened:
                    opened.rollback()
                runtime.step()
        finally:
            stop.set()
        camera.join(30)
    assert len({g for _, _, g in answers}) > 1
    torn = [g for i, out, g in answers if g in models and not np.array_equal(out[0], models[g][i])]
    assert not torn


def test_background_thread_takes_the_patch_and_reports_it(world: Any, store: Path) -> None:
    seen: list[Swap] = []
    done = threading.Event()

    def take(swap: Swap) -> None:
        seen.append(swap)
        done.set()

    with Runtime(store, threads=1, poll_seconds=0.02, on_swap=take) as runtime:
        _stage(store, world.patch(1))
        assert done.wait(20)
        assert runtime.generation == 1
    assert seen[0].state == "confirmed" and seen[0].swap_ms >= 0


def test_tensor_that_is_not_live_refuses_the_session(world: Any) -> None:
    """A graph that does not read an editable tensor must not start."""

    class Deaf(OrtEngine):
        def run(self, pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
            return np.zeros((len(pixels), 8), np.float32)

    bundle = load_bundle(world.bundle.path)
    with pytest.raises(RefusedError, match="does not see first") as caught:
        Deaf(bundle, bundle.weights(), threads=1)
    assert caught.value.exit_code == 6


def test_doctor_finds_a_changed_store(world: Any, store: Path) -> None:
    assert all(check.level != "FAIL" for check in examine(store))
    path = store / "base" / "weights.bin"
    data = bytearray(path.read_bytes())
    data[9] ^= 1
    path.write_bytes(bytes(data))
    assert [c.name for c in examine(store) if c.level == "FAIL"] == ["bundle"]
