"""The ONNX Runtime engine whose patchable matrices are graph inputs: a swap is another set of bound pointers.

Guarantees: the graph takes the patchable tensors as inputs (the exporter made them so), all of them are bound, and the rest is
prepacked at full speed.  A commit takes microseconds because a whole second binding is made by `stage`; the price is the memory
of the patched tensors twice: what a swap takes out of use is kept for the next one, so that neither memory is paged in beside the
frames nor given back between two of them.  Does not lock; refuses (exit 6) a graph without those inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from edgeedit.bundle import DTYPES, Bundle
from edgeedit.device.engines.exchange import copy_paced, empty, placed
from edgeedit.device.engines.ort_session import SessionPlan, check_pixels, failures, load_ort, make_session, session_options
from edgeedit.device.engines.protocol import Commit, Staged
from edgeedit.errors import IntegrityError, RefusedError

Array = np.ndarray[Any, Any]


class OrtInputsEngine:
    """A running session; `weights` are the live values, replaced by a swap and written to by the staging after it."""

    def __init__(self, bundle: Bundle, weights: Mapping[str, Array], *, threads: int = 0) -> None:
        self._ort = load_ort()
        self._failures = failures(self._ort)
        plan = SessionPlan(bundle.provider, threads, prepack=True)
        self._session: Any = make_session(self._ort, bundle.path, plan, session_options(self._ort, plan), disabled=())
        self._memory = bundle.memory
        self._tensors = {t.name: t for t in bundle.tensor_map.tensors if t.editable}
        overridable = {v.name for v in (*self._session.get_inputs(), *self._session.get_overridable_initializers())}
        if missing := sorted(set(self._tensors) - overridable):
            raise RefusedError(
                f"graph does not take {missing[0]} as an input: expected mode inputs, got constants", hint="export for this profile again"
            )
        self.weights: dict[str, Array] = {n: (placed(a) if n in self._tensors else a) for n, a in weights.items()}
        self._input, self._output, self._shape = bundle.input_name, bundle.output_name, bundle.input_shape
        self._values = {name: self._value(self.weights[name]) for name in self._tensors}
        self._binding: Any = self._bind(self._values)
        self._spare: dict[str, tuple[Array, Any]] = {}  # buffers on the host that no frame reads, and their values
        self._former: Any = None  # the binding before the last commit: freeing it takes longer than a commit, so not under the lock
        self._staged = 0

    def _value(self, array: Array) -> Any:
        if self._memory == "host":
            return self._ort.OrtValue.ortvalue_from_numpy(array)
        return self._ort.OrtValue.ortvalue_from_numpy(array, self._memory, 0)

    def _bind(self, values: Mapping[str, Any]) -> Any:
        binding = self._session.io_binding()
        for name, value in values.items():
            binding.bind_ortvalue_input(name, value)
        # The output stays on the host, and its buffer is made by ONNX Runtime for each frame.
        binding.bind_output(self._output, "cpu")
        return binding

    def run(self, pixels: Array) -> Array:
        """Features float32 (n, width) of normalised pixels float32 (n, 3, s, s); raises InputError for pixels of another shape
        or dtype, RefusedError when ONNX Runtime fails."""
        return self._frame(self._binding, pixels)

    def _frame(self, binding: Any, pixels: Array) -> Array:
        check_pixels(pixels, self._shape)
        try:
            binding.bind_cpu_input(self._input, np.ascontiguousarray(pixels))
            self._session.run_with_iobinding(binding)
            result: Array = binding.copy_outputs_to_cpu()[0]
        except self._failures as error:
            raise RefusedError(f"ONNX Runtime failed: {str(error)[:200]}", hint="see `edgeedit doctor`") from error
        return result

    def describe(self) -> str:
        """One line for `doctor`."""
        return f"{len(self._tensors)} patchable tensors are graph inputs"

    def swap(self, new: Mapping[str, Array]) -> None:
        """Make whole tensors live; shapes and dtypes are those of the Bundle."""
        self.stage(new)()

    def stage(self, new: Mapping[str, Array]) -> Commit:
        """Copy the tensors, bind them in a second binding; the commit exchanges the two.  Raises IntegrityError."""
        own: dict[str, tuple[Array, Any]] = {}
        self._staged += 1
        ticket = self._staged
        self._former = None  # beside the frames
        for name, array in new.items():
            row = self._tensors.get(name)
            if row is None or array.shape != row.shape or array.dtype != DTYPES[row.dtype]:
                raise IntegrityError(f"cannot swap {name}: expected a patchable tensor of the bundle, got {array.dtype} {array.shape}")
            own[name] = self._fill(name, array)
        values = {**self._values, **{name: value for name, (_, value) in own.items()}}
        binding = self._bind(values)
        weights = {**self.weights, **{name: array for name, (array, _) in own.items()}}

        def commit() -> None:
            # A later staging has written over this one; after a second commit the spare buffers would be the live ones.
            if ticket != self._staged:
                raise RefusedError("staged weights are gone: expected the last staging, got an older one or a second commit")
            self._staged += 1
            former, held = self.weights, self._values
            if self._memory == "host":
                self._former = self._binding
                self._spare.update({name: (former[name], held[name]) for name in own})
            self._binding, self._values, self.weights = binding, values, weights

        # A second binding of its own, so that the staged one is never bound by two threads.
        return Staged(commit, partial(self._frame, self._bind(values)))

    def _fill(self, name: str, array: Array) -> tuple[Array, Any]:
        """A copy of the array that no frame reads, and its value."""
        if self._memory != "host":
            copy = placed(array)
            return copy, self._value(copy)
        if name not in self._spare:
            fresh = empty(array)
            self._spare[name] = (fresh, self._value(fresh))
        copy_paced(self._spare[name][0], array)
        return self._spare[name]
