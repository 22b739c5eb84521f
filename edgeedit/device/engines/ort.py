"""The ONNX Runtime engine whose weights are buffers of ours, so that new values take effect at the next frame.

Measured ground: with prepacking off, EXTENDED optimisation and constant folding disabled, `add_initializer` aliases the
caller's buffer.  No documentation promises it, so the start proves it: ONNX Runtime must report every patchable tensor as
used, and when a tensor is perturbed the output must move, and return bit for bit.  A session that fails is refused (exit 6).
Where the system can, a swap exchanges whole pages under the buffers (`exchange`), which is proven at the start too; elsewhere it
writes into them.  Does not lock: the Runtime calls `run` and a commit under its frame lock.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from edgeedit.bundle import Bundle
from edgeedit.codec.apply import copy_tensors
from edgeedit.device.engines.exchange import Twin, supported
from edgeedit.device.engines.ort_session import (
    VERSION_HINT,
    SessionPlan,
    check_pixels,
    failures,
    load_ort,
    make_session,
    session_options,
    used_initialisers,
)
from edgeedit.device.engines.protocol import Commit
from edgeedit.device.prepare import RESERVE, available_memory, probe_inputs
from edgeedit.errors import IntegrityError, RefusedError

Array = np.ndarray[Any, Any]
PERTURBATION = 0.5  # size of the liveness probe's noise, as a share of the tensor's root mean square
PROOF_SECONDS = 20.0  # one tensor of each kind is always proven; the others within this time
SPARSE_SHARE = 0.02  # up to this share of changed elements single writes beat a copy of the whole tensor
_BITS: Mapping[int, np.dtype[Any]] = {2: np.dtype(np.uint16), 4: np.dtype(np.uint32)}


class OrtEngine:
    """A running session.  `weights` are the live values; `proven` names the tensors whose effect was shown at the start, and
    `audited` says that ONNX Runtime reported each patchable tensor as used."""

    def __init__(self, bundle: Bundle, weights: Mapping[str, Array], *, threads: int = 0, plan: SessionPlan | None = None) -> None:
        ort = load_ort()
        plan = plan or SessionPlan(bundle.provider, threads)
        self._editable = sorted(t.name for t in bundle.tensor_map.tensors if t.editable)
        self._failures = failures(ort)
        self._device = bundle.memory != "host"
        # Pages of this process's memory can be exchanged; those of a GPU cannot.
        self._twins = {n: Twin(weights[n]) for n in self._editable} if not self._device and supported() else {}
        # Private memory that is paged in: ONNX Runtime keeps the address, and the first swap takes no page faults.
        self._staged = 0
        private = {n: self._twins[n].live if self._twins else np.array(weights[n], order="C") for n in self._editable}
        self.weights: dict[str, Array] = {**weights, **private}
        self._values = {name: self._value(ort, bundle.memory, name) for name in self.weights}
        self.audited = self._audit(used_initialisers(ort, bundle, plan, self._values))
        options = session_options(ort, plan)
        for name, value in self._values.items():
            options.add_initializer(name, value)
        self._session: Any = make_session(ort, bundle.path, plan, options)
        self._input, self._output, self._shape = bundle.input_name, bundle.output_name, bundle.input_shape
        self.proven: tuple[str, ...] = ()
        self._prove_live(np.array(probe_inputs(bundle)[:1]))

    def _value(self, ort: Any, memory: str, name: str) -> Any:
        array = self.weights[name]
        if self._device:
            return ort.OrtValue.ortvalue_from_numpy(array, memory, 0)
        value = ort.OrtValue.ortvalue_from_numpy(array)
        if value.data_ptr() != array.ctypes.data:
            raise RefusedError(f"ONNX Runtime copied {name}: expected its buffer to be used in place", hint=VERSION_HINT)
        return value

    def _audit(self, used: frozenset[str]) -> bool:
        unused = [name for name in self._editable if name not in used]
        if used and unused:
            raise RefusedError(f"session does not use {unused[0]}: a patch would change nothing", hint=VERSION_HINT)
        return bool(used)

    def run(self, pixels: Array) -> Array:
        """Features float32 (n, width) of normalised pixels float32 (n, 3, s, s); raises InputError for pixels of another shape
        or dtype, RefusedError when ONNX Runtime fails."""
        check_pixels(pixels, self._shape)
        try:
            result: Array = self._session.run([self._output], {self._input: pixels})[0]
        except self._failures as error:
            raise RefusedError(f"ONNX Runtime failed: {str(error)[:200]}", hint="see `edgeedit doctor`") from error
        return result

    def describe(self) -> str:
        """One line for `doctor`."""
        how = "by exchange of pages" if self._twins else "by writing"
        return (
            f"{len(self._editable)} patchable tensors changed in place {how}: {len(self.proven)} proven live, "
            f"{'all reported as used by ONNX Runtime' if self.audited else 'ONNX Runtime does not report which it uses'}"
        )

    def swap(self, new: Mapping[str, Array]) -> None:
        """Make whole tensors live; shapes and dtypes are those of the Bundle."""
        self.stage(new)()

    def stage(self, new: Mapping[str, Array]) -> Commit:
        """Write the successors beside the live tensors where memory allows; the commit exchanges their pages.  Else find the
        changed elements; the commit writes only these where they are few, whole tensors otherwise.  Raises IntegrityError."""
        for name, array in new.items():
            live = self.weights.get(name)
            if live is None or name not in self._editable or live.shape != array.shape or live.dtype != array.dtype:
                raise IntegrityError(f"cannot swap {name}: expected a patchable tensor of the bundle, got {array.dtype} {array.shape}")
        twins = [self._twins[name] for name in new] if self._twins else []
        if twins and _room(sum(twin.next.nbytes for twin in twins if not twin.filled)):
            return self._stage_exchange(twins, list(new.values()))
        return self._stage_writes(new)

    def _stage_exchange(self, twins: list[Twin], arrays: list[Array]) -> Commit:
        self._staged += 1
        ticket = self._staged
        for twin, array in zip(twins, arrays, strict=True):
            twin.fill(array)

        def commit() -> None:
            # A later staging has written over this one; a second exchange would bring the former values back.
            if ticket != self._staged:
                raise RefusedError("staged weights are gone: expected the last staging, got an older one or a second commit")
            self._staged += 1
            for twin in twins:
                twin.exchange()

        return commit

    def _stage_writes(self, new: Mapping[str, Array]) -> Commit:
        writes: list[tuple[Array, Array, Array]] = []
        dense: list[tuple[Array, Array]] = []
        for name, array in new.items():
            live = self.weights[name]
            changed = _changed(live, array)
            if changed is None:
                dense.append((live, np.ascontiguousarray(array)))
            elif changed.size:
                writes.append((live.reshape(-1), changed, array.reshape(-1)[changed]))
        touched = list(new)

        def commit() -> None:
            copy_tensors(dense)
            for flat, index, values in writes:
                flat[index] = values
            self._upload(touched)

        return commit

    def _upload(self, names: list[str]) -> None:
        if self._device:
            for name in names:
                self._values[name].update_inplace(self.weights[name])

    def _prove_live(self, probe: Array) -> None:
        before = self.run(probe)
        if not np.isfinite(before).all():
            raise RefusedError("session's output is not finite on the first probe", hint="check the bundle with `edgeedit doctor`")
        kinds: dict[str, list[str]] = {}
        for name in self._editable:
            kinds.setdefault(re.sub(r"\d+", "#", name), []).append(name)
        first = [members[0] for members in kinds.values()]
        self._prove_exchange(first[0], probe, before)
        proven, start = [], time.monotonic()
        for name in first + [n for n in self._editable if n not in first]:
            # Tensors of one kind feed the same kernel; on a slow device one of each kind has to do, beside the audit.
            if name not in first and self.audited and time.monotonic() - start > PROOF_SECONDS:
                break
            self._prove_one(name, probe, before)
            proven.append(name)
        if not np.array_equal(self.run(probe).view(np.uint8), before.view(np.uint8)):
            raise RefusedError("session does not return to its output after the liveness probe", hint=VERSION_HINT)
        self.proven = tuple(proven)

    def _prove_exchange(self, name: str, probe: Array, before: Array) -> None:
        """Exchanged pages must be what the session reads; where they are not, values are written from now on."""
        twin = self._twins.get(name)
        if twin is None:
            return
        twin.fill(_perturbed(twin.live))
        twin.exchange()
        moved = self.run(probe)
        twin.exchange()
        if np.array_equal(moved, before) or not np.array_equal(self.run(probe), before):
            self._twins = {}
        twin.release()

    def _prove_one(self, name: str, probe: Array, before: Array) -> None:
        buffer = self.weights[name]
        kept = buffer.copy()
        try:
            buffer[...] = _perturbed(kept)
            self._upload([name])
            moved = self.run(probe)
        finally:
            buffer[...] = kept
            self._upload([name])
        if np.array_equal(moved, before):
            raise RefusedError(f"session does not see {name}: a patch would change nothing", hint=VERSION_HINT)
        if not np.isfinite(moved).all():
            raise RefusedError(f"session's output is not finite when {name} moves: cannot prove that it is live", hint=VERSION_HINT)


def _perturbed(array: Array) -> Array:
    """The array with noise, and not a constant, added: behind a normalisation the inputs of a matrix sum to zero, which hides one."""
    size = np.float32(PERTURBATION * (float(np.sqrt(np.mean(np.square(array, dtype=np.float32)))) or 1.0))
    noise: Array = size * np.random.default_rng(0).standard_normal(array.shape, np.float32)
    moved: Array = array + noise.astype(array.dtype)
    return moved


def _room(nbytes: int) -> bool:
    free = available_memory()
    return free is None or free >= nbytes + RESERVE


def _changed(live: Array, new: Array) -> Array | None:
    """Flat positions whose bits differ, or None where a copy of the whole tensor is faster; shapes and dtypes must agree."""
    if live.shape != new.shape or live.dtype != new.dtype or live.itemsize not in _BITS:
        return None  # `copy_tensors` refuses what does not fit
    bits = _BITS[live.itemsize]
    found: Array = np.flatnonzero(live.reshape(-1).view(bits) != np.ascontiguousarray(new).reshape(-1).view(bits))
    return found if found.size <= SPARSE_SHARE * live.size else None
