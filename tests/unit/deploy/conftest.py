"""Tiny random encoders of each family, offline, and Deltas and Bundles for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from edgeedit.bundle import Bundle
from edgeedit.catalog import load_profile, load_recipe
from edgeedit.delta import Delta, LowRankPart, SparsePart, TensorDelta
from edgeedit.deploy.export import export_bundle
from edgeedit.encoder.encoder import Encoder
from edgeedit.encoder.load import finish, random_encoder

SIZE = 28  # pixels
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": SIZE, "patch_size": 7}


def tiny(family: str) -> Encoder:
    """A two-block vision tower: zero biases and unit gains as transformers initialises them."""
    recipe = load_recipe(family)
    extra = {"dinov2": {}, "clip": {"intermediate_size": 64, "projection_dim": 24}, "siglip": {"intermediate_size": 96}}[family]
    if family != "dinov2":
        return random_encoder(recipe, {**SMALL, **extra}, seed=7)
    torch.manual_seed(7)
    # Trained at 37 patches a side, like DINOv2: its position embedding is interpolated down to 4.
    return finish(transformers.Dinov2Model(transformers.Dinov2Config(**{**SMALL, "image_size": 37 * 7})), recipe, SIZE)


def make_delta(encoder: Encoder, precision: str = "float32", *, step: float = 0.03125) -> Delta:
    """Sparse on fc1 and q of the first block, low rank (with a sparse part) on v of the second."""
    rng = np.random.default_rng(3)
    shapes = {name: tuple(p.shape) for name, p in encoder.parameters_by_name().items()}
    names = encoder.editable()
    fc1, query, value = (next(n for n in names if k in n) for k in ("fc1", "q_proj", "v_proj"))

    def sparse(name: str) -> SparsePart:
        size = int(np.prod(shapes[name]))
        index = np.sort(rng.choice(size, size // 10, replace=False)).astype(np.int64)
        return SparsePart(index, rng.choice(np.array([-90, -3, 5, 100], np.int16), index.size), step)

    rows, cols = np.array([1, 4, 30], np.int64), np.arange(5, 25, dtype=np.int64)
    a, b = rng.integers(-20, 20, (3, 2)).astype(np.int8), rng.integers(-20, 20, (2, 20)).astype(np.int8)
    low = LowRankPart(rows, cols, a, b, 2.0**-9)
    tensors = [TensorDelta(n, shapes[n], sparse(n)) for n in (fc1, query)] + [TensorDelta(value, shapes[value], sparse(value), low)]
    made_for = {"source_digest": encoder.source_digest(), "precision": precision}
    return Delta(tuple(tensors), {"encoder": made_for})


def _export(encoder: Encoder, out: Path, precision: str, **options: Any) -> Bundle:
    profile = load_profile("linux-cpu" if precision == "float32" else "linux-cpu-fp16")
    return export_bundle(encoder, out, profile=profile, precision=precision, **options)


@pytest.fixture(scope="session")
def delta_for() -> Callable[..., Delta]:
    return make_delta


@pytest.fixture(scope="session")
def export() -> Callable[..., Bundle]:
    return _export


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], tuple[Encoder, Bundle]]:
    """(family, precision) -> the encoder and its Bundle, exported once per session."""
    made: dict[tuple[str, str], tuple[Encoder, Bundle]] = {}

    def get(family: str, precision: str) -> tuple[Encoder, Bundle]:
        if (family, precision) not in made:
            encoder = tiny(family)
            made[family, precision] = (encoder, _export(encoder, tmp_path_factory.mktemp("bundles") / "bundle", precision))
        return made[family, precision]

    return get
