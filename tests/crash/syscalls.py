"""Runs in a process with shim.c preloaded: cuts the store's transitions at every system call, or traces them.

    python syscalls.py JOB.json      prints one JSON object

A child is forked for each cut, on a copy of the store, so that the interpreter starts once.  What a device would find after the cut is
checked in the parent with the shim off.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgeedit.codec.apply import apply_delta
from edgeedit.device.store import Store
from edgeedit.digest import TensorDigest, digest_array, fingerprint
from edgeedit.errors import EdgeEditError

OFF, COUNT, KILL, TORN, FAIL, FAIL_ON, TRACE = range(7)
OWNER = "tests"
SHIM = ctypes.CDLL(None)


def set_shim(folder: Path, mode: int, at: int = 0, error: int = 0, fd: int = -1) -> None:
    """Arm the preloaded library for one folder."""
    SHIM.shim_set(str(folder).encode(), mode, ctypes.c_long(at), error, fd)


def transitions(store: Path, patch: bytes) -> None:
    """Every state change of a trial: stage, claim, progress, confirm, rollback, the same patch once more, claim, revert."""
    with Store.open(store) as opened:
        number = opened.stage(patch).id
        opened.claim(number, OWNER)
        opened.beat(number, OWNER)
        opened.confirm(number, OWNER)
        opened.rollback()
        again = opened.stage(patch).id
        opened.claim(again, OWNER)
        opened.revert(again, "test", owner=OWNER)


def for_the_fleet(store: Path, patch: bytes) -> None:
    """What the agent does on a store whose head came by a release: floors, receipts, withdrawal, collection."""
    with Store.open(store) as opened:
        opened.floors.raise_floors({"clock": 5, "tuf:root": 5})
        opened.receipts.note("r1", "offered", "a" * 64)
        opened.receipts.done([1, 2])
        opened.withdraw(opened.head().patch, sequence=1, reason="test")
        opened.collect()


def fault_for_the_fleet(store: Path, allowed: set[str]) -> str:
    """As `fault`; and floors rose together, receipts were acknowledged together, no receipt tells what did not happen."""
    if found := fault(store, allowed):
        return found
    with Store.open(store) as opened:
        floors = {opened.floors.floor(name) for name in ("clock", "tuf:root")}
        waiting = {receipt.sequence: receipt.state for receipt in opened.receipts.waiting(100)}
        withdrawn = opened.generation(1).state == "withdrawn"
        if floors not in ({0}, {5}):
            return f"half of the floors rose: {floors}"
        if (1 in waiting) != (2 in waiting):
            return f"half of the receipts were acknowledged: {waiting}"
        if withdrawn != ("withdrawn" in waiting.values()) or withdrawn != (opened.head().id == 0):
            return f"generation 1 is {opened.generation(1).state}, head {opened.head().id}, receipts {waiting}"
    return ""


def fault(store: Path, allowed: set[str]) -> str:
    """What is wrong with a store after a cut; empty when it is wholly old or new.  Weights are recomputed and digest-checked."""
    try:
        with Store.open(store) as opened:
            head, trial = opened.current()
            if head.result not in allowed:
                return f"head has the unknown result {head.result[:12]}"
            weights = {n: a.copy() for n, a in opened.bundle.weights().items()}
            numbers = [*opened.chain(head.id), *([trial] if trial is not None else [])]
            for generation in numbers:
                patch = opened.patch(generation.patch)
                for row in patch.manifest.tensors:
                    weights[row.name] = apply_delta(weights[row.name], patch.tensor_delta(row.name))
                made = fingerprint(TensorDigest(n, str(a.dtype), tuple(a.shape), digest_array(a)) for n, a in weights.items())
                if made != generation.result:
                    return f"generation {generation.id} gives {made[:12]}, expected {generation.result[:12]}"
    except EdgeEditError as error:
        return f"store cannot be used: {error}"
    return ""


def goes_on(store: Path, patch: bytes) -> str:
    """After the cut the device must still be able to take the patch and keep it."""
    try:
        with Store.open(store) as opened:
            trial = opened.trial()
            if trial is not None:
                opened.revert(trial.id, "left by the cut")
            if opened.head().parent is None:
                number = opened.stage(patch, release="r2", sequence=9).id  # an order later than any withdrawal
                if not opened.claim(number, OWNER) or not opened.confirm(number, OWNER):
                    return "the patch cannot be tried after the cut"
    except EdgeEditError as error:
        return f"the store takes no patch after the cut: {error}"
    return ""


def copy_store(source: Path, target: Path) -> Path:
    """A copy of a small store."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    return target


def in_child(store: Path, steps: Callable[[], object], mode: int, at: int, error: int) -> int:
    """Exit status of the steps under the shim: negative signal, 0, or 1 for an edgeedit error, 2 for any other."""
    child = os.fork()
    if child == 0:
        code = 2
        with contextlib.suppress(BaseException):
            set_shim(store, mode, at, error)
            try:
                steps()
                code = 0
            except EdgeEditError:
                code = 1
        os._exit(code)
    _, status = os.waitpid(child, 0)
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def count_calls(store: Path, steps: Callable[[], object]) -> int:
    """System calls below the store in one whole run."""
    set_shim(store, COUNT)
    steps()
    calls = int(SHIM.shim_calls())
    set_shim(store, OFF)
    return calls


KINDS = {
    "kill": (KILL, 0),
    "torn": (TORN, 0),
    "ENOSPC once": (FAIL, errno.ENOSPC),
    "EIO once": (FAIL, errno.EIO),
    "ENOSPC from there": (FAIL_ON, errno.ENOSPC),
}


MOVES = {"trial": (transitions, fault), "fleet": (for_the_fleet, fault_for_the_fleet)}


def cut_everywhere(job: dict[str, Any]) -> dict[str, Any]:
    """Cut at every call in every way; faults found, and how many cuts ended how."""
    base, store = Path(job["store"]), Path(job["work"]) / "cut"
    patch, allowed = Path(job["patch"]).read_bytes(), set(job["allowed"])
    moves, check = MOVES[job["moves"]]

    def after() -> str:
        return check(store, allowed) or goes_on(store, patch) or fault(store, allowed)

    return _cut(store, lambda: copy_store(base, store), lambda: moves(store, patch), after)


def cut_provisioning(job: dict[str, Any]) -> dict[str, Any]:
    """The same for making a store: there is none, or a whole one with the base; and it can be made afterwards."""
    place = Path(job["work"]) / "place"
    bundle, keys, allowed = Path(job["store"]) / "base", [Path(job["store"]) / "trust"], set(job["allowed"])

    def empty() -> None:
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()

    def after() -> str:
        made = place / "store"
        if not made.exists():
            Store.create(made, bundle, keys).close()
        return fault(made, allowed)

    return _cut(place, empty, lambda: Store.create(place / "store", bundle, keys), after)


def _cut(folder: Path, fresh: Callable[[], object], steps: Callable[[], object], after: Callable[[], str]) -> dict[str, Any]:
    fresh()
    calls = count_calls(folder, steps)
    faults, ends = [], {}
    for kind, (mode, error) in KINDS.items():
        for at in range(1, calls + 1):
            fresh()
            status = in_child(folder, steps, mode, at, error)
            ends[f"{kind}: {status}"] = ends.get(f"{kind}: {status}", 0) + 1
            found = after()
            if status == 2 or (mode == KILL and status != -signal.SIGKILL):
                found = found or f"ended with {status}"
            if found:
                faults.append(f"{kind} at call {at}: {found}")
    # A call that writes nothing cannot be torn: such a run went to its end and is no cut.
    return {"calls": calls, "cuts": calls * len(KINDS) - ends.get("torn: 0", 0), "ends": ends, "faults": faults}


def trace(job: dict[str, Any]) -> dict[str, Any]:
    """Write every change of one whole run to the file `trace`."""
    store = copy_store(Path(job["store"]), Path(job["work"]) / "traced")
    fd = os.open(job["trace"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    set_shim(store, TRACE, fd=fd)
    MOVES[job["moves"]][0](store, Path(job["patch"]).read_bytes())
    set_shim(store, OFF)
    os.close(fd)
    return {"root": str(store)}


if __name__ == "__main__":
    JOB = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    print(json.dumps({"cut": cut_everywhere, "provision": cut_provisioning, "trace": trace}[JOB["what"]](JOB)))
