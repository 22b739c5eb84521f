"""Swaps the weights of a serving ONNX Runtime session, against rebuilding the session, in one run.

    python benchmarks/hot_swap.py [--quick] [--shapes b16,l14] [--precisions float32,float16] [--minutes 20] [--json FILE]

Random ViT-B/16 and ViT-L/14 towers (CLIP layout, 224 px), one ONNX Runtime thread.  A mask of 1, 5 or 10 % changes that share of every
block's first FFN matrix.  `lock_ms` is the time for which a frame would have to wait (the commit), `stage_ms` what is prepared
beside the frames (with pauses, so that frames keep the memory), `first_stage_ms` the same the first time, when memory is paged in.
`default rebuild` creates a session with default options from a file already written, of the graph as the exporter makes it;
`no-prepack rebuild` the same without prepacking; writing that file is `write_ms` and counted to neither.  The goals compare a
rebuild with the commit; `rebuild_over_stage_and_commit` compares it with both.  Steady cost is against the default session of the same
plain graph.  The fresh session of the bitwise goal is a plain one on the engine's graph, with the engine's options.

A thread serves frames all the time; each must be bit for bit the model of its moment, old or new around a swap (else torn), and none
may fail (else lost).  p99 compares >= 30 windows with a swap (masks in turn) with as many without, in turn; each window has the same
number of frames.  No probe frames are run here.  Towers in order: all shapes in the first precision, then the next.  None is begun that
would end after --minutes, going by the last one of its shape.  With --json each finished tower is kept: a run that was cut off goes on
from there (same commit and versions).  --quick needs less than a minute.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from edgeedit.bundle import MODEL_FILE, Bundle
from edgeedit.catalog import load_profile, load_recipe
from edgeedit.deploy.export import export_bundle
from edgeedit.deploy.graph import open_inputs
from edgeedit.deploy.materialize import write_weights
from edgeedit.device.engines import ort as aliased_engine
from edgeedit.device.engines.choose import open_engine
from edgeedit.device.engines.ort_session import SessionPlan, make_session, session_options
from edgeedit.device.engines.protocol import Engine
from edgeedit.encoder.load import random_encoder
from edgeedit.patterns import synthetic_pixels

Array = np.ndarray[Any, Any]
SHAPES: dict[str, dict[str, int]] = {
    "b16": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072, "patch_size": 16},
    "l14": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096, "patch_size": 14},
    "tiny": {"hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 384, "patch_size": 14},
}
MASKS = (0.01, 0.05, 0.10)
MODES = ("aliased", "inputs")
FASTER = {"b16": 200.0, "l14": 130.0}  # at 1 %, float32, against the default rebuild
STEADY = {("b16", "aliased"): 1.15, ("l14", "aliased"): 1.08, ("b16", "inputs"): 1.03, ("l14", "inputs"): 1.03}
LOCK_MS, P99 = 10.0, 1.10
SWAPS = 30


def since(start: float) -> float:
    """Milliseconds since a `time.perf_counter` value."""
    return (time.perf_counter() - start) * 1e3


def bundles(shape: str, precision: str, folder: Path) -> dict[str, Bundle]:
    """The same tower as a Bundle for each mode, the weights in one file, and `plain`: the graph as the exporter makes it."""
    recipe = load_recipe("clip")
    encoder = random_encoder(recipe, {**SHAPES[shape], "image_size": 224, "projection_dim": 512}, seed=0)
    profile = load_profile("linux-cpu")
    pixels = synthetic_pixels(encoder.preprocess, 1, 0)
    aliased = export_bundle(encoder, folder / "aliased", profile=profile, precision=precision, probes=pixels)
    inputs = folder / "inputs"
    inputs.mkdir()
    for file in aliased.path.iterdir():
        os.link(file, inputs / file.name)
    model = onnx.load(str(aliased.path / MODEL_FILE), load_external_data=False)
    open_inputs(model, {t.name for t in aliased.tensor_map.tensors if t.editable})
    (inputs / MODEL_FILE).unlink()
    onnx.save(model, str(inputs / MODEL_FILE))
    plain = aliased
    if any(t.editable and not t.transposed for t in aliased.tensor_map.tensors):
        # Stored for an engine that reads it in place: a rebuild from that file would have to turn every matrix first.
        plain = export_bundle(encoder, folder / "plain", profile=load_profile("linux-cpu-rebuild"), precision=precision, probes=pixels)
    return {"plain": plain, "aliased": aliased, "inputs": replace(aliased, path=inputs, mode="inputs")}


def masked(bundle: Bundle, share: float, seed: int) -> dict[str, Array]:
    """New first FFN matrices with `share` of their elements changed."""
    rng, weights, new = np.random.default_rng(seed), bundle.weights(), {}
    for row in bundle.tensor_map.tensors:
        if row.editable and ".fc1." in row.name:
            array = np.array(weights[row.name])
            flat = array.reshape(-1)
            index = rng.choice(flat.size, max(1, int(share * flat.size)), replace=False, shuffle=False)
            flat[index] += np.asarray(0.02, array.dtype)
            new[row.name] = array
    return new


def timed_swap(engine: Engine, new: dict[str, Array]) -> tuple[float, float]:
    """(stage ms, commit ms)."""
    start = time.perf_counter()
    commit = engine.stage(new)
    staged = since(start)
    start = time.perf_counter()
    commit()
    return staged, since(start)


def rebuild_times(bundle: Bundle, folder: Path, repeats: int) -> dict[str, float]:
    """Median ms of writing the file with a changed mask and of creating a session with default options and without prepacking."""
    weights = {**bundle.weights(), **masked(bundle, MASKS[0], 0)}
    times: dict[str, list[float]] = {"write_ms": [], "default_ms": [], "no_prepack_ms": []}
    for _ in range(repeats):
        start = time.perf_counter()
        path = write_weights(bundle, weights, folder)
        times["write_ms"].append(since(start))
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        start = time.perf_counter()
        ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        times["default_ms"].append(since(start))
        plan = SessionPlan(threads=1)
        start = time.perf_counter()
        make_session(ort, folder, plan, session_options(ort, plan))
        times["no_prepack_ms"].append(since(start))
    shutil.rmtree(folder)
    return {name: statistics.median(values) for name, values in times.items()}


def fresh_answer(bundle: Bundle, new: dict[str, Array], pixels: Array, folder: Path) -> bytes:
    """Output bytes of a plain new session on a file that holds the new weights, with the options of the bundle's engine."""
    write_weights(bundle, {**bundle.weights(), **new}, folder)
    inputs = bundle.mode == "inputs"
    plan = SessionPlan(threads=1, prepack=inputs)
    session = make_session(ort, folder, plan, session_options(ort, plan), **({"disabled": ()} if inputs else {}))
    output: Array = session.run([bundle.output_name], {bundle.input_name: pixels})[0]
    shutil.rmtree(folder)
    return output.tobytes()


def steady(base: Bundle, engine: Engine, pixels: Array, repeats: int) -> float:
    """Frame time of the engine over that of a default session, one thread each, frames in turn (medians)."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    plain = ort.InferenceSession(str(base.path / MODEL_FILE), options, providers=["CPUExecutionProvider"])
    ours, theirs = [], []
    for number in range(repeats + 1):
        start = time.perf_counter()
        plain.run(None, {base.input_name: pixels})
        middle = time.perf_counter()
        engine.run(pixels)
        if number:  # the first pair warms up
            theirs.append(middle - start)
            ours.append(time.perf_counter() - middle)
    return statistics.median(ours) / statistics.median(theirs)


class Camera:
    """A thread that asks for frames all the time under the frame lock, as `Runtime.run` does."""

    def __init__(self, engine: Engine, pixels: Array) -> None:
        self.engine, self.pixels = engine, pixels
        self.turn, self.frame = threading.Lock(), threading.Lock()
        self.outputs: list[tuple[float, Array | None]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while not self._stop.is_set():
            start = time.perf_counter()
            try:
                with self.turn:
                    self.frame.acquire()
                try:
                    output: Array | None = self.engine.run(self.pixels)
                finally:
                    self.frame.release()
            except Exception as error:  # noqa: BLE001  any failure is a lost frame, and is counted
                print(f"lost frame: {error}")
                output = None
            self.outputs.append((since(start), output))

    def wait(self, frames: int) -> list[float]:
        """Times (ms) of the next frames."""
        first = len(self.outputs) + 1  # the running frame belongs to the window before
        while len(self.outputs) < first + frames:
            time.sleep(0.001)
        return [ms for ms, _ in self.outputs[first : first + frames]]

    def swap(self, new: dict[str, Array]) -> float:
        """Swap between two frames; returns the ms for which the lock was held."""
        commit = self.engine.stage(new)
        with self.turn, self.frame:
            start = time.perf_counter()
            commit()
            return since(start)

    def close(self) -> None:
        """Stop after the running frame."""
        self._stop.set()
        self._thread.join()


def torn_frames(outputs: list[Array | None], phases: list[bytes]) -> int:
    """Frames whose bytes are not those of the model of their moment; models follow each other as in `phases`."""
    place, torn = 0, 0
    for output in outputs:
        if output is None:
            continue
        found = output.tobytes()
        ahead = place
        while ahead < len(phases) and phases[ahead] != found:
            ahead += 1
        # One swap at a time: a frame that belongs to the model after the next one came too early.
        if ahead > place + 1 or ahead == len(phases):
            torn += 1
        else:
            place = ahead
    return torn


def serve(engine: Engine, old: dict[str, Array], changes: list[dict[str, Array]], pixels: Array, frames: int, swaps: int) -> dict[str, Any]:
    """Windows with and without a swap in turn while frames are served; the changes take turns, old weights between them."""
    models, answers = [old, *changes], []
    for weights in (*changes, old):
        engine.swap(weights)
        answers.append(engine.run(pixels).tobytes())
    answers = [answers[-1], *answers[:-1]]
    order = [0 if number % 2 else 1 + (number // 2) % len(changes) for number in range(swaps)]
    camera, quiet, busy, locks = Camera(engine, pixels), [], [], []
    try:
        camera.wait(2)
        for number in order:
            quiet += camera.wait(frames)
            # A staged swap works beside the frames: its window begins with the staging.
            first = len(camera.outputs)
            locks.append(camera.swap(models[number]))
            camera.wait(max(1, frames - (len(camera.outputs) - first)))
            busy += [ms for ms, _ in camera.outputs[first : first + frames]]
    finally:
        camera.close()
    outputs = [output for _, output in camera.outputs]
    engine.swap(old)
    return {
        "frames": len(outputs),
        "lost": sum(output is None for output in outputs),
        "torn": torn_frames(outputs, [answers[0], *(answers[number] for number in order)]),
        "swaps": swaps,
        "serving_lock_ms": max(locks),
        "p50_quiet_ms": float(np.median(quiet)),
        "p50_swap_ms": float(np.median(busy)),
        "p99_quiet_ms": float(np.percentile(quiet, 99)),
        "p99_swap_ms": float(np.percentile(busy, 99)),
    }


def measure(shape: str, precision: str, folder: Path, quick: bool, swaps: int) -> list[dict[str, Any]]:
    """One row for each mode and mask of one tower, and one for each mode that serves frames."""
    rows: list[dict[str, Any]] = []
    made = bundles(shape, precision, folder)
    plain, base = made.pop("plain"), made["aliased"]
    pixels = np.array(base.probes()[:1])
    changes = {share: masked(base, share, seed) for seed, share in enumerate(MASKS)}
    rebuild = rebuild_times(plain, folder / "rebuilt", 2 if quick or shape == "l14" else 3)
    for mode, bundle in made.items():
        engine = open_engine(bundle, bundle.weights(), threads=1)
        common = {"shape": shape, "precision": precision, "mode": mode, "engine": engine.describe()}
        ratio = steady(plain, engine, pixels, 5 if shape == "l14" else 9)
        old = {name: np.array(bundle.weights()[name]) for name in changes[0.01]}
        first_stage, _ = timed_swap(engine, old)
        for share, new in changes.items():
            times = [timed_swap(engine, weights) for weights in (new, old, new, old, new)]
            stages, locks = [staged for staged, _ in times], [held for _, held in times]
            row = {**common, "mask": share, "steady": ratio, **rebuild, "first_stage_ms": first_stage}
            row |= {"stage_ms": statistics.median(stages), "lock_ms": statistics.median(locks), "lock_max_ms": max(locks)}
            row["bitwise"] = engine.run(pixels).tobytes() == fresh_answer(bundle, new, pixels, folder / "fresh")
            engine.swap(old)
            row["times_default_rebuild"] = row["default_ms"] / row["lock_ms"]
            row["times_no_prepack_rebuild"] = row["no_prepack_ms"] / row["lock_ms"]
            row["rebuild_over_stage_and_commit"] = row["default_ms"] / (row["stage_ms"] + row["lock_ms"])
            rows.append(row)
            show(row)
        rows.append({**common, **serve(engine, old, list(changes.values()), pixels, 1 if shape == "l14" else 3, swaps)})
        show(rows[-1])
        del engine
    return rows


def show(row: dict[str, Any]) -> None:
    """Print one row."""
    print({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items() if k != "engine"}, flush=True)


def swap_goals(row: dict[str, Any]) -> list[tuple[str, float, float, bool]]:
    """Goals of a row about one mask."""
    where = f"{row['shape']} {row['precision']} {row['mode']} {row['mask']:.0%}"
    found = [
        (f"lock held (ms), {where}", LOCK_MS, row["lock_max_ms"], row["lock_max_ms"] <= LOCK_MS),
        (f"bitwise equal to a fresh session, {where}", 1.0, float(row["bitwise"]), bool(row["bitwise"])),
    ]
    if row["mask"] == MASKS[0] and row["precision"] == "float32":
        if limit := STEADY.get((row["shape"], row["mode"])):
            found.append((f"steady frame time over default, {where}", limit, row["steady"], row["steady"] <= limit))
        if limit := FASTER.get(row["shape"]):
            times = row["times_default_rebuild"]
            found.append((f"times faster than the default rebuild, {where}", limit, times, times >= limit))
    return found


def serving_goals(row: dict[str, Any]) -> list[tuple[str, float, float, bool]]:
    """Goals of a row about served frames."""
    where = f"{row['shape']} {row['precision']} {row['mode']}"
    ratio = row["p99_swap_ms"] / row["p99_quiet_ms"]
    found = [(f"frames {what}, {where}", 0.0, float(row[what]), row[what] == 0) for what in ("lost", "torn")]
    found.append((f"lock held while serving (ms), {where}", LOCK_MS, row["serving_lock_ms"], row["serving_lock_ms"] <= LOCK_MS))
    if row["swaps"] >= SWAPS or row["shape"] == "tiny":
        found.append((f"p99 of frames with over without a swap, {where}", P99, ratio, ratio <= P99))
    return found


def goals_of(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The goals with what was measured; a goal whose row was not run is absent."""
    found = [goal for row in rows for goal in (serving_goals(row) if "frames" in row else swap_goals(row))]
    return [{"name": name, "goal": goal, "value": value, "met": met} for name, goal, value, met in found]


def former_rows(path: Path | None, head: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of a run that was cut off: same commit, machine and versions; else none."""
    try:
        value = json.loads(path.read_text("utf-8")) if path else {}
    except (OSError, ValueError):
        return []
    same = not value.get("complete", True) and all(value.get(key) == wanted for key, wanted in head.items())
    rows: list[dict[str, Any]] = value["rows"] if same else []
    return rows


def too_late(shape: str, spent: dict[str, float], start: float, limit: float) -> bool:
    """Whether a tower of this shape, as slow as its last one, would end more than `limit` seconds after `start`."""
    return time.perf_counter() - start + spent.get(shape, 0.0) > limit


def main() -> None:
    """Run and print; --json writes machine, commit, rows and goals."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny shapes; proves only that the benchmark runs")
    parser.add_argument("--shapes", default="b16,l14")
    parser.add_argument("--precisions", default="float32,float16")
    parser.add_argument("--swaps", type=int, default=SWAPS, help="windows with a swap; fewer than 30 judge no p99")
    parser.add_argument("--minutes", type=float, default=20.0, help="begin no tower that would end later")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    # One tensor of each kind is proven at each start, as ever; the rest would only cost this benchmark's time.
    aliased_engine.PROOF_SECONDS = 0.0
    swaps = 6 if options.quick else options.swaps
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    machine = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(), "onnxruntime": ort.__version__}
    head = {"machine": machine, "commit": commit, "quick": options.quick, "swaps": swaps}
    start, rows = time.perf_counter(), former_rows(options.json, head)
    towers = [(s, p) for p in options.precisions.split(",") for s in (["tiny"] if options.quick else options.shapes.split(","))]
    spent: dict[str, float] = {}
    for number, (shape, precision) in enumerate(towers):
        if any((row["shape"], row["precision"]) == (shape, precision) for row in rows):
            continue
        if too_late(shape, spent, start, options.minutes * 60):
            print(f"no time for {shape} {precision}: run again with the same --json to go on", flush=True)
            break
        begun = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix="hot-swap-") as folder:
            rows += measure(shape, precision, Path(folder), options.quick, swaps)
        spent[shape] = time.perf_counter() - begun
        if options.json:
            done = {"complete": number + 1 == len(towers), "seconds": time.perf_counter() - start, "rows": rows, "goals": goals_of(rows)}
            options.json.write_text(json.dumps({**head, **done}, indent=1) + "\n", "utf-8")
    for goal in goals_of(rows):
        print(f"{'met ' if goal['met'] else 'LOST'}  {goal['name']}: goal {goal['goal']:g}, got {goal['value']:.4g}")


if __name__ == "__main__":
    main()
