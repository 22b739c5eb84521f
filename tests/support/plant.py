"""A camera with a scheduler: a provisioned store, a signed repository with one open release, and the agent's settings."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from update_repository import SITE, Repository

from edgeedit.device.agent import Agent
from edgeedit.device.runtime import Runtime
from edgeedit.device.store import Store
from edgeedit.device.updates import load_settings, make_source


@dataclass
class Plant:
    """`world` is the device suite's; `rollout` the release that is open for this camera."""

    world: Any
    at: Path
    repository: Repository
    rollout: Any

    @property
    def store(self) -> Path:
        return self.at / "store"

    def publish(self) -> None:
        self.repository.write(self.at / "tree")

    def agent(self) -> Agent:
        source, _ = make_source(load_settings(self.at / "agent.toml"), self.store, 60.0)
        return Agent(self.store, source)

    def once(self) -> str:
        with self.agent() as agent:
            return agent.once().did

    def take(self) -> None:
        with Runtime(self.store, threads=1, poll_seconds=0) as runtime:
            runtime.step()


def found_plant(world: Any, at: Path, url: str, token: str, *, wrong_probe: bool = False) -> Plant:
    """The camera `cam-1`, scheduled by the DDI server `url`."""
    Store.create(at / "store", world.bundle.path, [world.public], device="cam-1").close()
    repository = Repository(now=int(time.time()))
    parent = world.bundle.fingerprint
    data = world.patch(1, wrong_probe=wrong_probe)
    rollout = repository.ship(data, parent=parent, result=world.mark(world.weights), issued=int(time.time()))
    (at / "root.json").write_bytes(repository.root_bytes())
    (at / "token").write_text(f"{token}\n")
    (at / "agent.toml").write_text(
        f'source = "tree"\nsite = "{SITE}"\nroot = "root.json"\nscheduler = "hawkbit"\n[hawkbit]\nurl = "{url}"\ntoken = "token"\n'
    )
    plant = Plant(world, at, repository, rollout)
    plant.publish()
    return plant
