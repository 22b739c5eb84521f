"""The cameras of benchmarks/fleet.py: the device's client code, many cameras in each of a few processes."""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from securesystemslib.signer import CryptoSigner

from edgeedit.ota.client.carriers import post
from edgeedit.ota.client.link import Link
from edgeedit.ota.client.receipts import Receipt, sign_receipt
from edgeedit.ota.client.rollout import Device
from edgeedit.ota.client.session import Config, fetch, poll
from edgeedit.ota.client.transport import open_transport
from edgeedit.ota.client.web import make_pool

SITE, PROFILE = "plant", "linux-cpu"
BASE = "0" * 64
WORKERS = 2


@dataclass
class Camera:
    """What one camera keeps: the store's half of the client."""

    device: Device
    running: str = BASE
    floors: dict[str, int] = field(default_factory=dict)
    refused: frozenset[str] = frozenset()
    spoken: int = 0

    def floor(self, name: str) -> int:
        """See `Floors`."""
        return self.floors.get(name, 0)

    def raise_floors(self, values: Mapping[str, int]) -> None:
        """See `Floors`."""
        for name, value in values.items():
            self.floors[name] = max(value, self.floor(name))


@dataclass(frozen=True)
class World:
    """What every camera shares: addresses, trust, the folder of caches, who fails, and the key (one for all, to spare the setup)."""

    source: str
    receiver: str
    root: bytes
    folder: Path
    fails: Mapping[str, frozenset[str]]
    key: bytes


class Player:
    """A process's cameras and its connections."""

    def __init__(self, world: World, devices: Sequence[Device]) -> None:
        self.world, self.signer = world, _signer(world.key)
        self.cameras = {device.id: Camera(device) for device in devices}
        self.web, self.home = open_transport(world.source, Link()), make_pool(Link())

    def visit(self, name: str) -> str:
        """One round of a camera: poll, obey, tell.  Returns what it did: nothing, confirmed, reverted or returned."""
        camera, world = self.cameras[name], self.world
        cache = world.folder / name
        config = Config(world.source, cache, world.root, SITE, camera.device, camera.running, refused=camera.refused)
        offer = poll(config, camera, time.time(), self.web)
        if offer is None or offer.action == "decline":
            return "nothing"
        patch, told = offer.rollout.patch.sha256, offer.rollout.release
        if offer.action == "return":
            camera.running, said, done = BASE, ["reverted"], "returned"
        else:
            fetch(offer, cache, self.web).unlink()
            done = "reverted" if name in world.fails[told] else "confirmed"
            said = ["offered", "verified", "staged", done]
            if done == "confirmed":
                camera.running = offer.rollout.result
            else:
                camera.refused |= {patch}
        why = {"returned": "withdrawn", "reverted": "probe failed"}.get(done, "")
        lines = []
        for state in said:
            camera.spoken += 1
            reason = why if state == "reverted" else ""
            lines.append(sign_receipt(Receipt(name, told, camera.spoken, state, patch, 1, reason, int(time.time())), self.signer))
        post(world.receiver, lines, link=Link(), pool=self.home)
        return done


def play(world: World, devices: Sequence[Device], line: multiprocessing.connection.Connection) -> None:
    """A process: visit the cameras that are named on the line, until it ends."""
    player = Player(world, devices)
    with contextlib.suppress(EOFError):
        while True:
            line.send([(name, player.visit(name)) for name in line.recv()])


def _signer(raw: bytes) -> CryptoSigner:
    return CryptoSigner(Ed25519PrivateKey.from_private_bytes(raw))


class Fleet:
    """The processes that play the cameras, each its share; a context manager.  `holders` run the present release, `failed` refused it."""

    def __init__(self, world: World, devices: Sequence[Device], workers: int = WORKERS) -> None:
        self.world, self.polls = world, 0
        self.holders: set[str] = set()
        self.failed: set[str] = set()
        self.lines, self.processes = [], []
        self.share = {device.id: number % workers for number, device in enumerate(devices)}
        context = multiprocessing.get_context("spawn")
        for number in range(workers):
            here, there = context.Pipe()
            process = context.Process(target=play, args=(world, devices[number::workers], there), daemon=True)
            process.start()
            there.close()
            self.lines.append(here)
            self.processes.append(process)

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, *_: object) -> None:
        for line in self.lines:
            line.close()
        for process in self.processes:
            process.join(30)

    def begin(self) -> None:
        """Another release: nobody has it."""
        self.holders, self.failed = set(), set()

    def visit(self, devices: Sequence[Device]) -> dict[str, list[str]]:
        """One round of these cameras; ids by what they did."""
        shares: list[list[str]] = [[] for _ in self.lines]
        for device in devices:
            shares[self.share[device.id]].append(device.id)
        for line, share in zip(self.lines, shares, strict=True):
            line.send(share)
        found: dict[str, list[str]] = {}
        for line in self.lines:
            for name, did in line.recv():
                found.setdefault(did, []).append(name)
        self.holders |= set(found.get("confirmed", ()))
        self.holders -= set(found.get("returned", ()))
        self.failed |= set(found.get("reverted", ()))
        self.polls += len(devices)
        return found

    def fresh(self, devices: Sequence[Device]) -> list[Device]:
        """Those that have not met the present release."""
        return [device for device in devices if device.id not in self.holders | self.failed]
