"""The ONNX Runtime engine: a session whose weights are buffers of ours, so new values take effect at the next frame.

Measured ground: with prepacking off, EXTENDED optimisation and constant folding disabled, `add_initializer` aliases the
caller's buffer.  No documentation promises it, so the start proves it: every editable tensor is perturbed, the output must
move, and after restoring it must be the old output bit for bit.  A session that fails is refused (exit 6).
Does not lock: the Runtime calls `run` and `swap` under its frame lock.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from edgeedit.bundle import MODEL_FILE, Bundle
from edgeedit.codec.apply import copy_tensors
from edgeedit.device.prepare import probe_inputs
from edgeedit.errors import InputError, RefusedError

Array = np.ndarray[Any, Any]
PERTURBATION = 0.5  # size of the liveness probe's noise, as a share of the tensor's root mean square
_VERSION = "use a supported onnxruntime version"


class OrtEngine:
    """A running session.  `weights` are the live buffers: name -> array; write to them through `swap` only."""

    def __init__(self, bundle: Bundle, weights: Mapping[str, Array], *, threads: int = 0) -> None:
        try:
            import onnxruntime as ort
        except ImportError as error:
            raise RefusedError(f"ONNX Runtime is missing: {error}", hint='pip install "edgeedit[ort]"') from error
        editable = {t.name for t in bundle.tensor_map.tensors if t.editable}
        # Editable tensors get private memory that is already paged in, so that the first swap takes no page faults.
        self.weights: dict[str, Array] = {n: (np.array(a, order="C") if n in editable else a) for n, a in weights.items()}
        self._editable = sorted(editable)
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        options.add_session_config_entry("session.disable_prepacking", "1")
        self._values = []
        for name, array in self.weights.items():
            value = ort.OrtValue.ortvalue_from_numpy(array)
            if value.data_ptr() != array.ctypes.data:
                raise RefusedError(f"ONNX Runtime copied {name}: expected its buffer to be used in place", hint=_VERSION)
            options.add_initializer(name, value)
            self._values.append(value)
        disabled = ["ConstantFolding", "NchwcTransformer"]
        path = str(bundle.path / MODEL_FILE)
        self._failures = _failures(ort)
        try:
            self._session: Any = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"], disabled_optimizers=disabled)
        except self._failures as error:
            raise RefusedError(f"ONNX Runtime refuses the model: {str(error)[:200]}", hint=_VERSION) from error
        self._input, self._output, self._shape = bundle.input_name, bundle.output_name, bundle.input_shape
        self._prove_live(np.array(probe_inputs(bundle)[:1]))

    def run(self, pixels: Array) -> Array:
        """Features float32 (n, width) of normalised pixels float32 (n, 3, s, s); raises InputError for pixels of another shape
        or dtype, RefusedError when ONNX Runtime fails."""
        if pixels.dtype != np.float32 or pixels.ndim != 4 or pixels.shape[1:] != self._shape:
            raise InputError(f"wrong pixels: expected float32 (n, {', '.join(map(str, self._shape))}), got {pixels.dtype} {pixels.shape}")
        try:
            result: Array = self._session.run([self._output], {self._input: pixels})[0]
        except self._failures as error:
            raise RefusedError(f"ONNX Runtime failed: {str(error)[:200]}", hint="see `edgeedit doctor`") from error
        return result

    def swap(self, new: Mapping[str, Array]) -> None:
        """Copy whole tensors into the live buffers; shapes and dtypes are those of the Bundle."""
        copy_tensors([(self.weights[name], array) for name, array in new.items()])

    def _prove_live(self, probe: Array) -> None:
        before = self.run(probe)
        if not np.isfinite(before).all():
            raise RefusedError("session's output is not finite on the first probe", hint="check the bundle with `edgeedit doctor`")
        for name in self._editable:
            buffer = self.weights[name]
            kept = buffer.copy()
            # Noise and not a constant: behind a normalisation the inputs of a matrix sum to zero, which hides a constant.
            size = np.float32(PERTURBATION * (float(np.sqrt(np.mean(np.square(kept, dtype=np.float32)))) or 1.0))
            noise = size * np.random.default_rng(0).standard_normal(buffer.shape, np.float32)
            try:
                buffer += noise.astype(buffer.dtype)
                moved = self.run(probe)
            finally:
                buffer[...] = kept
            if np.array_equal(moved, before):
                raise RefusedError(f"session does not see {name}: a patch would change nothing", hint=_VERSION)
            if not np.isfinite(moved).all():
                raise RefusedError(f"session's output is not finite when {name} moves: cannot prove that it is live", hint=_VERSION)
        if not np.array_equal(self.run(probe).view(np.uint8), before.view(np.uint8)):
            raise RefusedError("session does not return to its output after the liveness probe", hint=_VERSION)


def _failures(ort: Any) -> tuple[type[Exception], ...]:
    """The exception types of ONNX Runtime, which have no common base, and RuntimeError."""
    state = ort.capi.onnxruntime_pybind11_state
    found = [value for value in vars(state).values() if isinstance(value, type) and issubclass(value, Exception)]
    return (RuntimeError, *found)
