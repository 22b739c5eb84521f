"""The TensorRT engine: two deserialised engines, one answers frames while the other is refitted.

Guarantees: the running engine is never refitted, so a refused or half-done refit cannot reach a frame; such an engine is thrown
away and loaded from the plan again.  Each engine's own record says which values it holds, so no weight of an earlier patch stays
behind.  A weight is cast to the engine's type only where that loses nothing.  Does not lock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgeedit.bundle import Bundle
from edgeedit.device.engines.cuda_memory import CudaMemory
from edgeedit.device.engines.golden import check_golden
from edgeedit.device.engines.ort_session import check_pixels
from edgeedit.device.engines.protocol import Commit
from edgeedit.device.engines.trt_plan import MAX_BATCH, cached_plan, check_bundle, load_trt
from edgeedit.device.prepare import probe_inputs
from edgeedit.errors import IntegrityError, RefusedError

Array = np.ndarray[Any, Any]

_CACHE_HINT = "delete engine-cache beside the bundle"


@dataclass
class _Loaded:
    """A deserialised engine, its context, and the patchable values that it holds."""

    engine: Any
    context: Any
    held: dict[str, Array]


class TrtEngine:
    """A running TensorRT model.  `weights` are the live values of every deployed tensor, `refittable` the names that the engine
    lets us change."""

    def __init__(self, bundle: Bundle, weights: Mapping[str, Array], *, module: Any = None, memory: Any = None) -> None:
        check_bundle(bundle)
        self._trt = module or load_trt(bundle.provider)
        self._memory = memory or CudaMemory()
        self._bundle = bundle
        self._base = bundle.weights()
        self._editable = {t.name for t in bundle.tensor_map.tensors if t.editable}
        self._logger = self._trt.Logger(self._trt.Logger.WARNING)
        self._runtime = self._trt.Runtime(self._logger)
        self._plan = cached_plan(self._trt, self._logger, bundle)
        self.weights: dict[str, Array] = dict(weights)
        self.refittable: frozenset[str] = frozenset()
        self.golden_gap = 0.0
        self._live = self._load()
        self._prove_refit()
        changed = {n: weights[n] for n in self._editable if not np.array_equal(weights[n], self._base[n])}
        self._refit(self._live, changed)
        self._standby: _Loaded | None = None

    def _load(self) -> _Loaded:
        engine = self._runtime.deserialize_cuda_engine(self._plan)
        if engine is None:
            raise RefusedError("TensorRT cannot load the plan: expected an engine, got none", hint=_CACHE_HINT)
        if not engine.refittable:
            raise RefusedError("TensorRT's plan is not refittable: a patch would change nothing", hint=_CACHE_HINT)
        return _Loaded(engine, engine.create_execution_context(), {n: self._base[n] for n in self._editable})

    def _prove_refit(self) -> None:
        """Refit the base's own values: the names must be known, the output must stay, and it must be the encoder's."""
        self.refittable = frozenset(self._trt.Refitter(self._live.engine, self._logger).get_all_weights())
        if unknown := sorted(self._editable - self.refittable):
            raise RefusedError(f"TensorRT cannot refit {unknown[0]}: a patch would change nothing", hint=_CACHE_HINT)
        probe = np.array(probe_inputs(self._bundle)[:1])
        before = self.run(probe)
        for name in self._editable:
            self._live.held[name] = np.zeros(0, self._base[name].dtype)  # nothing is taken as held: every tensor is set
        self._refit(self._live, {name: self._base[name] for name in self._editable})
        worst = float(np.abs(self.run(probe) - before).max())
        if not worst <= self._bundle.tolerance:
            raise RefusedError(f"refit of the same weights moved the output by {worst:.3g}", hint="this TensorRT version cannot be patched")
        self.golden_gap = check_golden(self._bundle, self.run)

    def run(self, pixels: Array) -> Array:
        """Features float32 (n, width) of normalised pixels float32 (n, 3, s, s); raises InputError for pixels of another shape
        or dtype, RefusedError when TensorRT fails."""
        check_pixels(pixels, self._bundle.input_shape)
        step = self._bundle.batch or MAX_BATCH
        return np.concatenate([self._rows(np.ascontiguousarray(pixels[i : i + step])) for i in range(0, len(pixels), step)])

    def _rows(self, pixels: Array) -> Array:
        bundle, memory, context, count = self._bundle, self._memory, self._live.context, len(pixels)
        if bundle.batch and count < bundle.batch:
            filled = np.zeros((bundle.batch, *bundle.input_shape), np.float32)
            filled[:count] = pixels
            pixels = filled
        result = np.empty((len(pixels), bundle.output_width), np.float32)
        given, made = memory.buffer("input", pixels.nbytes), memory.buffer("output", result.nbytes)
        memory.upload(given, pixels)
        ready = context.set_input_shape(bundle.input_name, pixels.shape)
        ready = ready and context.set_tensor_address(bundle.input_name, given) and context.set_tensor_address(bundle.output_name, made)
        if not ready or not context.execute_async_v3(memory.stream):
            raise RefusedError("TensorRT failed on a frame: expected an answer, got none", hint="see `edgeedit doctor`")
        memory.download(result, made)
        return result[:count]

    def describe(self) -> str:
        """One line for `doctor`."""
        return f"engine is refittable: {len(self.refittable)} tensors, all {len(self._editable)} patchable ones among them"

    def swap(self, new: Mapping[str, Array]) -> None:
        """Make whole tensors live; shapes and dtypes are those of the Bundle."""
        self.stage(new)()

    def stage(self, new: Mapping[str, Array]) -> Commit:
        """Refit the engine that does not run; the commit exchanges the two.  Raises RefusedError; the frames then see nothing."""
        for name, array in new.items():
            if name not in self._editable or array.shape != self._base[name].shape or array.dtype != self._base[name].dtype:
                raise IntegrityError(f"cannot swap {name}: expected a patchable tensor of the bundle, got {array.dtype} {array.shape}")
        weights = {**self.weights, **{name: np.array(array, order="C") for name, array in new.items()}}
        standby, self._standby = self._standby or self._load(), None
        # An engine whose refit fails here is dropped: only a fully refitted one is kept.
        self._refit(standby, {n: weights[n] for n in self._editable if standby.held[n] is not weights[n]})

        def commit() -> None:
            self._standby, self._live, self.weights = self._live, standby, weights

        return commit

    def _refit(self, loaded: _Loaded, values: Mapping[str, Array]) -> None:
        wanted = {n: a for n, a in values.items() if loaded.held[n].shape != a.shape or not np.array_equal(loaded.held[n], a)}
        if not wanted:
            return
        refitter = self._trt.Refitter(loaded.engine, self._logger)
        buffers = [self._set(refitter, name, array) for name, array in wanted.items()]
        for name in refitter.get_missing_weights():
            source = values.get(name, loaded.held.get(name, self._base.get(name)))
            if source is None:
                raise RefusedError(f"TensorRT wants a weight that the bundle lacks: got {name}", hint="export the bundle again")
            buffers.append(self._set(refitter, name, source))
        if hasattr(refitter, "refit_cuda_engine_async"):
            done = refitter.refit_cuda_engine_async(self._memory.stream)
            self._memory.wait()
        else:
            done = refitter.refit_cuda_engine()
        del buffers  # TensorRT reads them until the refit has ended
        if not done:
            raise RefusedError("TensorRT refused the refit: expected all weights to be taken", hint="the plan is loaded again")
        loaded.held.update({name: np.array(array) for name, array in wanted.items()})

    def _set(self, refitter: Any, name: str, array: Array) -> Array:
        prototype = refitter.get_weights_prototype(name)
        wanted = np.dtype(self._trt.nptype(prototype.dtype))
        cast = np.ascontiguousarray(array.astype(wanted))
        if cast.size != prototype.size:
            raise RefusedError(f"TensorRT's {name} has another size: expected {prototype.size}, got {cast.size}", hint="export again")
        # The server evaluated these very values; a rounded one is another weight.
        if wanted != array.dtype and not np.array_equal(cast.astype(array.dtype), array):
            raise RefusedError(f"TensorRT holds {name} as {wanted}: expected {array.dtype}, which does not fit", hint="export in float16")
        if not refitter.set_named_weights(name, self._trt.Weights(cast)):
            raise RefusedError(f"TensorRT refuses the weights of {name}: expected {cast.size} {wanted}", hint="see `edgeedit doctor`")
        return cast
