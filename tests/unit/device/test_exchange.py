"""Pages are exchanged under a fixed address: no value is lost, none is half-made, and a system that refuses changes nothing else."""

from __future__ import annotations

import itertools
import threading
from typing import Any

import numpy as np
import pytest

from edgeedit.device.engines import exchange
from edgeedit.device.engines import ort as aliased
from edgeedit.device.engines.exchange import HUGE, Twin
from edgeedit.errors import IntegrityError, RefusedError

Array = np.ndarray[Any, Any]
SIZES = (1, 1023, 4096, 4097, HUGE // 4, HUGE // 4 + 3, 3 * HUGE // 4)  # float32 values, at and around a page and a huge page


@pytest.mark.parametrize("size", SIZES)
def test_values_move_and_addresses_stay(size: int) -> None:
    rng = np.random.default_rng(size)
    old, new = (rng.standard_normal(size).astype(np.float32) for _ in range(2))
    twin = Twin(old)
    address = twin.live.ctypes.data
    for _ in range(3):
        twin.fill(new)
        assert np.array_equal(twin.live, old)  # filling shows nothing
        twin.exchange()
        assert twin.live.ctypes.data == address
        assert np.array_equal(twin.live, new)
        assert np.array_equal(twin.next, old)
        twin.exchange()
        assert np.array_equal(twin.live, old)
    twin.release()
    assert np.array_equal(twin.live, old)
    assert not twin.next.any()


def test_this_system_exchanges_pages() -> None:
    assert exchange.supported()  # else every test here would pass on copies alone


@pytest.mark.parametrize("refused", list(itertools.product([False, True], repeat=3)))
def test_a_refused_move_leaves_the_new_tensor(monkeypatch: pytest.MonkeyPatch, refused: tuple[bool, ...]) -> None:
    twin = Twin(np.full(5000, 1, np.float32))
    twin.fill(np.full(5000, 2, np.float32))
    real, calls = exchange._MREMAP, iter(refused)
    monkeypatch.setattr(exchange, "_MREMAP", lambda *args: None if next(calls) else real(*args))
    twin.exchange()
    assert (twin.live == 2).all()
    monkeypatch.setattr(exchange, "_MREMAP", real)
    twin.fill(np.full(5000, 3, np.float32))
    twin.exchange()
    assert (twin.live == 3).all()


def test_other_threads_never_get_an_address_of_a_tensor() -> None:
    """Threads that map and unmap memory all the time would be given a hole, and their pages would be lost."""
    twin, stop, faults = Twin(np.zeros(HUGE, np.float32)), threading.Event(), []

    def grab() -> None:
        while not stop.is_set():
            mine = [np.full(HUGE // 4 + 512, k, np.float32) for k in range(4)]
            faults.extend(k for k, array in enumerate(mine) if not (array == k).all())

    threads = [threading.Thread(target=grab, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for number in range(1, 60):
            twin.fill(np.broadcast_to(np.float32(number), twin.live.shape))
            twin.exchange()
            assert (twin.live == number).all()
            assert (twin.next == number - 1).all()
    finally:
        stop.set()
    for thread in threads:
        thread.join(30)
    assert not faults


def moved(world: Any, by: float) -> dict[str, Array]:
    return {name: np.array(world.weights[name]) + np.float32(by) for name in ("first", "second")}


@pytest.mark.parametrize("way", ["exchange", "no such call", "memory is short"])
def test_engine_gives_one_answer_by_either_way(world: Any, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    if way == "no such call":
        monkeypatch.setattr(exchange, "_MREMAP", None)
    if way == "memory is short":
        monkeypatch.setattr(aliased, "available_memory", lambda: 1024)
    engine = aliased.OrtEngine(world.bundle, world.weights, threads=1)
    assert ("exchange" in engine.describe()) == (way != "no such call")
    pixels = world.bundle.probes()
    before = engine.run(pixels)
    engine.swap(moved(world, 0.5))
    assert any(twin.filled for twin in engine._twins.values()) == (way == "exchange")
    fresh = aliased.OrtEngine(world.bundle, {**world.weights, **moved(world, 0.5)}, threads=1)
    assert engine.run(pixels).tobytes() == fresh.run(pixels).tobytes()
    engine.swap({name: world.weights[name] for name in ("first", "second")})
    assert engine.run(pixels).tobytes() == before.tobytes()


def test_only_the_last_staging_counts_and_once(world: Any) -> None:
    engine = aliased.OrtEngine(world.bundle, world.weights, threads=1)
    pixels = world.bundle.probes()
    older, newer = engine.stage(moved(world, 0.5)), engine.stage(moved(world, 0.75))
    with pytest.raises(RefusedError, match="staged weights are gone"):
        older()
    newer()
    after = engine.run(pixels)
    with pytest.raises(RefusedError, match="second commit"):
        newer()
    assert engine.run(pixels).tobytes() == after.tobytes()
    assert np.array_equal(engine.weights["first"], moved(world, 0.75)["first"])


def test_a_session_that_reads_other_memory_falls_back_to_writing(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Twin, "exchange", lambda _: None)  # pages move somewhere that the session does not read
    engine = aliased.OrtEngine(world.bundle, world.weights, threads=1)
    assert "by writing" in engine.describe()
    before = engine.run(world.bundle.probes())
    engine.swap(moved(world, 0.5))
    assert engine.run(world.bundle.probes()).tobytes() != before.tobytes()


def test_foreign_tensor_is_refused(world: Any) -> None:
    engine = aliased.OrtEngine(world.bundle, world.weights, threads=1)
    with pytest.raises(IntegrityError, match="bias"):
        engine.stage({"bias": np.zeros(32, np.float32)})
    with pytest.raises(IntegrityError, match="first"):
        engine.stage({"first": np.zeros((2, 2), np.float32)})


@pytest.mark.parametrize("shape", [(), (0, 4), (3,), (1024, 1031)])
def test_placed_copy_is_the_same_array(shape: tuple[int, ...]) -> None:
    array = np.asarray(np.random.default_rng(0).standard_normal(shape), np.float16)
    copy = exchange.placed(array.T)
    assert copy.flags.c_contiguous and copy.flags.writeable
    assert np.array_equal(copy, array.T) and copy.dtype == array.dtype
    assert not np.shares_memory(copy, array)


def test_a_paced_copy_is_whole_and_rests_between_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    rests: list[float] = []
    monkeypatch.setattr(exchange, "SLICE", 64)
    monkeypatch.setattr(exchange.time, "sleep", rests.append)
    source = np.random.default_rng(0).standard_normal((9, 5)).astype(np.float32)
    target = np.zeros((5, 9), np.float32)
    exchange.copy_paced(target, source.T)
    assert np.array_equal(target, source.T)
    assert len(rests) == 2 and min(rests) > 0, "45 elements in slices of 16: a rest between two slices, none at the end"
    with pytest.raises(ValueError, match="expected shape"):
        exchange.copy_paced(target, source)
    with pytest.raises(TypeError):
        exchange.copy_paced(target, np.zeros((5, 9)))
