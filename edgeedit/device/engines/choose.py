"""Starts the engine that a Bundle asks for.

Guarantees: the Bundle's own words decide (they come from the device profile at export), never the machine; an unknown word is
refused (exit 6).  An engine's library is imported only when it is chosen.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from edgeedit.bundle import Bundle
from edgeedit.device.engines.protocol import Engine
from edgeedit.errors import RefusedError

Array = np.ndarray[Any, Any]


def open_engine(bundle: Bundle, weights: Mapping[str, Array], *, threads: int = 0) -> Engine:
    """A running engine on `weights` (every deployed tensor); `threads` 0 takes the Bundle's number.  Raises RefusedError."""
    count = threads or bundle.threads
    if bundle.engine == "tensorrt":
        from edgeedit.device.engines.trt import TrtEngine

        return TrtEngine(bundle, weights)
    if bundle.engine == "onnxruntime" and bundle.mode == "aliased":
        from edgeedit.device.engines.ort import OrtEngine

        return OrtEngine(bundle, weights, threads=count)
    if bundle.engine == "onnxruntime" and bundle.mode == "inputs":
        from edgeedit.device.engines.ort_inputs import OrtInputsEngine

        return OrtInputsEngine(bundle, weights, threads=count)
    if bundle.engine == "onnxruntime" and bundle.mode == "rebuild":
        from edgeedit.device.engines.ort_rebuild import OrtRebuildEngine

        return OrtRebuildEngine(bundle, weights, threads=count)
    raise RefusedError(
        f"no such engine: expected onnxruntime (aliased, inputs, rebuild) or tensorrt, got {bundle.engine} {bundle.mode}",
        hint="export the bundle for a profile of this release",
    )
