"""`Monitor`: what an application gives its Runtime to have the field watched.

    Runtime(store, monitor=Monitor(reader=logits, textfile=Path("/var/lib/node_exporter/edgeedit.prom")))

A sampled frame is copied into a short queue; a thread of low priority does all the rest.  The first `learn` windows count as clean days
and give the thresholds.  An alarm that a patch may have caused is settled by a comparison in shadow (`cause`).
Guarantees: never raises into the frame path and never blocks it; errors are counted and kept; numpy only; what is kept is bounded.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeedit.bundle import Bundle
from edgeedit.device.engines.choose import open_engine
from edgeedit.device.engines.protocol import Engine
from edgeedit.device.memory import start_memory
from edgeedit.device.monitor.cause import Cause, Reader, find_cause
from edgeedit.device.monitor.detector import Call, Detector, Rate, calibrate
from edgeedit.device.monitor.metrics import Figures, exposition, temperature, write_textfile
from edgeedit.device.monitor.projection import Projection, image_signals, to_picture, to_pixels
from edgeedit.device.monitor.signals import KINDS, Expected, Window, window_signals
from edgeedit.device.prepare import check_memory, replay
from edgeedit.device.store import Store
from edgeedit.errors import EdgeEditError, RefusedError

Array = np.ndarray[Any, Any]
MONTH_SECONDS = 30 * 86_400
_QUEUE, _KEPT, _EVENTS = 64, 64, 1000  # sampled frames that wait, pictures kept of clean days and of now, events kept
_NICE = 10
_LOG = logging.getLogger(__name__)
Make = Callable[[Bundle, Mapping[str, Array]], Engine]


@dataclass(frozen=True)
class Event:
    """`kind` is applied, reverted, probe_fail, signature_refused, drift_warn, drift_alarm, not_finite or learnt; Unix `time`."""

    kind: str
    generation: int
    reason: str
    time: float


@dataclass(frozen=True)
class _Frame:
    generation: int
    pixels: Array
    output: Array
    seconds: float


class Monitor:
    """Settings: a frame is taken every `every` seconds; `frames` make a window; the first `learn` windows are clean days.  `rate` is the
    probability of a false alarm in a camera's month.  `reader` turns features (n, width) into logits; `act` allows reverts."""

    def __init__(  # noqa: PLR0913 - settings, all by name
        self,
        *,
        reader: Reader | None = None,
        every: float = 10.0,
        frames: int = 32,
        learn: int = 512,
        rate: float = 0.1,
        act: bool = True,
        textfile: Path | None = None,
        on_event: Callable[[Event], None] | None = None,
        background: bool = True,
    ) -> None:
        self._reader, self._every, self._frames, self._learn = reader, every, frames, learn
        self._rate = Rate(max(1, int(MONTH_SECONDS / (max(every, 1e-3) * frames))), rate, max(rate, 0.5))
        self._act, self._textfile, self._on_event, self._background = act, textfile, on_event, background
        self.events: deque[Event] = deque(maxlen=_EVENTS)
        self.errors: Counter[str] = Counter()
        self.calibrated_on = -1  # generation of the clean days
        self._counts: Counter[str] = Counter()
        self._queue: deque[_Frame] = deque(maxlen=_QUEUE)
        self._due, self._overridden = 0.0, 0
        self._wake, self._closing = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self._window: list[_Frame] = []
        self._pictures: list[Array] = []
        self._clean: list[Array] = []  # pictures of clean days
        self._recent: deque[Array] = deque(maxlen=_KEPT)
        self._learnt: list[Window] = []
        self._expected: Expected | None = None
        self._shares: Array | None = None
        self._detector: Detector | None = None
        self._generation, self._median = 0, 0.0
        self._rng = np.random.default_rng(0)

    # What the Runtime calls.
    def attach(self, store: Store, make: Make | None) -> None:
        """Begin to watch a Runtime of `store`; `make` is the application's own engine, None the Bundle's."""
        self._store, self._bundle = store, store.bundle
        self._make: Make = make or (lambda bundle, weights: open_engine(bundle, weights, threads=1))
        self._project = Projection(store.bundle.output_width)
        if self._background:
            self._thread = threading.Thread(target=self._follow, name="edgeedit-monitor", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """End the thread after what it is at."""
        self._closing.set()
        self._wake.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def note(self, generation: int, pixels: Array, output: Array, seconds: float) -> None:
        """One answer; copies a frame that is due and returns."""
        try:
            self._counts["frames"] += 1
            if not np.isfinite(output).all():
                self._counts["not_finite"] += 1
                if self._counts["not_finite"] == 1:
                    self._tell("not_finite", generation, "an answer holds NaN or infinity")
                return
            now = time.monotonic()
            if now < self._due:
                return
            self._due = now + self._every
            if len(self._queue) == _QUEUE:
                self._counts["skipped"] += 1
            self._queue.append(_Frame(generation, pixels[:1].copy(), output[:1].copy(), seconds / len(output)))
            self._wake.set()
        except Exception as error:  # noqa: BLE001 - whatever fails here, the frame is answered
            self._failed(error)

    def override(self) -> None:
        """An operator changed a verdict."""
        self._counts["overrides"] += 1
        self._overridden += 1

    def swapped(self, generation: int, state: str, reason: str, exit_code: int) -> None:
        """The Runtime changed its generation, or would not."""
        kind = "applied" if state in ("confirmed", "followed") else "signature_refused" if exit_code == 5 else "reverted"
        if kind == "reverted" and reason.startswith("probe"):
            self._tell("probe_fail", generation, reason)
        self._tell(kind, generation, reason)

    # The monitor's own thread.
    def work(self) -> None:
        """Take what waits; without `background` the application calls this."""
        while self._queue:
            try:
                self._take(self._queue.popleft())
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

    def _failed(self, error: Exception) -> None:
        self.errors[type(error).__name__] += 1
        if self.errors[type(error).__name__] == 1:
            _LOG.exception("the monitor failed; frames go on", exc_info=error)

    def _tell(self, kind: str, generation: int, reason: str) -> None:
        event = Event(kind, generation, reason, time.time())
        self.events.append(event)
        self._counts[f"event {kind}"] += 1
        if self._on_event is not None:
            try:
                self._on_event(event)
            except Exception as error:  # noqa: BLE001 - the application's own function
                self._failed(error)

    def _take(self, frame: _Frame) -> None:
        if frame.generation != self._generation:
            # A window is of one generation.
            self._generation, self._window, self._pictures = frame.generation, [], []
            self._recent.clear()
        self._window.append(frame)
        self._pictures.append(to_picture(frame.pixels, self._bundle.preprocess)[0])
        self._recent.append(self._pictures[-1])
        if len(self._window) == self._frames:
            window, pictures = self._close_window()
            self._judge(window, pictures)
            self._write()

    def _close_window(self) -> tuple[Window, list[Array]]:
        frames, pictures, hits = self._window, self._pictures, min(self._overridden, self._frames)
        self._window, self._pictures, self._overridden = [], [], self._overridden - hits
        features = np.concatenate([frame.output for frame in frames])
        verdicts, margins = np.full(len(frames), -1), np.full(len(frames), np.nan, dtype=np.float32)
        if self._reader is not None:
            logits = self._reader(features)
            top = np.sort(logits, axis=1)[:, -2:]
            verdicts, margins = logits.argmax(axis=1), (top[:, 1] - top[:, 0]).astype(np.float32)
        seconds = np.array([frame.seconds for frame in frames])
        self._median = float(np.median(seconds))
        self._counts["windows"] += 1
        overridden = np.arange(len(frames)) < hits
        return Window(self._project(features), image_signals(np.stack(pictures)), seconds, verdicts, margins, overridden), pictures

    def _judge(self, window: Window, pictures: list[Array]) -> None:
        if self._detector is None:
            self._study(window, pictures)
            return
        alarms = []
        for call in self._detector.step(window_signals(window, self._expected, self._shares)):
            self._tell(f"drift_{call.level}", self._generation, call.sentence())
            alarms += [call] if call.level == "alarm" and KINDS[call.signal].of_patch else []
        if alarms:
            self._settle(alarms)

    def _study(self, window: Window, pictures: list[Array]) -> None:
        """One more window of clean days; the last one gives the thresholds."""
        self._learnt.append(window)
        seen = len(self._learnt) * self._frames
        for number, picture in enumerate(pictures, start=seen - self._frames + 1):
            if len(self._clean) < _KEPT:
                self._clean.append(picture)
            elif (place := int(self._rng.integers(number))) < _KEPT:
                self._clean[place] = picture
        if len(self._learnt) < self._learn:
            return
        # Every other window is what the rest is compared with, or the rest would look too much like it.
        rows = np.concatenate([w.rows for w in self._learnt[::2]])
        self._expected = Expected(rows[np.linspace(0, len(rows) - 1, min(len(rows), 512)).astype(int)])
        if self._reader is not None:
            verdicts = np.concatenate([w.verdicts for w in self._learnt])
            self._shares = np.bincount(verdicts) / len(verdicts)
        signals = [window_signals(w, self._expected, self._shares) for w in self._learnt[1::2]]
        self._learnt = []
        self._detector = Detector(calibrate(signals, self._rate, frames=self._frames))
        self.calibrated_on = self._generation
        self._tell("learnt", self._generation, f"{self._learn} clean windows of {self._frames} frames")

    def _settle(self, alarms: list[Call]) -> None:
        """Find the cause of an alarm and act on it."""
        head = self._store.head()
        if head.parent is None or head.id != self._generation or not self._act:
            return
        try:
            cause = self.compare(head.id, head.parent)
        except RefusedError as error:
            self._failed(error)
            return
        if cause.verdict == "patch":
            # The store queues the signed receipt; the Runtime goes back at its next poll.
            if self._store.revert(head.id, f"monitor: {alarms[0].signal}: {cause.reason}"):
                self._tell("reverted", head.id, cause.reason)
        elif cause.verdict == "unclear" and head.id != self.calibrated_on:
            # The patch moved what it was meant to move: learn what is usual with it.
            self._detector, self._clean = None, []

    def compare(self, head: int, parent: int) -> Cause:
        """Both generations, one after the other, on clean and recent frames; raises RefusedError where memory is short."""
        recent = list(self._recent)[-self._frames :]
        sets = [to_pixels(np.stack(pictures), self._bundle.preprocess) for pictures in (self._clean, recent)]
        found = []
        for number in (parent, head):
            check_memory(start_memory(self._bundle))
            weights, _ = replay(self._bundle, [self._store.patch(g.patch) for g in self._store.chain(number)])
            engine = self._make(self._bundle, weights)
            clean, now = (np.concatenate([engine.run(p[None]) for p in pixels]) for pixels in sets)
            found.append((clean, now))
            del engine, weights
        return find_cause(found[0], found[1], self._reader)

    def figures(self) -> Figures:
        """What the textfile holds."""
        counts = self._counts
        plain: dict[str, float] = {
            "edgeedit_frames_total": counts["frames"],
            "edgeedit_frames_skipped_total": counts["skipped"],
            "edgeedit_frames_not_finite_total": counts["not_finite"],
            "edgeedit_windows_total": counts["windows"],
            "edgeedit_overrides_total": counts["overrides"],
            "edgeedit_monitor_errors_total": sum(self.errors.values()),
            "edgeedit_generation": self._generation,
            "edgeedit_calibrated": int(self._detector is not None),
            "edgeedit_frame_seconds": self._median,
        }
        if (degrees := temperature()) is not None:
            plain["edgeedit_temperature_celsius"] = degrees
        events = {key[6:]: float(value) for key, value in counts.items() if key.startswith("event ")}
        sums = self._detector.sums() if self._detector is not None else {}
        return Figures(plain, {"edgeedit_events_total": ("kind", events), "edgeedit_drift_ratio": ("signal", sums)})

    def _write(self) -> None:
        if self._textfile is not None:
            try:
                write_textfile(self._textfile, exposition(self.figures()))
            except (OSError, EdgeEditError) as error:
                self._failed(error)
