"""The sets of `edit_quality.py` and `edit_chain.py`: each is a mistake with shots, control images and held-out images.

elpv         real: electroluminescence cells, reader fitted on monocrystalline, polycrystalline cells arrive (nothing simulated)
elpv-camera  real images under a SIMULATED camera: the same mono cells, darker, blurred and noisy
fashion      Fashion-MNIST (28 pixels, 10 classes) under the SIMULATED camera; `make benchmark-assets` fetches it

With `development` every image comes from where no seed ever holds one out; only there may anything be chosen.
"""

from __future__ import annotations

import gzip
import os
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from edgeedit.edit.shots import Shots, make_shots, open_image
from edgeedit.errors import InputError
from edgeedit.flows.elpv import Scenario, development_scenario, scenario

Array = np.ndarray[Any, Any]
ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "build" / "quality-sets"
FASHION = Path("usr/share/datasets/fashion-mnist")
NAMES = ("elpv", "elpv-camera", "fashion")
FASHION_CLASSES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")
FASHION_READER, FASHION_CONTROL, FASHION_HELDOUT = 600, 256, 400  # images


def sets(name: str, seed: int, shots: int, *, development: bool) -> Scenario:
    """The sets of one seed with `shots` labelled target images per class; raises InputError for an unknown name."""
    if name == "fashion":
        return _fashion(seed, shots, development)
    make = development_scenario if development else scenario
    data = make(seed, shots_per_class=shots)
    if name == "elpv":
        return data
    if name == "elpv-camera":
        return _camera_scenario(data, shots)
    raise InputError(f"set is unknown: expected one of {', '.join(NAMES)}, got {name}")


def camera(picture: Image.Image, seed: int) -> Image.Image:
    """A darker, softer, noisier camera: exposure 0.6, gamma 1.3, blur of 1 % of the width, noise 4 % (all SIMULATED)."""
    blurred = picture.filter(ImageFilter.GaussianBlur(picture.width / 100))
    values = (np.asarray(blurred, dtype=np.float64) / 255 * 0.6) ** 1.3
    noise = np.random.default_rng(seed).normal(0, 0.04, values.shape[:2])[..., None]
    return Image.fromarray((np.clip(values + noise, 0, 1) * 255).round().astype(np.uint8))


def camera_file(path: Path) -> Path:
    """A picture as the other camera sees it, drawn when it is missing."""
    out = FOLDER / "camera" / f"{path.stem}.png"
    if not out.exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        save_picture(camera(open_image(path), _number(path.stem)), out)
    return out


def _through_camera(shots: Shots) -> Shots:
    return make_shots([camera_file(path) for path in shots.paths], shots.labels, shots.classes, shots.groups)


def save_picture(picture: Image.Image, out: Path) -> None:
    """Write a picture whole or not at all."""
    # A run that is cut short must not leave half a picture that the next run would take.
    part = out.with_name(f"{out.name}.{os.getpid()}.part")
    picture.save(part, format="PNG")
    part.replace(out)


def _number(text: str) -> int:
    return int.from_bytes(text.encode(), "little") % 2**32


def _subset(shots: Shots, rows: Array) -> Shots:
    return make_shots([shots.paths[i] for i in rows], shots.labels[rows], shots.classes, [shots.groups[i] for i in rows])


def _camera_scenario(data: Scenario, shots: int) -> Scenario:
    """Base camera: mono cells.  Shots are train cells seen by the new camera, none of them a control image."""
    kept = set(data.control.paths)
    rng = np.random.default_rng(data.seed)
    rows: list[int] = []
    for label in (0, 1):
        own = [i for i, p in enumerate(data.reader_train.paths) if p not in kept and data.reader_train.labels[i] == label]
        if len(own) < shots:
            # With few cells the control set gives way: shots need labels of both classes.
            own = [i for i in range(len(data.reader_train.paths)) if data.reader_train.labels[i] == label]
        rows += sorted(rng.permutation(own)[:shots].tolist())
    return replace(
        data, shots=_through_camera(_subset(data.reader_train, np.array(rows))), target_heldout=_through_camera(data.control_heldout)
    )


def fashion_folder() -> Path:
    """Where the idx files lie: the system's package or `build/assets`; raises InputError when neither has them."""
    for root in (Path("/"), ROOT / "build" / "assets"):
        if (root / FASHION).is_dir():
            return root / FASHION
    raise InputError("Fashion-MNIST is missing: expected the Debian package dataset-fashion-mnist", hint="make benchmark-assets")


@cache
def _idx(part: str) -> tuple[Array, Array]:
    folder = fashion_folder()
    images = gzip.decompress((folder / f"{part}-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((folder / f"{part}-labels-idx1-ubyte.gz").read_bytes())
    return np.frombuffer(images, np.uint8, offset=16).reshape(-1, 28, 28), np.frombuffer(labels, np.uint8, offset=8)


def fashion_rows(seed: int, shots: int, development: bool) -> dict[str, tuple[str, Array, bool]]:
    """Set -> (file, its rows, seen by the other camera).  Learning images come from the train file (development: its second
    half, held out there too), held-out ones from the test file."""
    labels = _idx("train")[1]
    half = len(labels) // 2
    rng = np.random.default_rng(seed)
    order = rng.permutation(np.arange(half, len(labels)) if development else np.arange(half))
    reader, rest = order[:FASHION_READER], order[FASHION_READER:]
    control, rest = rest[:FASHION_CONTROL], rest[FASHION_CONTROL:]
    chosen = np.concatenate([rest[labels[rest] == c][:shots] for c in range(10)])
    part = "train" if development else "t10k"
    held = np.setdiff1d(rest, chosen, assume_unique=True) if development else rng.permutation(len(_idx(part)[1]))
    return {
        "reader": ("train", reader, False),
        "shots": ("train", chosen, True),
        "control": ("train", control, False),
        "target": (part, held[:FASHION_HELDOUT], True),
        "unchanged": (part, held[FASHION_HELDOUT : 2 * FASHION_HELDOUT], False),
    }


def _fashion(seed: int, shots: int, development: bool) -> Scenario:
    own = {name: _fashion_shots(*row, labelled=name != "control") for name, row in fashion_rows(seed, shots, development).items()}
    elpv = development_scenario(seed) if development else scenario(seed)
    named = (own[name] for name in ("reader", "shots", "control", "target", "unchanged"))
    return Scenario(seed, *named, elpv.unrelated_train, elpv.unrelated_heldout)


def fashion_file(part: str, row: int, shifted: bool) -> Path:
    """One Fashion-MNIST picture, 112 x 112, drawn when it is missing."""
    out = FOLDER / ("fashion-camera" if shifted else "fashion") / f"{part}-{row}.png"
    if not out.exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(_idx(part)[0][row]).convert("RGB").resize((112, 112), Image.Resampling.BICUBIC)
        save_picture(camera(picture, row) if shifted else picture, out)
    return out


def _fashion_shots(part: str, rows: Array, shifted: bool, *, labelled: bool) -> Shots:
    paths = [fashion_file(part, row, shifted) for row in rows.tolist()]
    labels = _idx(part)[1][rows].astype(np.int64) if labelled else np.full(len(rows), -1, dtype=np.int64)
    return make_shots(paths, labels, FASHION_CLASSES if labelled else (), [p.stem for p in paths])
