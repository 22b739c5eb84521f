"""The fallback engine for graphs and providers whose weights cannot be reached: a new session is made beside the running one.

Guarantees: the new session is made from a folder written from the new weights, is warmed up, and replaces the running one by one
assignment.  A provider that keeps compiled engines gets a file-name prefix made from the weights' own digest, so an engine that
was compiled from other weights can never be taken from the cache; and a session that answers all probes as the former one did is
refused, whatever the cache says.  The former session is kept, so that taking a
swap back needs neither memory nor disk; the price is the memory of a second session.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgeedit.bundle import MODEL_FILE, WEIGHTS_FILE, Bundle, MappedTensor
from edgeedit.device.engines.golden import check_golden, check_moved
from edgeedit.device.engines.ort_session import SessionPlan, check_pixels, failures, load_ort, make_session, session_options
from edgeedit.device.engines.protocol import Commit, Staged
from edgeedit.device.prepare import check_memory, probe_inputs
from edgeedit.errors import IntegrityError, RefusedError

Array = np.ndarray[Any, Any]


class OrtRebuildEngine:
    """A running session that is replaced as a whole.  `weights` are the values that it was made from."""

    def __init__(self, bundle: Bundle, weights: Mapping[str, Array], *, threads: int = 0) -> None:
        self._ort, self._bundle, self._threads = load_ort(), bundle, threads
        self._failures = failures(self._ort)
        self._warm = np.array(probe_inputs(bundle)[:1])
        self.weights: dict[str, Array] = dict(weights)
        self._session: Any = self._build(self.weights)
        if all(weights[t.name] is base or np.array_equal(weights[t.name], base) for t, base in _base(bundle)):
            check_golden(bundle, self.run)
        # What ran before the last swap: taking a swap back must not depend on free memory or disk.
        self._former: tuple[Any, dict[str, Array]] | None = None

    def run(self, pixels: Array) -> Array:
        """Features float32 (n, width) of normalised pixels float32 (n, 3, s, s); raises InputError for pixels of another shape
        or dtype, RefusedError when ONNX Runtime fails."""
        check_pixels(pixels, self._bundle.input_shape)
        return self._frame(self._session, pixels)

    def _frame(self, session: Any, pixels: Array) -> Array:
        try:
            result: Array = session.run([self._bundle.output_name], {self._bundle.input_name: pixels})[0]
        except self._failures as error:
            raise RefusedError(f"ONNX Runtime failed: {str(error)[:200]}", hint="see `edgeedit doctor`") from error
        return result

    def describe(self) -> str:
        """One line for `doctor`."""
        return f"session is rebuilt for each change ({self._bundle.provider}); needs the memory of two"

    def swap(self, new: Mapping[str, Array]) -> None:
        """Make whole tensors live; shapes and dtypes are those of the Bundle."""
        self.stage(new)()

    def stage(self, new: Mapping[str, Array]) -> Commit:
        """Build and warm a session from the new weights; the commit takes it.  Raises RefusedError when memory or disk is short."""
        for name, array in new.items():
            if name not in self.weights or array.shape != self.weights[name].shape or array.dtype != self.weights[name].dtype:
                raise IntegrityError(f"cannot swap {name}: expected a tensor of the bundle, got {array.dtype} {array.shape}")
        weights = {**self.weights, **{name: np.array(array, order="C") for name, array in new.items()}}
        former, self._former = self._former, None
        if former is not None and _equal(former[1], weights):
            session = former[0]
        else:
            session = self._build(weights)
            if not _equal(self.weights, weights):
                running = self._session
                check_moved(self._bundle, lambda probe: self._frame(running, probe), lambda probe: self._frame(session, probe))

        def commit() -> None:
            self._former = (self._session, self.weights)
            self._session, self.weights = session, weights

        return Staged(commit, lambda pixels: self._frame(session, pixels))

    def _build(self, weights: Mapping[str, Array]) -> Any:
        check_memory(sum(array.nbytes for array in weights.values()))
        try:
            # The session keeps the mapped file alive after its folder is gone.
            with tempfile.TemporaryDirectory(prefix="edgeedit-") as name:
                folder = Path(name)
                self._materialise(folder, weights)
                plan = SessionPlan(self._bundle.provider, self._threads, options=self._options(weights))
                session = make_session(self._ort, folder, plan, session_options(self._ort, plan))
                warm = self._frame(session, self._warm)
        except OSError as error:
            raise RefusedError(f"cannot write the new model: {error.strerror or error}", hint="free disk space") from error
        if not np.isfinite(warm).all():
            raise RefusedError("new session's output is not finite on the first probe", hint="check the bundle with `edgeedit doctor`")
        return session

    def _materialise(self, folder: Path, weights: Mapping[str, Array]) -> None:
        shutil.copyfile(self._bundle.path / MODEL_FILE, folder / MODEL_FILE)
        with (folder / WEIGHTS_FILE).open("wb") as handle:
            for row in sorted(self._bundle.tensor_map.tensors, key=lambda t: t.offset):
                handle.seek(row.offset)
                handle.write(np.ascontiguousarray(weights[row.name]).reshape(-1).view(np.uint8).data)

    def _options(self, weights: Mapping[str, Array]) -> dict[str, str]:
        options = dict(self._bundle.provider_options)
        if self._bundle.cache_prefix_option:
            options[self._bundle.cache_prefix_option] = f"{self._bundle.graph_digest[:16]}-{_digest(weights)[:32]}"
        return options


def _base(bundle: Bundle) -> list[tuple[MappedTensor, Array]]:
    weights = bundle.weights()
    return [(row, weights[row.name]) for row in bundle.tensor_map.tensors]


def _equal(left: Mapping[str, Array], right: Mapping[str, Array]) -> bool:
    # Bits, not values: a rebuilt session must not differ from an undone one.
    return all(left[n] is right[n] or left[n].tobytes() == right[n].tobytes() for n in left)


def _digest(weights: Mapping[str, Array]) -> str:
    state = hashlib.sha256()
    for name in sorted(weights):
        state.update(f"{name}\0{weights[name].dtype.str}\0{weights[name].shape}\0".encode())
        state.update(np.ascontiguousarray(weights[name]).reshape(-1).view(np.uint8).data)
    return state.hexdigest()
