"""The cost part of `drift.py`: a Runtime on the real encoder, frames one after the other, with the monitor and without, in turn.

Both Runtimes hold the same Bundle and the same number of threads and live at the same time; windows of frames alternate between them, so
that whatever else the machine does meets both.  The monitored one takes a frame every 10 s as in the field, or one every second as the
worse case; its clean days are learnt before, so it judges.  The interval of the p99 ratio (95 %) comes from windows drawn again in
pairs: the slowest frames of a side are few.  CPU time is the thread's own.  Memory is that of a process with one Runtime
and the monitor, less that of one without.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from drift_frames import Camera, cells
from drift_line import FRAMES, ORDERS, RATE, Line

from edgeedit.device.health import resident_bytes
from edgeedit.device.monitor.baseline import save_baseline
from edgeedit.device.monitor.monitor import Monitor
from edgeedit.device.monitor.projection import to_pixels
from edgeedit.device.monitor.reservoir import pack
from edgeedit.device.runtime import Runtime
from edgeedit.device.store import Store
from edgeedit.edit.readers import Reader
from edgeedit.patch.keys import new_key

Array = np.ndarray[Any, Any]
WINDOWS, LENGTH = 100, 50  # windows of each side, frames in each


def prepare(camera: Camera, reader: Reader, folder: Path) -> Array:
    """A Store, what a monitor learnt for both rates, and pixels of clean frames float32 (n, 3, s, s)."""
    new_key(folder / "ml.key", folder / "ml.pub")
    Store.create(folder / "store", camera.bundle.path, [folder / "ml.pub"]).close()
    some = cells("mono", development=False, count=200)
    pool = camera.pool(some)
    line = Line(pool, reader, ORDERS[0], 0)
    baseline = line.learn()
    pictures = np.stack([camera.picture(cell) for cell in some])
    packed = [pack(picture) for picture in pictures]
    for every in (0.0, 1.0, 10.0):
        about = {"bundle": camera.bundle.fingerprint, "frames": FRAMES, "every": every, "rate": RATE, "generation": 0}
        save_baseline(folder / f"state-{every:g}.npz", baseline, about, [packed[i] for i in line.kept])
    np.savez(folder / "reader.npz", mean=reader.mean, std=reader.std, weight=reader.weight, bias=reader.bias)
    return to_pixels(pictures[:LENGTH], camera.bundle.preprocess)


def _serve(runtime: Runtime, pixels: Array) -> list[float]:
    times = []
    for frame in pixels:
        start = time.perf_counter()
        runtime.run(frame[None])
        times.append((time.perf_counter() - start) * 1e3)
    return times


def _monitor(reader: Any, folder: Path, every: float) -> Monitor:
    return Monitor(
        reader=reader, every=every, frames=FRAMES, rate=RATE, state=folder / f"state-{every:g}.npz", textfile=folder / "out.prom"
    )


def memory(folder: Path) -> float:
    """MiB that a process with the monitor occupies beyond one without, after 3 windows of frames."""
    found = []
    for flag in ("0", "1"):
        done = subprocess.run([sys.executable, __file__, str(folder), flag], capture_output=True, text=True, check=True)
        found.append(float(json.loads(done.stdout)))
    return (found[1] - found[0]) / 2**20


def child(folder: Path, monitored: bool) -> None:
    """Print the bytes of this process after it served."""
    stored = np.load(folder / "reader.npz")

    def reader(features: Array) -> Array:
        logits: Array = (features - stored["mean"]) / stored["std"] @ stored["weight"] + stored["bias"]
        return logits

    monitor = _monitor(reader, folder, 0.0) if monitored else None
    pixels = np.load(folder / "pixels.npy")
    with Runtime(folder / "store", threads=1, poll_seconds=0, monitor=monitor) as runtime:
        for number in range(3 * FRAMES):
            runtime.run(pixels[number % len(pixels)][None])
        time.sleep(1.0)
        assert monitor is None or (monitor.figures().plain["edgeedit_windows_total"] == 3 and not monitor.errors)
        print(resident_bytes())


def cost_rows(camera: Camera, reader: Reader, quick: bool) -> Iterator[dict[str, Any]]:
    """One row for each rate of frames."""
    windows, length = (4, 8) if quick else (WINDOWS, LENGTH)
    with tempfile.TemporaryDirectory(prefix="drift-cost-") as name:
        folder = Path(name)
        pixels = prepare(camera, reader, folder)[:length]
        np.save(folder / "pixels.npy", pixels)
        grown = memory(folder)
        for every in (10.0, 1.0):
            monitor = _monitor(reader.logits_numpy, folder, every)
            plain = Runtime(folder / "store", threads=1, poll_seconds=0)
            watched = Runtime(folder / "store", threads=1, poll_seconds=0, monitor=monitor)
            with plain, watched:
                _serve(plain, pixels), _serve(watched, pixels)
                quiet, busy, spent = [], [], 0.0
                begin, cpu = time.perf_counter(), monitor.figures().plain["edgeedit_monitor_cpu_seconds_total"]
                for number in range(windows):
                    # Who goes first changes, so that no drift of the machine falls on one side.
                    for side in (0, 1) if number % 2 else (1, 0):
                        start = time.perf_counter()
                        (busy if side else quiet).extend(_serve(watched if side else plain, pixels))
                        spent += (time.perf_counter() - start) * side
                cpu = monitor.figures().plain["edgeedit_monitor_cpu_seconds_total"] - cpu
                assert not monitor.errors
            yield {
                "part": "cost", "every": every, "frames": len(busy), "seconds": time.perf_counter() - begin,
                "p50_ratio": float(np.median(busy) / np.median(quiet)), "p99_ms": float(np.percentile(quiet, 99)),
                "p99_ratio": _p99_ratio(np.array(busy), np.array(quiet)),
                "p99_interval": _interval(np.array(busy), np.array(quiet), length), "cpu_share": cpu / spent, "memory_mb": grown,
            }  # fmt: skip


def _p99_ratio(busy: Array, quiet: Array) -> float:
    return float(np.percentile(busy, 99) / np.percentile(quiet, 99))


def _interval(busy: Array, quiet: Array, length: int) -> list[float]:
    """95 % bootstrap interval of the p99 ratio over pairs of windows of `length` frames."""
    rng, sides = np.random.default_rng(0), (busy.reshape(-1, length), quiet.reshape(-1, length))
    drawn = [rng.integers(0, len(sides[0]), len(sides[0])) for _ in range(2000)]
    found = [_p99_ratio(sides[0][rows], sides[1][rows]) for rows in drawn]
    return [float(v) for v in np.percentile(found, (2.5, 97.5))]


if __name__ == "__main__":
    child(Path(sys.argv[1]), sys.argv[2] == "1")
