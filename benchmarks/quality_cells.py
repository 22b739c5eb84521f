"""One cell of the quality grid: a method on a set with a seed, measured on that seed's images; and its storage.

Guarantees: the base's features are computed once per set and seed; error, AUC and share of each verdict come together;
a cell's file is written whole or not at all, so an interrupted run keeps what it measured.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from quality_sets import FOLDER, save_picture, sets

from edgeedit.bundle import Preprocess
from edgeedit.digest import digest_file
from edgeedit.edit.drift import borderline_agreement, embedding_shift
from edgeedit.edit.evaluate import features, judge, reader_labels
from edgeedit.edit.methods.refit import RefitBaseShots
from edgeedit.edit.readers import Reader, fit_linear
from edgeedit.edit.run import EditResult, HeldOut, edit
from edgeedit.edit.shots import Shots, make_shots, open_image, subset
from edgeedit.encoder.encoder import Encoder
from edgeedit.encoder.values import parameter_values, with_values
from edgeedit.files import replace_file
from edgeedit.flows.elpv import Scenario
from edgeedit.rounding import apply_delta

Array = np.ndarray[Any, Any]
UNRELATED_READER, UNRELATED_HELDOUT = 500, 300  # images of easy-vqa: enough to see damage
ALLOWED = 0.02  # share of control verdicts that an interpolating rival may flip


class Pictures:
    """Pixels of every picture that was asked for and its features by one encoder, kept by path: the sets of one benchmark
    share most of their pictures.  Pixels are kept in 8 bits; what comes out equals `load_pixels` bit for bit."""

    def __init__(self, encoder: Encoder, decoded: dict[Path, Array] | None = None) -> None:
        self.encoder, self.decoded = encoder, decoded if decoded is not None else {}
        self.rows: dict[Path, Array] = {}

    def pixels(self, shots: Shots, preprocess: Preprocess | None = None) -> Array:
        """Normalised pixels, float32 (n, 3, size, size)."""
        pre = preprocess or self.encoder.preprocess
        mean, std = (np.asarray(v, dtype=np.float32).reshape(3, 1, 1) for v in (pre.mean, pre.std))
        found = np.empty((len(shots.paths), 3, pre.size, pre.size), dtype=np.float32)
        for number, path in enumerate(shots.paths):
            if path not in self.decoded:
                self.decoded[path] = decode(path, pre.size)
            found[number] = (self.decoded[path].astype(np.float32).transpose(2, 0, 1) / 255.0 - mean) / std
        return found

    def features(self, shots: Shots) -> Array:
        """Features by the encoder, (n, width)."""
        missing = [n for n, path in enumerate(shots.paths) if path not in self.rows]
        if missing:
            own = subset(shots, missing)
            self.rows.update(zip(own.paths, features(self.encoder, self.pixels(own)), strict=True))
        return np.stack([self.rows[path] for path in shots.paths])


def decode(path: Path, size: int) -> Array:
    """A picture at the encoder's size, uint8 (size, size, 3)."""
    return np.asarray(open_image(path).resize((size, size), Image.Resampling.BICUBIC))


@dataclass(frozen=True)
class Outcome:
    """What a method made: an edited encoder, a reader, and the bytes to ship."""

    encoder: Encoder
    reader: Reader
    size: int


@dataclass(frozen=True)
class Bench:
    """One set and seed: readers, pixels and the base's features of every held-out set, shared by all methods."""

    data: Scenario
    encoder: Encoder
    reader: Reader
    unrelated: Reader
    train: Array
    held: Mapping[str, Shots]
    pixels: Mapping[str, Array]
    base: Mapping[str, Array]


def first(shots: Shots, count: int) -> Shots:
    """The first `count` images of a set whose order is already random."""
    return make_shots(shots.paths[:count], shots.labels[:count], shots.classes, shots.groups[:count])


def bench(encoder: Encoder, data: Scenario, limit: int | None = None, pictures: Pictures | None = None) -> Bench:
    """Fit the readers and compute the base's features once; `limit` keeps only so many held-out images (quick runs)."""
    known = pictures or Pictures(encoder)
    train = known.features(data.reader_train)
    reader = fit_linear(train, data.reader_train.labels, data.reader_train.classes)
    other = first(data.unrelated_train, UNRELATED_READER if limit is None else 4 * limit)
    unrelated = fit_linear(known.features(other), other.labels, other.classes)
    held = {"target": data.target_heldout, "control": data.control_heldout, "unrelated": first(data.unrelated_heldout, UNRELATED_HELDOUT)}
    if limit is not None:
        held = {name: _spread(shots, limit) for name, shots in held.items()}
    base = {name: known.features(shots) for name, shots in held.items()}
    return Bench(data, encoder, reader, unrelated, train, held, {name: known.pixels(shots) for name, shots in held.items()}, base)


def _spread(shots: Shots, count: int) -> Shots:
    rows = np.unique(np.linspace(0, len(shots.paths) - 1, count).astype(np.int64))
    return make_shots([shots.paths[i] for i in rows], shots.labels[rows], shots.classes, [shots.groups[i] for i in rows])


@dataclass(frozen=True)
class Packaged:
    """A method or rival of the package; `lr` scales its learning rates.  It gets mirrored shots to judge by: nothing that a method
    sees while it works may be held out, and the cell judges by itself, with the base's features already known."""

    method: Any

    def __call__(self, of: Bench, lr: float, seed: int) -> Outcome:
        """Edit, on the device of the bench's encoder."""
        device = str(of.encoder.device)
        result = edit(
            of.encoder,
            of.data.shots,
            of.data.control,
            of.reader,
            method=scaled(self.method, lr),
            precision="float32",
            heldout=HeldOut(mirrored(of.data.shots)),
            seed=seed,
            limit=ALLOWED,
            stored=of.data.reader_train if isinstance(self.method, RefitBaseShots) else None,
            device=device,
            judge_device=device,
        )
        return Outcome(edited(of.encoder, result).to(device), result.reader or of.reader, result.payload)


def scaled(method: Any, factor: float) -> Any:
    """`method` with `factor` times its learning rates; as it is when it has none."""
    rates = {name: getattr(method, name) * factor for name in ("lr", "lr_low_rank") if hasattr(method, name)}
    return replace(method, **rates) if rates else method


def edited(encoder: Encoder, result: EditResult) -> Encoder:
    """A copy of `encoder` with a method's Delta or a rival's whole tensors."""
    values = parameter_values(encoder, "float32")
    tensors = result.patch.tensors if result.patch is not None else ()
    return with_values(encoder, {**values, **{t.name: apply_delta(values[t.name], t) for t in tensors}, **result.values})


def mirrored(shots: Shots) -> Shots:
    """A mirrored copy of the first shot of each class."""
    rows = np.array([int(np.flatnonzero(shots.labels == c)[0]) for c in range(len(shots.classes))])
    FOLDER.mkdir(parents=True, exist_ok=True)
    paths = []
    for row in rows:
        path = FOLDER / f"mirrored-{digest_file(shots.paths[row])[:16]}.png"
        if not path.exists():
            save_picture(ImageOps.mirror(open_image(shots.paths[row])), path)
        paths.append(path)
    return make_shots(paths, shots.labels[rows], shots.classes, [f"mirrored-{r}" for r in rows])


def measure(of: Bench, run: Callable[[Bench, float, int], Outcome], lr: float, seed: int) -> dict[str, Any]:
    """Run a method and judge it on every held-out set against the base with the base's reader."""
    start = time.perf_counter()
    made = run(of, lr, seed)
    seconds = time.perf_counter() - start
    cell: dict[str, Any] = {"lr": lr, "seconds": round(seconds, 1), "bytes": made.size}
    for name, shots in of.held.items():
        own = of.unrelated if name == "unrelated" else of.reader
        after = features(made.encoder, of.pixels[name])
        logits = own.logits_numpy(of.base[name]), (own if name == "unrelated" else made.reader).logits_numpy(after)
        row = judge(name, shots, reader_labels(shots, own), own, *logits)
        cell[name] = {
            "n": row.n,
            "error": [round(row.error_before, 5), round(row.error_after, 5)],
            "auc": [None if v is None else round(v, 5) for v in (row.auc_before, row.auc_after)],
            "shares": [{k: round(v, 4) for k, v in part} for part in (row.shares_before, row.shares_after)],
            "change": [round(row.change.low, 5), round(row.change.high, 5)],
            "fixed": row.fixed,
            "broken": row.broken,
            "mcnemar_p": row.mcnemar_p,
        }
        if name == "control":
            cell["agreement"], cell["borderline"] = borderline_agreement(*logits)
            cell["shift"] = round(embedding_shift(of.base[name], after)[0], 5)
    return cell


class Cells:
    """Stored cells, one JSON file each; a finished one is never measured again."""

    def __init__(self, folder: Path, encoder: Encoder, about: Mapping[str, Any], limit: int | None) -> None:
        self.folder, self.encoder, self.about, self.limit = folder, encoder, about, limit
        self._bench: tuple[tuple[str, int, int, bool], Bench] | None = None

    def path(self, name: str) -> Path:
        """File of a cell."""
        return self.folder / f"{name}.json"

    def stored(self, name: str) -> dict[str, Any] | None:
        """A finished cell, or None."""
        path = self.path(name)
        if not path.exists():
            return None
        value: dict[str, Any] = json.loads(path.read_text("utf-8"))
        return value

    def keep(self, name: str, value: Mapping[str, Any]) -> None:
        """Write a finished cell."""
        self.path(name).parent.mkdir(parents=True, exist_ok=True)
        replace_file(self.path(name), (json.dumps({**self.about, **value}, indent=1, sort_keys=True) + "\n").encode())

    def bench(self, set_name: str, seed: int, shots: int, *, development: bool) -> Bench:
        """The shared part of a set and seed; the last one is kept in memory."""
        key = (set_name, seed, shots, development)
        if self._bench is None or self._bench[0] != key:
            self._bench = None
            self._bench = key, bench(self.encoder, sets(set_name, seed, shots, development=development), self.limit)
        return self._bench[1]
