"""`Shots`: an immutable set of labelled (or unlabelled) images with groups, and how a folder or a .jsonl becomes one.

Guarantees: every image is opened when the set is built from files by `load_shots`; the digest covers file bytes, labels and
groups; a split never separates a group and never loses a class.  Images are not kept in memory.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeedit.bundle import Preprocess
from edgeedit.edit.pixels import check_levels
from edgeedit.errors import InputError
from edgeedit.limits import MAX_IMAGE_PIXELS

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Shots:
    """`labels` int64 (n,), -1 = unlabelled; `classes` the label names; `groups` one name per image; `pairs` the question
    and the answer of each class where the labels are answers, else empty."""

    paths: tuple[Path, ...]
    labels: Array
    classes: tuple[str, ...]
    groups: tuple[str, ...]
    digest: str
    pairs: tuple[tuple[str, str], ...] = ()


def make_shots(
    paths: Sequence[Path], labels: Array, classes: Sequence[str], groups: Sequence[str], pairs: Sequence[tuple[str, str]] = ()
) -> Shots:
    """Build a set; raises InputError when it is empty, a file is missing, or the lengths differ."""
    if not paths:
        raise InputError("set is empty: expected at least one image, got none")
    if not len(paths) == len(labels) == len(groups):
        raise InputError(f"set is inconsistent: expected {len(paths)} labels and groups, got {len(labels)} and {len(groups)}")
    state = hashlib.sha256(json.dumps(list(classes)).encode())
    for path, label, group in zip(paths, labels, groups, strict=True):
        try:
            content = hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError as error:
            raise InputError(f"cannot read image {path}: {error.strerror or error}", hint="check the path") from error
        state.update(json.dumps([content, int(label), group]).encode())
    return Shots(tuple(paths), np.asarray(labels, dtype=np.int64), tuple(classes), tuple(groups), state.hexdigest(), tuple(pairs))


def join_shots(sets: Sequence[Shots]) -> Shots:
    """All images of labelled sets as one; classes are joined by name, in the order in which they first come.

    Raises InputError when a set has no labels."""
    if any((s.labels < 0).any() for s in sets):
        raise InputError("cannot join sets: expected a label for every image, got a set without")
    classes = tuple(dict.fromkeys(name for s in sets for name in s.classes))
    labels = np.concatenate([np.array([classes.index(name) for name in s.classes], dtype=np.int64)[s.labels] for s in sets])
    known = {name: pair for s in sets for name, pair in zip(s.classes, s.pairs, strict=False)}
    pairs = [known[name] for name in classes] if set(known) == set(classes) else []
    return make_shots([p for s in sets for p in s.paths], labels, classes, [g for s in sets for g in s.groups], pairs)


def load_shots(path: Path) -> Shots:
    """Read a folder per class, a flat folder (unlabelled) or a .jsonl; raises InputError with one sentence."""
    if path.is_dir():
        shots = _from_folder(path)
    elif path.suffix == ".jsonl":
        shots = _from_jsonl(path)
    else:
        raise InputError(
            f"cannot read {path}: expected a folder or a .jsonl file", hint="one folder per class, or lines with image and label"
        )
    for image in shots.paths:
        open_image(image)
    return shots


def _images(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))


def _from_folder(path: Path) -> Shots:
    folders = sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not folders:
        files = _images(path)
        return make_shots(files, np.full(len(files), -1, dtype=np.int64), (), [f.stem for f in files])
    rows = [(file, number) for number, folder in enumerate(folders) for file in _images(folder)]
    empty = [f.name for f in folders if not _images(f)]
    if empty:
        raise InputError(f"class has no image: expected at least one in {path / empty[0]}")
    if len(folders) < 2:
        raise InputError(f"one class is missing: expected at least two class folders in {path}, got {folders[0].name} only")
    labels = np.array([number for _, number in rows], dtype=np.int64)
    return make_shots([f for f, _ in rows], labels, [f.name for f in folders], [f"{f.parent.name}/{f.stem}" for f, _ in rows])


def _from_jsonl(path: Path) -> Shots:
    rows = []
    try:
        # Not splitlines(): a JSON string may hold other line separators than the newline.
        lines = path.read_text("utf-8").split("\n")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}", hint="check the path") from error
    except UnicodeDecodeError as error:
        raise InputError(f"cannot read {path}: expected UTF-8, got {error.reason} at byte {error.start}") from error
    for number, line in enumerate(lines, 1):
        if line.strip():
            rows.append(_row(path, number, line))
    if not rows:
        raise InputError(f"set is empty: expected at least one line in {path}, got none")
    labelled = [row[1] is not None for row in rows]
    if any(labelled) and not all(labelled):
        raise InputError(f"label is missing: expected one on every line of {path}, got none on line {labelled.index(False) + 1}")
    classes = tuple(sorted({str(row[1]) for row in rows})) if all(labelled) else ()
    if len(classes) == 1:
        raise InputError(f"one class is missing: expected at least two labels in {path}, got {classes[0]} only")
    numbers = [classes.index(str(row[1])) if classes else -1 for row in rows]
    known = {str(row[1]): row[3] for row in rows if row[3] is not None}
    pairs = [known[name] for name in classes] if set(known) == set(classes) else []
    return make_shots([row[0] for row in rows], np.array(numbers, dtype=np.int64), classes, [row[2] for row in rows], pairs)


def _row(path: Path, number: int, line: str) -> tuple[Path, str | None, str, tuple[str, str] | None]:
    """Image, label, group, and question with answer where the label is made of them."""
    try:
        value = json.loads(line, parse_constant=_no_constant)
        image = path.parent / value["image"]
        pair = (str(value["question"]), str(value["answer"])) if "question" in value else None
        label = " ".join(pair) if pair else value.get("label")
        return image, None if label is None else str(label), str(value.get("group", Path(value["image"]).stem)), pair
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"cannot read line {number} of {path}: expected image and label, got {error!r}") from error


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no label")


def open_image(path: Path) -> Any:
    """A decoded RGB PIL image; raises InputError naming an unreadable or oversized file, or one of more than 8 bits.

    PIL would clip 16-bit and float pixels at 255, that is, turn most of the picture white without a word."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as picture:
            if picture.width * picture.height > MAX_IMAGE_PIXELS:
                raise InputError(
                    f"image {path} is too large: expected at most {MAX_IMAGE_PIXELS} pixels, got {picture.width}x{picture.height}"
                )
            if picture.mode in ("I", "F") or picture.mode.startswith("I;"):
                raise InputError(
                    f"image {path} does not fit: expected 8 bits per channel, got PIL mode {picture.mode}",
                    hint="convert it to 8 bits as the camera's own pipeline does",
                )
            return picture.convert("RGB")
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"cannot read image {path}: expected a picture, got {error}", hint="remove or replace the file") from error


def load_pixels(shots: Shots, preprocess: Preprocess) -> Array:
    """Normalised pixels, float32 (n, 3, size, size), resized bicubically; raises InputError where pictures hold cast small numbers."""
    from PIL import Image

    mean, std = (np.asarray(v, dtype=np.float32).reshape(3, 1, 1) for v in (preprocess.mean, preprocess.std))
    pixels = np.empty((len(shots.paths), 3, preprocess.size, preprocess.size), dtype=np.float32)
    levels = np.zeros(256, np.int64)
    for number, path in enumerate(shots.paths):
        whole = open_image(path)
        levels += np.reshape(whole.histogram(), (3, 256)).sum(axis=0)
        picture = whole.resize((preprocess.size, preprocess.size), Image.Resampling.BICUBIC)
        pixels[number] = (np.asarray(picture, dtype=np.float32).transpose(2, 0, 1) / 255.0 - mean) / std
    check_levels(levels)
    return pixels


def split_by_group(shots: Shots, share: float, seed: int) -> tuple[Shots, Shots]:
    """Two sets, the first with about `share` of the groups of each class; raises InputError when a class lacks one side.

    A group belongs to the class of its first image; no group is on both sides."""
    first: dict[str, int] = {}
    for group, label in zip(shots.groups, shots.labels, strict=True):
        first.setdefault(group, int(label))
    rng = np.random.default_rng(seed)
    chosen: set[str] = set()
    for label in sorted(set(first.values())):
        names = sorted(g for g, number in first.items() if number == label)
        count = min(max(1, round(share * len(names))), len(names) - 1) if len(names) > 1 else 1
        chosen |= {names[i] for i in rng.permutation(len(names))[:count]}
    sides = [[i for i, g in enumerate(shots.groups) if (g in chosen) == side] for side in (True, False)]
    for rows in sides:
        missing = sorted(set(shots.labels.tolist()) - set(shots.labels[rows].tolist()))
        if missing:
            name = shots.classes[missing[0]] if shots.classes else "unlabelled images"
            raise InputError(
                f"split is impossible: expected {name} on both sides, got too few groups of it", hint="give more images or groups"
            )
    first_half, second_half = (subset(shots, rows) for rows in sides)
    return first_half, second_half


def subset(shots: Shots, rows: Sequence[int]) -> Shots:
    """The images `rows` of a set, in that order."""
    own = [shots.groups[i] for i in rows]
    return make_shots([shots.paths[i] for i in rows], shots.labels[list(rows)], shots.classes, own, shots.pairs)
