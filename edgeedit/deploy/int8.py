"""Turns a float32 graph into one whose stored matrices are int8 codes behind DequantizeLinear, a scale per output channel.

Only weights are rounded; activations stay float32.  Static Q/DQ of activations was measured and left out: see DECISIONS.
Guarantees: only products of an activation and a stored matrix are touched; codes are symmetric (no zero point), so a patch can change them
by integer addition; the matrix keeps its name, and its scales are named after it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from edgeedit.deploy.codes import MAX_CODE, broadcast_scales
from edgeedit.errors import InputError

Array = np.ndarray[Any, Any]
_SUFFIX = "_scale"


@dataclass(frozen=True)
class Codes:
    """int8 `values` of one stored matrix, its float32 `scales` (one for each index of dimension `axis`), deployed as `name`."""

    values: Array
    scales: Array
    axis: int
    name: str

    def weights(self, tensor: str) -> Array:
        """scale * code, float32, as DequantizeLinear gives it."""
        wide: Array = (self.values * broadcast_scales(self.scales, self.axis, self.values.shape, tensor)).astype(np.float32)
        return wide


def quantise(model: onnx.ModelProto, arrays: Mapping[str, Array]) -> dict[str, Codes]:
    """Round the stored matrices of `model` in place; `arrays` are its float32 tensors by name.  Returns tensor name -> Codes.

    Raises InputError when the graph has no product with a stored matrix, or uses one in two ways."""
    axes = _output_axes(model, arrays)
    if not axes:
        raise InputError("cannot quantise the graph: expected products with stored matrices, got none", hint="export in float32 or float16")
    coded = {name: _round(arrays[name], axis, name) for name, axis in axes.items()}
    for tensor in model.graph.initializer:
        if tensor.name in coded:
            tensor.CopyFrom(numpy_helper.from_array(coded[tensor.name].values, tensor.name))
    nodes = []
    for name, codes in coded.items():
        model.graph.initializer.append(numpy_helper.from_array(codes.scales, codes.name))
        nodes.append(onnx.helper.make_node("DequantizeLinear", [name, codes.name], [f"{name}_wide"], name=f"{name}_wide", axis=codes.axis))
    for node in model.graph.node:
        node.input[:] = [f"{name}_wide" if name in coded else name for name in node.input]
    rest = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*nodes, *rest])
    return coded


def _output_axes(model: onnx.ModelProto, arrays: Mapping[str, Array]) -> dict[str, int]:
    """Stored matrix -> its dimension of output channels; a matrix with another use beside products keeps its values."""
    axes, other = dict[str, int](), set[str]()
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            if name not in arrays:
                continue
            if node.op_type not in ("MatMul", "Gemm") or place != 1 or arrays[name].ndim != 2:
                other.add(name)
                continue
            turned = node.op_type == "Gemm" and any(a.name == "transB" and a.i for a in node.attribute)
            axis = 0 if turned else 1
            if axes.setdefault(name, axis) != axis:
                raise InputError(f"cannot quantise {name}: expected one use, got two", hint="export in float32 or float16")
    return {name: axis for name, axis in axes.items() if name not in other}


def _round(array: Array, axis: int, name: str) -> Codes:
    top = np.abs(array).max(axis=1 - axis)
    scales = np.where(top > 0, top / MAX_CODE, 1).astype(np.float32)
    wide = broadcast_scales(scales, axis, array.shape, name)
    values = np.clip(np.rint(array / wide), -MAX_CODE, MAX_CODE).astype(np.int8)
    return Codes(values, scales, axis, name + _SUFFIX)
