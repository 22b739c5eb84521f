"""Takes a ready ONNX graph that others exported (torch.onnx, TorchScript, optimum) and makes it ours, mapped by content.

Guarantees: one image input, renamed `pixels`, and one output, renamed `features`; each editable parameter of the encoder is held by exactly
one tensor that equals it bit for bit (plain or transposed), else InputError names it.  Does not run the graph.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import TensorProto

from edgeedit.deploy.graph import INPUT_NAME, OUTPUT_NAME, clean
from edgeedit.errors import InputError


def candidates(path: Path) -> Iterator[onnx.ModelProto]:
    """The graph once for each float32 output, that output alone left; the caller finds which of them are the features.

    Raises InputError when the file is no ONNX model or does not take float32 images (n, 3, h, w) alone."""
    try:
        model = onnx.load(str(path))
    except (OSError, ValueError, DecodeError, onnx.checker.ValidationError) as error:
        reason = str(error).strip().splitlines()[0][:160]
        raise InputError(f"cannot read {path}: expected an ONNX model, got {reason}", hint="give the .onnx file beside its data") from error
    stored = {tensor.name for tensor in model.graph.initializer}
    given = [value for value in model.graph.input if value.name not in stored]
    if len(given) != 1 or given[0].type.tensor_type.elem_type != TensorProto.FLOAT or len(given[0].type.tensor_type.shape.dim) != 4:
        names = ", ".join(value.name for value in given)
        raise InputError(f"wrong inputs of the graph: expected float32 images only, got {names}", hint="export the vision tower alone")
    outputs = [v.name for v in model.graph.output if v.type.tensor_type.elem_type == TensorProto.FLOAT]
    if not outputs:
        raise InputError("graph has no float32 output", hint="export with float32 features")
    for name in outputs:
        chosen = onnx.ModelProto()
        chosen.CopyFrom(model)
        kept = next(value for value in chosen.graph.output if value.name == name)
        alone = onnx.ValueInfoProto()
        alone.CopyFrom(kept)
        del chosen.graph.output[:]
        chosen.graph.output.append(alone)
        keep = [value for value in chosen.graph.input if value.name not in stored]
        del chosen.graph.input[:]
        chosen.graph.input.extend(keep)
        clean(chosen)
        _rename_ends(chosen, given[0].name, name)
        yield chosen


def _rename_ends(model: onnx.ModelProto, given: str, made: str) -> None:
    names = {given: INPUT_NAME, made: OUTPUT_NAME}
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    model.graph.input[0].name = INPUT_NAME
    model.graph.output[0].name = OUTPUT_NAME
