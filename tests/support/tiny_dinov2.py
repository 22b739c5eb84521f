"""A small DINOv2 of transformers with random weights."""

from __future__ import annotations

import torch
import transformers

SIZE = 28  # pixels of a side


def tiny_dinov2(seed: int, *, blocks: int = 2, biases: float = 0.0) -> transformers.Dinov2Model:
    """Four heads, width 32; `biases` is their spread: 0 leaves them at zero, as they are made."""
    torch.manual_seed(seed)
    shape = {"hidden_size": 32, "num_hidden_layers": blocks, "num_attention_heads": 4, "image_size": SIZE, "patch_size": 7}
    made = transformers.Dinov2Model(transformers.Dinov2Config(**shape))
    for name, value in made.named_parameters():
        if biases and name.endswith("bias"):
            torch.nn.init.normal_(value, std=biases)
    return made
