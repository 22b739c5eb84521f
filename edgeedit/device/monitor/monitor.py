"""`Monitor`: what an application gives its Runtime to have the field watched.

    Runtime(store, monitor=Monitor(reader=logits, textfile=Path("/var/lib/node_exporter/edgeedit.prom")))

A sampled frame is copied into a short queue; a thread of low priority does all the rest.  The first `learn` windows count as clean days
and give the thresholds.  A generation that comes later answers the frames kept of clean days in shadow: that is its own baseline, and
one that changes too many of their verdicts is reverted at once, or when its first frames show it (`probation`).  An alarm that a
patch may have caused is settled in shadow (`cause`).
Guarantees: never raises into the frame path and never blocks it; errors are counted and kept; numpy only; what is kept is bounded.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeedit.device.monitor.baseline import Baseline, Clean, CleanDays, load_baseline, moved, save_baseline, unlike
from edgeedit.device.monitor.cause import LEVEL, Cause, Harm, Reader, find_cause, harm
from edgeedit.device.monitor.collect import Collection
from edgeedit.device.monitor.detector import Call, Detector, Rate
from edgeedit.device.monitor.gather import Gatherer
from edgeedit.device.monitor.intake import Batch, Frame, Intake
from edgeedit.device.monitor.metrics import Figures, exposition, figures_of, write_textfile
from edgeedit.device.monitor.outlets import Event, Outlet
from edgeedit.device.monitor.probation import Probation
from edgeedit.device.monitor.projection import Projection
from edgeedit.device.monitor.shadow import Make, Shadow
from edgeedit.device.monitor.signals import KINDS, Window
from edgeedit.device.store import Store
from edgeedit.errors import EdgeEditError
from edgeedit.limits import MAX_REASON_CHARS

Array = np.ndarray[Any, Any]
MONTH_SECONDS = 30 * 86_400
_RECENT, _EVENTS = 64, 1000  # frames kept of now, events kept
_NICE = 10
_LOG = logging.getLogger(__name__)


class Monitor:
    """Settings: a frame is taken every `every` seconds; `frames` make a window; the first `learn` windows are clean days.  `rate` is the
    probability of a false alarm in a camera's month.  None takes what the device profile gave the Bundle.  `reader` turns features
    (n, width) into logits; `act` allows reverts.  `state` is the file that keeps what was learnt across restarts; `collection` keeps
    frames for the next shots; `outlets` get events and figures."""

    def __init__(  # noqa: PLR0913 - settings, all by name
        self,
        *,
        reader: Reader | None = None,
        every: float | None = None,
        frames: int | None = None,
        learn: int | None = None,
        rate: float | None = None,
        act: bool = True,
        state: Path | None = None,
        textfile: Path | None = None,
        on_event: Callable[[Event], None] | None = None,
        outlets: Sequence[Outlet] = (),
        collection: Collection | None = None,
        background: bool = True,
    ) -> None:
        self._reader, self._asked = reader, (every, frames, learn, rate)
        self._act, self._state, self._textfile, self._on_event, self._background = act, state, textfile, on_event, background
        self._outlets, self._gatherer = tuple(outlets), Gatherer(collection) if collection is not None else None
        self.events: deque[Event] = deque(maxlen=_EVENTS)
        self.errors: Counter[str] = Counter()
        self.calibrated_on = -1  # generation of the clean days
        self._counts: Counter[str] = Counter()
        self._intake, self._overridden = Intake(0.0, 1), 0
        self._wake, self._closing = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self._recent: deque[bytes] = deque(maxlen=_RECENT)
        self._days = CleanDays()
        self._probation: Probation | None = None
        self._baseline: Baseline | None = None
        self._pictures: list[bytes] = []  # packed, of clean days
        self._cleans: dict[int, Clean] = {}  # what each of the last generations says of them
        self._detector: Detector | None = None
        self._generation, self._spent = 0, 0.0
        self._times: dict[str, float] = {}  # of the last window, by quantile
        self._signals: dict[str, float] = {}
        self._facts: dict[str, str] = {}

    # What the Runtime calls.
    def attach(self, store: Store, make: Make | None, check: Callable[[int], str] | None = None) -> None:
        """Begin to watch a Runtime of `store`; `make` is the application's own engine, None the Bundle's; `check` says of a number of a
        live tensor what is wrong with it."""
        self._store, self._bundle, self._shadow = store, store.bundle, Shadow(store, make)
        of, (every, frames, learn, rate) = self._bundle, self._asked
        self._every = of.monitor_seconds if every is None else every
        self._frames = of.monitor_frames if frames is None else frames
        self._learn = of.monitor_windows if learn is None else learn
        rate = of.false_alarms if rate is None else rate
        self._rate = Rate(max(1, int(MONTH_SECONDS / (max(self._every, 1e-3) * self._frames))), rate, max(rate, 0.5))
        self._intake = Intake(self._every, self._frames)
        self._project = Projection(store.bundle.output_width)
        self._check, self._checked = check, 0
        self._generation = store.head().id
        self._facts = self._known(self._generation)
        self._refused = max((number for number, _ in store.refusals(0)), default=0)
        self._remember()
        if self._background:
            self._thread = threading.Thread(target=self._follow, name="edgeedit-monitor", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """End the thread after what it is at."""
        self._closing.set()
        self._wake.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        for outlet in self._outlets:
            try:
                outlet.close()
            except Exception as error:  # noqa: BLE001 - an outlet's fault is no reason to keep the application
                self._failed(error)

    def note(self, generation: int, pixels: Array, output: Array, seconds: float) -> None:
        """One answer; copies a frame that is due and returns."""
        try:
            self._counts["frames"] += 1
            if not np.isfinite(output).all():
                self._counts["not_finite"] += 1
                if self._counts["not_finite"] == 1:
                    self._tell("not_finite", generation, "an answer holds NaN or infinity")
                return
            if self._intake.offer(generation, pixels, output, seconds):
                self._wake.set()
        except Exception as error:  # noqa: BLE001 - whatever fails here, the frame is answered
            self._failed(error)

    def override(self, pixels: Array | None = None, verdict: str = "", group: str = "") -> None:
        """An operator changed a verdict; `pixels` (1, 3, s, s) with the right `verdict` go to the collection, if there is one."""
        self._counts["overrides"] += 1
        self._overridden += 1
        if self._gatherer is not None and pixels is not None:
            try:
                self._gatherer.override(pixels, verdict, group, self._generation)
                self._wake.set()
            except Exception as error:  # noqa: BLE001 - whatever was handed in, the line goes on
                self._failed(error)

    def swapped(self, generation: int, state: str, reason: str, exit_code: int) -> None:
        """The Runtime changed its generation, or would not."""
        kind = "applied" if state in ("confirmed", "followed") else "signature_refused" if exit_code == 5 else "reverted"
        if kind == "reverted" and reason.startswith("probe"):
            self._tell("probe_fail", generation, reason)
        self._tell(kind, generation, reason)

    # The monitor's own thread.
    def work(self) -> None:
        """Take what waits; without `background` the application calls this."""
        if self._gatherer is not None:
            try:
                self._gatherer.overridden(self._bundle.preprocess)
            except Exception as error:  # noqa: BLE001 - a full disk ends no watch
                self._failed(error)
        while (frame := self._intake.next()) is not None:
            try:
                self._take(frame)
            except Exception as error:  # noqa: BLE001 - a fault of a reader or engine ends no watch
                self._failed(error)

    def _follow(self) -> None:
        try:
            # Of this thread only: frames and the operator's screen come first.
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        except OSError as error:
            self._failed(error)
        while not self._closing.is_set():
            self._wake.wait(1.0)
            self._wake.clear()
            self.work()
            self._spent = time.thread_time()

    def _failed(self, error: Exception) -> None:
        self.errors[type(error).__name__] += 1
        if self.errors[type(error).__name__] == 1:
            _LOG.exception("the monitor failed; frames go on", exc_info=error)

    def _tell(self, kind: str, generation: int, reason: str) -> None:
        event = Event(kind, generation, reason[:MAX_REASON_CHARS], time.time())
        self.events.append(event)
        self._counts[f"event {kind}"] += 1
        for told in (self._on_event, *(outlet.event for outlet in self._outlets)):
            if told is not None:
                try:
                    told(event)
                except Exception as error:  # noqa: BLE001 - the application's own function, or a full disk
                    self._failed(error)

    def _take(self, frame: Frame) -> None:
        if frame.generation != self._generation:
            self._enter(frame.generation)
        batch = self._intake.add(frame, self._bundle.preprocess)
        if batch is not None:
            self._judge(self._window(batch), batch.pictures)
            self._look()
            self._write()

    def _look(self) -> None:
        """What can be looked at beside the frames: refusals that the agent recorded, and one live tensor after the other."""
        for number, reason in self._store.refusals(self._refused):
            self._refused = number
            self._tell("signature_refused", self._generation, reason)
        wrong = self._check(self._checked) if self._check is not None else ""
        self._checked += 1
        if wrong:
            self._tell("weights_changed", self._generation, wrong)

    def _window(self, batch: Batch) -> Window:
        hits = min(self._overridden, self._frames)
        self._overridden -= hits
        self._recent.extend(batch.pictures)
        self._times = {str(q): float(np.quantile(batch.seconds, q)) for q in (0.5, 0.95)}
        self._counts["windows"] += 1
        said = self._said(batch.features)
        overridden = np.arange(self._frames) < hits
        window = Window(said.rows, batch.images, batch.seconds, said.verdicts, said.margins, overridden)
        if self._gatherer is not None:
            try:
                self._gatherer.window(batch.pictures, self._bundle.preprocess.size, window, self._generation, self._baseline)
            except EdgeEditError as error:
                self._failed(error)
        return window

    def _said(self, features: Array) -> Clean:
        verdicts, margins = np.full(len(features), -1), np.full(len(features), np.nan, dtype=np.float32)
        if self._reader is not None:
            logits = self._reader(features)
            top = np.sort(logits, axis=1)[:, -2:]
            verdicts, margins = logits.argmax(axis=1).astype(np.int64), (top[:, 1] - top[:, 0]).astype(np.float32)
        return Clean(self._project(features), verdicts, margins)

    def _judge(self, window: Window, packed: list[bytes]) -> None:
        if self._baseline is None or self._detector is None:
            self._study(window, packed)
            return
        alarms = []
        self._signals = self._baseline.signals(window)
        for call in self._detector.step(self._signals):
            self._tell(f"drift_{call.level}", self._generation, call.sentence())
            alarms += [call] if call.level == "alarm" and KINDS[call.signal].of_patch else []
        if alarms:
            self._settle(alarms)
        if self._probation is not None and (found := self._probation.window(packed, window.verdicts)) is not None:
            self._harmful(found)

    def _study(self, window: Window, packed: list[bytes]) -> None:
        """One more window of clean days; the last one gives the thresholds."""
        self._days.add(window, packed)
        if len(self._days.windows) < self._learn:
            return
        baseline, self._pictures = self._days.learn(self._rate)
        self._days = CleanDays()
        self._begin(baseline)
        self._tell("learnt", self._generation, f"{self._learn} clean windows of {self._frames} frames")
        reference = self._bundle.reference()
        # Shipped for the base: another generation may rightly see otherwise.
        if reference is not None and not self._store.chain(self._generation) and (told := unlike(reference, baseline.clean)):
            self._tell("drift_warn", self._generation, told)

    def _begin(self, baseline: Baseline) -> None:
        self._baseline, self._detector = baseline, Detector(baseline.calibration, self._detector)
        self._cleans = {**dict(list(self._cleans.items())[-1:]), self._generation: baseline.clean}
        self.calibrated_on = self._generation
        if self._state is not None:
            save_baseline(self._state, baseline, {**self._about(), "generation": self._generation}, self._pictures)

    def _known(self, generation: int) -> dict[str, str]:
        """What answers, for people who compare cameras."""
        chain = self._store.chain(generation)
        running, patch = (chain[-1].result, chain[-1].patch) if chain else (self._bundle.fingerprint, "")
        return {"bundle": self._bundle.fingerprint, "fingerprint": running, "patch": patch}

    def _about(self) -> dict[str, Any]:
        return {"bundle": self._bundle.fingerprint, "frames": self._frames, "every": self._every, "rate": self._rate.alarms}

    def _remember(self) -> None:
        """Go on from what was learnt before a restart, if that was this camera with these settings."""
        try:
            found = load_baseline(self._state, self._about()) if self._state is not None else None
        except EdgeEditError as error:
            self._failed(error)
            return
        if found is not None:
            self._baseline, self._pictures, self.calibrated_on = found
            self._detector = Detector(self._baseline.calibration)
            self._cleans = {self.calibrated_on: self._baseline.clean}
            # The first frame of another generation then takes the baseline along.
            self._generation = self.calibrated_on

    def _enter(self, generation: int) -> None:
        """Another generation answers from now on."""
        former, self._generation = self.calibrated_on, generation
        self._facts = self._known(generation)
        self._intake.clear()
        self._recent.clear()
        self._probation = None
        if self._baseline is None:
            # Clean days are of one generation.
            self._days = CleanDays()
        elif generation != former:
            self._move(self._baseline, former)

    def _move(self, baseline: Baseline, former: int) -> None:
        """Take the baseline along; a patch that changes too many verdicts of clean frames goes back at once."""
        try:
            # Only a child of the former generation is judged: what a way back or a leap changes is nobody's fault.
            allowed = self._shadow.allowed(self._generation) if self._shadow.parent(self._generation) == former else None
            clean = self._cleans.get(self._generation) or self._said(self._shadow.features(self._generation, self._pictures))
        except EdgeEditError as error:
            # Not to be known now: learn what is usual with it instead.
            self._failed(error)
            self._baseline = self._detector = None
            self._days = CleanDays()
            return
        found = harm(baseline.clean.verdicts, clean.verdicts, allowed) if allowed is not None else None
        if found is not None and self._harmful(found):
            return
        self._begin(moved(baseline, clean))
        told = f": {found.sentence()}" if found is not None else ""
        self._tell("learnt", self._generation, f"frames kept of generation {former}{told}")
        if found is not None and found.p > LEVEL and self._reader is not None:
            self._probation = Probation(lambda asked: self._said(self._shadow.features(former, asked)), baseline.clean, found)

    def _harmful(self, found: Harm) -> bool:
        """Whether a patch changes more than it may and was reverted for it."""
        if found.p > LEVEL:
            return False
        self._probation = None
        self._tell("drift_alarm", self._generation, found.sentence())
        return self._revert(f"only the patch is worse: {found.sentence()}")

    def _revert(self, reason: str) -> bool:
        """Leave the running generation for its parent, if that is allowed; the store queues the signed receipt and the Runtime goes
        back at its next poll."""
        if not self._act or not self._store.revert(self._generation, f"monitor: {reason}"):
            return False
        self._probation = None
        self._tell("reverted", self._generation, reason)
        return True

    def _settle(self, alarms: list[Call]) -> None:
        """Find the cause of an alarm and act on it."""
        head = self._store.head()
        if head.parent is None or head.id != self._generation or not self._act:
            return
        try:
            cause = self.compare(head.id, head.parent, overridden=any(call.signal == "overrides" for call in alarms))
        except EdgeEditError as error:
            self._failed(error)
            return
        self._tell("cause", head.id, f"{cause.verdict}: {cause.reason}")
        if cause.verdict == "world" and self._gatherer is not None:
            self._gatherer.world_changed()
        if cause.verdict == "patch":
            self._revert(f"{alarms[0].signal}: {cause.reason}")

    def compare(self, head: int, parent: int, *, overridden: bool = False) -> Cause:
        """Both generations, one after the other, on clean and recent frames; raises RefusedError where memory is short."""
        clean = len(self._pictures)
        found = []
        for number in (parent, head):
            features = self._shadow.features(number, [*self._pictures, *self._recent])
            found.append((features[:clean], features[clean:]))
        return find_cause(found[0], found[1], self._reader, overridden=overridden, allowed=self._shadow.allowed(head))

    def figures(self) -> Figures:
        """What the textfile holds."""
        plain: dict[str, float] = {
            "edgeedit_frames_skipped_total": self._intake.skipped,
            "edgeedit_monitor_errors_total": sum(self.errors.values()),
            "edgeedit_monitor_cpu_seconds_total": self._spent,
            "edgeedit_generation": self._generation,
        }
        sums = self._detector.sums() if self._detector is not None else None
        return figures_of(plain, self._counts, sums, self._signals, self._times, self._facts)

    def _write(self) -> None:
        figures = self.figures()
        try:
            if self._textfile is not None:
                write_textfile(self._textfile, exposition(figures))
            for outlet in self._outlets:
                outlet.figures(figures)
        except (OSError, EdgeEditError) as error:
            self._failed(error)
