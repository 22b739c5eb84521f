"""A timm vision transformer as a tower with the same face as a transformers one.

Guarantees: only plain vision transformers (class and patch tokens, global attention) are taken; a windowed or
convolutional model is refused by name.  timm and the torchvision that it imports are loaded only here.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from edgeedit.errors import InputError


class TimmTower(nn.Module):
    """Wraps a timm VisionTransformer: takes `pixel_values` (n, 3, side, side), gives `last_hidden_state` (n, tokens, width)."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.config = SimpleNamespace(
            num_hidden_layers=len(model.blocks),
            num_attention_heads=int(model.blocks[0].attn.num_heads),
            patch_size=int(model.patch_embed.patch_size[0]),
            image_size=int(model.patch_embed.img_size[0]),
            num_register_tokens=int(model.num_prefix_tokens) - 1,
        )

    def forward(self, pixel_values: torch.Tensor) -> SimpleNamespace:
        """Tokens after the final norm."""
        return SimpleNamespace(last_hidden_state=self.model.forward_features(pixel_values))


def timm_tower(source: str) -> TimmTower:
    """Build `ARCHITECTURE@CHECKPOINT` (a .safetensors or .pth state dict); raises InputError for anything but a plain ViT."""
    name, _, file = source.partition("@")
    if not file or not Path(file).is_file():
        hint = "for example vit_small_patch16_224@weights.safetensors"
        raise InputError(f"cannot load {source}: expected ARCHITECTURE@FILE, got no such checkpoint file", hint=hint)
    try:
        import timm
        from timm.models.vision_transformer import VisionTransformer
    except ImportError as error:
        raise InputError(f"timm is missing: expected timm and torchvision, got {error}", hint="pip install timm") from error
    try:
        model = timm.create_model(name, checkpoint_path=file)
    except (RuntimeError, OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"cannot load {source} with timm: expected an architecture and its weights, got {reason}") from error
    return plain(model, name, VisionTransformer)


def plain(model: Any, name: str, kind: type) -> TimmTower:
    """Wrap a plain ViT; raises InputError for other classes and for one without a class token."""
    if not isinstance(model, kind) or not getattr(model, "has_class_token", False):
        got = type(model).__name__
        got = type(model).__name__
        raise InputError(f"timm model {name} is not supported: expected a plain vision transformer with a class token, got {got}")
    return TimmTower(model)
