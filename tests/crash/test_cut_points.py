"""A process killed at every named point of staging, trying and ending: the store holds the old generation or the new one."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeedit.device.apply import apply_patch
from edgeedit.device.runtime import Runtime
from edgeedit.device.store import Store
from edgeedit.errors import RevertedError
from edgeedit.limits import MAX_TRIAL_ATTEMPTS

# Kills itself (no exit handlers) just before or just after the n-th call of one function, then applies a patch.
_KILLER = """
import importlib, os, signal, sys
from pathlib import Path
store, patch, name, when, nth = sys.argv[1:]
module, _, path = name.partition(":")
owner = importlib.import_module(module)
*inner, last = path.split(".")
for part in inner:
    owner = getattr(owner, part)
real, calls = getattr(owner, last), 0
def cut(*args, **named):
    global calls
    calls += 1
    if calls == int(nth) and when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    result = real(*args, **named)
    if calls == int(nth) and when == "after":
        os.kill(os.getpid(), signal.SIGKILL)
    return result
setattr(owner, last, cut)
from edgeedit.device.apply import apply_patch
apply_patch(Path(store), Path(patch), threads=1)
"""
_STORE, _STATE, _RUNTIME = "edgeedit.device.store:", "edgeedit.device.state:", "edgeedit.device.runtime:"

# (function, before/after, n-th call) -> head, state of generation 1 (None = not there), attempts
_CUTS = [
    (_STORE + "_put", "before", 1, 0, None, 0),
    (_STORE + "_put", "after", 1, 0, None, 0),
    (_STATE + "add_trial", "before", 1, 0, None, 0),
    (_STATE + "add_trial", "after", 1, 0, None, 0),  # in the transaction, before COMMIT
    (_STORE + "Store.claim", "before", 1, 0, "staged", 0),
    (_STATE + "record_event", "after", 2, 0, "staged", 0),  # "trying" written, before COMMIT
    (_STORE + "Store.claim", "after", 1, 0, "trying", 1),
    (_RUNTIME + "prepare", "after", 1, 0, "trying", 1),
    (_RUNTIME + "Runtime._exchange", "after", 1, 0, "trying", 1),
    (_RUNTIME + "Runtime._prove", "after", 1, 0, "trying", 1),
    (_STORE + "Store.confirm", "before", 1, 0, "trying", 1),
    (_STATE + "set_state", "after", 1, 0, "trying", 1),  # "confirmed" written, before COMMIT
    (_STATE + "move_head", "after", 1, 0, "trying", 1),  # head moved, before COMMIT
    (_STORE + "Store.confirm", "after", 1, 1, "confirmed", 1),
]


def _kill(store: Path, patch: Path, name: str, when: str, nth: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _KILLER, str(store), str(patch), name, when, str(nth)], capture_output=True, check=False, timeout=60
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()


@pytest.fixture
def patched(world: Any, tmp_path: Path) -> tuple[Path, Path]:
    """A provisioned store and a patch file for it."""
    Store.create(tmp_path / "store", world.bundle.path, [world.public]).close()
    (tmp_path / "fix.eep").write_bytes(world.patch(1))
    return tmp_path / "store", tmp_path / "fix.eep"


def _check_running(store: Path, world: Any) -> None:
    """What a start after the cut runs is the whole base or the whole patched model."""
    with Runtime(store, threads=1, poll_seconds=0) as runtime:
        wanted = world.bundle.weights() if runtime.generation == 0 else world.weights
        assert all(
            np.array_equal(runtime.engine.weights[n].view(np.uint8), np.ascontiguousarray(a).view(np.uint8)) for n, a in wanted.items()
        )


@pytest.mark.parametrize(("name", "when", "nth", "head", "state", "attempts"), _CUTS, ids=lambda v: str(v).rpartition(":")[2])
def test_cut_leaves_old_or_new(
    world: Any, patched: tuple[Path, Path], name: str, when: str, nth: int, head: int, state: str | None, attempts: int
) -> None:
    store, patch = patched
    _kill(store, patch, name, when, nth)
    with Store.open(store) as opened:
        assert opened.head().id == head
        found = None if state is None else opened.generation(1)
        trial = opened.trial()
        assert (found and (found.state, found.attempts)) == (state and (state, attempts))
        assert (trial is not None) == (state in ("staged", "trying"))
    _check_running(store, world)
    # The owner is dead, so nobody waits for it: the same patch goes in at once.
    assert apply_patch(store, patch, threads=1).state in ("confirmed", "already applied")
    _check_running(store, world)
    with Store.open(store) as opened:
        assert opened.head().result == world.mark(world.weights)
        assert opened.generation(1).attempts == max(1, attempts + (state == "trying"))
    assert not list(store.glob("state.sqlite-*"))


def test_cut_in_provisioning_leaves_no_store(world: Any, tmp_path: Path) -> None:
    code = _KILLER.replace("from edgeedit.device.apply import apply_patch\napply_patch(Path(store), Path(patch), threads=1)", "").strip()
    code += "\nfrom edgeedit.device.store import Store\nStore.create(Path(store), Path(patch), [Path(patch).parent / 'ml.pub'])\n"
    for name, nth in ((_STORE + "copy_file", 3), (_STORE + "verify_bundle", 1), (_STATE + "create_database", 1)):
        command = [sys.executable, "-c", code, str(tmp_path / "s"), str(world.bundle.path), name, "after", str(nth)]
        done = subprocess.run(command, capture_output=True, check=False, timeout=60)
        assert done.returncode == -signal.SIGKILL, done.stderr.decode()
        assert not (tmp_path / "s").exists()
    with Store.create(tmp_path / "s", world.bundle.path, [world.public]) as made:
        assert made.head().id == 0


def test_a_patch_that_kills_its_device_is_given_up(world: Any, patched: tuple[Path, Path]) -> None:
    store, patch = patched
    for attempt in range(1, MAX_TRIAL_ATTEMPTS + 1):
        _kill(store, patch, _RUNTIME + "Runtime._exchange", "after", 1)
        with Store.open(store) as opened:
            assert opened.generation(1).attempts == attempt
    with pytest.raises(RevertedError, match="attempts"):
        apply_patch(store, patch, threads=1)
    with Store.open(store) as opened:
        assert (opened.head().id, opened.trial(), opened.generation(1).state) == (0, None, "reverted")
