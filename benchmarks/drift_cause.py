"""The cause part of `drift.py`: a real Monitor decides over bad patches, new lamps and good patches.

Each camera has learnt its clean days under the base; then a generation answers.  A bad patch must be reverted; a real edit must be kept, in
an unchanged world and under a new lamp.  As `edgeedit pack` does, the real edit states how many verdicts it may change by what it changed
on held-out control images (of its development scenario); a bad patch states nothing.  The Store is a stand-in with two generations; what
each of them says of a frame was computed beforehand by the engine itself and is looked up by the picture, also in shadow.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from drift_frames import COUNT, Camera, Pool, cells
from drift_line import FRAMES, ORDERS, RATE, Line
from patch_edits import SEED

from edgeedit.device.monitor.baseline import save_baseline
from edgeedit.device.monitor.monitor import Monitor
from edgeedit.device.monitor.projection import to_pixels
from edgeedit.device.monitor.reservoir import pack
from edgeedit.edit.readers import Reader
from edgeedit.flows.elpv import Cell, development_scenario
from edgeedit.flows.pack import usual_flips
from edgeedit.patch.manifest import USUAL_FLIPS

Array = np.ndarray[Any, Any]
STRENGTHS = (0.1, 0.15, 0.2, 0.3, 0.5, 0.8, 1.2)
FLIPS = 0.125  # share of development verdicts: from here on a patch counts as deliberately bad
BEFORE, PATIENCE = 8, 40  # windows under the patch before the lamp changes, and after
KINDS = ("bad patch", "new lamp under a good patch", "good patch, same world")


class Desk:
    """What a Monitor asks its Store for: the base and one patch on it.  Also the shadow: `answers` holds packed picture -> features
    of generations 0 and 1; `allowed` the share of verdicts that the patch may change."""

    def __init__(self, camera: Camera, answers: Sequence[Mapping[bytes, Array]], allowed: float) -> None:
        self.bundle, self.reverted, self._answers, self._allowed = camera.bundle, "", answers, allowed

    def head(self) -> Any:
        """The running generation."""
        return SimpleNamespace(id=0, parent=None) if self.reverted else SimpleNamespace(id=1, parent=0)

    def refusals(self, after: int) -> list[tuple[int, str]]:
        """No agent refused anything."""
        return []

    def revert(self, number: int, reason: str) -> bool:
        """Note it."""
        self.reverted = reason
        return number == 1

    def chain(self, number: int) -> list[Any]:
        """The patch stands for its own result."""
        return [SimpleNamespace(result="good or bad", patch="one")] * number

    def parent(self, number: int) -> int | None:
        """Of a generation."""
        return 0 if number else None

    def allowed(self, number: int) -> float:
        """What the patch states."""
        return self._allowed

    def features(self, number: int, pictures: Sequence[bytes]) -> Array:
        """What a generation says."""
        return np.stack([self._answers[number][picture] for picture in pictures])


class Case:
    """One camera: clean frames under base and patch, and changed ones."""

    def __init__(self, camera: Camera, reader: Reader, some: list[Cell], tower: str, allowed: float) -> None:
        self._camera, self._reader, self._cells, self._allowed = camera, reader, some, allowed
        self._answers: tuple[dict[bytes, Array], dict[bytes, Array]] = ({}, {})
        self.base, self.patched = camera.pool(some), camera.pool(some, tower=tower)
        self.pixels, self._packed = self._frames(self.base, self.patched)

    def _frames(self, base: Pool, patched: Pool, *change: Any) -> tuple[Array, list[bytes]]:
        some = self._cells if len(base.features) == len(self._cells) else lamp_cells(self._cells)
        pictures = np.stack([self._camera.picture(cell, *change) for cell in some])
        packed = [pack(picture) for picture in pictures]
        for known, pool in zip(self._answers, (base, patched), strict=True):
            known.update(zip(packed, pool.features, strict=True))
        return to_pixels(pictures, self._camera.bundle.preprocess), packed

    def run(self, seed: int, folder: Path, lamp: tuple[Pool, Pool, float] | None) -> tuple[Desk, Monitor]:
        """Learn, swap, go on; with `lamp` (pools of base and patch, gain) the world changes after some windows."""
        line = Line(self.base, self._reader, ORDERS[seed % 2], seed)
        desk = Desk(self._camera, self._answers, self._allowed)
        state = folder / "state.npz"
        about = {"bundle": desk.bundle.fingerprint, "frames": FRAMES, "every": 0.0, "rate": RATE, "generation": 0}
        save_baseline(state, line.learn(), about, [self._packed[i] for i in line.kept])
        monitor = Monitor(reader=self._reader.logits_numpy, every=0.0, frames=FRAMES, rate=RATE, state=state, background=False)
        monitor.attach(desk, None)  # type: ignore[arg-type]
        monitor._shadow = desk  # type: ignore[assignment]
        self._serve(monitor, desk, self.patched, self.pixels, seed, BEFORE if lamp else PATIENCE)
        if lamp:
            pixels, _ = self._frames(lamp[0], lamp[1], "lamp", lamp[2], seed)
            self._serve(monitor, desk, lamp[1], pixels, seed, PATIENCE)
        return desk, monitor

    def _serve(self, monitor: Monitor, desk: Desk, pool: Pool, pixels: Array, seed: int, windows: int) -> None:
        rng = np.random.default_rng(seed + 1000)
        for _ in range(windows * FRAMES):
            if desk.reverted:
                return
            at = int(rng.integers(len(pool.features)))
            # Times of the base: those of other pools were measured at another hour of a busy machine.
            seconds = float(self.base.seconds[rng.integers(len(self.base.seconds))])
            monitor.note(1, pixels[at][None], pool.features[at][None], seconds)
            monitor.work()


def lamp_cells(some: list[Cell]) -> list[Cell]:
    """Every second cell: of all modules, so that nothing but the lamp is new under it."""
    return some[::2]


def flipped(reader: Reader, before: Pool, after: Pool) -> float:
    """Share of the same cells whose verdict differs."""
    first, second = (reader.logits_numpy(pool.features).argmax(axis=1) for pool in (before, after))
    return float((first != second).mean())


def stated(camera: Camera, reader: Reader) -> float:
    """The share that `pack` would state for the real edit."""
    groups = set(development_scenario(SEED).control_heldout.groups)
    held = [cell for cell in cells("mono", development=True, count=0) if cell.group in groups]
    flips = round(len(held) * flipped(reader, camera.pool(held), good_pool(camera, held)))
    return usual_flips({"control": {"fixed": flips, "broken": 0, "n": len(held)}}) or USUAL_FLIPS


def good_pool(camera: Camera, some: list[Cell], *change: Any) -> Pool:
    """What the real edit gives; in the cache afterwards."""
    if camera.known(some, *change, tower="good"):
        return camera.pool(some, *change, tower="good")
    camera.load(camera.good())
    found = camera.pool(some, *change, tower="good")
    camera.load({})
    return found


def bad_tower(camera: Camera, reader: Reader, seed: int, development: list[Cell], some: list[Cell]) -> tuple[str, float, float]:
    """(tower, strength, flips on development cells) of the weakest bad patch of a seed; its answers are in the cache afterwards."""
    usual = camera.pool(development)

    def flips(place: int) -> float:
        tower = f"bad-{seed}-{STRENGTHS[place]}"
        if not camera.known(development, tower=tower):
            camera.load(camera.bad(seed, STRENGTHS[place]))
        return flipped(reader, usual, camera.pool(development, tower=tower))

    # From the middle up to the first that flips enough, or down to the last: flips grow with the noise.
    place = len(STRENGTHS) // 2
    while flips(place) < FLIPS and place + 1 < len(STRENGTHS):
        place += 1
    while place and flips(place - 1) >= FLIPS:
        place -= 1
    tower = f"bad-{seed}-{STRENGTHS[place]}"
    if not camera.known(some, tower=tower):
        camera.load(camera.bad(seed, STRENGTHS[place]))
        camera.pool(some, tower=tower)
    camera.load({})
    return tower, STRENGTHS[place], flips(place)


def lamp_pools(camera: Camera, some: list[Cell], seed: int) -> tuple[Pool, Pool, float]:
    """Frames under a new lamp, of the base and of the real edit."""
    gain = round(float(np.random.default_rng(seed).uniform(0.55, 0.9)), 3)
    args = ("lamp", gain, seed)
    return camera.pool(some, *args), good_pool(camera, some, *args), gain


def cause_rows(camera: Camera, reader: Reader, quick: bool) -> Iterator[dict[str, Any]]:
    """One row for each kind."""
    some = cells("mono", development=False, count=24 if quick else COUNT)
    development = cells("mono", development=True, count=24 if quick else 128)
    good_pool(camera, some)  # a Case reads it from the cache
    meant = stated(camera, reader)
    for kind in KINDS:
        cameras, right, causes = [], 0, Counter[str]()
        for seed in range(1 if quick else 20):
            about: dict[str, Any] = {"seed": seed}
            tower, lamp = "good", None
            if kind == KINDS[0]:
                tower, about["strength"], about["development_flips"] = bad_tower(camera, reader, seed, development, some)
                about["flips"] = flipped(reader, camera.pool(some), camera.pool(some, tower=tower))
            elif kind == KINDS[1]:
                lamp = lamp_pools(camera, lamp_cells(some), seed)
                about["gain"] = lamp[2]
            about["allowed"] = USUAL_FLIPS if kind == KINDS[0] else meant
            case = Case(camera, reader, some, tower, about["allowed"])
            with tempfile.TemporaryDirectory(prefix="drift-") as folder:
                desk, monitor = case.run(seed, Path(folder), lamp)
            about |= {"reverted": desk.reverted, "alarms": [e.reason for e in monitor.events if e.kind == "drift_alarm"]}
            about |= {"frames": int(monitor.figures().plain["edgeedit_frames_total"]), "errors": dict(monitor.errors)}
            verdicts = [e.reason.split(":")[0] for e in monitor.events if e.kind == "cause"]
            causes.update(verdicts[:1])
            kept = not desk.reverted and (bool(about["alarms"]) or lamp is None)
            right += bool(desk.reverted) if kind == KINDS[0] else kept
            cameras.append(about)
        yield {"part": "cause", "what": kind, "seeds": len(cameras), "right": right, "causes": dict(causes), "cameras": cameras}
