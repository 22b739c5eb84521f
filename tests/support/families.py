"""One small random checkpoint per family of the catalogue, as its own library writes it to disk.

The checkpoints are the family's whole public model (a vision-language model with its language half where the recipe says
so), so that loading them takes the path that a user's checkpoint takes.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
import types
from pathlib import Path
from typing import Any

import torch
import transformers

SIDE = 28  # pixels; 2 x 2 patches of 14
VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": SIDE,
    "patch_size": 14,
}
TEXT: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
# family -> transformers model class; the tower's attribute is found by the recipe, not here
PLAIN = {
    "clip": ("CLIPVisionModelWithProjection", "CLIPVisionConfig", {**VISION, "projection_dim": 24}),
    "siglip": ("SiglipVisionModel", "SiglipVisionConfig", VISION),
    "dinov2": ("Dinov2Model", "Dinov2Config", {k: v for k, v in VISION.items() if k != "intermediate_size"}),
    "dinov3": ("DINOv3ViTModel", "DINOv3ViTConfig", {**VISION, "num_register_tokens": 2}),
    "vit": ("ViTModel", "ViTConfig", VISION),
}
FAMILIES = (*PLAIN, "llava", "paligemma", "smolvlm", "internvl", "timm-vit", "dinov2-tokens", "llava-tokens")


def _vlm(family: str) -> Any:
    t = transformers
    if family == "llava":
        clip = t.CLIPVisionConfig(**VISION)
        return t.LlavaForConditionalGeneration(t.LlavaConfig(vision_config=clip, text_config=t.LlamaConfig(**TEXT), image_token_index=63))
    if family == "paligemma":
        siglip = {**VISION, "vision_use_head": False, "model_type": "siglip_vision_model"}
        gemma = {**TEXT, "head_dim": 8, "model_type": "gemma"}
        config = t.PaliGemmaConfig(vision_config=siglip, text_config=gemma, projection_dim=32, image_token_index=63)
        return t.PaliGemmaForConditionalGeneration(config)
    if family == "smolvlm":
        return t.SmolVLMForConditionalGeneration(t.SmolVLMConfig(vision_config=VISION, text_config={**TEXT, "model_type": "llama"}))
    square = {**VISION, "image_size": [SIDE, SIDE], "patch_size": [14, 14]}
    return t.InternVLForConditionalGeneration(t.InternVLConfig(vision_config=square, text_config={**TEXT, "model_type": "qwen2"}))


def _scramble(model: Any) -> None:
    """Give every parameter its own small values: zero biases and unit gains would hide a confusion of equal tensors."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.02)


class _AnyName(type):
    """Classes whose every attribute is its own name: enough for enumerations that are only looked up at import."""

    def __getattr__(cls, name: str) -> str:
        return name


class _StandIn(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds any module below torchvision and fills it with empty classes."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> importlib.machinery.ModuleSpec | None:
        below = name.partition(".")[0] == "torchvision"
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if below else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        module = types.ModuleType(spec.name)
        module.__dict__["__version__"] = "0.0"
        module.__dict__["__getattr__"] = lambda name: _AnyName(name, (torch.nn.Module,), {}) if not name.startswith("__") else _absent(name)
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        """Nothing to run."""


def _absent(name: str) -> Any:
    raise AttributeError(name)


def without_torchvision() -> None:
    """Stand in for torchvision, which timm imports for its training transforms and a vision transformer never calls."""
    sys.meta_path.insert(0, _StandIn())


def timm_model() -> Any:
    """A plain three-block timm ViT, and the keyword arguments that make it."""
    from timm.models.vision_transformer import VisionTransformer

    torch.manual_seed(0)
    return VisionTransformer(
        img_size=SIDE, patch_size=14, embed_dim=32, depth=3, num_heads=4, mlp_ratio=2, num_classes=0, global_pool="token"
    ).eval()


def save_checkpoint(family: str, folder: Path) -> Any:
    """Write the family's small random model into `folder` and return it in evaluation mode."""
    torch.manual_seed(0)
    family = family.removesuffix("-tokens")  # another recipe for the same checkpoints
    if family in PLAIN:
        kind, config, values = PLAIN[family]
        model = getattr(transformers, kind)(getattr(transformers, config)(**values))
    else:
        model = _vlm(family)
    _scramble(model)
    model.eval().save_pretrained(folder)
    return model
