"""Frames for `drift.py`: real solar cells through the real ViT-S/14, clean and changed, under the base and under patches.

Clean frames are monocrystalline cells; the new product is the polycrystalline ones, as they are.  The other changes are made on the real
pictures: a lamp (gain and a slope over the picture), defocus (Gaussian blur), dirt (soft dark spots that stay in place), a rotated lens.
What the encoder gives is kept under build/drift/; the Bundle and the edit come from `patch_edits.py`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from patch_edits import real_bundle, real_delta
from PIL import Image, ImageFilter

from edgeedit.bundle import Bundle, load_bundle
from edgeedit.deploy.lower import lower
from edgeedit.device.engines.choose import open_engine
from edgeedit.device.monitor.projection import image_signals, to_pixels
from edgeedit.digest import digest_bytes
from edgeedit.edit.shots import open_image
from edgeedit.flows.elpv import Cell, development_scenario, read_cells

Array = np.ndarray[Any, Any]
CACHE = Path(__file__).resolve().parent.parent / "build" / "drift"
COUNT = 96  # cells of a changed world, of all modules
CHANGES = {
    "lamp": ("gain", (0.95, 0.9, 0.8, 0.6)),
    "defocus": ("blur radius in pixels of 224", (0.5, 1.0, 2.0)),
    "dirt": ("spots", (1.0, 4.0)),
    "rotation": ("degrees", (2.0, 5.0)),
}


@dataclass(frozen=True)
class Pool:
    """Of each cell: `features` float32 (n, width), `images` (n, 4) image signals, `seconds` (n,) of the engine, `labels` (n,), `groups`."""

    features: Array
    images: Array
    seconds: Array
    labels: Array
    groups: Array

    def take(self, index: Array) -> Pool:
        """Rows of it."""
        return Pool(*(getattr(self, name)[index] for name in ("features", "images", "seconds", "labels", "groups")))


def cells(kind: str, *, development: bool, count: int) -> list[Cell]:
    """`count` cells of a kind (0: all), spread over the package: those on which settings may be chosen, or all others."""
    data = development_scenario(100)
    chosen = {group for part in (data.control_heldout, data.target_heldout, data.reader_train) for group in part.groups}
    chosen |= set(data.shots.groups)
    found = [cell for cell in read_cells() if cell.kind == kind and (cell.group in chosen) == development]
    return found if not count or count >= len(found) else [found[i] for i in np.linspace(0, len(found) - 1, count).astype(int)]


def changed(picture: Image.Image, change: str, strength: float, seed: int) -> Image.Image:
    """The picture as the changed camera would take it; `seed` fixes what stays in place (dirt, the side of the slope)."""
    size = picture.size[0]
    rng = np.random.default_rng(seed)
    if change == "defocus":
        return picture.filter(ImageFilter.GaussianBlur(strength))
    if change == "rotation":
        return picture.rotate(strength, Image.Resampling.BICUBIC, fillcolor=(0, 0, 0))
    factor = np.ones((size, size))
    y, x = np.mgrid[:size, :size] / size
    if change == "lamp":
        turn = rng.uniform(0, 2 * np.pi)
        factor = strength * (1 + 0.1 * ((x - 0.5) * np.cos(turn) + (y - 0.5) * np.sin(turn)))
    elif change == "dirt":
        for _ in range(int(strength)):
            place, radius = rng.uniform(0.2, 0.8, 2), rng.uniform(0.04, 0.10)
            factor *= 1 - 0.7 * np.exp(-((x - place[0]) ** 2 + (y - place[1]) ** 2) / (2 * radius**2))
    return Image.fromarray(np.clip(np.asarray(picture, dtype=np.float64) * factor[:, :, None], 0, 255).round().astype(np.uint8))


class Camera:
    """The engine of the real encoder; weights of the base, or with a patch."""

    def __init__(self) -> None:
        self.bundle: Bundle = load_bundle(real_bundle("float32"))
        self._engine = open_engine(self.bundle, self.bundle.weights(), threads=1)
        self._base: dict[str, Array] = {}

    def good(self) -> dict[str, Array]:
        """Tensors of a real edit (LoRSU on development shots)."""
        return dict(lower(real_delta("lorsu", precision="float32"), self.bundle, self.bundle.weights()).new)

    def bad(self, seed: int, strength: float) -> dict[str, Array]:
        """Tensors of a patch that is deliberately bad: noise of `strength` deviations on the first FFN of a third of the blocks."""
        rng, weights = np.random.default_rng(seed), self.bundle.weights()
        names = [row.name for row in self.bundle.tensor_map.tensors if row.editable and ".fc1." in row.name]
        chosen = [names[i] for i in rng.permutation(len(names))[: len(names) // 3]]
        return {n: weights[n] + np.float32(strength * weights[n].std()) * rng.standard_normal(weights[n].shape, np.float32) for n in chosen}

    def load(self, new: Mapping[str, Array]) -> None:
        """Run the base with `new` in place of its tensors."""
        self._engine.swap({**self._base, **new})
        weights = self.bundle.weights()
        self._base = {name: np.array(weights[name]) for name in new}

    def picture(self, cell: Cell, change: str = "", strength: float = 0.0, seed: int = 0) -> Array:
        """What the camera takes, uint8 (3, size, size)."""
        size = self.bundle.preprocess.size
        picture = open_image(cell.path).resize((size, size), Image.Resampling.BICUBIC)
        return np.asarray(changed(picture, change, strength, seed) if change else picture).transpose(2, 0, 1)

    def known(self, some: list[Cell], change: str = "", strength: float = 0.0, seed: int = 0, tower: str = "base") -> bool:
        """Whether `pool` was made before, so that the weights need not be loaded."""
        return self._path(some, change, strength, seed, tower).exists()

    def _path(self, some: list[Cell], change: str, strength: float, seed: int, tower: str) -> Path:
        key = repr((self.bundle.fingerprint, [c.path.name for c in some], change, strength, seed, tower))
        return CACHE / f"{digest_bytes(key.encode())[:24]}.npz"

    def pool(self, some: list[Cell], change: str = "", strength: float = 0.0, seed: int = 0, tower: str = "base") -> Pool:
        """What the running weights, called `tower`, give; from build/drift/ when it was made before."""
        path = self._path(some, change, strength, seed, tower)
        if not path.exists():
            rows = [self._answer(self.picture(cell, change, strength, seed)) for cell in some]
            CACHE.mkdir(parents=True, exist_ok=True)
            features, images, seconds = (np.stack([row[i] for row in rows]) for i in range(3))
            temp = path.with_suffix(".tmp.npz")
            np.savez(temp, features=features, images=images, seconds=seconds)
            temp.replace(path)  # a run that is cut off leaves no half of it
        stored = np.load(path)
        labels, groups = np.array([c.label for c in some]), np.array([c.group for c in some])
        return Pool(stored["features"], stored["images"], stored["seconds"], labels, groups)

    def _answer(self, picture: Array) -> tuple[Array, Array, float]:
        pixels = to_pixels(picture[None], self.bundle.preprocess)
        start = time.perf_counter()
        output = self._engine.run(pixels)
        return output[0], image_signals(picture[None])[0], time.perf_counter() - start
