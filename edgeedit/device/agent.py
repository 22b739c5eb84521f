"""The agent: a service that polls for releases, fetches, verifies and stages them, and tells the fleet's server what happened.

Guarantees: it moves files and rows and never holds a model or opens a port; one agent runs for each store; a step that fails leaves
the store as it was and is tried again; what cannot be told now waits in the store.  The application's Runtime takes what is staged.
Libraries of the update client are imported when a source needs them, so that nothing else on a device loads them.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from edgeedit.device.receipts import QueuedReceipt
from edgeedit.device.state import Generation
from edgeedit.device.store import Store
from edgeedit.errors import EdgeEditError, IntegrityError, MismatchError, RefusedError, UnreachableError
from edgeedit.files import FileOctets
from edgeedit.ota.client.link import RejectedError

LOCK, DOWNLOADS = "agent.lock", "downloads"
MAX_SENT = 64  # receipts in one delivery
AGAIN, AGAIN_SECONDS = "receipts-again", 86_400  # the floor that says when receipts that were set aside were tried last; a day
JITTER = 0.2  # share of the interval by which polls are spread, so that a fleet does not poll in step
MAX_INTERVAL = 3600.0  # seconds between polls while the source stays unreachable
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Order:
    """What the source wants of this device: `action` install, return or decline; `patch` is the digest; `to` the fingerprint to return
    to."""

    action: str
    release: str
    sequence: int
    patch: str
    to: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Situation:
    """What a source needs to know to decide: fingerprints that run and are on trial ("" for none), digests that failed here; for a
    source that reports to somebody also why they failed, the digests of the patches that run, and that of the one on trial."""

    device: str
    profile: str
    running: str
    trial: str
    refused: frozenset[str]
    failures: Mapping[str, str] = field(default_factory=dict)
    installed: frozenset[str] = frozenset()
    trying: str = ""


class Source(Protocol):
    """Where releases come from."""

    def poll(self, situation: Situation, floors: Any, now: float) -> Order | None:
        """The order for this device, if any; raises UnreachableError when there is no answer."""

    def fetch(self, order: Order, folder: Path) -> Path:
        """The patch file of an `install` order below `folder`, of the digest that it names."""


Deliver = Callable[[list[QueuedReceipt]], None]


@dataclass(frozen=True)
class Report:
    """One round: `did` is nothing, staged, waiting, returned or refused; `told` receipts were delivered; `error` says why not all."""

    did: str
    release: str = ""
    generation: int = 0
    reason: str = ""
    told: int = 0
    error: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON object."""
        return asdict(self)


class Agent:
    """The agent of one store; a context manager that holds the store's agent lock.  Raises RefusedError when another agent has it."""

    def __init__(self, store: Path, source: Source, deliver: Deliver | None = None) -> None:
        self._store, self._source, self._deliver = Store.open(store), source, deliver
        self._lock = _locked(store / LOCK)

    def __enter__(self) -> Agent:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let another agent work; twice is harmless."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def once(self) -> Report:
        """One poll, and one delivery of receipts whatever the poll gave.  Raises what the poll or a fetch raises, after the delivery."""
        try:
            did = self._round()
        except EdgeEditError as failure:
            if isinstance(failure, IntegrityError):
                self._store.note_refusal(failure.message)
            self._tell()
            raise
        told, error = self._tell()
        return Report(**{**asdict(did), "told": told, "error": error})

    def run(self, interval: float | Callable[[], float], stop: threading.Event, each: Callable[[Report | EdgeEditError], None]) -> None:
        """Poll every `interval` seconds (a callable is asked after each poll: a scheduler says its own), jittered, until `stop`; a
        source that stays away is asked less often.  `each` hears of all."""
        usual = _asked(interval)
        pause = random.uniform(0.0, JITTER) * usual  # noqa: S311 - spreads load, hides nothing
        while not stop.wait(pause):
            away = False
            try:
                each(self.once())
            except EdgeEditError as error:
                away = isinstance(error, UnreachableError)
                each(error)
            usual = _asked(interval)
            if away:
                usual = min(2 * max(pause, usual), max(MAX_INTERVAL, usual))
            pause = usual * random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311

    def _round(self) -> Report:
        store = self._store
        head, trial = store.current()
        order = self._source.poll(self._situation(head, trial), store.floors, time.time())
        if order is None:
            return Report("nothing")
        if order.action == "decline":
            return self._decline(order)
        if order.action == "return":
            now = store.withdraw(order.patch, to=order.to, sequence=order.sequence, reason=order.reason)
            store.collect()
            return Report("returned", order.release, now.id, order.reason)
        if trial is not None:
            return Report("waiting", order.release, trial.id, f"generation {trial.id} is {trial.state}")
        return self._install(order)

    def _situation(self, head: Generation, trial: Generation | None) -> Situation:
        store = self._store
        failures = store.failures()
        return Situation(
            store.device,
            store.bundle.profile,
            head.result,
            trial.result if trial else "",
            frozenset(failures),
            failures,
            frozenset(generation.patch for generation in store.chain(head.id)),
            trial.patch if trial else "",
        )

    def _install(self, order: Order) -> Report:
        store, folder = self._store, self._store.path / DOWNLOADS
        store.collect()
        store.receipts.note(order.release, "offered", order.patch)
        _make_folder(folder)
        path = self._source.fetch(order, folder)
        store.receipts.note(order.release, "verified", order.patch)
        try:
            with FileOctets(path) as data:
                generation = store.stage(data, release=order.release, sequence=order.sequence)
        except (IntegrityError, MismatchError) as error:
            # It will not fit at the next poll either: tell why, and do not fetch it again.
            store.receipts.note(order.release, "reverted", order.patch, reason=error.message)
            _clear(folder)
            return Report("refused", order.release, 0, error.message)
        _clear(folder)
        return Report("staged", order.release, generation.id)

    def _decline(self, order: Order) -> Report:
        """The patch failed here before; whoever released it again hears of it, or this device would be silent in that release."""
        receipts, why = self._store.receipts, self._store.failures().get(order.patch) or "it failed here before"
        if not receipts.said(order.release, "reverted", order.patch):
            receipts.note(order.release, "reverted", order.patch, reason=why)
        return Report("nothing", order.release, 0, f"not tried again: {why}")

    def _tell(self) -> tuple[int, str]:
        """Deliver what waits: how many, and why it ended early; a failure never loses a receipt and never stops the agent.

        Receipts that the other end rejects are sent in halves, so that the others pass, and what is rejected alone is set aside."""
        told, size, said = 0, MAX_SENT, ""
        if self._deliver is None:
            return 0, ""
        receipts = self._store.receipts
        self._try_again()
        try:
            while waiting := receipts.waiting(size):
                try:
                    self._deliver(waiting)
                except RejectedError as error:
                    size = max(1, len(waiting) // 2)
                    if len(waiting) == 1:
                        said, size = f"receipt {waiting[0].sequence} is set aside: {error.message}", MAX_SENT
                        receipts.set_aside(waiting[0].sequence)
                        self._store.floors.raise_floors({AGAIN: int(time.time())})
                    continue
                receipts.done([receipt.sequence for receipt in waiting])
                told += len(waiting)
        except EdgeEditError as error:
            said = error.message
        if said:
            _LOG.warning("receipts wait: %s", said)
        return told, said

    def _try_again(self) -> None:
        """Once a day what was set aside is sent once more: the receiver may have been mended."""
        floors, receipts, now = self._store.floors, self._store.receipts, int(time.time())
        if receipts.aside() and now >= floors.floor(AGAIN) + AGAIN_SECONDS:
            receipts.again()


def _asked(interval: float | Callable[[], float]) -> float:
    return interval() if callable(interval) else interval


def _locked(path: Path) -> int:
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise RefusedError(f"cannot write {path}: {error.strerror}", hint="check disk and permissions") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        raise RefusedError("another agent runs for this store", hint="one is enough; stop the other") from error
    return handle


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise RefusedError(f"cannot write {folder}: {error.strerror}", hint="free disk space") from error


def _clear(folder: Path) -> None:
    """Downloads are a cache: what is staged, or will never be, goes."""
    for path in folder.iterdir():
        with contextlib.suppress(OSError):
            path.unlink()


@contextlib.contextmanager
def signalled() -> Iterator[threading.Event]:
    """An event that SIGTERM and SIGINT set; the former handlers are back afterwards."""
    import signal

    stop = threading.Event()
    former: Mapping[int, Any] = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
