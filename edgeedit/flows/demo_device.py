"""The demo's device half: a process of its own in which torch, onnx and transformers cannot be imported.

It sees only copied files: `bundle/`, `fix.eep`, `ml.pub`, the held-out pixels (`*.npy`) and `job.json`.  It provisions a store,
serves real frames from a second thread through `Runtime` while the patch is taken, measures swaps and rebuilds side by
side, writes the new features of every held-out image, rolls back, and writes `device.json`.
Guarantees: every figure in `device.json` was measured in this process; nothing is read from the server's results.
"""

from __future__ import annotations

import importlib.abc
import json
import statistics
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from edgeedit.errors import EdgeEditError

Array = np.ndarray[Any, Any]
BLOCKED = (
    "torch",
    "onnx",
    "transformers",
    "onnxscript",
    "sklearn",
    "scipy",
    "matplotlib",
    "edgeedit.encoder",
    "edgeedit.edit",
)
SWAPS = 20  # swaps behind the median
REBUILDS = 5  # rebuilt sessions behind each median
BATCH = 16  # frames per run when all held-out images are read


class _Blocker(importlib.abc.MetaPathFinder):
    """Refuses the import of server-side packages, so that the process has no torch whatever is installed."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Raise for a blocked name, pass otherwise."""
        if any(fullname == name or fullname.startswith(name + ".") for name in BLOCKED):
            raise ModuleNotFoundError(f"{fullname} is not on the device", name=fullname)
        return None


def _served(
    run: Callable[[Array], Any], frames: Array, stop: threading.Event, log: list[tuple[int, Array, int]], errors: list[str]
) -> None:
    number = 0
    while not stop.is_set():
        index = number % len(frames)
        try:
            answer = run(frames[index : index + 1])
            log.append((index, answer.output.copy(), answer.generation))
        except (RuntimeError, EdgeEditError) as error:  # a lost frame is counted, not raised: the camera would go on
            errors.append(str(error))
        number += 1


def _features(run: Callable[[Array], Any], pixels: Array) -> Array:
    rows = [run(np.ascontiguousarray(pixels[i : i + BATCH])) for i in range(0, len(pixels), BATCH)]
    return np.concatenate(rows)


def _milliseconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) * 1e3


def _rebuild_ms(model: Path, *, prepack: bool, threads: int) -> float:
    """Median milliseconds to create a session on the patched files: what a device would do without in-place swap."""
    import onnxruntime

    def build() -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        if not prepack:
            options.add_session_config_entry("session.disable_prepacking", "1")
        onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])

    return statistics.median(_milliseconds(build) for _ in range(REBUILDS))


def _copy(weights: Mapping[str, Array]) -> dict[str, Array]:
    return {name: np.array(array) for name, array in weights.items()}


def _wait(condition: Callable[[], bool], what: str, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"{what} did not happen in {seconds:.0f} s")
        time.sleep(0.01)


def _swap_timings(engine: Any, old: Mapping[str, Array], new: Mapping[str, Array]) -> tuple[list[float], list[float]]:
    """Milliseconds to stage (off the frame path) and to commit (what the frame lock holds), as `Runtime` does them."""
    staged, committed = [], []
    for _ in range(SWAPS // 2):
        for which in (old, new):
            start = time.perf_counter()
            commit = engine.stage(which)
            staged.append((time.perf_counter() - start) * 1e3)
            committed.append(_milliseconds(commit))
    return staged, committed


@dataclass
class _Camera:
    """The application: a thread that serves real frames through the Runtime and keeps every answer."""

    run: Callable[[Array], Any]
    frames: Array
    log: list[tuple[int, Array, int]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> _Camera:
        self._thread = threading.Thread(target=_served, args=(self.run, self.frames, self.stop, self.log, self.errors))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self._thread.join()

    def wait_for_frames(self, count: int) -> None:
        """Return after `count` more answers."""
        start = len(self.log)
        _wait(lambda: len(self.log) >= start + count, "serving of frames")

    def torn(self, *models: Array) -> int:
        """Answers that equal none of the models' outputs bit for bit."""
        return sum(not any(np.array_equal(out[0], model[i]) for model in models) for i, out, _ in self.log)


def _one_by_one(run: Callable[[Array], Any], frames: Array) -> Array:
    return np.concatenate([run(frames[i : i + 1]).output for i in range(len(frames))])


def _serve_while_patched(runtime: Any, store_path: Path, patch: bytes, frames: Array, records: list[Any]) -> tuple[Any, _Camera]:
    """Stage the patch while the camera thread is served; returns the swap's record and the camera with its log."""
    from edgeedit.device.store import Store

    with _Camera(runtime.run, frames) as camera:
        camera.wait_for_frames(10)
        with Store.open(store_path) as store:
            number = store.stage(patch).id
        _wait(lambda: any(r.generation == number and r.state in ("confirmed", "reverted") for r in records), "confirmation of the patch")
        camera.wait_for_frames(10)
    done = [r for r in records if r.generation == number]
    return done[-1], camera


def _write_features(runtime: Any, job: Path) -> None:
    for name in ("target", "control", "unrelated"):
        pixels = np.load(job / f"{name}.npy", mmap_mode="r")
        np.save(job / f"{name}-features.npy", _features(lambda x: runtime.run(x).output, pixels))


def _roll_back(runtime: Any, store_path: Path, frames: Array, weights: Mapping[str, Array], outputs: Array) -> bool:
    """Order a rollback; true when every weight and every output is the old one, bit for bit."""
    from edgeedit.device.store import Store

    with Store.open(store_path) as store:
        store.rollback()
    _wait(lambda: runtime.generation == 0, "rollback")
    same = all(
        np.array_equal(a.reshape(-1).view(np.uint8), weights[n].reshape(-1).view(np.uint8)) for n, a in runtime.engine.weights.items()
    )
    return bool(same and np.array_equal(_one_by_one(runtime.run, frames).view(np.uint8), outputs.view(np.uint8)))


def run_device(job: Path) -> dict[str, Any]:
    """Everything the device does in the demo; `job` is the folder with the copied files.  Returns the figures."""
    # Of the deploy room only the part that needs numpy alone; with torch and onnx blocked nothing else of it can load.
    from edgeedit.deploy.materialize import write_weights
    from edgeedit.device.apply import read_patch_file
    from edgeedit.device.runtime import Runtime
    from edgeedit.device.store import Store
    from edgeedit.digest import digest_array

    settings = json.loads((job / "job.json").read_text("utf-8"))
    frames = np.load(job / "target.npy", mmap_mode="r")[: settings["frames"]].astype(np.float32)
    threads, store_path = settings["threads"], job / "store"
    Store.create(store_path, job / "bundle", [job / "ml.pub"]).close()
    records: list[Any] = []
    with Runtime(store_path, threads=threads, poll_seconds=0.05, on_swap=records.append) as runtime:
        old_weights, old_outputs = _copy(runtime.engine.weights), _one_by_one(runtime.run, frames)
        record, camera = _serve_while_patched(runtime, store_path, read_patch_file(job / "fix.eep"), frames, records)
        new_weights, new_outputs = _copy(runtime.engine.weights), _one_by_one(runtime.run, frames)
        _write_features(runtime, job)
        touched = {n: new_weights[n] for n in new_weights if not np.array_equal(new_weights[n], old_weights[n])}
        staged, committed = _swap_timings(runtime.engine, {n: old_weights[n] for n in touched}, touched)
        rollback_exact = _roll_back(runtime, store_path, frames, old_weights, old_outputs)
        model = write_weights(runtime.bundle, new_weights, job / "rebuilt")
    apply = {
        "state": record.state,
        "prepare_ms": record.prepare_ms,
        "first_swap_ms": record.swap_ms,
        "stage_ms": statistics.median(staged),
        "swap_ms": statistics.median(committed),
        "probe_ms": record.probe_ms,
        "rebuild_default_ms": _rebuild_ms(model, prepack=True, threads=threads),
        "rebuild_noprepack_ms": _rebuild_ms(model, prepack=False, threads=threads),
        "frames_served": len(camera.log),
        "frames_by_model": {"old": sum(g == 0 for _, _, g in camera.log), "new": sum(g != 0 for _, _, g in camera.log)},
        "frames_lost": len(camera.errors),
        "frames_torn": camera.torn(old_outputs, new_outputs),
    }
    return {
        "apply": apply,
        "digests": {name: digest_array(array) for name, array in new_weights.items()},
        "rollback_exact": rollback_exact,
        "server_packages_loaded": sorted({m.split(".")[0] for m in sys.modules} & {"torch", "onnx", "transformers"}),
    }


def main() -> None:
    """`python -m edgeedit.flows.demo_device JOB_FOLDER`."""
    sys.meta_path.insert(0, _Blocker())
    job = Path(sys.argv[1])
    result = run_device(job)
    (job / "device.json").write_text(json.dumps(result), "utf-8")


if __name__ == "__main__":
    main()
