"""The store against a simple model: stage, claim, confirm, revert, roll back, withdraw, collect, raise floors, tell receipts and die
in any order; the two always agree.

    EDGEEDIT_STORE_SEQUENCES=10000 EDGEEDIT_STORE_JSON=FILE     how many sequences (100 by default), and where to write what ran
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from edgeedit.device.owner import new_owner
from edgeedit.device.state import LEFT
from edgeedit.device.store import Store
from edgeedit.errors import IntegrityError, MismatchError, RefusedError
from edgeedit.limits import KEPT_FORMER, MAX_CHAIN, MAX_TRIAL_ATTEMPTS
from edgeedit.patch.keys import load_private_key, new_key

Array = np.ndarray[Any, Any]


def _device_world() -> ModuleType:
    path = Path(__file__).parents[1] / "unit" / "device" / "conftest.py"
    spec = importlib.util.spec_from_file_location("device_world_for_states", path)
    if spec is None or spec.loader is None:
        raise ImportError("the device room's conftest is missing")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


WORLD = _device_world()
OWNERS = st.sampled_from((0, 1))
RELEASES = st.sampled_from(("", "r1", "r2"))  # "": given by hand
SEQUENCES = int(os.environ.get("EDGEEDIT_STORE_SEQUENCES", "100"))


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A provisioned store to copy, and the world that signs for it; in memory where the machine can, as nobody cuts the power here."""
    memory = Path("/dev/shm")
    usable = memory.is_dir() and os.access(memory, os.W_OK)
    folder = Path(tempfile.mkdtemp(dir=memory)) if usable else tmp_path_factory.mktemp("template")
    bundle = WORLD.make_bundle(folder / "bundle")
    new_key(folder / "ml.key", folder / "ml.pub")
    Store.create(folder / "store", bundle.path, [folder / "ml.pub"]).close()
    yield folder, bundle, load_private_key(folder / "ml.key")
    shutil.rmtree(folder)


class Model:
    """What a store should be: rows by number; head; who holds the trial; what ran before; objects, receipts, floors, withdrawals."""

    def __init__(self, base: dict[str, Array]) -> None:
        self.parent: list[int | None] = [None]
        self.patch: list[bytes] = [b""]
        self.state, self.attempts, self.weights, self.reason, self.release = ["base"], [0], [base], [""], [""]
        self.head, self.holder = 0, ""
        self.former: list[int] = []
        self.objects: set[bytes] = set()
        self.receipts: list[tuple[str, str, int, str]] = []  # release, state, generation, reason: all ever queued
        self.told: set[int] = set()  # numbers (from 1) of those that were acknowledged
        self.floors: dict[str, int] = {}
        self.withdrawn: dict[bytes, int] = {}

    def trial(self) -> int | None:
        """The number of the trial, if any."""
        return next((n for n, s in enumerate(self.state) if s in ("staged", "trying")), None)

    def chain(self, number: int | None = None) -> list[int]:
        """Numbers from the first patch to `number` or the head."""
        found, number = [], self.head if number is None else number
        while (parent := self.parent[number]) is not None:
            found.append(number)
            number = parent
        return found[::-1]

    def tell(self, number: int, state: str, reason: str) -> None:
        """Queue a receipt of what came by a release."""
        if self.release[number]:
            self.receipts.append((self.release[number], state, number, reason))

    def end(self, number: int, state: str, reason: str) -> None:
        """Change a state, with its receipt."""
        self.state[number], self.reason[number] = state, reason
        self.tell(number, state, reason)

    def move(self, number: int) -> None:
        """Point the head elsewhere."""
        self.former.append(self.head)
        self.head = number
        trial = self.trial()
        if trial is not None and self.parent[trial] != number:
            self.end(trial, "reverted", LEFT)

    def add(self, data: bytes, weights: dict[str, Array], release: str) -> None:
        """A new trial on the head."""
        self.parent.append(self.head)
        self.patch.append(data)
        self.state.append("staged")
        self.attempts.append(0)
        self.weights.append(weights)
        self.reason.append("")
        self.release.append(release)
        self.objects.add(data)
        self.holder = ""
        self.tell(len(self.state) - 1, "staged", "")

    def kept(self) -> set[bytes]:
        """Patches that a collection must leave: chains of the head, of the trial and of the last that ran before and were not at fault."""
        ran = [n for n in dict.fromkeys(reversed(self.former)) if n != self.head and self.state[n] in ("confirmed", "base")]
        trial = self.trial()
        tips = [self.head, *([] if trial is None else [trial]), *ran[:KEPT_FORMER]]
        return {self.patch[n] for tip in tips for n in self.chain(tip)}

    def failed(self) -> set[int]:
        """Generations whose patch is not to be taken again."""
        told = {number for _, state, number, reason in self.receipts if state == "reverted" and reason != LEFT}
        return told | {n for n, s in enumerate(self.state) if s == "reverted" and self.reason[n] != LEFT}


class Machine(RuleBasedStateMachine):
    """Every step on the store and on the model."""

    template: ClassVar[Any]
    ran: ClassVar[Counter[str]] = Counter()

    def __init__(self) -> None:
        super().__init__()
        self.work, self.base, self.key = self.template
        self.folder = Path(tempfile.mkdtemp(dir=self.work))
        shutil.copytree(self.work / "store", self.folder / "store")
        self.store = Store.open(self.folder / "store")
        self.model = Model({n: np.array(a) for n, a in self.base.weights().items()})
        self.owners = [new_owner(), new_owner()]

    def teardown(self) -> None:
        shutil.rmtree(self.folder)
        self.ran["sequences"] += 1

    @rule(seed=st.integers(0, 5), release=RELEASES, sequence=st.integers(0, 3))
    def stage(self, seed: int, release: str, sequence: int) -> None:
        """A patch made for the head."""
        model = self.model
        signer = WORLD.World(self.base, self.key, self.work / "ml.pub", dict(model.weights[model.head]))
        data = signer.patch(seed)
        trial = model.trial()
        order = {"release": release, "sequence": sequence}
        if trial is not None and model.patch[trial] == data:
            assert self.store.stage(data, **order).id == trial
        elif model.withdrawn.get(data, -1) >= sequence:
            with pytest.raises(MismatchError, match="withdrawn"):
                self.store.stage(data, **order)
        elif trial is not None or len(model.chain()) >= MAX_CHAIN:
            with pytest.raises(RefusedError):
                self.store.stage(data, **order)
        else:
            assert self.store.stage(data, **order).id == len(model.state)
            model.add(data, signer.weights, release)

    @rule(pick=st.integers(0, 50))
    def stage_again(self, pick: int) -> None:
        """A patch seen before: no news where it runs already, refused where it does not fit."""
        model = self.model
        number = pick % len(model.state)
        parent = model.parent[number]
        # The same patch may have made a generation twice: what counts is whether the weights are those that it was made for.
        if parent is None or WORLD.World.mark(model.weights[parent]) == WORLD.World.mark(model.weights[model.head]):
            return
        if number in model.chain() or number == model.trial():
            assert self.store.stage(model.patch[number]).patch == self.store.generation(number).patch
        elif model.patch[number] not in [model.patch[n] for n in model.chain()]:
            with pytest.raises(MismatchError):
                self.store.stage(model.patch[number])

    @precondition(lambda self: len(self.model.state) > 1)
    @rule(who=OWNERS, back=st.integers(0, 2))
    def claim(self, who: int, back: int) -> None:
        """Somebody starts an attempt."""
        model, owner = self.model, self.owners[who]
        number = max(1, len(model.state) - 1 - back)
        free = model.state[number] in ("staged", "trying") and model.holder in ("", owner)
        allowed = free and model.attempts[number] < MAX_TRIAL_ATTEMPTS
        assert self.store.claim(number, owner) == allowed
        if allowed:
            model.state[number], model.holder = "trying", owner
            model.attempts[number] += 1
        elif free:
            model.end(number, "reverted", f"{MAX_TRIAL_ATTEMPTS} attempts without an end")

    @precondition(lambda self: len(self.model.state) > 1)
    @rule(who=OWNERS)
    def confirm(self, who: int) -> None:
        """Somebody says that the probes passed."""
        model, number = self.model, len(self.model.state) - 1
        held = model.state[number] == "trying" and model.holder == self.owners[who]
        assert self.store.beat(number, self.owners[who]) == held
        assert self.store.confirm(number, self.owners[who]) == held
        if held:
            model.end(number, "confirmed", "")
            model.move(number)

    @rule(pick=st.integers(0, 50), who=st.sampled_from((None, 0, 1)))
    def revert(self, pick: int, who: int | None) -> None:
        """Somebody says that a generation failed."""
        model, number = self.model, pick % len(self.model.state)
        owner = None if who is None else self.owners[who]
        parent = model.parent[number]
        if model.state[number] in ("staged", "trying"):
            done = owner is None or (model.state[number] == "trying" and model.holder == owner)
        else:
            done = model.state[number] == "confirmed" and number == model.head
        assert self.store.revert(number, "test", owner=owner) == done
        if done:
            was_head = number == model.head
            model.end(number, "reverted", "test")
            if was_head and parent is not None:
                model.move(parent)

    @rule()
    def roll_back(self) -> None:
        """The owner wants the former generation."""
        parent = self.model.parent[self.model.head]
        if parent is None:
            with pytest.raises(MismatchError):
                self.store.rollback()
        else:
            assert self.store.rollback().id == parent
            self.model.tell(self.model.head, "reverted", "rolled back by hand")
            self.model.move(parent)

    @precondition(lambda self: len(self.model.state) > 1)
    @rule(pick=st.integers(0, 50), to=st.integers(-1, 50), sequence=st.integers(0, 3))
    def withdraw(self, pick: int, to: int, sequence: int) -> None:
        """A signed order to leave a patch, for the generation below it or for a named one."""
        model, number = self.model, 1 + pick % (len(self.model.state) - 1)
        data, mark = model.patch[number], WORLD.World.mark
        digest = self.store.generation(number).patch
        result = "" if to < 0 else mark(model.weights[to % len(model.state)])
        chain, trial = model.chain(), model.trial()
        at = next((i for i, n in enumerate(chain) if model.patch[n] == data), None)
        below = [] if at is None else [n for n in [0, *chain[:at]] if not result or mark(model.weights[n]) == result]
        if at is not None and not below:
            with pytest.raises(MismatchError, match="below the patch"):
                self.store.withdraw(digest, to=result, sequence=sequence, reason="bad")
            return
        self.store.withdraw(digest, to=result, sequence=sequence, reason="bad")
        model.withdrawn[data] = max(sequence, model.withdrawn.get(data, 0))
        left = [trial] if trial is not None and model.patch[trial] == data else []
        if below:
            left += [n for n in reversed(chain) if n > below[-1]]
            model.move(below[-1])
        for gone in left:
            model.end(gone, "withdrawn", "bad")

    @rule(half=st.booleans())
    def collect(self, half: bool) -> None:
        """A collection, sometimes with what a dead writer left."""
        model, before = self.model, len(self.model.objects)
        if half:
            (self.folder / "store" / "objects" / f".{'f' * 64}.eep.{2**22 + 5}.tmp").write_bytes(b"half")
        model.objects &= model.kept()
        done = self.store.collect()
        assert (done.kept, done.removed) == (len(model.objects), before - len(model.objects) + half)

    @rule(values=st.dictionaries(st.sampled_from(("tuf:root", "clock", "sequence")), st.integers(-1, 2**63), max_size=3))
    def raise_floors(self, values: dict[str, int]) -> None:
        """Floors rise together or not at all."""
        if any(not 0 <= value < 2**63 for value in values.values()):
            with pytest.raises(IntegrityError):
                self.store.floors.raise_floors(values)
            return
        self.store.floors.raise_floors(values)
        for name, value in values.items():
            self.model.floors[name] = max(value, self.model.floors.get(name, 0))

    @rule(release=st.sampled_from(("r1", "r2")), word=st.sampled_from(("offered", "verified")))
    def note(self, release: str, word: str) -> None:
        """The agent tells what it did; saying the newest once more says nothing."""
        self.store.receipts.note(release, word, "a" * 64)
        newest = next((row for row in reversed(self.model.receipts) if row[0] == release), None)
        if newest != (release, word, 0, ""):
            self.model.receipts.append((release, word, 0, ""))

    @rule(numbers=st.lists(st.integers(1, 12), max_size=3))
    def acknowledge(self, numbers: list[int]) -> None:
        """The server has some receipts; others it makes up."""
        self.store.receipts.done(numbers)
        self.model.told |= {number for number in numbers if number <= len(self.model.receipts)}

    @rule(who=OWNERS)
    def die(self, who: int) -> None:
        """A Runtime's process ends without a word, and another one starts."""
        boot, space, _, _, token = self.owners[who].split("/")
        dead = f"{boot}/{space}/{2**22 + 7}/1/{token}"  # above the largest process number
        if self.model.holder == self.owners[who]:
            with self.store._write() as db:
                db.execute("UPDATE generation SET owner = ? WHERE owner = ?", (dead, self.owners[who]))
            self.model.holder = ""
        self.owners[who] = new_owner()
        self.store = Store.open(self.folder / "store")

    @invariant()
    def agrees(self) -> None:
        """Head, trial, states, attempts and fingerprints are the model's; every patch of the chain is there."""
        self.ran["states compared"] += 1
        model, (head, trial) = self.model, self.store.current()
        assert head.id == model.head and (trial and trial.id) == model.trial()
        for number, (state, attempts) in enumerate(zip(model.state, model.attempts, strict=True)):
            found = self.store.generation(number)
            assert (found.state, found.attempts, found.parent) == (state, attempts, model.parent[number])
        assert head.result == WORLD.World.mark(model.weights[model.head])
        assert [self.store.patch(g.patch).data for g in self.store.chain(head.id)] == [model.patch[n] for n in model.chain()]

    @invariant()
    def agrees_for_the_fleet(self) -> None:
        """So are objects, floors, receipts that wait with their numbers, and what is not to be fetched again."""
        model = self.model
        assert {path.read_bytes() for path in (self.folder / "store" / "objects").iterdir()} == model.objects
        for name in ("tuf:root", "clock", "sequence"):
            assert self.store.floors.floor(name) == model.floors.get(name, 0)
        waiting = [(r.sequence, r.release, r.state, r.generation, r.reason) for r in self.store.receipts.waiting(1000)]
        assert waiting == [(i, *row) for i, row in enumerate(model.receipts, 1) if i not in model.told]
        assert self.store.failed_patches() == {self.store.generation(n).patch for n in model.failed()}


def test_store_agrees_with_its_model(template: Any) -> None:
    Machine.template = template
    Machine.ran.clear()
    case: Any = Machine.TestCase
    case.settings = settings(
        max_examples=SEQUENCES, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
    )
    start = time.perf_counter()
    case().runTest()
    assert Machine.ran["sequences"] >= SEQUENCES
    if target := os.environ.get("EDGEEDIT_STORE_JSON"):
        result = {**Machine.ran, "seconds": round(time.perf_counter() - start, 1), "steps a sequence, at most": 25}
        goals = [{"name": "sequences", "goal": 10_000, "value": Machine.ran["sequences"], "met": Machine.ran["sequences"] >= 10_000}]
        Path(target).write_text(json.dumps({**result, "goals": goals}, indent=2, sort_keys=True) + "\n", "utf-8")
