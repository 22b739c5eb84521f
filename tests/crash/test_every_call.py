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
import tempfile
from collections.abc import Iterator
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
def room(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where the machine has one: cuts and traces are the shim's, so a slow disk would only cost time."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    folder = Path(tempfile.mkdtemp(dir=memory))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def job(world: Any, room: Path) -> dict[str, Any]:
    """A provisioned store, a patch for it, and the fingerprints that may run."""
    base = world.mark(world.weights)
    Store.create(room / "store", world.bundle.path, [world.public]).close()
    (room / "fix.eep").write_bytes(world.patch(1))
    (room / "work").mkdir()
    paths = {"store": room / "store", "patch": room / "fix.eep", "work": room / "work", "trace": room / "trace"}
    return {**{k: str(v) for k, v in paths.items()}, "moves": "trial", "allowed": [base, world.mark(world.weights)]}


@pytest.fixture
def fleet_job(job: dict[str, Any]) -> dict[str, Any]:
    """The same after the patch came by a release and was confirmed."""
    with Store.open(Path(job["store"])) as opened:
        number = opened.stage(Path(job["patch"]).read_bytes(), release="r1", sequence=1).id
        assert opened.claim(number, "tests") and opened.confirm(number, "tests")
    return {**job, "moves": "fleet"}


def _run(shim: Path, job: dict[str, Any], what: str, folder: Path) -> dict[str, Any]:
    (folder / "job.json").write_text(json.dumps({**job, "what": what}))
    command = [sys.executable, str(HERE / "syscalls.py"), str(folder / "job.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env={**os.environ, "LD_PRELOAD": str(shim)})
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_every_call_cut_in_five_ways(shim: Path, job: dict[str, Any], room: Path) -> None:
    found = _run(shim, job, "cut", room)
    assert found["faults"] == [], found
    assert found["cuts"] >= 500, found
    assert found["ends"][f"kill: {-9}"] == found["calls"], "a kill did not happen"
    assert sum(n for end, n in found["ends"].items() if end.startswith("E") and end.endswith(": 1")) > 0, "no failure reached the caller"


def test_every_call_of_withdrawal_collection_receipts_and_floors_cut(shim: Path, fleet_job: dict[str, Any], room: Path) -> None:
    found = _run(shim, fleet_job, "cut", room)
    assert found["faults"] == [], found
    assert found["cuts"] >= 200 and found["ends"][f"kill: {-9}"] == found["calls"], found


def test_every_call_of_provisioning_cut(shim: Path, job: dict[str, Any], room: Path) -> None:
    found = _run(shim, job, "provision", room)
    assert found["faults"] == [], found
    assert found["cuts"] >= 200 and found["ends"][f"kill: {-9}"] == found["calls"], found


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
        found = syscalls.MOVES[job["moves"]][1](work / "state", set(job["allowed"]))
        if found:
            bad.append(found)
            if stop:
                break
    return count, bad


def test_every_state_after_a_power_cut_is_old_or_new(shim: Path, job: dict[str, Any], room: Path) -> None:
    root = _run(shim, job, "trace", room)["root"]
    count, bad = _bad_states(job, root, room / "power")
    assert not bad, f"{len(bad)} of {count}: {bad[:5]}"
    assert count >= 200


def test_without_one_fsync_the_enumeration_finds_a_bad_state(shim: Path, job: dict[str, Any], room: Path) -> None:
    """The fsync of the patch object before it gets its name: without it a staged generation may point at half a file."""
    root = _run(shim, job, "trace", room)["root"]
    calls = _load("power").read_trace(Path(job["trace"]).read_bytes(), root)
    syncs = [i for i, call in enumerate(calls) if call.op == "S" and call.path.startswith("objects/")]
    assert syncs, "the patch object is never synced"
    _, bad = _bad_states(job, root, room / "power", skip=syncs[0], stop=True)
    assert bad, "nobody would notice a missing fsync"


def test_every_state_after_a_power_cut_in_withdrawal_and_collection(shim: Path, fleet_job: dict[str, Any], room: Path) -> None:
    root = _run(shim, fleet_job, "trace", room)["root"]
    count, bad = _bad_states(fleet_job, root, room / "power")
    assert not bad, f"{len(bad)} of {count}: {bad[:5]}"
    assert count >= 50


def test_without_the_fsync_of_a_withdrawal_its_object_goes_first(shim: Path, fleet_job: dict[str, Any], room: Path) -> None:
    """The last fsync of the database before the collection unlinks: without it the head may be back on a patch that is gone."""
    root = _run(shim, fleet_job, "trace", room)["root"]
    calls = _load("power").read_trace(Path(fleet_job["trace"]).read_bytes(), root)
    unlinked = next(i for i, call in enumerate(calls) if call.op == "U" and call.path.startswith("objects/"))
    synced = max(i for i, call in enumerate(calls[:unlinked]) if call.op == "S" and call.path == "state.sqlite")
    _, bad = _bad_states(fleet_job, root, room / "power", skip=synced, stop=True)
    assert bad, "nobody would notice a missing fsync"
