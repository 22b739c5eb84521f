"""`Runtime`: what an application holds.  It answers frames and takes new generations between two of them.

- A background thread polls the store: it claims a staged generation (the attempt is durable before weights load), decodes and
  checks it off the frame path, and copies it in under the frame lock.
- No SQL, no fsync and no decoding happen under that lock; a frame sees the old model or the new one, never a mix.
- Probes run as extra frames after the swap, without holding frames back between them; answers say (generation, on_trial).
- A failed probe puts the old weights back and reverts the generation; other Runtimes of the store follow.
"""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np

from edgeedit.bundle import Bundle
from edgeedit.device.engines.ort import OrtEngine
from edgeedit.device.prepare import Prepared, prepare, replay
from edgeedit.device.store import Generation, Store
from edgeedit.digest import TensorDigest
from edgeedit.errors import EdgeEditError
from edgeedit.patch.read import Patch

Array = np.ndarray[Any, Any]
PROBE_BATCH = 1  # frames per probe run, so that a waiting frame waits for one of them at most


class Engine(Protocol):
    """What a Runtime needs of an engine."""

    weights: dict[str, Array]

    def run(self, pixels: Array) -> Array:
        """Features of pixels."""

    def swap(self, new: Mapping[str, Array]) -> None:
        """Copy whole tensors into the live weights."""


@dataclass(frozen=True)
class Answer:
    """`output` float32 (n, width) of one generation; `on_trial` while that generation is not proven."""

    output: Array
    generation: int
    on_trial: bool


@dataclass(frozen=True)
class Swap:
    """One change of the running weights: `state` is confirmed, reverted or followed; times in milliseconds."""

    generation: int
    state: str
    reason: str
    prepare_ms: float
    swap_ms: float
    probe_ms: float

    def to_json(self) -> dict[str, Any]:
        """Plain JSON object."""
        return asdict(self)


class Runtime:
    """A running model that follows a store.  `poll_seconds` 0 polls only when `step` is called."""

    def __init__(
        self,
        store: Path,
        *,
        threads: int = 0,
        poll_seconds: float = 1.0,
        on_swap: Callable[[Swap], None] | None = None,
        engine: Callable[[Bundle, Mapping[str, Array]], Engine] | None = None,
    ) -> None:
        self._store = Store.open(store)
        self.bundle = self._store.bundle
        self._owner = f"{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._on_swap, self._poll = on_swap, poll_seconds
        head = self._store.head()
        weights, self._digests = replay(self.bundle, self._patches(head.id))
        self.engine: Engine = engine(self.bundle, weights) if engine else OrtEngine(self.bundle, weights, threads=threads)
        self.generation, self.on_trial = head.id, False
        self._probes = self.bundle.probes()
        self._frame, self._stepping, self._closing = threading.Lock(), threading.Lock(), threading.Event()
        self.last_error: EdgeEditError | None = None
        self._thread = threading.Thread(target=self._follow, name="edgeedit-runtime", daemon=True)
        if poll_seconds > 0:
            self._thread.start()

    def __enter__(self) -> Runtime:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Stop following the store; a trial in progress is finished first."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join()

    def run(self, pixels: Array) -> Answer:
        """Features of normalised pixels, float32 (n, 3, s, s), from exactly one generation."""
        with self._frame:
            return Answer(self.engine.run(pixels), self.generation, self.on_trial)

    def step(self) -> Swap | None:
        """One poll: take what the store offers; returns the change that was made, if any."""
        with self._stepping:
            swap = self._step()
        if swap is not None and self._on_swap is not None:
            self._on_swap(swap)
        return swap

    def _follow(self) -> None:
        while not self._closing.wait(self._poll):
            try:
                self.step()
                self.last_error = None
            except EdgeEditError as error:
                # The camera goes on with the weights it has; the application and `status` can see why.
                self.last_error = error

    def _patches(self, number: int) -> list[Patch]:
        return [self._store.patch(generation.patch) for generation in self._store.chain(number)]

    def _step(self) -> Swap | None:
        head, trial = self._store.head(), self._store.trial()
        if head.id != self.generation:
            return self._move(head)
        if trial is None or trial.parent != head.id or not self._store.claim(trial.id, self._owner):
            return None
        return self._try(trial)

    def _move(self, head: Generation) -> Swap:
        """Follow the store's head: forward to what another Runtime confirmed, or back."""
        start = time.perf_counter()
        weights, digests = replay(self.bundle, self._patches(head.id))
        changed = {n: weights[n] for n, d in digests.items() if d.sha256 != self._digests[n].sha256}
        undo = {n: self.engine.weights[n].copy() for n in changed}
        prepared_ms, old = _since(start), (self.generation, dict(self._digests))
        swap_ms = self._exchange(changed, head.id, digests, on_trial=False)
        reason, probe_ms = "", 0.0
        if head.parent is not None:
            reason, probe_ms = self._probe(self._store.patch(head.patch))
        if reason:
            # Proven elsewhere but wrong here: nobody may keep running it.
            self._exchange(undo, old[0], old[1], on_trial=False)
            self._store.revert(head.id, f"failed in another session: {reason}")
            return Swap(head.id, "reverted", reason, prepared_ms, swap_ms, probe_ms)
        return Swap(head.id, "followed" if head.parent is None or head.id < old[0] else "confirmed", "", prepared_ms, swap_ms, probe_ms)

    def _try(self, trial: Generation) -> Swap:
        start = time.perf_counter()
        try:
            patch = self._store.patch(trial.patch)
            prepared: Prepared = prepare(patch, self.engine.weights, self._digests)
        except EdgeEditError as error:
            self._store.revert(trial.id, error.message)
            return Swap(trial.id, "reverted", error.message, _since(start), 0.0, 0.0)
        undo = {name: self.engine.weights[name].copy() for name in prepared.new}
        prepare_ms, old = _since(start), (self.generation, self._digests)
        swap_ms = self._exchange(prepared.new, trial.id, prepared.digests, on_trial=True)
        reason, probe_ms = self._probe(patch)
        if reason:
            self._exchange(undo, old[0], old[1], on_trial=False)
            self._store.revert(trial.id, reason)
            return Swap(trial.id, "reverted", reason, prepare_ms, swap_ms, probe_ms)
        self._store.confirm(trial.id)
        self.on_trial = False
        return Swap(trial.id, "confirmed", "", prepare_ms, swap_ms, probe_ms)

    def _exchange(self, new: Mapping[str, Array], generation: int, digests: Mapping[str, TensorDigest], *, on_trial: bool) -> float:
        with self._frame:
            start = time.perf_counter()
            self.engine.swap(new)
            self.generation, self.on_trial = generation, on_trial
            elapsed = _since(start)
        self._digests = dict(digests)
        return elapsed

    def _probe(self, patch: Patch) -> tuple[str, float]:
        """Run the Bundle's probes on the live weights; returns the reason of a failure ("" = passed) and milliseconds."""
        start = time.perf_counter()
        expected, tolerance = patch.expected(), patch.manifest.probe.tolerance
        if expected.shape[0] != len(self._probes):
            return f"patch expects {expected.shape[0]} probes, the bundle has {len(self._probes)}", _since(start)
        for number in range(0, len(self._probes), PROBE_BATCH):
            got = self.run(self._probes[number : number + PROBE_BATCH]).output
            worst = float(np.abs(got - expected[number : number + PROBE_BATCH]).max())
            if not (np.isfinite(got).all() and worst <= tolerance):
                return f"probe {number} is off by {worst:.3g}: the tolerance is {tolerance:.3g}", _since(start)
        return "", _since(start)


def _since(start: float) -> float:
    return (time.perf_counter() - start) * 1e3
