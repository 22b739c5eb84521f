"""Runs a Bundle's graph on the server and compares it with the torch encoder.

Guarantees: the session uses the options of the device runtime (no prepacking, no constant folding), so the measured
difference is the one a device will show on a CPU of this kind.  Does not change weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from edgeedit.bundle import MODEL_FILE, Bundle
from edgeedit.encoder.values import parameter_values, with_values
from edgeedit.errors import InputError, RefusedError

if TYPE_CHECKING:
    from edgeedit.encoder.encoder import Encoder

Array = np.ndarray[Any, Any]
BATCH = 8  # images per run


@dataclass(frozen=True)
class Comparison:
    """torch against graph on the probes: lowest cosine of a feature row, largest and mean absolute difference (output units)."""

    cosine_min: float
    max_abs: float
    mean_abs: float

    def to_json(self) -> dict[str, Any]:
        """Plain JSON object."""
        return asdict(self)


def batches(count: int) -> Iterator[slice]:
    """Slices over `count` rows: first one row alone, then batches, so that a graph with a baked batch size cannot pass."""
    start, size = 0, 1
    while start < count:
        yield slice(start, min(start + size, count))
        start, size = start + size, BATCH


def run_encoder(encoder: nn.Module, pixels: Array) -> Array:
    """Features of a torch module as it is, float32 (n, width); `pixels` float32 (n, 3, s, s)."""
    with torch.no_grad():
        parts = [encoder(torch.from_numpy(np.ascontiguousarray(pixels[rows]))).float().numpy() for rows in batches(len(pixels))]
    return np.concatenate(parts).astype(np.float32, copy=False)


def run_graph(folder: Path, pixels: Array, *, threads: int = 0) -> Array:
    """Features of the graph in `folder` (`model.onnx` beside `weights.bin`), float32 (n, width); threads 0 = ORT decides.

    Raises InputError when ONNX Runtime refuses the graph or the pixels.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.disable_prepacking", "1")
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    disabled = ["ConstantFolding", "NchwcTransformer"]
    try:
        path = str(folder / MODEL_FILE)
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"], disabled_optimizers=disabled)
        given = session.get_inputs()[0]
        fixed = given.shape[0] if isinstance(given.shape[0], int) else 0
        parts = [
            _run_rows(session, given.name, pixels[rows], fixed) for rows in (_fixed(len(pixels), fixed) if fixed else batches(len(pixels)))
        ]
    except _ort_errors() as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"ONNX Runtime cannot run the graph: {reason}", hint="check the bundle and the size of the images") from error
    return np.concatenate(parts)


def run_session(content: bytes, folder: Path, outputs: list[str], pixels: Array) -> list[Array]:
    """The named outputs of a graph given as bytes, whose weights lie in `folder`; raises InputError when ONNX Runtime refuses."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 3
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    try:
        session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        found: list[Array] = session.run(outputs, {session.get_inputs()[0].name: np.ascontiguousarray(pixels)})
    except _ort_errors() as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"ONNX Runtime cannot run the graph: {reason}", hint="check the bundle and the size of the images") from error
    return found


def _fixed(count: int, batch: int) -> Iterator[slice]:
    for start in range(0, count, batch):
        yield slice(start, min(start + batch, count))


def _run_rows(session: Any, name: str, pixels: Array, batch: int) -> Array:
    """One run; a graph with a fixed batch gets its last rows filled up with zeros, which are cut off again."""
    filled = np.zeros((batch or len(pixels), *pixels.shape[1:]), np.float32)
    filled[: len(pixels)] = pixels
    rows: Array = session.run(None, {name: filled})[0][: len(pixels)]
    return rows


def _ort_errors() -> tuple[type[Exception], ...]:
    # ONNX Runtime's own classes derive directly from Exception.
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    own: tuple[type[Exception], ...] = (state.Fail, state.InvalidArgument, state.InvalidGraph, state.NotImplemented, state.RuntimeException)
    return (RuntimeError, ValueError, *own)


def difference(expected: Array, got: Array) -> Comparison:
    """Compare two feature arrays of equal shape (n, width); raises InputError when shapes differ or a value is not finite."""
    if expected.shape != got.shape:
        raise InputError(f"outputs do not compare: expected shape {expected.shape}, got {got.shape}")
    if not (np.isfinite(expected).all() and np.isfinite(got).all()):
        raise InputError("outputs do not compare: expected finite features, got infinity or NaN")
    left, right = expected.astype(np.float64), got.astype(np.float64)
    norms = np.maximum(np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1), 1e-30)
    gap = np.abs(left - right)
    return Comparison(float(((left * right).sum(axis=1) / norms).min()), float(gap.max()), float(gap.mean()))


def check_runnable(bundle: Bundle) -> None:
    """Raise RefusedError for a Bundle that ONNX Runtime on this CPU cannot run."""
    if bundle.precision == "bfloat16":
        raise RefusedError(
            "cannot run a bfloat16 graph here: ONNX Runtime's CPUExecutionProvider has no bfloat16 MatMul",
            hint="compare on the device, or compare the float32 Bundle",
        )


def compare(encoder: Encoder, bundle: Bundle) -> Comparison:
    """Torch with the weights rounded to the bundle's precision, computed in float32, against the graph, on the probes.

    int8 codes are compared with the float32 weights.  Raises RefusedError for a precision that no CPU session runs."""
    pixels = bundle.probes()
    check_runnable(bundle)
    twin = with_values(encoder, parameter_values(encoder, "float32" if bundle.precision == "int8" else bundle.precision))
    return difference(run_encoder(twin, pixels), run_graph(bundle.path, pixels))
