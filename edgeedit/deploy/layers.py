"""Compares two encoders layer by layer, to say where a deployed graph first drifts from its source.

Layers are the inputs of the patchable matrices, named by parameter: torch's module and the graph's node read the same tensor there,
whatever the exporter renamed, transposed or fused around them.  Guarantees: layers come in the order of computation; a layer
that one side lacks is left out, and none in common is an InputError.  Does not change either model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch

from edgeedit.bundle import MODEL_FILE, Bundle
from edgeedit.deploy.compare import Comparison, check_runnable, difference, run_session
from edgeedit.encoder.values import parameter_values, with_values
from edgeedit.errors import InputError

if TYPE_CHECKING:
    from edgeedit.encoder.encoder import Encoder

Array = np.ndarray[Any, Any]
OUTPUT = "output"
DRIFT = 0.999  # a layer drifts where the lowest cosine of a row is below this


@dataclass(frozen=True)
class Layer:
    """One compared place; `name` is a parameter whose input it is, or `output`."""

    name: str
    figures: Comparison

    def to_json(self) -> dict[str, Any]:
        """Plain JSON object."""
        return {"name": self.name, **asdict(self.figures)}


def torch_layers(encoder: Encoder, precision: str, pixels: Array) -> dict[str, Array]:
    """Parameter name -> input of its module, and `output`; float32 (n, values); weights rounded to `precision` (int8: not)."""
    twin = with_values(encoder, parameter_values(encoder, "float32" if precision == "int8" else precision))
    modules, found = dict(twin.wrapped.named_modules()), dict[str, Array]()

    def keep(name: str) -> Any:
        def hook(_: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            found[name] = inputs[0].float().numpy().reshape(len(pixels), -1)

        return hook

    hooks = [modules[n.removesuffix(".weight")].register_forward_pre_hook(keep(n)) for n in encoder.editable()]
    with torch.no_grad():
        output = twin(torch.from_numpy(np.ascontiguousarray(pixels))).numpy()
    for hook in hooks:
        hook.remove()
    return {**found, OUTPUT: output}


def graph_layers(bundle: Bundle, pixels: Array) -> dict[str, Array]:
    """The same of a Bundle's graph; raises InputError when ONNX Runtime refuses it, RefusedError for bfloat16."""
    check_runnable(bundle)
    model = onnx.load(str(bundle.path / MODEL_FILE), load_external_data=False)
    parameters = {t.name: t.parameter for t in bundle.tensor_map.tensors if t.editable}
    places: dict[str, str] = {}
    # An int8 matrix is read through its DequantizeLinear, one that is stored by rows through a Transpose.
    between = ("DequantizeLinear", "Transpose")
    parameters |= {n.output[0]: parameters[n.input[0]] for n in model.graph.node if n.op_type in between and n.input[0] in parameters}
    for node in model.graph.node:
        if node.op_type in between:
            continue
        for name in node.input:
            if name in parameters:
                places[parameters[name]] = next(other for other in node.input if other != name)
    kinds = {t.name: t.data_type for t in model.graph.initializer}
    kind = next(kinds[name] for name in parameters)
    kind = onnx.TensorProto.FLOAT if kind == onnx.TensorProto.INT8 else kind
    for place in dict.fromkeys(places.values()):
        model.graph.output.append(onnx.helper.make_tensor_value_info(place, kind, None))
    content = model.SerializeToString()
    names = [bundle.output_name, *dict.fromkeys(places.values())]
    rows = dict(zip(names, run_session(content, bundle.path, names, pixels), strict=True))
    layers = {parameter: rows[place].astype(np.float32).reshape(len(pixels), -1) for parameter, place in places.items()}
    return {**layers, OUTPUT: rows[bundle.output_name]}


def compare_layers(left: Mapping[str, Array], right: Mapping[str, Array]) -> tuple[Layer, ...]:
    """Each layer that both have, in the order of `left`; raises InputError when they share none but the output."""
    common = [name for name in left if name in right]
    if common == [OUTPUT] or not common:
        raise InputError("layers do not compare: expected parameters in common, got none", hint="compare models of one encoder family")
    return tuple(Layer(name, difference(left[name], right[name])) for name in common)


def first_drift(layers: tuple[Layer, ...]) -> str:
    """Name of the first layer whose lowest cosine is below 0.999, "" when none drifts."""
    return next((layer.name for layer in layers if layer.figures.cosine_min < DRIFT), "")
