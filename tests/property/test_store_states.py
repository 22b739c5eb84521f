"""The store against a model of ten lines: stage, claim, confirm, revert, roll back and die in any order; the two always agree."""

from __future__ import annotations

import importlib.util
import shutil
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from edgeedit.device.owner import new_owner
from edgeedit.device.store import Store
from edgeedit.errors import MismatchError, RefusedError
from edgeedit.limits import MAX_CHAIN, MAX_TRIAL_ATTEMPTS
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


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A provisioned store to copy, and the world that signs for it."""
    folder = tmp_path_factory.mktemp("template")
    bundle = WORLD.make_bundle(folder / "bundle")
    new_key(folder / "ml.key", folder / "ml.pub")
    Store.create(folder / "store", bundle.path, [folder / "ml.pub"]).close()
    return folder, bundle, load_private_key(folder / "ml.key")


class Model:
    """What a store should be: parents, patches, states, attempts and weights by number; head; who holds the trial."""

    def __init__(self, base: dict[str, Array]) -> None:
        self.parent: list[int | None] = [None]
        self.patch: list[bytes] = [b""]
        self.state, self.attempts, self.weights = ["base"], [0], [base]
        self.head, self.holder = 0, ""

    def trial(self) -> int | None:
        """The number of the trial, if any."""
        return next((n for n, s in enumerate(self.state) if s in ("staged", "trying")), None)

    def chain(self) -> list[int]:
        """Numbers from the first patch to the head."""
        found, number = [], self.head
        while (parent := self.parent[number]) is not None:
            found.append(number)
            number = parent
        return found[::-1]

    def move(self, number: int) -> None:
        """Point the head elsewhere."""
        self.head = number
        trial = self.trial()
        if trial is not None and self.parent[trial] != number:
            self.state[trial] = "reverted"


class Machine(RuleBasedStateMachine):
    """Every step on the store and on the model."""

    template: ClassVar[Any]

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

    @rule(seed=st.integers(0, 5))
    def stage(self, seed: int) -> None:
        """A patch made for the head."""
        model = self.model
        signer = WORLD.World(self.base, self.key, self.work / "ml.pub", dict(model.weights[model.head]))
        data = signer.patch(seed)
        trial = model.trial()
        if trial is not None and model.patch[trial] == data:
            assert self.store.stage(data).id == trial
        elif trial is not None or len(model.chain()) >= MAX_CHAIN:
            with pytest.raises(RefusedError):
                self.store.stage(data)
        else:
            assert self.store.stage(data).id == len(model.state)
            model.parent.append(model.head)
            model.patch.append(data)
            model.state.append("staged")
            model.attempts.append(0)
            model.weights.append(signer.weights)
            model.holder = ""

    @rule(pick=st.integers(0, 50))
    def stage_again(self, pick: int) -> None:
        """A patch seen before: no news where it runs already, refused where it does not fit."""
        model = self.model
        number = pick % len(model.state)
        if number == 0 or model.parent[number] == model.head:
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
            model.state[number] = "reverted"

    @precondition(lambda self: len(self.model.state) > 1)
    @rule(who=OWNERS)
    def confirm(self, who: int) -> None:
        """Somebody says that the probes passed."""
        model, number = self.model, len(self.model.state) - 1
        held = model.state[number] == "trying" and model.holder == self.owners[who]
        assert self.store.beat(number, self.owners[who]) == held
        assert self.store.confirm(number, self.owners[who]) == held
        if held:
            model.state[number] = "confirmed"
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
            model.state[number] = "reverted"
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
            self.model.move(parent)

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
        model, (head, trial) = self.model, self.store.current()
        assert head.id == model.head and (trial and trial.id) == model.trial()
        for number, (state, attempts) in enumerate(zip(model.state, model.attempts, strict=True)):
            found = self.store.generation(number)
            assert (found.state, found.attempts, found.parent) == (state, attempts, model.parent[number])
        assert head.result == WORLD.World.mark(model.weights[model.head])
        assert [self.store.patch(g.patch).data for g in self.store.chain(head.id)] == [model.patch[n] for n in model.chain()]


def test_store_agrees_with_its_model(template: Any) -> None:
    Machine.template = template
    case: Any = Machine.TestCase
    case.settings = settings(
        max_examples=20, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
    )
    case().runTest()
