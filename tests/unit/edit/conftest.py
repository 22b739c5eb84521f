"""A tiny random encoder and generated pictures of two kinds (bright squares on dark, stripes)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeedit.catalog import load_recipe
from edgeedit.edit.shots import Shots, load_shots
from edgeedit.encoder.encoder import Encoder
from edgeedit.encoder.load import random_encoder

TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 28, "patch_size": 7}


def draw(folder: Path, count: int, seed: int) -> Path:
    """`count` pictures for each of two classes."""
    rng = np.random.default_rng(seed)
    for name in ("square", "stripe"):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            picture = rng.integers(0, 60, (28, 28, 3))
            at = int(rng.integers(2, 16))
            if name == "square":
                picture[at : at + 9, at : at + 9] += 150
            else:
                picture[at : at + 3, :] += 150
            Image.fromarray(picture.astype(np.uint8)).save(folder / name / f"{number}.png")
    return folder


@pytest.fixture(scope="session")
def encoder() -> Encoder:
    """Two blocks, four heads, random weights."""
    return random_encoder(load_recipe("dinov2"), TINY, seed=3)


@pytest.fixture(scope="session")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Shots]:
    """Disjoint sets of generated pictures."""
    root = tmp_path_factory.mktemp("pictures")
    return {
        name: load_shots(draw(root / name, count, seed))
        for seed, (name, count) in enumerate({"base": 12, "shots": 8, "control": 8, "target": 10}.items())
    }
