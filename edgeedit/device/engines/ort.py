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
from edgeedit.errors import RefusedError

Array = np.ndarray[Any, Any]
PERTURBATION = 0.05  # added to every element of a tensor by the liveness probe


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
        self._values = {}
        for name, array in self.weights.items():
            value = ort.OrtValue.ortvalue_from_numpy(array)
            if value.data_ptr() != array.ctypes.data:
                raise RefusedError(
                    f"ONNX Runtime copied {name}: expected its buffer to be used in place", hint="use a supported onnxruntime version"
                )
            options.add_initializer(name, value)
            self._values[name] = value
        disabled = ["ConstantFolding", "NchwcTransformer"]
        path = str(bundle.path / MODEL_FILE)
        self._session: Any = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"], disabled_optimizers=disabled)
        self._input, self._output = bundle.input_name, bundle.output_name
        self._prove_live(bundle.probes()[:1])

    def run(self, pixels: Array) -> Array:
        """Features float32 (n, width) of normalised pixels float32 (n, 3, s, s)."""
        result: Array = self._session.run([self._output], {self._input: pixels})[0]
        return result

    def swap(self, new: Mapping[str, Array]) -> None:
        """Copy whole tensors into the live buffers; shapes and dtypes are those of the Bundle."""
        copy_tensors([(self.weights[name], array) for name, array in new.items()])

    def _prove_live(self, probe: Array) -> None:
        before = self.run(probe)
        for name in self._editable:
            buffer = self.weights[name]
            kept = buffer.copy()
            buffer += np.asarray(PERTURBATION, dtype=buffer.dtype)
            moved = self.run(probe)
            buffer[...] = kept
            if np.array_equal(moved, before):
                raise RefusedError(f"session does not see {name}: a patch would change nothing", hint="use a supported onnxruntime version")
        if not np.array_equal(self.run(probe).view(np.uint8), before.view(np.uint8)):
            raise RefusedError("session does not return to its output after the liveness probe", hint="use a supported onnxruntime version")
