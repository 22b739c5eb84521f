"""The vision tower inside a larger model, and the two changes that make any tower editable by one code.

Guarantees: a fused q/k/v matrix is split into three without changing its numbers; blocks that the language model never
reads are cut off only after the cut tower gave, on an image, the very tokens that the language model reads.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from edgeedit.catalog import Recipe
from edgeedit.errors import InputError


def find_tower(model: nn.Module, recipe: Recipe) -> tuple[str, nn.Module]:
    """Prefix of the tower's parameter names (empty for a bare tower) and the tower; raises InputError when it is not there."""
    if not recipe.towers:
        return "", model
    for place in recipe.towers:
        try:
            return place + ".", model.get_submodule(place)
        except AttributeError:
            continue
    raise InputError(f"recipe {recipe.name} does not fit this model: expected a vision tower at {' or '.join(recipe.towers)}, got none")


class SplitQkv(nn.Module):
    """Three linear maps in place of one fused map whose rows are all queries, then all keys, then all values.

    Takes (..., width), gives (..., 3 * width) like the fused one; names `q_proj`, `k_proj`, `v_proj`."""

    def __init__(self, fused: nn.Linear) -> None:
        super().__init__()
        rows = fused.out_features // 3
        for number, name in enumerate(("q_proj", "k_proj", "v_proj")):
            part = nn.Linear(fused.in_features, rows, bias=fused.bias is not None)
            chosen = slice(number * rows, (number + 1) * rows)
            part.weight = nn.Parameter(fused.weight.detach()[chosen].clone())
            if fused.bias is not None:
                part.bias = nn.Parameter(fused.bias.detach()[chosen].clone())
            self.add_module(name, part)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Queries, keys and values side by side."""
        return torch.cat([part(x) for part in self.children()], dim=-1)


def split_fused(tower: nn.Module) -> None:
    """Replace every fused `qkv` linear map of the tower in place, so that a head's rows have a matrix of their own."""
    for name, module in list(tower.named_modules()):
        if name.rpartition(".")[2] == "qkv" and isinstance(module, nn.Linear):
            parent = tower.get_submodule(name.rpartition(".")[0])
            parent.qkv = SplitQkv(module)


def cut_unread(tower: nn.Module, recipe: Recipe, side: int) -> None:
    """Cut the last `drop_blocks` blocks off in place; raises InputError when the rest does not end with the tokens that were read.

    A vision-language model that takes hidden state -1-n never reads the last n blocks.  The cut tower's output must be that
    hidden state exactly: a tower that normalises its output would feed the reader other tokens."""
    layers, place = _layers(tower, recipe)
    probe = torch.linspace(-1, 1, 3 * side * side).reshape(1, 3, side, side)
    with torch.no_grad():
        read = tower.eval()(pixel_values=probe, output_hidden_states=True).hidden_states[-1 - recipe.drop_blocks]
        parent = tower.get_submodule(place.rpartition(".")[0])
        setattr(parent, place.rpartition(".")[2], nn.ModuleList(list(layers)[: len(layers) - recipe.drop_blocks]))
        left = tower(pixel_values=probe).last_hidden_state
    if left.shape != read.shape or not torch.equal(left, read):
        raise InputError(
            f"tower cannot be cut for {recipe.name}: expected hidden state {-1 - recipe.drop_blocks} as its output, got other tokens",
            hint="this tower normalises its output; write a recipe that reads its last hidden state",
        )


def _layers(tower: nn.Module, recipe: Recipe) -> tuple[Any, str]:
    for pattern in recipe.names["fc1"]:
        place = pattern.partition(".{block}")[0]
        try:
            return tower.get_submodule(place), place
        except AttributeError:
            continue
    raise InputError(f"recipe {recipe.name} does not fit this model: expected blocks at one of {', '.join(recipe.names['fc1'])}")
