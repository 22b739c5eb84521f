"""The ONNX graph of a Bundle: traced from torch, cleaned, renamed, its float tensors moved to `weights.bin`.

Guarantees: dynamic batch, input `pixels`, output `features`, both float32; no source path or docstring of the tracing
machine stays in the file; integer and boolean tensors stay inline, because ONNX Runtime needs them for shapes.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import nn

from edgeedit.bundle import WEIGHTS_FILE, MappedTensor
from edgeedit.errors import InputError

if TYPE_CHECKING:
    from edgeedit.encoder.encoder import Encoder

Array = np.ndarray[Any, Any]
INPUT_NAME, OUTPUT_NAME = "pixels", "features"
TORCH_DTYPES: Mapping[str, torch.dtype] = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
ONNX_TYPES: Mapping[str, int] = {
    "float32": onnx.TensorProto.FLOAT,
    "float16": onnx.TensorProto.FLOAT16,
    "bfloat16": onnx.TensorProto.BFLOAT16,
    "int8": onnx.TensorProto.INT8,
}
_CHATTY = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")
_BFLOAT16 = onnx.TensorProto.BFLOAT16
_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, _BFLOAT16)


class Borders(nn.Module):
    """An encoder that computes in `dtype` between float32 borders: pixels (n, 3, s, s) -> features (n, width)."""

    def __init__(self, encoder: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.encoder, self.dtype = encoder, dtype

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Features, float32."""
        features: torch.Tensor = self.encoder(pixels.to(self.dtype))
        return features.to(torch.float32)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    # The exporter reports its own progress and internal deprecations, which say nothing about the user's model.
    loggers = [logging.getLogger(name) for name in _CHATTY]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def trace(encoder: Encoder, size: int, precision: str, opset: int) -> onnx.ModelProto:
    """The optimised graph of an encoder whose weights already are in `precision`; `size` is the image side in pixels.

    Raises InputError when torch cannot export it with a free batch.
    """
    module = Borders(encoder, TORCH_DTYPES[precision]).eval()
    # Two images: torch would bake a batch of one into the graph.
    example = torch.zeros(2, 3, size, size)
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                module,
                (example,),
                dynamo=True,
                optimize=True,
                opset_version=opset,
                input_names=[INPUT_NAME],
                output_names=[OUTPUT_NAME],
                dynamic_shapes={"pixels": {0: torch.export.Dim("batch", min=1, max=65535)}},
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"cannot export the encoder: {reason}", hint="export needs a traceable encoder with a free batch") from error
    if program is None:
        raise InputError("cannot export the encoder: expected a graph, got none")
    model: onnx.ModelProto = program.model_proto
    clean(model)
    return model


def clean(model: onnx.ModelProto) -> None:
    """Remove what says where and how the graph was made, in place."""
    graph = model.graph
    del graph.value_info[:]
    for owner in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        owner.ClearField("metadata_props")
        owner.ClearField("doc_string")


def float_initialisers(model: onnx.ModelProto) -> dict[str, Array]:
    """Name -> array of each float32, float16 or bfloat16 (as uint16) initialiser that has elements."""
    return {t.name: _array(t) for t in model.graph.initializer if t.data_type in _FLOATS and 0 not in t.dims}


def _array(tensor: onnx.TensorProto) -> Array:
    array: Array = numpy_helper.to_array(tensor)
    return array.view(np.uint16) if tensor.data_type == _BFLOAT16 else array


def in_float32(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a bfloat16 graph that computes in float32, for a runtime without bfloat16; its initialisers keep no values."""
    single = onnx.TensorProto.FLOAT
    twin = onnx.ModelProto()
    twin.CopyFrom(model)
    for tensor in twin.graph.initializer:
        if tensor.data_type == _BFLOAT16:
            tensor.data_type = single
    for graph in _graphs(twin.graph):
        for attribute in (a for node in graph.node for a in node.attribute):
            if attribute.name in ("to", "dtype") and attribute.i == _BFLOAT16:
                attribute.i = single
            if attribute.HasField("t") and attribute.t.data_type == _BFLOAT16:
                attribute.t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(attribute.t).astype(np.float32)))
    return twin


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _graphs(inner)


def rename(model: onnx.ModelProto, names: Mapping[str, str]) -> None:
    """Rename initialisers (old -> new) and their uses, in place; raises InputError when a new name is already in use."""
    for tensor in model.graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    made = [tensor.name for tensor in model.graph.initializer] + [value.name for value in model.graph.input]
    for graph in _graphs(model.graph):
        for node in graph.node:
            node.input[:] = [names.get(name, name) for name in node.input]
            made += [name for name in node.output if name]
        for value in graph.output:
            value.name = names.get(value.name, value.name)
    if len(set(made)) != len(made):
        twice = min(name for name in set(made) if made.count(name) > 1)
        raise InputError(f"cannot name the deployed tensors: expected unique names, got {twice} twice")


def open_inputs(model: onnx.ModelProto, names: Collection[str]) -> None:
    """Make the initialisers `names` overridable graph inputs, in place; a plain session still runs with their stored values."""
    for tensor in model.graph.initializer:
        if tensor.name in names:
            model.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))


def store_rows(model: onnx.ModelProto, names: Collection[str]) -> frozenset[str]:
    """Store the matrices `names` (K, N) as (N, K), as torch does, and turn them in the graph, in place; the values are the caller's.

    Returns those that were: initialisers that nothing but matrix products read, as their second factor."""
    shapes = {tensor.name: tensor for tensor in model.graph.initializer if tensor.name in names and len(tensor.dims) == 2}
    fitting = {
        name
        for name in shapes
        if all(
            node.op_type == "MatMul" and [i for i, given in enumerate(node.input) if given == name] == [1]
            for node in model.graph.node
            if name in node.input
        )
    }
    nodes = []
    for node in model.graph.node:
        for name in fitting.intersection(node.input):
            turned = f"{node.output[0]}::turned"
            nodes.append(onnx.helper.make_node("Transpose", [name], [turned], perm=[1, 0]))
            node.input[1] = turned
        nodes.append(node)
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    for name in fitting:
        shapes[name].dims[:] = list(shapes[name].dims)[::-1]
    return frozenset(fitting)


def fix_batch(model: onnx.ModelProto, batch: int) -> None:
    """Fix the number of images of input and output at `batch`, in place; the nodes stay free of it."""
    for value in (model.graph.input[0], *model.graph.output):
        value.type.tensor_type.shape.dim[0].Clear()
        value.type.tensor_type.shape.dim[0].dim_value = batch


def externalise(model: onnx.ModelProto, tensors: Mapping[str, MappedTensor]) -> bytes:
    """The file content of the graph with the data of `tensors` (by name) referred to in `weights.bin`."""
    for proto in model.graph.initializer:
        if proto.name not in tensors:
            continue
        row = tensors[proto.name]
        for field in ("raw_data", "float_data", "int32_data"):
            proto.ClearField(field)
        proto.data_location = onnx.TensorProto.EXTERNAL
        del proto.external_data[:]
        for key, value in (("location", WEIGHTS_FILE), ("offset", row.offset), ("length", row.length)):
            proto.external_data.add(key=key, value=str(value))
        if proto.data_type != ONNX_TYPES[row.dtype]:
            raise InputError(f"cannot write {row.name}: expected {row.dtype} in the graph")
    content: bytes = model.SerializeToString(deterministic=True)
    return content
