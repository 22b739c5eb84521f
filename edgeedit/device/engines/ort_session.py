"""Makes ONNX Runtime sessions: options, failures as our errors, and the audit of which initialisers a session really uses.

Guarantees: onnxruntime is imported by `load_ort` only, when an engine is built; a session is refused (exit 6) when a patchable
tensor was copied or folded away.  Does not run frames.
"""

from __future__ import annotations

import os
import re
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgeedit.bundle import MODEL_FILE, Bundle
from edgeedit.errors import InputError, RefusedError

Array = np.ndarray[Any, Any]
VERSION_HINT = "use a supported onnxruntime version"
# Both would bake a patchable tensor into another one: a folded constant, or a convolution weight in another layout.
DISABLED = ("ConstantFolding", "NchwcTransformer")
_USED = re.compile(r"Using user supplied initializer with name \((.+)\)")
_CPU = "CPUExecutionProvider"
_stderr = threading.Lock()


def load_ort() -> Any:
    """The module onnxruntime; raises RefusedError when it is missing."""
    try:
        import onnxruntime
    except ImportError as error:
        raise RefusedError(f"ONNX Runtime is missing: {error}", hint='pip install "edgeedit[ort]"') from error
    return onnxruntime


def failures(ort: Any) -> tuple[type[Exception], ...]:
    """The exception types of ONNX Runtime, which have no common base, and RuntimeError."""
    state = ort.capi.onnxruntime_pybind11_state
    found = [value for value in vars(state).values() if isinstance(value, type) and issubclass(value, Exception)]
    return (RuntimeError, ValueError, *found)


@dataclass(frozen=True)
class SessionPlan:
    """How a session is made: `provider` and its `options`; `threads` 0 lets ONNX Runtime decide; `prepack` repacks constant
    matrices for speed, which cuts them off from their buffers."""

    provider: str = _CPU
    threads: int = 0
    prepack: bool = False
    options: Mapping[str, str] = field(default_factory=dict)

    def providers(self) -> list[Any]:
        """The provider list with the CPU as the last resort of single operators."""
        first: Any = (self.provider, dict(self.options)) if self.options else self.provider
        return [first] if self.provider == _CPU else [first, _CPU]


def session_options(ort: Any, plan: SessionPlan) -> Any:
    """SessionOptions of a plan."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.intra_op_num_threads = plan.threads
    options.log_severity_level = 3
    if not plan.prepack:
        options.add_session_config_entry("session.disable_prepacking", "1")
    # Else int8 codes are fused into a product that rounds its activations to int8 too, which no server evaluated.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    return options


def make_session(ort: Any, folder: Path, plan: SessionPlan, options: Any, disabled: Sequence[str] = DISABLED) -> Any:
    """An InferenceSession on the model of `folder`; raises RefusedError with ONNX Runtime's reason.

    ONNX Runtime goes on without a provider that cannot start; such a session is refused, because nobody asked for it."""
    if plan.provider not in ort.get_available_providers():
        raise RefusedError(
            f"ONNX Runtime lacks the provider: expected {plan.provider}, got {', '.join(ort.get_available_providers())}",
            hint="install the onnxruntime build of this device, or export for another profile",
        )
    try:
        session = ort.InferenceSession(str(folder / MODEL_FILE), options, providers=plan.providers(), disabled_optimizers=list(disabled))
    except failures(ort) as error:
        raise RefusedError(f"ONNX Runtime refuses the model: {str(error)[:200]}", hint=VERSION_HINT) from error
    if plan.provider not in session.get_providers():
        raise RefusedError(f"provider did not start: expected {plan.provider}, got {session.get_providers()}", hint="see `edgeedit doctor`")
    return session


def check_pixels(pixels: Array, shape: tuple[int, ...]) -> None:
    """Raise InputError unless `pixels` is float32 (n, *shape)."""
    if pixels.dtype != np.float32 or pixels.ndim != 4 or pixels.shape[1:] != shape:
        raise InputError(f"wrong pixels: expected float32 (n, {', '.join(map(str, shape))}), got {pixels.dtype} {pixels.shape}")


def used_initialisers(ort: Any, bundle: Bundle, plan: SessionPlan, values: Mapping[str, Any]) -> frozenset[str]:
    """Names of the supplied initialisers that a session of `plan` really uses, from its own log; empty when it does not say.

    The log is the only place where ONNX Runtime tells; it goes to file descriptor 2, which is redirected for a moment.  The
    session is made for the audit only, so that the serving one stays quiet."""
    options = session_options(ort, plan)
    options.log_severity_level = 1
    for name, value in values.items():
        options.add_initializer(name, value)
    with _stderr, tempfile.TemporaryFile() as log:
        kept = os.dup(2)
        os.dup2(log.fileno(), 2)
        try:
            make_session(ort, bundle.path, plan, options)
        finally:
            os.dup2(kept, 2)
            os.close(kept)
        log.seek(0)
        text = log.read().decode("utf-8", "replace")
    return frozenset(_USED.findall(text))
