"""What the store keeps for the fleet: floors, receipts, withdrawals; what it forgets; and stores of the version before."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeedit.device import schema, state
from edgeedit.device.owner import new_owner
from edgeedit.device.runtime import Runtime
from edgeedit.device.store import Store
from edgeedit.errors import IntegrityError, MismatchError, RefusedError
from edgeedit.limits import KEPT_FORMER, MAX_HISTORY, MAX_RECEIPTS


@pytest.fixture
def store(world: Any, tmp_path: Path) -> Path:
    """A provisioned store."""
    Store.create(tmp_path / "store", world.bundle.path, [world.public], device="line-3").close()
    return tmp_path / "store"


def _confirm(store: Store, data: bytes, **order: Any) -> state.Generation:
    number, owner = store.stage(data, **order).id, new_owner()
    assert store.claim(number, owner) and store.confirm(number, owner)
    return store.generation(number)


def _told(store: Store) -> list[tuple[str, str, int]]:
    return [(r.release, r.state, r.generation) for r in store.receipts.waiting(100)]


# The version before, as it was released.
_VERSION_1 = """
CREATE TABLE generation (
  id INTEGER PRIMARY KEY, parent INTEGER, patch TEXT NOT NULL, result TEXT NOT NULL, state TEXT NOT NULL,
  attempts INTEGER NOT NULL DEFAULT 0, reason TEXT NOT NULL DEFAULT '', owner TEXT NOT NULL DEFAULT '',
  claimed REAL NOT NULL DEFAULT 0);
CREATE TABLE head (one INTEGER PRIMARY KEY CHECK (one = 1), generation INTEGER NOT NULL);
CREATE TABLE history (number INTEGER PRIMARY KEY AUTOINCREMENT, time TEXT NOT NULL, generation INTEGER NOT NULL,
  event TEXT NOT NULL, reason TEXT NOT NULL);
PRAGMA user_version = 1;
"""


def test_a_store_of_the_version_before_is_taken_over_whole(world: Any, store: Path) -> None:
    with Store.open(store) as opened:
        first = _confirm(opened, world.patch(1))
        rows = opened.history()
    path = store / "state.sqlite"
    with sqlite3.connect(path) as new:
        generations = new.execute("SELECT id, parent, patch, result, state, attempts, reason, owner, claimed FROM generation").fetchall()
        events = new.execute("SELECT number, time, generation, event, reason FROM history").fetchall()
    new.close()
    path.unlink()
    old = sqlite3.connect(path)
    old.executescript(_VERSION_1)
    old.executemany("INSERT INTO generation VALUES (?,?,?,?,?,?,?,?,?)", generations)
    old.executemany("INSERT INTO history VALUES (?,?,?,?,?)", events)
    old.execute("INSERT INTO head VALUES (1, 1)")
    old.commit()
    old.close()
    with Store.open(store) as opened:
        assert opened.head() == first and opened.history() == rows
        name = opened.device
        assert name.startswith("camera-")
        opened.floors.raise_floors({"clock": 5})
        _confirm(opened, world.patch(2), release="r2", sequence=7)
    with Store.open(store) as opened:
        assert opened.device == name and opened.floors.floor("clock") == 5 and opened.head().release == "r2"
    with Runtime(store, threads=1, poll_seconds=0) as runtime:
        assert runtime.generation == 2


def test_floors_only_rise_whoever_raises_them(store: Path) -> None:
    with Store.open(store) as opened:
        floors = opened.floors
        assert floors.floor("tuf:root") == 0

        def raise_many(start: int) -> None:
            for value in range(start, 60, 3):
                Store.open(store).floors.raise_floors({"tuf:root": value, "clock": 100 - value})

        threads = [threading.Thread(target=raise_many, args=(start,), daemon=True) for start in (0, 1, 2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert (floors.floor("tuf:root"), floors.floor("clock")) == (59, 100)
        floors.raise_floors({"tuf:root": 3})
        assert floors.floor("tuf:root") == 59
        for wrong in (-1, 2**63):
            with pytest.raises(IntegrityError):
                floors.raise_floors({"tuf:root": 100, "clock": wrong})
        assert floors.floor("tuf:root") == 59


def test_a_poll_without_news_writes_nothing(store: Path, tree: Any) -> None:
    with Store.open(store) as opened:
        opened.floors.raise_floors({"clock": 10})
        opened.receipts.note("r1", "offered", "a" * 64)
        before = tree(store)
        opened.floors.raise_floors({"clock": 10})
        opened.receipts.note("r1", "offered", "a" * 64)
        assert tree(store) == before


def test_each_transition_of_a_release_queues_one_receipt(world: Any, store: Path) -> None:
    with Store.open(store) as opened:
        data = world.patch(1)
        first = _confirm(opened, data, release="r1", sequence=4)
        assert _told(opened) == [("r1", "staged", 1), ("r1", "confirmed", 1)]
        opened.stage(data, release="r1", sequence=4)
        second = opened.stage(world.patch(2), release="r2", sequence=5)
        opened.revert(second.id, "probe 0 is off")
        opened.rollback()
        waiting = opened.receipts.waiting(100)
        assert _told(opened)[2:] == [("r2", "staged", 2), ("r2", "reverted", 2), ("r1", "reverted", 1)]
        assert [r.sequence for r in waiting] == [1, 2, 3, 4, 5]
        assert {r.device for r in waiting} == {"line-3"} and waiting[1].patch == first.patch and waiting[3].reason == "probe 0 is off"
        opened.receipts.done([1, 2, 99])
        assert [r.sequence for r in opened.receipts.waiting(2)] == [3, 4]


def test_what_is_given_by_hand_has_no_receipt(world: Any, store: Path) -> None:
    with Store.open(store) as opened:
        _confirm(opened, world.patch(1))
        opened.rollback()
        assert _told(opened) == []


def test_the_oldest_receipts_go_and_their_gap_shows(store: Path) -> None:
    with Store.open(store) as opened, opened._write() as db:
        for number in range(MAX_RECEIPTS + 5):
            state.queue_receipt(db, "r", "offered", f"{number:064x}", 0, "")
    with Store.open(store) as opened:
        waiting = opened.receipts.waiting(MAX_RECEIPTS + 10)
        assert len(waiting) == MAX_RECEIPTS and (waiting[0].sequence, waiting[-1].sequence) == (6, MAX_RECEIPTS + 5)


def test_a_receipt_is_not_told_of_what_did_not_happen(world: Any, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk fills up between the state and its receipt: neither is there."""

    def full(*_: Any) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    with Store.open(store) as opened:
        number, owner = opened.stage(world.patch(1), release="r1", sequence=1).id, new_owner()
        opened.claim(number, owner)
        with monkeypatch.context() as patched:
            patched.setattr(state, "queue_receipt", full)
            with pytest.raises(RefusedError):
                opened.confirm(number, owner)
        assert (opened.head().id, opened.generation(number).state) == (0, "trying")
        assert _told(opened) == [("r1", "staged", 1)]


def test_withdrawing_returns_below_the_patch(world: Any, store: Path) -> None:
    with Store.open(store) as opened:
        patches = [world.patch(seed) for seed in (1, 2, 3)]
        first, second, third = (_confirm(opened, p, release=f"r{n}", sequence=n) for n, p in enumerate(patches, 1))
        trial = opened.stage(world.patch(4), release="r4", sequence=4)
        head = opened.withdraw(second.patch, sequence=9, reason="too many false alarms")
        assert head == first == opened.head()
        states = [opened.generation(n).state for n in (1, 2, 3, trial.id)]
        assert states == ["confirmed", "withdrawn", "withdrawn", "reverted"] and opened.trial() is None
        assert _told(opened)[-3:] == [("r4", "reverted", 4), ("r3", "withdrawn", 3), ("r2", "withdrawn", 2)]
        count = len(opened.history())
        assert opened.withdraw(second.patch, sequence=9) == first
        assert len(opened.history()) == count and third.id == 3


def test_withdrawing_to_a_named_generation(world: Any, store: Path, tree: Any) -> None:
    with Store.open(store) as opened:
        first, second = _confirm(opened, world.patch(1)), _confirm(opened, world.patch(2))
        before = tree(store)
        with pytest.raises(MismatchError, match="below the patch"):
            opened.withdraw(first.patch, to=second.result)
        assert tree(store) == before
        assert opened.withdraw(second.patch, to=opened.bundle.fingerprint).id == 0


def test_a_withdrawn_patch_needs_a_later_order(world: Any, store: Path) -> None:
    with Store.open(store) as opened:
        data = world.patch(1)
        first = _confirm(opened, data, release="r1", sequence=3)
        opened.withdraw(first.patch, sequence=5)
        for order in ({}, {"release": "r1", "sequence": 3}, {"release": "r1", "sequence": 5}):
            with pytest.raises(MismatchError, match="withdrawn") as caught:
                opened.stage(data, **order)
            assert caught.value.exit_code == 4
        assert opened.stage(data, release="r2", sequence=6).state == "staged"


def test_a_running_application_follows_a_withdrawal(world: Any, store: Path) -> None:
    base = {n: np.array(a) for n, a in world.bundle.weights().items()}
    with Runtime(store, threads=1, poll_seconds=0) as runtime, Store.open(store) as opened:
        opened.stage(world.patch(1), release="r1", sequence=1)
        swap = runtime.step()
        assert swap is not None and swap.state == "confirmed"
        opened.withdraw(opened.head().patch, sequence=2)
        runtime.step()
        assert runtime.generation == 0
        assert all(np.array_equal(runtime.engine.weights[n].view(np.uint8), base[n].view(np.uint8)) for n in base)


def _objects(store: Path) -> set[str]:
    return {p.name for p in (store / "objects").iterdir()}


def test_collection_keeps_the_chain_the_trial_and_two_former_generations(world: Any, store: Path) -> None:
    base = dict(world.weights)
    with Store.open(store) as opened:
        left = []
        for seed in range(4):  # four branches from the base, each left again
            world.weights = dict(base)
            left.append(_confirm(opened, world.patch(seed)).patch)
            opened.rollback()
        world.weights = dict(base)
        chain = [_confirm(opened, world.patch(seed)).patch for seed in (10, 11, 12)]
        failed = opened.stage(world.patch(20))
        opened.revert(failed.id, "test")
        world.weights = _weights_of(opened, world)
        trial = opened.stage(world.patch(30))
        (store / "objects" / f".{'f' * 64}.eep.{2**22 + 5}.tmp").write_bytes(b"half")
        (store / "objects" / f".{'e' * 64}.eep.1.tmp").write_bytes(b"a living writer's")
        done = opened.collect()
        names = {
            f"{digest}.eep"
            for digest in (
                *chain,
                trial.patch,
            )
        }
        assert names <= _objects(store)
        # The head's parent ran just before it; the next of those that ran and are not in the chain is the last branch.
        assert done.removed == len(left) + 2 and f".{'e' * 64}.eep.1.tmp" in _objects(store)
        assert [opened.patch(g.patch).digest for g in opened.chain(opened.head().id)] == chain
        assert opened.collect().removed == 0


def _weights_of(opened: Store, world: Any) -> dict[str, Any]:
    from edgeedit.device.prepare import replay

    weights, _ = replay(opened.bundle, [opened.patch(g.patch) for g in opened.chain(opened.head().id)])
    return {n: np.array(a) for n, a in weights.items()}


def test_former_generations_off_the_chain_can_still_run(world: Any, store: Path) -> None:
    base = dict(world.weights)
    with Store.open(store) as opened:
        left = []
        for seed in range(KEPT_FORMER + 2):
            world.weights = dict(base)
            left.append(_confirm(opened, world.patch(seed)))
            opened.rollback()
        opened.collect()
        assert _objects(store) == {f"{generation.patch}.eep" for generation in left[-KEPT_FORMER:]}
        assert all(opened.patch(g.patch).manifest.result == g.result for g in left[-KEPT_FORMER:])


def test_collection_bounds_the_history(world: Any, store: Path) -> None:
    with Store.open(store) as opened:
        with opened._write() as db:
            for _ in range(MAX_HISTORY + 50):
                state.record_event(db, 0, "test", "")
        opened.collect()
        assert len(opened.history()) <= MAX_HISTORY
        assert opened.stage(world.patch(1)).id == 1


def test_staging_while_another_process_collects_never_loses_its_object(world: Any, store: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from edgeedit.device.store import Store\n"
        "s = Store.open(Path(sys.argv[1])); print('ready', flush=True)\n"
        "while True: s.collect(); time.sleep(0.001)\n"
    )
    data = world.patch(1)
    collector = subprocess.Popen([sys.executable, "-c", code, str(store)], stdout=subprocess.PIPE)
    try:
        assert collector.stdout is not None and collector.stdout.readline() == b"ready\n"
        with Store.open(store) as opened:
            for _ in range(15):
                trial = opened.stage(data)
                assert opened.patch(trial.patch).data == data
                opened.revert(trial.id, "test")
    finally:
        collector.kill()
        collector.wait(30)
        if collector.stdout is not None:
            collector.stdout.close()


def test_the_schema_is_one_and_the_same_however_it_came(store: Path) -> None:
    with sqlite3.connect(store / "state.sqlite") as db:
        assert schema.version_of(db) == schema.SCHEMA_VERSION == 2
    db.close()
