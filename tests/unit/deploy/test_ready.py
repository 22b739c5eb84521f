"""Graphs exported by others are mapped by content, agree with torch, and are refused by name when they do not hold the weights."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from edgeedit.bundle import verify_bundle
from edgeedit.catalog import load_profile
from edgeedit.deploy.compare import compare
from edgeedit.deploy.export import export_bundle
from edgeedit.encoder.encoder import Encoder
from edgeedit.errors import InputError


def export_elsewhere(encoder: Encoder, path: Path, *, dynamo: bool) -> Path:
    """The tower alone, as others export it: their names, several outputs."""

    class Tower(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tower = encoder.wrapped

        def forward(self, images: torch.Tensor) -> Any:
            found = self.tower(pixel_values=images)
            return found.last_hidden_state, found.image_embeds

    shapes: dict[str, Any] = (
        {"dynamic_shapes": ({0: torch.export.Dim("batch", min=1, max=64)},)} if dynamo else {"dynamic_axes": {"images": {0: "n"}}}
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = torch.onnx.export(
            Tower().eval(), (torch.zeros(2, 3, 28, 28),), None if dynamo else str(path), dynamo=dynamo, opset_version=18,
            input_names=["images"], output_names=["hidden", "embeds"], verbose=False, **shapes,
        )  # fmt: skip
    if dynamo and made is not None:
        made.save(str(path))
    return path


@pytest.mark.parametrize("dynamo", [True, False], ids=["torch.onnx", "TorchScript"])
def test_graph_of_another_exporter_is_taken(tiny_bundle: Any, tmp_path: Path, dynamo: bool) -> None:
    encoder, _ = tiny_bundle("clip", "float32")
    file = export_elsewhere(encoder, tmp_path / "theirs.onnx", dynamo=dynamo)
    bundle = export_bundle(encoder, tmp_path / "b", profile=load_profile("linux-cpu"), precision="float32", ready=file)
    verify_bundle(bundle)
    assert sorted(t.parameter for t in bundle.tensor_map.tensors if t.editable) == sorted(encoder.editable())
    assert compare(encoder, bundle).max_abs <= bundle.tolerance
    assert (bundle.input_name, bundle.output_name) == ("pixels", "features")


def test_graph_with_another_weight_is_refused_by_its_name(tiny_bundle: Any, tmp_path: Path) -> None:
    encoder, bundle = tiny_bundle("clip", "float32")
    name = bundle.tensor_map.by_parameter(encoder.fc1_name(1)).name
    model = onnx.load(str(bundle.path / "model.onnx"))
    tensor = next(t for t in model.graph.initializer if t.name == name)
    array = onnx.numpy_helper.to_array(tensor).copy()
    array[0, 0] = np.nextafter(array[0, 0], np.float32(9))
    tensor.CopyFrom(onnx.numpy_helper.from_array(array, name))
    onnx.save(model, str(tmp_path / "other.onnx"))
    with pytest.raises(InputError, match=encoder.fc1_name(1)):
        export_bundle(encoder, tmp_path / "b", profile=load_profile("linux-cpu"), precision="float32", ready=tmp_path / "other.onnx")
    assert not (tmp_path / "b").exists()


def test_file_that_is_no_graph_is_refused(tiny_bundle: Any, tmp_path: Path) -> None:
    encoder, _ = tiny_bundle("clip", "float32")
    (tmp_path / "x.onnx").write_bytes(b"\xff" * 40)
    with pytest.raises(InputError, match="expected an ONNX model"):
        export_bundle(encoder, tmp_path / "b", profile=load_profile("linux-cpu"), precision="float32", ready=tmp_path / "x.onnx")
