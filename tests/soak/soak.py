"""An agent and an application on one store, a patch every second, either killed at random: no bad answer, memory flat.

python tests/soak/soak.py --seconds 600 --json build/soak.json
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from edgeedit.device.agent import Agent, Order, Situation
from edgeedit.device.runtime import Runtime
from edgeedit.device.store import Store
from edgeedit.errors import EdgeEditError
from edgeedit.limits import MAX_CHAIN
from edgeedit.patch.keys import load_private_key, new_key

WARM_SECONDS, GROWTH_BYTES = 2.0, 8 << 20  # of a life that is not judged; by which the rest of it may grow


def _world() -> ModuleType:
    path = Path(__file__).parents[1] / "unit" / "device" / "conftest.py"
    spec = importlib.util.spec_from_file_location("device_world_for_soak", path)
    if spec is None or spec.loader is None:
        raise ImportError("the device room's conftest is missing")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


class FolderSource:
    """Releases in a folder: `order.json` names the newest."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def poll(self, situation: Situation, floors: Any, now: float) -> Order | None:
        """The newest, unless it was refused here."""
        path = self._folder / "order.json"
        if not path.exists():
            return None
        order = Order(**json.loads(path.read_text("utf-8")))
        floors.raise_floors({"sequence": order.sequence})
        return None if order.patch in situation.refused or order.to in (situation.running, situation.trial) else order

    def fetch(self, order: Order, folder: Path) -> Path:
        """Its file."""
        return self._folder / f"{order.patch}.eep"


def agent(root: Path) -> None:
    """The agent's process."""
    with Agent(root / "store", FolderSource(root / "tree"), lambda rows: None) as running:
        while True:
            try:
                running.once()
            except EdgeEditError as error:
                print(error.message, flush=True)
            time.sleep(0.1)


def application(root: Path) -> None:
    """The application's process: a line for every answer."""
    start = time.monotonic()
    with Runtime(root / "store", threads=1, poll_seconds=0.1) as runtime:
        pixels = np.asarray(runtime.bundle.probes()[:1])
        while True:
            answer = runtime.run(pixels)
            pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
            row = [answer.generation, answer.output[0].tolist(), time.monotonic() - start, pages * os.sysconf("SC_PAGE_SIZE")]
            print(json.dumps(row), flush=True)
            time.sleep(0.02)


class Soak:
    """The parent: releases patches, kills, starts again, judges."""

    def __init__(self, root: Path) -> None:
        self.root, self.module, self.logs = root, _world(), 0
        (root / "tree").mkdir()
        self.bundle = self.module.make_bundle(root / "bundle")
        new_key(root / "ml.key", root / "ml.pub")
        Store.create(root / "store", self.bundle.path, [root / "ml.pub"]).close()
        self.store, self.key = Store.open(root / "store"), load_private_key(root / "ml.key")
        base = {n: np.array(a) for n, a in self.bundle.weights().items()}
        self.known = {self.bundle.fingerprint: base}

    def start(self, role: str) -> subprocess.Popen[bytes]:
        """A process of the role, its output in a log of its own."""
        self.logs += 1
        with (self.root / f"{role}-{self.logs}.log").open("wb") as log:
            return subprocess.Popen([sys.executable, __file__, "--role", role, "--root", str(self.root)], stdout=log, stderr=log)

    def release(self, number: int) -> None:
        """A patch for the head; a full chain is withdrawn."""
        head, trial = self.store.current()
        if trial is not None:
            return
        chain = self.store.chain(head.id)
        if len(chain) >= MAX_CHAIN - 1:
            self.store.withdraw(chain[0].patch, sequence=number, reason="soak")
            return
        world = self.module.World(self.bundle, self.key, self.root / "ml.pub", dict(self.known[head.result]))
        data = world.patch(number)
        result = world.mark(world.weights)
        self.known[result] = world.weights
        order = Order("install", f"r{number}", number, hashlib.sha256(data).hexdigest(), to=result)
        (self.root / "tree" / f"{order.patch}.eep").write_bytes(data)
        (self.root / "tree" / "order.new").write_text(json.dumps(vars(order)), "utf-8")
        (self.root / "tree" / "order.new").rename(self.root / "tree" / "order.json")

    def judge(self) -> dict[str, Any]:
        """Every answer against the weights of the generation that it names; the growth of each life after its start."""
        pixels, answers, bad, growth, seen = np.asarray(self.bundle.probes()[:1]), 0, 0, [0], set()
        wanted: dict[int, Any] = {}
        for log in self.root.glob("application-*.log"):
            rows = [json.loads(line) for line in log.read_text("utf-8").splitlines() if line.startswith("[") and line.endswith("]")]
            for number, output, _, _ in rows:
                if number not in wanted:
                    wanted[number] = self.module.forward(self.known[self.store.generation(number).result], pixels)[0]
                answers += 1
                bad += not np.allclose(output, wanted[number], rtol=0, atol=1e-4)
                seen.add(number)
            judged = [row[3] for row in rows if row[2] > WARM_SECONDS]
            if judged:
                growth.append(judged[-1] - judged[0])
        return {"answers": answers, "bad answers": bad, "generations answered": len(seen), "largest growth, bytes": max(growth)}


def soak(seconds: float, root: Path, seed: int = 0) -> dict[str, Any]:
    """Run for so long; a JSON object with goals."""
    rng, run, kills, number = random.Random(seed), Soak(root), 0, 0
    living = {role: run.start(role) for role in ("agent", "application")}
    end = time.monotonic() + seconds
    try:
        while time.monotonic() < end:
            number += 1
            run.release(number)
            time.sleep(1.0)
            if number == 3 or rng.random() < 0.2:
                role = rng.choice(("agent", "application"))
                living[role].kill()
                living[role].wait()
                living[role], kills = run.start(role), kills + 1
    finally:
        for process in living.values():
            process.kill()
            process.wait()
    found = {**run.judge(), "kills": kills, "seconds": seconds}
    grown = found["largest growth, bytes"]
    goals = [
        {"name": "bad answers", "goal": 0, "value": found["bad answers"], "met": found["bad answers"] == 0 and found["answers"] > 0},
        {"name": "growth", "goal": GROWTH_BYTES, "value": grown, "met": grown <= GROWTH_BYTES},
    ]
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    machine = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()}
    return {"machine": machine, "commit": commit, **found, "goals": goals}


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--role", choices=("agent", "application"))
    parser.add_argument("--root", type=Path)
    given = parser.parse_args()
    if given.role:
        {"agent": agent, "application": application}[given.role](given.root)
    with tempfile.TemporaryDirectory() as folder:
        result = soak(given.seconds, Path(folder))
    text = json.dumps(result, indent=2)
    print(text)
    if given.json:
        given.json.write_text(text + "\n", "utf-8")
    return 0 if all(goal["met"] for goal in result["goals"]) else 1


if __name__ == "__main__":
    sys.exit(main())
