"""`Runtime`: what an application holds.  It answers frames and takes new generations between two of them.

- A background thread polls the store: it claims a staged generation (the attempt is durable before weights load), decodes and
  checks it off the frame path, and copies it in under the frame lock.
- No SQL, no fsync and no decoding happen under that lock; a frame sees the old model or the new one, never a mix.
- Probes run before the swap on a second binding where the Bundle's profile has the memory, else as extra frames after it, without
  holding frames back between them; answers say (generation, on_trial).  Then the trial is watched for some frames (`Health`).
- Whatever happens before the proof (a failed probe, a failing engine, a trial withdrawn meanwhile), the old weights come back.
- Other Runtimes of the store follow what one of them confirmed, and probe it too.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from edgeedit.bundle import Bundle
from edgeedit.device.engines.choose import open_engine
from edgeedit.device.engines.protocol import Commit, Engine, Staged
from edgeedit.device.health import Health, Watch
from edgeedit.device.memory import check_start, start_memory
from edgeedit.device.monitor.monitor import Monitor
from edgeedit.device.owner import BEAT_SECONDS, new_owner
from edgeedit.device.prepare import check_memory, copies, prepare, probe_inputs, replay
from edgeedit.device.proof import Expected, probe
from edgeedit.device.state import Generation
from edgeedit.device.store import Store
from edgeedit.digest import TensorDigest, digest_array
from edgeedit.errors import EdgeEditError, InputError, RefusedError, RevertedError
from edgeedit.patch.read import Patch

Array = np.ndarray[Any, Any]
_WITHDRAWN = "the trial was withdrawn or taken over meanwhile"
_CLOSED = "the application ended during the trial"
_WAIT_SECONDS = 0.5  # a trial that waits for frames notes its progress and sees a withdrawal at least so often


@dataclass(frozen=True)
class Answer:
    """`output` float32 (n, width) of one generation; `on_trial` while that generation is not proven."""

    output: Array
    generation: int
    on_trial: bool


@dataclass(frozen=True)
class Swap:
    """One change of the running weights: `state` is confirmed, reverted or followed; times in milliseconds.

    `exit_code` is 0, or that of the error which ended the generation: 7 for probes, 4 to 6 when it was never swapped in."""

    generation: int
    state: str
    reason: str
    prepare_ms: float
    swap_ms: float
    probe_ms: float
    exit_code: int = 0
    probed: str = ""  # "before" or "after" the swap, "" where the generation was followed without a proof of its own

    def to_json(self) -> dict[str, Any]:
        """Plain JSON object."""
        return asdict(self)


class Runtime:
    """A running model that follows a store.  `poll_seconds` 0 polls only when `step` is called; a trial is then not kept waiting for
    frames.  `health` replaces the gate that the Bundle's profile asks for; `monitor` watches the field.
    Raises RefusedError (exit 6) when memory is short."""

    def __init__(
        self,
        store: Path,
        *,
        threads: int = 0,
        poll_seconds: float = 1.0,
        on_swap: Callable[[Swap], None] | None = None,
        engine: Callable[[Bundle, Mapping[str, Array]], Engine] | None = None,
        health: Health | None = None,
        monitor: Monitor | None = None,
    ) -> None:
        self._store = Store.open(store)
        self.bundle = self._store.bundle
        self._health = health or Health.of(self.bundle)
        self._watch = Watch(self._health)
        self._owner = new_owner()
        self._on_swap, self._poll = on_swap, poll_seconds
        head = self._store.head()
        check_start(self.bundle, self._store.chain_bytes(head.id))
        self._digests: Mapping[str, TensorDigest]
        weights, self._digests = replay(self.bundle, self._patches(head.id))
        self._make = engine or partial(open_engine, threads=threads)
        self.engine: Engine = self._make(self.bundle, weights)
        self.generation, self.on_trial = head.id, False
        self._probes = probe_inputs(self.bundle)
        # A swap takes its turn like a frame, so that a camera which never pauses cannot keep it waiting for many frames.
        self._turn, self._frame = threading.Lock(), threading.Lock()
        self._stepping, self._closing = threading.Lock(), threading.Event()
        self._beaten = 0.0
        self.last_error: Exception | None = None
        self._anchor = self._store.anchor()
        self._monitor = monitor
        if monitor is not None:
            monitor.attach(self._store, engine, self._check)
        self._thread = threading.Thread(target=self._follow, name="edgeedit-runtime", daemon=True)
        if poll_seconds > 0:
            self._thread.start()

    def __enter__(self) -> Runtime:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Stop following the store; a trial in progress is finished first, except when `on_swap` itself closes."""
        self._closing.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()
        if self._monitor is not None:
            self._monitor.close()
        self._anchor.close()

    def run(self, pixels: Array) -> Answer:
        """Features of normalised pixels, float32 (n, 3, s, s), from exactly one generation; raises what the engine raises."""
        with self._turn:
            self._frame.acquire()
        generation, on_trial = self.generation, self.on_trial
        try:
            start = time.perf_counter()
            output = self.engine.run(pixels)
            seconds = time.perf_counter() - start
        except EdgeEditError as error:
            if not isinstance(error, InputError):
                self._watch.fail(generation, error.message)
            raise
        finally:
            self._frame.release()
        self._watch.note(generation, output, seconds)
        if self._monitor is not None:
            self._monitor.note(generation, pixels, output, seconds)
        return Answer(output, generation, on_trial)

    def override(self, pixels: Array | None = None, verdict: str = "", group: str = "") -> None:
        """An operator changed the verdict on a frame: told to the monitor, if there is one.  `pixels` as given to `run`, the right
        `verdict` (a class name) and the `group` of the part are for its collection of shots."""
        if self._monitor is not None:
            self._monitor.override(pixels, verdict, group)

    def _check(self, number: int) -> str:
        """What is wrong with the live weights: one tensor each time, so that all have their turn; "" where it is what it should be."""
        for _ in range(2):
            digests = self._digests
            row = digests[sorted(digests)[number % len(digests)]]
            if digest_array(self.engine.weights[row.name]) == row.sha256:
                return ""
            # A swap or its undo meanwhile explains a difference; after it one more look decides.
            with self._turn, self._frame:
                changed = self._digests is not digests
        return "" if changed else f"tensor {row.name} is not that of generation {self.generation}"

    def step(self) -> Swap | None:
        """One poll: take what the store offers; returns the change that was made, if any."""
        with self._stepping:
            swap = self._step()
        if swap is not None and self._monitor is not None:
            self._monitor.swapped(swap.generation, swap.state, swap.reason, swap.exit_code)
        if swap is not None and self._on_swap is not None:
            self._on_swap(swap)
        return swap

    def _follow(self) -> None:
        while not self._closing.wait(self._poll):
            try:
                self.step()
                self.last_error = None
            except EdgeEditError as error:
                # The camera goes on with the weights it has; the application can see why.
                self.last_error = error
            except Exception as error:
                # A fault in the application's `on_swap` or in an engine of its own must not end the following for ever.
                logging.getLogger(__name__).exception("following the store failed")
                self.last_error = error

    def _patches(self, number: int) -> list[Patch]:
        return [self._store.patch(generation.patch) for generation in self._store.chain(number)]

    def _step(self) -> Swap | None:
        head, trial = self._store.current()
        if head.id != self.generation:
            return self._move(head)
        if trial is None or trial.parent != head.id or not self._store.claim(trial.id, self._owner):
            return None
        return self._try(trial)

    def _move(self, head: Generation) -> Swap:
        """Follow the store's head: forward to what another Runtime confirmed, or back."""
        start = time.perf_counter()
        patches = self._patches(head.id)
        weights, digests = replay(self.bundle, patches)
        changed = {n: weights[n] for n, d in digests.items() if d.sha256 != self._digests[n].sha256}
        back = head.id < self.generation or head.parent is None
        expected = Expected.of(patches[-1]) if patches else None
        swap = self._install(_Change(head.id, changed, digests), expected, start, keep=lambda: True, going=lambda: "")
        if swap.exit_code:
            # Proven elsewhere but wrong here: nobody may keep running it.
            self._store.revert(head.id, f"failed in another session: {swap.reason}")
            return swap
        return replace(swap, state="followed") if back else swap

    def _try(self, trial: Generation) -> Swap:
        start = time.perf_counter()
        self._beaten = time.monotonic()
        try:
            patch = self._store.patch(trial.patch)
            expected = Expected.of(patch)
            prepared = prepare(patch, self.engine.weights, self._digests, self._paced(trial.id))
            commit = self.engine.stage(prepared.new)
            before = self._rehearse(commit, prepared.new, expected, lambda: self._going(trial.id))
            if before:
                raise RevertedError(before)
        except EdgeEditError as error:
            self._store.revert(trial.id, error.message, owner=self._owner)
            return Swap(trial.id, "reverted", error.message, _since(start), 0.0, 0.0, error.exit_code)
        swap = self._install(
            _Change(trial.id, prepared.new, prepared.digests, commit),
            expected,
            start,
            keep=lambda: self._store.confirm(trial.id, self._owner),
            going=lambda: self._going(trial.id),
            rehearsed=before is not None,
        )
        if swap.exit_code:
            self._store.revert(trial.id, swap.reason, owner=self._owner)
        return swap

    def _rehearse(self, commit: Commit, new: Mapping[str, Array], expected: Expected, going: Callable[[], str]) -> str | None:
        """Probe the new weights beside the frames: the reason of a failure, "" when all passed, None where there is no room for it."""
        if not self.bundle.probes_first:
            return None
        if isinstance(commit, Staged) and commit.run is not None:
            return probe(commit.run, self._probes, expected, going)
        try:
            check_memory(start_memory(self.bundle))
            engine = self._make(self.bundle, {**self.engine.weights, **new})
        except RefusedError:
            return None  # the profile allows it, this moment does not: probes run after the swap
        return probe(engine.run, self._probes, expected, going)

    def _going(self, number: int) -> str:
        return "" if self._beat(number) else _WITHDRAWN

    def _paced(self, number: int) -> Callable[[], None]:
        """A beat after each tensor; in the background it rests as long as the tensor took, so that frames keep a core of their own."""
        last = time.perf_counter()

        def beat() -> None:
            nonlocal last
            self._beat(number)
            if self._poll > 0:
                self._closing.wait(min(1.0, time.perf_counter() - last))
            last = time.perf_counter()

        return beat

    def _beat(self, number: int) -> bool:
        now = time.monotonic()
        if now - self._beaten < BEAT_SECONDS:
            return True
        self._beaten = now
        return self._store.beat(number, self._owner)

    def _install(
        self,
        change: _Change,
        expected: Expected | None,
        start: float,
        *,
        keep: Callable[[], bool],
        going: Callable[[], str],
        rehearsed: bool = False,
    ) -> Swap:
        """Swap in, probe, watch, and `keep`; unless that ends well the old weights are back when this returns or raises."""
        undo = _Change(self.generation, copies(self.engine.weights, change.new), self._digests)
        prepare_ms = _since(start)
        if expected is not None:
            self._watch.begin(change.generation)
        proven = False
        try:
            swap_ms = self._exchange(change, on_trial=expected is not None)
            try:
                begin = time.perf_counter()
                reason = self._prove(expected, going, rehearsed=rehearsed) if expected is not None else ""
                probe_ms = _since(begin)
                if not reason and not keep():
                    reason = _WITHDRAWN
                proven = not reason
            finally:
                if not proven:
                    self._exchange(undo, on_trial=False)
            self.on_trial = False
        finally:
            self._watch.end(proven=proven)
        probed = "" if expected is None else "before" if rehearsed else "after"
        if reason:
            code = RevertedError.exit_code
            return Swap(change.generation, "reverted", reason, prepare_ms, swap_ms, probe_ms, code, probed)
        return Swap(change.generation, "confirmed", "", prepare_ms, swap_ms, probe_ms, probed=probed)

    def _prove(self, expected: Expected, going: Callable[[], str], *, rehearsed: bool) -> str:
        """Probes on the live weights (one where all passed before the swap: it shows that the session sees them), then the watch."""
        reason = probe(lambda pixels: self.run(pixels).output, self._probes, expected, going, count=1 if rehearsed else 0)
        until = time.monotonic() + (self._health.seconds if self._poll > 0 else 0.0)
        while not reason and self._health.frames and not self._watch.wait(until, _WAIT_SECONDS):
            reason = going() or (_CLOSED if self._closing.is_set() else "")
        for number in range(self._watch.missing()):
            if reason:
                break
            self.run(np.array(self._probes[number % len(self._probes)][None]))
            reason = going()
        return reason or self._watch.verdict()

    def _exchange(self, change: _Change, *, on_trial: bool) -> float:
        commit = change.commit or self.engine.stage(change.new)
        with self._turn, self._frame:
            start = time.perf_counter()
            commit()
            self.generation, self.on_trial, self._digests = change.generation, on_trial, change.digests
            return _since(start)


@dataclass(frozen=True)
class _Change:
    """Weights to copy in, and what runs then; `commit` is what the engine gave for them where they are staged already."""

    generation: int
    new: Mapping[str, Array]
    digests: Mapping[str, TensorDigest]
    commit: Commit | None = None


def _since(start: float) -> float:
    return (time.perf_counter() - start) * 1e3
