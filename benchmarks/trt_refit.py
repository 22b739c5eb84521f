"""Measures a TensorRT engine of a Bundle: build, deserialise, refit (one tensor, a tenth, all), frame time with and without refit.

    python benchmarks/trt_refit.py BUNDLE [--quick] [--json FILE]

Runs on a machine that has TensorRT (a Jetson, or a GPU with the Python module); elsewhere it says `not run` and why.
Frames of a plan without any refit flag are not measured here: `trtexec --onnx=BUNDLE/model.onnx` gives that figure.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np

from edgeedit.bundle import load_bundle
from edgeedit.device.engines.trt import TrtEngine
from edgeedit.device.engines.trt_plan import build_plan, load_trt
from edgeedit.errors import EdgeEditError


def since(start: float) -> float:
    """Milliseconds since a `time.perf_counter` value."""
    return (time.perf_counter() - start) * 1e3


def measure(path: Path, quick: bool) -> list[dict[str, Any]]:
    """Rows {what, ms}; raises EdgeEditError where TensorRT cannot be used."""
    bundle = load_bundle(path)
    trt = load_trt(bundle.provider)
    repeats = 3 if quick else 20
    start = time.perf_counter()
    plan = build_plan(trt, trt.Logger(trt.Logger.WARNING), bundle)
    rows: list[dict[str, Any]] = [{"what": "build", "ms": since(start), "bytes": len(plan)}]
    runtime = trt.Runtime(trt.Logger(trt.Logger.WARNING))
    start = time.perf_counter()
    runtime.deserialize_cuda_engine(plan)
    rows.append({"what": "deserialise", "ms": since(start)})
    engine = TrtEngine(bundle, bundle.weights(), module=trt)
    pixels = np.array(bundle.probes()[:1])
    names = sorted(t.name for t in bundle.tensor_map.tensors if t.editable)
    for what, count in (("one tensor", 1), ("a tenth", max(1, len(names) // 10)), ("all", len(names))):
        stages, commits, frames = [], [], []
        for number in range(repeats):
            new = {n: bundle.weights()[n] * np.asarray(1 + 0.001 * (number % 2 + 1), engine.weights[n].dtype) for n in names[:count]}
            start = time.perf_counter()
            commit = engine.stage(new)
            stages.append(since(start))
            start = time.perf_counter()
            commit()
            commits.append(since(start))
            start = time.perf_counter()
            engine.run(pixels)
            frames.append(since(start))
        rows.append(
            {"what": f"refit {what}", "ms": statistics.median(stages), "commit_ms": max(commits), "frame_ms": statistics.median(frames)}
        )
    return rows


def main() -> None:
    """Measure and print; --json writes machine, commit, rows and goals (none is promised before it was measured)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, nargs="?")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    reason = ""
    try:
        if options.bundle is None:
            load_trt("tensorrt")
            reason = "no bundle was given"
        else:
            rows = measure(options.bundle, options.quick)
    except EdgeEditError as error:
        reason = error.message
    for row in rows:
        print(row)
    if reason:
        print(f"not run: {reason}")
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    if options.json:
        value = {"machine": {"cpu": platform.machine()}, "commit": commit, "rows": rows, "goals": [], "not_run": reason}
        options.json.write_text(json.dumps(value, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
