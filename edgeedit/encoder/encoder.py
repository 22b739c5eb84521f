"""`Encoder`: a vision tower of one recipe at one fixed image size, with named blocks, heads and first FFN matrices.

Guarantees: `forward` maps normalised float32 pixels (n, 3, s, s) to float32 features (n, width); parameter names are those
of the wrapped transformers model.  Does not train and does not know about patches.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from edgeedit.bundle import Preprocess
from edgeedit.catalog import Recipe
from edgeedit.digest import fingerprint, tensor_digest
from edgeedit.errors import InputError


class Encoder(nn.Module):
    """A vision encoder.  `wrapped` is the transformers model; `names` maps q, k, v, fc1 ... to module name patterns."""

    def __init__(self, wrapped: nn.Module, recipe: Recipe, size: int) -> None:
        super().__init__()
        self.wrapped = wrapped.eval()
        self.recipe = recipe
        pre = recipe.preprocess
        self.preprocess = Preprocess(size, pre.mean, pre.std)
        config: Any = wrapped.config
        # Blocks that no reader ever reads were cut off, so that every block counted here reaches the features.
        self.blocks = int(config.num_hidden_layers) - recipe.drop_blocks
        self.heads = int(config.num_attention_heads)
        self.registers = int(getattr(config, "num_register_tokens", 0) or 0)
        patch = config.patch_size
        self.side = size // int(patch[0] if isinstance(patch, (list, tuple)) else patch)  # patches of one side
        if recipe.output == "patch-tokens" and (recipe.pool < 1 or self.side % recipe.pool):
            raise InputError(f"recipe {recipe.name} does not fit: expected a pool that divides {self.side} patches, got {recipe.pool}")
        self.tokens = (self.side // recipe.pool) ** 2 if recipe.output == "patch-tokens" else 1  # features are this many rows
        self.names = {part: self._pattern(part) for part in ("q", "k", "v", "fc1")}
        with torch.no_grad():
            self.width = int(self(torch.zeros(1, 3, size, size)).shape[1])

    def _pattern(self, part: str) -> str:
        known = self.parameters_by_name()
        for pattern in self.recipe.names[part]:
            if pattern.format(block=0) + ".weight" in known:
                return pattern
        raise InputError(
            f"recipe {self.recipe.name} does not fit this model: expected one of {', '.join(self.recipe.names[part])} for {part}",
            hint="write a recipe with this model's module names",
        )

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Features of normalised pixels."""
        found = self.wrapped(pixel_values=pixels)
        if self.recipe.output != "pooled":
            tokens = found.last_hidden_state
            patches = tokens[:, self.recipe.skip + self.registers :]
            if self.recipe.output == "patch-tokens":
                return self._side_by_side(patches)
            patches = patches.mean(dim=1)
            return torch.cat([tokens[:, 0], patches], dim=1) if self.recipe.output == "cls+mean" else patches
        pooled = getattr(found, "image_embeds", None)
        features: torch.Tensor = found.pooler_output if pooled is None else pooled
        return features

    def _side_by_side(self, patches: torch.Tensor) -> torch.Tensor:
        """(n, side * side, width) -> (n, tokens * width), row by row of the picture; neighbours are averaged."""
        pool, width = self.recipe.pool, patches.shape[-1]
        if pool > 1:
            cells = self.side // pool
            patches = patches.reshape(-1, cells, pool, cells, pool, width).mean(dim=4).mean(dim=2)
        return patches.reshape(-1, self.tokens * width)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    def parameters_by_name(self) -> dict[str, nn.Parameter]:
        """Name -> parameter of the wrapped model."""
        return dict(self.wrapped.named_parameters())

    def fc1_name(self, block: int) -> str:
        """Name of a block's first FFN weight, shape (hidden, model width)."""
        return self.names["fc1"].format(block=block) + ".weight"

    def block_names(self) -> list[str]:
        """Module names of the blocks, first to last."""
        prefix = self.names["fc1"].split("{block}")[0]
        return [f"{prefix}{block}" for block in range(self.blocks)]

    def qkv_names(self, block: int) -> tuple[str, str, str]:
        """Names of a block's query, key and value weights, each (model width, model width)."""
        query, key, value = (self.names[part].format(block=block) + ".weight" for part in ("q", "k", "v"))
        return query, key, value

    def head_rows(self, head: int) -> slice:
        """Rows of q, k and v that belong to a head."""
        rows = self.wrapped.get_parameter(self.qkv_names(0)[0]).shape[0] // self.heads
        return slice(head * rows, (head + 1) * rows)

    def editable(self) -> tuple[str, ...]:
        """Parameters that an edit may touch: every fc1, q, k and v weight."""
        return tuple(name for block in range(self.blocks) for name in (self.fc1_name(block), *self.qkv_names(block)))

    def source_digest(self) -> str:
        """Fingerprint over all parameters at full precision."""
        return fingerprint(tensor_digest(name, p.detach().float().cpu().numpy()) for name, p in self.parameters_by_name().items())
