"""hawkBit says when, the signed repository says what: every way that an action may end, against a stub that keeps to DDI's rules."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hawkbit_stub import Action, Hawkbit, deployment
from plant import Plant, found_plant
from update_repository import make_rollout, withdrawn

from edgeedit.device.agent import Agent
from edgeedit.device.store import Store
from edgeedit.device.updates import load_settings, make_source
from edgeedit.errors import EdgeEditError, InputError, UnreachableError
from edgeedit.ota.client.session import DisagreementError, UnfitError


@dataclasses.dataclass
class Scheduled(Plant):
    """A camera, and the stub that schedules it."""

    server: Hawkbit

    def assign(self, digest: str, *, state: str = "running", size: int = 0, **changes: Any) -> Action:
        self.server.actions[len(self.server.actions) + 1] = action = Action(deployment(f"{digest}.eep", {}, size, **changes), state)
        return action


@pytest.fixture
def plant(world: Any, tmp_path: Path) -> Iterator[Scheduled]:
    with Hawkbit() as server:
        yield Scheduled(**vars(found_plant(world, tmp_path, server.url, "secret")), server=server)


def test_nothing_is_installed_before_hawkbit_says_so_then_it_is_told(plant: Scheduled) -> None:
    assert plant.once() == "nothing", "an open release was taken without the scheduler"
    assert plant.server.attributes["profile"] == "linux-cpu"
    action = plant.assign(plant.rollout.patch.sha256, size=plant.rollout.patch.length)
    with plant.agent() as agent:
        assert agent.once().did == "staged"
        agent.once()
        agent.once()
        assert action.words == ["proceeding", "proceeding"], "the same word was said at every poll"
    plant.take()
    assert plant.once() == "nothing"
    assert (action.state, action.result) == ("closed", "success")
    assert not any("cdn" in path or "elsewhere" in path for _, path in plant.server.log)


def test_a_patch_that_its_probes_reject_is_a_failure_with_the_reason(plant: Scheduled) -> None:
    plant.world.weights = {name: array.copy() for name, array in plant.world.bundle.weights().items()}
    data = plant.world.patch(2, wrong_probe=True)
    plant.repository.add_rollout(
        make_rollout(
            plant.repository.add_patch(data), release="r2", parent=plant.world.bundle.fingerprint,
            result=plant.world.mark(plant.world.weights), issued=int(time.time()),
        )
    )  # fmt: skip
    plant.publish()
    action = plant.assign(hashlib.sha256(data).hexdigest())
    assert plant.once() == "staged"
    plant.take()
    plant.once()
    assert action.result == "failure" and "probe 0" in action.said[-1]


@pytest.mark.parametrize("way", ["no role", "release role alone", "ml role alone", "another length"])
def test_what_the_roles_do_not_both_name_is_refused_and_told(plant: Scheduled, way: str, tree: Any) -> None:
    data, size = b"not signed for", 0
    digest = hashlib.sha256(data).hexdigest()
    if way == "release role alone":
        target = dataclasses.replace(plant.rollout.patch, path=f"patches/linux-cpu/{digest}.eep", sha256=digest, length=len(data))
        plant.repository.add_rollout(dataclasses.replace(plant.rollout, release="r2", patch=target))
    elif way == "ml role alone":
        plant.repository.add_patch(data)
    elif way == "another length":
        digest, size = plant.rollout.patch.sha256, plant.rollout.patch.length + 1
    plant.publish()
    action = plant.assign(digest, size=size)
    before = Store.open(plant.store).head()
    with plant.agent() as agent, pytest.raises(DisagreementError) as caught:
        agent.once()
    assert caught.value.exit_code == 5
    assert (action.state, action.result) == ("closed", "failure") and "expected" in action.said[-1]
    assert Store.open(plant.store).current() == (before, None)


def test_an_artifact_that_names_no_patch_and_one_for_another_base(plant: Scheduled) -> None:
    action = plant.assign("nothing")
    with plant.agent() as agent, pytest.raises(EdgeEditError):
        agent.once()
    assert action.result == "failure"
    unfit = dataclasses.replace(plant.rollout, parent="c" * 64, sequence=2)
    plant.repository.add_rollout(unfit)
    plant.publish()
    action = plant.assign(plant.rollout.patch.sha256)
    with plant.agent() as agent, pytest.raises(UnfitError) as caught:
        agent.once()
    assert caught.value.exit_code == 4 and action.result == "failure"


def test_hawkbit_can_delay_and_choose_but_not_allow(plant: Scheduled) -> None:
    """A paused release stays paused, a window that is shut stays shut, and both stay open at the server."""
    plant.repository.add_rollout(dataclasses.replace(plant.rollout, state="paused", sequence=2))
    plant.publish()
    action = plant.assign(plant.rollout.patch.sha256)
    assert plant.once() == "nothing" and action.words == ["scheduled"]
    plant.repository.add_rollout(dataclasses.replace(plant.rollout, sequence=3))
    plant.publish()
    action.deployment["maintenanceWindow"] = "unavailable"
    assert plant.once() == "nothing" and action.state == "running"
    action.deployment["maintenanceWindow"] = "available"
    assert plant.once() == "staged"


def test_cancel_is_accepted_before_and_rejected_after_staging(plant: Scheduled) -> None:
    action = plant.assign(plant.rollout.patch.sha256, state="canceling")
    assert plant.once() == "nothing" and action.result == "cancelled"
    action = plant.assign(plant.rollout.patch.sha256)
    assert plant.once() == "staged"
    action.state = "canceling"
    plant.once()  # another process: what was staged is known from the folder
    assert (action.state, action.words[-1]) == ("running", "rejected")
    (plant.store / "updates" / "hawkbit.json").unlink()
    action.state = "canceling"
    plant.once()
    assert action.words[-1] == "rejected", "a trial was called cancelled after the memory was lost"
    plant.take()
    plant.once()
    assert action.result == "success"


def test_consent_is_given_only_to_what_is_signed(plant: Scheduled) -> None:
    action = plant.assign("d" * 64, state="waiting")
    plant.once()
    assert action.words == ["denied"]
    action.state = "closed"
    action = plant.assign(plant.rollout.patch.sha256, state="waiting")
    assert plant.once() == "staged", "a confirmed action waited for another poll"
    assert action.words[0] == "confirmed"


def test_a_signed_withdrawal_is_obeyed_while_the_scheduler_is_away_or_hostile(plant: Scheduled) -> None:
    plant.assign(plant.rollout.patch.sha256)
    plant.once()
    plant.take()
    plant.repository.add_rollout(withdrawn(plant.rollout))
    plant.publish()
    plant.server.token = "another"
    assert plant.once() == "returned"
    plant.repository.add_rollout(dataclasses.replace(plant.rollout, sequence=9, state="halted"))
    plant.publish()
    with plant.agent() as agent, pytest.raises(UnreachableError, match="401"):
        agent.once()


def test_the_servers_pause_is_kept(plant: Scheduled) -> None:
    source, every = make_source(load_settings(plant.at / "agent.toml"), plant.store, 60.0)
    assert callable(every) and every() == 60.0
    with Agent(plant.store, source) as agent:
        agent.once()
    assert every() == 300.0


def test_the_command_and_its_options(plant: Scheduled) -> None:
    from edgeedit.cli.main import cli

    text = (plant.at / "agent.toml").read_text().partition("scheduler")[0]
    (plant.at / "plain.toml").write_text(text)
    plant.assign(plant.rollout.patch.sha256)
    words = ["agent", "run", "--once", "--json", "--store", str(plant.store), "--config", str(plant.at / "plain.toml")]
    with pytest.raises(InputError, match="no address"):
        CliRunner().invoke(cli, [*words, "--scheduler", "hawkbit"], catch_exceptions=False)
    more = ["--scheduler", "hawkbit", "--ddi", plant.server.url, "--token-file", str(plant.at / "token")]
    done = CliRunner().invoke(cli, [*words, *more], catch_exceptions=False)
    assert json.loads(done.stdout)["did"] == "staged"
