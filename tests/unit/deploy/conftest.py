"""Tiny random encoders of each family, offline, with the interface of `edgeedit.encoder.encoder.Encoder`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import nn

from edgeedit.bundle import Bundle, Preprocess
from edgeedit.catalog import load_profile, load_recipe
from edgeedit.delta import Delta, LowRankPart, SparsePart, TensorDelta
from edgeedit.deploy.export import export_bundle
from edgeedit.digest import fingerprint, tensor_digest

SIZE = 28  # pixels
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": SIZE, "patch_size": 7}


class TinyEncoder(nn.Module):
    """A two-block vision tower: zero biases and unit gains as transformers initialises them."""

    def __init__(self, family: str) -> None:
        super().__init__()
        self.recipe = load_recipe(family)
        pre = self.recipe.preprocess
        self.preprocess = Preprocess(SIZE, pre.mean, pre.std)
        torch.manual_seed(7)
        if family == "dinov2":  # trained at 37 patches a side, like DINOv2: the position embedding is interpolated down to 4
            self.wrapped: Any = transformers.Dinov2Model(transformers.Dinov2Config(**{**SMALL, "image_size": 37 * 7}))
        elif family == "clip":
            config = transformers.CLIPVisionConfig(intermediate_size=64, projection_dim=24, **SMALL)
            self.wrapped = transformers.CLIPVisionModelWithProjection(config)
        else:
            self.wrapped = transformers.SiglipVisionModel(transformers.SiglipVisionConfig(intermediate_size=96, **SMALL))
        self.width = {"dinov2": 64, "clip": 24, "siglip": 32}[family]
        self.blocks, self.heads = 2, 4
        self.eval()

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        found = self.wrapped(pixel_values=pixels)
        if self.recipe.family == "clip":
            return found.image_embeds
        if self.recipe.family == "siglip":
            return found.pooler_output
        return torch.cat([found.last_hidden_state[:, 0], found.last_hidden_state[:, 1:].mean(1)], dim=1)

    def parameters_by_name(self) -> dict[str, nn.Parameter]:
        return dict(self.wrapped.named_parameters())

    def editable(self) -> tuple[str, ...]:
        known = self.parameters_by_name()
        patterns = [p.format(block=b) + ".weight" for b in range(2) for k in ("fc1", "q", "k", "v") for p in self.recipe.names[k]]
        return tuple(name for name in patterns if name in known)

    def source_digest(self) -> str:
        return fingerprint(tensor_digest(n, p.detach().numpy()) for n, p in self.parameters_by_name().items())


def make_delta(encoder: TinyEncoder, precision: str = "float32", *, step: float = 0.03125) -> Delta:
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


def _export(encoder: TinyEncoder, out: Path, precision: str, **options: Any) -> Bundle:
    profile = load_profile("linux-cpu" if precision == "float32" else "linux-cpu-fp16")
    return export_bundle(encoder, out, profile=profile, precision=precision, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def tiny_encoder() -> Callable[[str], TinyEncoder]:
    return TinyEncoder


@pytest.fixture(scope="session")
def delta_for() -> Callable[..., Delta]:
    return make_delta


@pytest.fixture(scope="session")
def export() -> Callable[..., Bundle]:
    return _export


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], tuple[TinyEncoder, Bundle]]:
    """(family, precision) -> the encoder and its Bundle, exported once per session."""
    made: dict[tuple[str, str], tuple[TinyEncoder, Bundle]] = {}

    def get(family: str, precision: str) -> tuple[TinyEncoder, Bundle]:
        if (family, precision) not in made:
            encoder = TinyEncoder(family)
            made[family, precision] = (encoder, _export(encoder, tmp_path_factory.mktemp("bundles") / "bundle", precision))
        return made[family, precision]

    return get
