"""Measures the engine of a store on this device: frames per second and frame times before, during and after swaps.

Guarantees: the store is only read; the weights change in an engine of its own, by the size of a rounding error and back again, so
neither a running application nor the store's state is touched.  Frames are probe inputs; times are wall times of one process.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeedit.device.engines.choose import open_engine
from edgeedit.device.engines.protocol import Engine
from edgeedit.device.prepare import copies, probe_inputs, replay
from edgeedit.device.store import Store
from edgeedit.errors import EdgeEditError, InputError

Array = np.ndarray[Any, Any]
SHARE = 0.01  # of each patchable tensor's elements that a measured swap changes
MOST = 20  # times as many frames as asked for at most, while a slow swap goes on
WARM_UP = 2  # frames that are not counted


@dataclass(frozen=True)
class Window:
    """Frame times of one window in milliseconds, and frames per second."""

    frames: int
    fps: float
    p50_ms: float
    p95_ms: float
    p99_ms: float

    @staticmethod
    def of(times: list[float]) -> Window:
        """Figures of frame times (ms, at least one)."""
        p50, p95, p99 = (float(v) for v in np.percentile(times, [50, 95, 99]))
        return Window(len(times), 1e3 * len(times) / sum(times), p50, p95, p99)


@dataclass(frozen=True)
class BenchResult:
    """`stage_ms` is the preparation beside the frames, `lock_ms` the longest time for which a frame had to wait for a swap; a frame
    counts as `during` when a swap was prepared or made while it ran."""

    start_ms: float
    before: Window
    during: Window
    after: Window
    swaps: int
    stage_ms: float
    lock_ms: float
    engine: str

    def to_json(self) -> dict[str, Any]:
        """Plain JSON object."""
        return asdict(self)


def bench(store_path: Path, *, frames: int = 50, threads: int = 0) -> BenchResult:
    """Measure `frames` (at least 4) frames before and after, and at least as many during swaps; raises what opening raises."""
    if frames < 4:
        raise InputError(f"too few frames: expected at least 4, got {frames}")
    with Store.open(store_path) as store:
        bundle, head = store.bundle, store.head()
        weights, _ = replay(bundle, [store.patch(generation.patch) for generation in store.chain(head.id)])
        start = time.perf_counter()
        engine = open_engine(bundle, weights, threads=threads)
        start_ms = (time.perf_counter() - start) * 1e3
        pixels = np.array(probe_inputs(bundle)[:1])
        names = [t.name for t in bundle.tensor_map.tensors if t.editable]
    lock = threading.Lock()
    frame = _timed_frame(engine, pixels, lock)
    for _ in range(WARM_UP):
        frame()
    before = [frame() for _ in range(frames)]
    during, stages, locks = _during(engine, frame, lock, copies(engine.weights, names), frames)
    after = [frame() for _ in range(frames)]
    figures = (Window.of(before), Window.of(during), Window.of(after))
    return BenchResult(start_ms, *figures, len(locks), float(np.median(stages)), max(locks), f"{bundle.engine} {bundle.mode}")


def _timed_frame(engine: Engine, pixels: Array, lock: threading.Lock) -> Callable[[], float]:
    def frame() -> float:
        start = time.perf_counter()
        with lock:
            engine.run(pixels)
        return (time.perf_counter() - start) * 1e3

    return frame


def _during(
    engine: Engine, frame: Callable[[], float], lock: threading.Lock, old: dict[str, Array], frames: int
) -> tuple[list[float], list[float], list[float]]:
    """Frame times, staging times and lock times (ms) while another thread swaps there and back; the old weights are back at the end."""
    new = {name: _nudged(array) for name, array in old.items()}
    stages: list[float] = []
    locks: list[float] = []
    faults: list[Exception] = []
    enough = threading.Event()

    def swapper() -> None:
        try:
            while True:
                for weights in (new, old):
                    start = time.perf_counter()
                    commit = engine.stage(weights)
                    stages.append((time.perf_counter() - start) * 1e3)
                    with lock:
                        start = time.perf_counter()
                        commit()
                        locks.append((time.perf_counter() - start) * 1e3)
                    # A frame may take its turn: a lock is not fair.
                    time.sleep(0.002)
                if enough.is_set():
                    return
        except (EdgeEditError, MemoryError) as error:
            faults.append(error)

    thread = threading.Thread(target=swapper, name="edgeedit-bench")
    thread.start()
    times: list[float] = []
    while thread.is_alive() and (len(times) < MOST * frames):
        times.append(frame())
        if len(times) >= frames:
            enough.set()
    thread.join()
    if faults:
        raise faults[0]
    return times, stages, locks


def _nudged(array: Array) -> Array:
    new = np.array(array)
    flat = new.reshape(-1)
    step = max(1, int(1 / SHARE))
    flat[::step] = np.nextafter(flat[::step], np.asarray(np.inf, flat.dtype))
    return new
