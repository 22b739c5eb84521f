"""A pool of processes that share one accelerator: each takes the most urgent job that is ready, preferably one whose images
it holds already.

Guarantees: only the parent writes results, each file whole or not at all; a job whose process ends is reported as failed and
the others go on; after the time limit no job is handed out, and what still runs is ended after a grace time.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any

from edgeedit.errors import InputError


@dataclass(frozen=True)
class Job:
    """One measurement: `name` is unique, lower `tier` goes first, `after` names jobs that must be done before, `key` says
    which images it needs, `what` is the rest."""

    name: str
    tier: int
    key: tuple[Any, ...]
    what: dict[str, Any]
    after: frozenset[str] = frozenset()


@dataclass
class _Worker:
    process: Any
    pipe: Connection
    keys: list[tuple[Any, ...]] = field(default_factory=list)
    job: Job | None = None
    since: float = 0.0


@dataclass
class Pool:
    """`start()` makes the function that runs jobs, inside each process; `done(job, result, seconds)` takes results and may
    return further jobs."""

    start: Callable[[], Callable[[Job], dict[str, Any]]]
    done: Callable[[Job, dict[str, Any], float], Iterable[Job]]
    workers: int
    seconds: float
    grace: float = 5.0
    finished: set[str] = field(default_factory=set)

    def run(self, jobs: Iterable[Job]) -> list[Job]:
        """Run until nothing is left or the time is over; returns what was not done."""
        began, left, every = time.perf_counter(), list(jobs), [self._hire() for _ in range(self.workers)]
        try:
            while time.perf_counter() - began < self.seconds + self.grace:
                over = time.perf_counter() - began > self.seconds
                for worker in every:
                    if worker.job is None and not over:
                        self._hand(worker, left)
                busy = [w for w in every if w.job is not None]
                if not busy:
                    break
                for pipe in wait([w.pipe for w in busy], timeout=0.5):
                    number = next(n for n, w in enumerate(every) if w.pipe is pipe)
                    left += self._take(every[number])
                    if not every[number].process.is_alive():
                        every[number] = self._hire()
        finally:
            for worker in every:
                worker.process.kill()
        return left + [w.job for w in every if w.job is not None]

    def _hire(self) -> _Worker:
        # Processes are forked before anything here touched the accelerator or started a thread.
        context = multiprocessing.get_context("fork")
        own, other = context.Pipe()
        process = context.Process(target=_work, args=(other, self.start), daemon=True)
        process.start()
        other.close()
        return _Worker(process, own)

    def _hand(self, worker: _Worker, left: list[Job]) -> None:
        ready = [j for j in left if j.after <= self.finished]
        if not ready:
            return
        tier = min(j.tier for j in ready)
        held = worker.keys
        job = min((j for j in ready if j.tier == tier), key=lambda j: (j.key not in held, held.index(j.key) if j.key in held else 0))
        left.remove(job)
        worker.job, worker.since = job, time.perf_counter()
        worker.keys = [job.key, *(k for k in held if k != job.key)][:3]
        worker.pipe.send(job)

    def _take(self, worker: _Worker) -> list[Job]:
        job, worker.job = worker.job, None
        if job is None:
            return []
        try:
            result = worker.pipe.recv()
        except (EOFError, ConnectionResetError):
            worker.process.join(5)
            result = {"broken": "its process ended"}
        self.finished.add(job.name)
        return list(self.done(job, result, time.perf_counter() - worker.since))


def _work(pipe: Connection, start: Callable[[], Callable[[Job], dict[str, Any]]]) -> None:
    parent = os.getppid()
    run = start()
    while os.getppid() == parent:
        try:
            job = pipe.recv()
        except EOFError:
            return
        with contextlib.suppress(BrokenPipeError):
            pipe.send(_safely(run, job))


def _safely(run: Callable[[Job], dict[str, Any]], job: Job) -> dict[str, Any]:
    try:
        return run(job)
    except InputError as error:  # a training that diverges is a finding, not a fault of the run
        return {"failed": error.message}
    except (RuntimeError, ValueError, TypeError, AttributeError, KeyError, IndexError, OSError):
        return {"broken": traceback.format_exc(limit=-4)}
