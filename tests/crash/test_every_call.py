"""Every system call of every state change is cut; and every state a power cut may leave is enumerated from a trace.

After each cut the store is wholly old or wholly new, its weights recomputed and digest-checked, and it takes the patch afterwards.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from edgeedit.device.store import Store

HERE = Path(__file__).parent


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"crash_{name}", HERE / f"{name}.py")
    if spec is None or spec.loader is None:
        raise ImportError(name)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled library."""
    made = tmp_path_factory.mktemp("shim") / "shim.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", str(made), str(HERE / "shim.c"), "-ldl"], check=True)
    return made


@pytest.fixture
def job(world: Any, tmp_path: Path) -> dict[str, Any]:
    """A provisioned store, a patch for it, and the fingerprints that may run."""
    base = world.mark(world.weights)
    Store.create(tmp_path / "store", world.bundle.path, [world.public]).close()
    (tmp_path / "fix.eep").write_bytes(world.patch(1))
    (tmp_path / "work").mkdir()
    paths = {"store": tmp_path / "store", "patch": tmp_path / "fix.eep", "work": tmp_path / "work", "trace": tmp_path / "trace"}
    return {**{k: str(v) for k, v in paths.items()}, "allowed": [base, world.mark(world.weights)]}


def _run(shim: Path, job: dict[str, Any], what: str, folder: Path) -> dict[str, Any]:
    (folder / "job.json").write_text(json.dumps({**job, "what": what}))
    command = [sys.executable, str(HERE / "syscalls.py"), str(folder / "job.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env={**os.environ, "LD_PRELOAD": str(shim)})
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_every_call_cut_in_five_ways(shim: Path, job: dict[str, Any], tmp_path: Path) -> None:
    found = _run(shim, job, "cut", tmp_path)
    assert found["faults"] == [], found
    assert found["cuts"] >= 500, found
    assert found["ends"][f"kill: {-9}"] == found["calls"], "a kill did not happen"
    assert sum(n for end, n in found["ends"].items() if end.startswith("E") and end.endswith(": 1")) > 0, "no failure reached the caller"


def _bad_states(job: dict[str, Any], root: str, work: Path, *, skip: int = -1, stop: bool = False) -> tuple[int, list[str]]:
    power, syscalls = _load("power"), _load("syscalls")
    store = Path(job["store"])
    start = {str(p.relative_to(store)): p.read_bytes() for p in store.rglob("*") if p.is_file()}
    kept = {p: start.pop(p) for p in list(start) if p.startswith(("base/", "trust/"))}
    folders = {str(p.relative_to(store)) for p in store.rglob("*") if p.is_dir()} | {root, ""}
    calls = power.read_trace(Path(job["trace"]).read_bytes(), root)
    count, bad = 0, []
    power.write_tree(kept, work / "state")
    for tree in power.states(start, calls, folders, skip):
        count += 1
        shutil.rmtree(work / "state" / "objects", ignore_errors=True)
        (work / "state" / "objects").mkdir()
        for old in (work / "state").glob("state.sqlite*"):
            old.unlink()
        power.write_tree(tree, work / "state")
        found = syscalls.fault(work / "state", set(job["allowed"]))
        if found:
            bad.append(found)
            if stop:
                break
    return count, bad


def test_every_state_after_a_power_cut_is_old_or_new(shim: Path, job: dict[str, Any], tmp_path: Path) -> None:
    root = _run(shim, job, "trace", tmp_path)["root"]
    count, bad = _bad_states(job, root, tmp_path / "power")
    assert not bad, f"{len(bad)} of {count}: {bad[:5]}"
    assert count >= 200


def test_without_one_fsync_the_enumeration_finds_a_bad_state(shim: Path, job: dict[str, Any], tmp_path: Path) -> None:
    """The fsync of the patch object before it gets its name: without it a staged generation may point at half a file."""
    root = _run(shim, job, "trace", tmp_path)["root"]
    calls = _load("power").read_trace(Path(job["trace"]).read_bytes(), root)
    syncs = [i for i, call in enumerate(calls) if call.op == "S" and call.path.startswith("objects/")]
    assert syncs, "the patch object is never synced"
    _, bad = _bad_states(job, root, tmp_path / "power", skip=syncs[0], stop=True)
    assert bad, "nobody would notice a missing fsync"
