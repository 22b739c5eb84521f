"""Readers: what turns features into verdicts and stays frozen during an edit (a linear head or class prototypes).

Guarantees: a reader's numbers never change after it is built; `logits` (torch) and `logits_numpy` compute the same rule.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgeedit.bundle import Preprocess
from edgeedit.errors import InputError
from edgeedit.files import replace_file

Array = np.ndarray[Any, Any]
LINEAR_C = 0.01  # inverse regularisation of the logistic regression on standardised features


@dataclass(frozen=True)
class Reader:
    """logits = ((features - mean) / std) @ weight + bias, or for `prototypes` 10 x the cosine to each class mean.

    `mean`, `std` float32 (width,), `weight` float32 (width, classes), `bias` float32 (classes,).  `preprocess` is how the
    pictures that it was fitted on became an encoder's input, None where that was not recorded; no part of the digest."""

    kind: str
    classes: tuple[str, ...]
    mean: Array
    std: Array
    weight: Array
    bias: Array
    preprocess: Preprocess | None = None

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """Scores per class, (n, classes); gradients reach `features`."""
        mean, std, weight, bias = (torch.from_numpy(a).to(features) for a in (self.mean, self.std, self.weight, self.bias))
        scaled = (features - mean) / std
        if self.kind == "prototypes":
            scaled = PROTOTYPE_SCALE * scaled / scaled.norm(dim=1, keepdim=True).clamp_min(1e-12)
        return scaled @ weight + bias

    def logits_numpy(self, features: Array) -> Array:
        """The same scores in numpy, float32 (n, classes)."""
        scaled = (features - self.mean) / self.std
        if self.kind == "prototypes":
            scaled = PROTOTYPE_SCALE * scaled / np.maximum(np.linalg.norm(scaled, axis=1, keepdims=True), 1e-12)
        result: Array = scaled @ self.weight + self.bias
        return result

    def verdict_logits(self, logits: Array, labels: Array) -> Array:
        """Logits among which the verdict is the largest: all of them here; a reader with several questions masks the others."""
        del labels
        return logits

    def digest(self) -> str:
        """SHA-256 over kind, classes and all numbers."""
        state = hashlib.sha256(repr((self.kind, self.classes)).encode())
        for array in (self.mean, self.std, self.weight, self.bias):
            state.update(array.tobytes())
        return state.hexdigest()


PROTOTYPE_SCALE = 10.0


def _standard(features: Array, labels: Array, classes: tuple[str, ...]) -> tuple[Array, Array]:
    if not np.isfinite(features).all():
        raise InputError("features are not usable: expected finite numbers", hint="check the images and the encoder")
    missing = sorted(set(range(len(classes))) - set(labels.tolist()))
    if missing or len(classes) < 2:
        raise InputError(
            f"a class is missing: expected at least one image of each of {list(classes)}, got none of {[classes[m] for m in missing]}"
        )
    return features.mean(axis=0, dtype=np.float64).astype(np.float32), np.maximum(features.std(axis=0, dtype=np.float64), 1e-6).astype(
        np.float32
    )


def fit_linear(features: Array, labels: Array, classes: tuple[str, ...]) -> Reader:
    """Balanced logistic regression (C = 0.01) on standardised features; deterministic."""
    from sklearn.linear_model import LogisticRegression

    mean, std = _standard(features, labels, classes)
    model = LogisticRegression(C=LINEAR_C, class_weight="balanced", max_iter=2000).fit((features - mean) / std, labels)
    weight, bias = model.coef_.T.astype(np.float32), model.intercept_.astype(np.float32)
    if len(classes) == 2:  # one column for two classes: give both a column, so that argmax decides
        weight, bias = np.concatenate([np.zeros_like(weight), weight], axis=1), np.array([0.0, bias[0]], dtype=np.float32)
    return Reader("linear", classes, mean, std, np.ascontiguousarray(weight), bias)


def fit_prototypes(features: Array, labels: Array, classes: tuple[str, ...]) -> Reader:
    """Class means of standardised, normalised features; verdict by cosine."""
    mean, std = _standard(features, labels, classes)
    scaled = (features - mean) / std
    scaled /= np.maximum(np.linalg.norm(scaled, axis=1, keepdims=True), 1e-12)
    means = np.stack([scaled[labels == number].mean(axis=0) for number in range(len(classes))], axis=1)
    weight = (means / np.maximum(np.linalg.norm(means, axis=0, keepdims=True), 1e-12)).astype(np.float32)
    return Reader("prototypes", classes, mean, std, np.ascontiguousarray(weight), np.zeros(len(classes), np.float32))


def save_reader(reader: Reader, path: Path) -> None:
    """Write an .npz without pickle, durably."""
    buffer = io.BytesIO()
    kind, classes = np.array(reader.kind), np.array(reader.classes)
    seen: dict[str, Any] = {}
    if reader.preprocess is not None:
        seen = {f"picture_{key}": np.array(value) for key, value in asdict(reader.preprocess).items()}
    np.savez(buffer, mean=reader.mean, std=reader.std, weight=reader.weight, bias=reader.bias, kind=kind, classes=classes, **seen)
    replace_file(path, buffer.getvalue())


def load_reader(path: Path) -> Reader:
    """Read an .npz; raises InputError when it is none or when its numbers do not fit together."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays: list[Array] = [np.ascontiguousarray(stored[key], dtype=np.float32) for key in ("mean", "std", "weight", "bias")]
            seen = _preprocess(stored) if "picture_size" in stored else None
            reader = Reader(str(stored["kind"]), tuple(str(c) for c in stored["classes"]), arrays[0], arrays[1], arrays[2], arrays[3], seen)
    except (OSError, EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise InputError(f"cannot read reader {path}: expected an .npz made by `edgeedit reader fit`, got {error}") from error
    width, classes = reader.mean.size, len(reader.classes)
    shapes = [array.shape for array in arrays]
    if reader.kind not in ("linear", "prototypes") or shapes != [(width,), (width,), (width, classes), (classes,)]:
        raise InputError(f"reader {path} is inconsistent: expected matching shapes, got {reader.kind} with {shapes}")
    if classes < 2 or len(set(reader.classes)) != classes:
        raise InputError(f"reader {path} is not usable: expected two or more different classes, got {list(reader.classes)}")
    if not all(np.isfinite(array).all() for array in arrays) or not (reader.std > 0).all():
        raise InputError(f"reader {path} is not usable: expected finite numbers and positive spreads")
    return reader


def _preprocess(stored: Mapping[str, Array]) -> Preprocess:
    mean, std = (tuple(float(v) for v in stored[f"picture_{key}"]) for key in ("mean", "std"))
    if len(mean) != 3 or len(std) != 3 or not np.isfinite([*mean, *std]).all() or min(std) <= 0:
        raise ValueError(f"normalisation of three channels expected, got {mean} and {std}")
    return Preprocess(int(stored["picture_size"]), (mean[0], mean[1], mean[2]), (std[0], std[1], std[2]))
