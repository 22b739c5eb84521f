"""A Bundle holds each editable parameter exactly once, computes what torch computes, and is whole or absent."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from edgeedit.bundle import Bundle, load_bundle, verify_bundle
from edgeedit.catalog import load_profile, load_recipe
from edgeedit.deploy.compare import compare
from edgeedit.deploy.export import export_bundle
from edgeedit.encoder.encoder import Encoder
from edgeedit.encoder.load import random_encoder
from edgeedit.encoder.values import parameter_values
from edgeedit.errors import InputError, RefusedError

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 28, "patch_size": 7}
FAMILIES = ("dinov2", "clip", "siglip")


def small_clip() -> Encoder:
    return random_encoder(load_recipe("clip"), {**SMALL, "intermediate_size": 64, "projection_dim": 24}, seed=7)


def plain_session(folder: Path) -> Any:
    return ort.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_map_is_complete_and_holds_the_values(tiny_bundle: Any, family: str, precision: str) -> None:
    encoder, bundle = tiny_bundle(family, precision)
    values, weights = parameter_values(encoder, precision), bundle.weights()
    mapped = [t for t in bundle.tensor_map.tensors if t.parameter]
    for tensor in mapped:
        value = values[tensor.parameter].T if tensor.transposed else values[tensor.parameter]
        assert np.array_equal(weights[tensor.name].reshape(-1), value.reshape(-1)), tensor.name
        assert tensor.name == tensor.parameter + ("::T" if tensor.transposed else "")
        assert tensor.offset % 4096 == 0
    assert sorted(t.parameter for t in mapped if t.editable) == sorted(encoder.editable())
    assert len({t.parameter for t in mapped}) == len(mapped)
    # All but what the forward pass never reads.
    assert set(values) - {t.parameter for t in mapped} <= {"embeddings.mask_token"}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("precision", "bound"), [("float32", 2e-5), ("float16", None)])
def test_graph_agrees_with_torch(tiny_bundle: Any, family: str, precision: str, bound: float | None) -> None:
    encoder, bundle = tiny_bundle(family, precision)
    found = compare(encoder, bundle)
    assert found.max_abs <= (bound or bundle.tolerance) and found.max_abs <= bundle.tolerance
    assert found.cosine_min > 0.999
    assert found.to_json()["max_abs"] == found.max_abs
    verify_bundle(load_bundle(bundle.path))
    assert load_bundle(bundle.path) == bundle


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_batch_is_free_in_plain_onnxruntime(tiny_bundle: Any, precision: str) -> None:
    encoder, bundle = tiny_bundle("dinov2", precision)
    pixels = bundle.probes()
    session = plain_session(bundle.path)
    together = session.run(["features"], {"pixels": pixels[:5]})[0]
    alone = np.concatenate([session.run(["features"], {"pixels": pixels[i : i + 1]})[0] for i in range(5)])
    assert together.shape == (5, encoder.width) and together.dtype == np.float32
    assert np.abs(together - alone).max() <= bundle.tolerance


def test_nudge_of_one_parameter_changes_one_tensor(tiny_bundle: Any, export: Any, tmp_path: Path) -> None:
    encoder, bundle = tiny_bundle("clip", "float32")
    before = {t.name: t.sha256 for t in bundle.tensor_map.tensors}
    bias = next(n for n in encoder.parameters_by_name() if n.endswith("layers.1.layer_norm2.bias"))  # zero, like every other bias
    nudged = copy.deepcopy(encoder)
    with torch.no_grad():
        nudged.parameters_by_name()[bias][3] += 0.5
    after = {t.name: t.sha256 for t in export(nudged, tmp_path / "b", "float32").tensor_map.tensors}
    assert before.keys() == after.keys()
    assert [name for name in before if before[name] != after[name]] == [bias]


def test_graph_file_is_clean_and_integers_stay_inline(tiny_bundle: Any) -> None:
    _, bundle = tiny_bundle("dinov2", "float32")
    content = (bundle.path / "model.onnx").read_bytes()
    assert b"site-packages" not in content and b".py" not in content and len(content) < 100_000
    for proto in onnx.load(str(bundle.path / "model.onnx"), load_external_data=False).graph.initializer:
        external = proto.data_location == onnx.TensorProto.EXTERNAL
        assert external == (proto.data_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16))


def test_same_encoder_gives_the_same_bundle(tiny_bundle: Any, export: Any, tmp_path: Path) -> None:
    encoder, bundle = tiny_bundle("siglip", "float32")
    again = export(encoder, tmp_path / "b", "float32")
    assert (again.fingerprint, again.graph_digest, again.probes_digest) == (
        bundle.fingerprint,
        bundle.graph_digest,
        bundle.probes_digest,
    )


def test_own_probes_are_kept_and_wrong_ones_refused(tiny_bundle: Any, export: Any, tmp_path: Path) -> None:
    encoder, _ = tiny_bundle("clip", "float32")
    own = np.random.default_rng(0).normal(size=(3, 3, 28, 28)).astype(np.float32)
    bundle: Bundle = export(encoder, tmp_path / "b", "float32", probes=own)
    assert np.array_equal(bundle.probes(), own)
    with pytest.raises(InputError, match="probes are not usable"):
        export(encoder, tmp_path / "c", "float32", probes=own[:, :, :14])
    with pytest.raises(InputError, match="expected a new or empty folder"):
        export(encoder, tmp_path / "b", "float32")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b"]


def test_unmapped_editable_parameter_is_named_and_nothing_is_left(tiny_bundle: Any, export: Any, tmp_path: Path) -> None:
    encoder = copy.deepcopy(tiny_bundle("dinov2", "float32")[0])
    encoder.editable = lambda: ("embeddings.mask_token",)  # the forward pass never reads it
    with pytest.raises(InputError, match=r"cannot map embeddings\.mask_token"):
        export(encoder, tmp_path / "b", "float32")
    assert not list(tmp_path.iterdir())


class Shifted(Encoder):
    """Adds a constant made of a bias that is zero like the others: the exporter folds it, stand-in values and all."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = super().forward(pixels)
        return features + (self.wrapped.layernorm.bias * 2 + 1).repeat(2)


def test_constant_folded_from_a_stand_in_is_not_shipped(tiny_bundle: Any, export: Any, tmp_path: Path) -> None:
    encoder = copy.deepcopy(tiny_bundle("dinov2", "float32")[0])
    encoder.__class__ = Shifted
    bundle = export(encoder, tmp_path / "b", "float32")
    assert compare(encoder, bundle).max_abs < 2e-5
    # Were that bias editable, a patch would reach its tensor but not the folded constant.
    encoder.editable = lambda: ("layernorm.bias",)
    with pytest.raises(InputError, match="graph disagrees with the encoder"):
        export(encoder, tmp_path / "c", "float32")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b"]


def test_inputs_mode_keeps_stored_values_and_takes_others(tmp_path: Path) -> None:
    encoder = small_clip()
    bundle = export_bundle(encoder, tmp_path / "b", profile=load_profile("linux-cpu-inputs"), precision="float32")
    editable = {t.name for t in bundle.tensor_map.tensors if t.editable}
    session = plain_session(bundle.path)
    assert editable == {value.name for value in session.get_overridable_initializers()}
    base = session.run(None, {"pixels": bundle.probes()})[0]
    name = sorted(editable)[0]
    moved = session.run(None, {"pixels": bundle.probes(), name: bundle.weights()[name] * 2})[0]
    assert not np.array_equal(base, moved)
    assert (load_bundle(bundle.path).mode, load_bundle(bundle.path).provider) == ("inputs", "CPUExecutionProvider")


def test_fixed_batch_is_in_the_graph_and_agrees(tmp_path: Path) -> None:
    encoder = small_clip()
    profile = replace(load_profile("linux-cpu"), batch=3)
    bundle = export_bundle(encoder, tmp_path / "b", profile=profile, precision="float32")
    assert plain_session(bundle.path).get_inputs()[0].shape[0] == 3
    assert compare(encoder, bundle).max_abs <= bundle.tolerance


def test_unsupported_device_is_refused_with_its_reason(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="JetPack 5") as caught:
        export_bundle(
            small_clip(),
            tmp_path / "b",
            profile=load_profile("jetson-xavier"),
            precision="float32",
        )
    assert caught.value.exit_code == 6 and not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("profile", "precision", "rows"),
    [
        ("linux-cpu", "float32", True),
        ("linux-cpu-inputs", "float32", True),
        ("linux-cpu-rebuild", "float32", False),
        ("linux-cpu-fp16", "float16", False),
    ],
)  # fmt: skip
def test_matrices_that_a_cpu_reads_in_place_are_stored_by_rows(tmp_path: Path, profile: str, precision: str, rows: bool) -> None:
    """And the engine's session has no Transpose of a weight left, which would cost each frame."""
    bundle = export_bundle(small_clip(), tmp_path / "b", profile=load_profile(profile), precision=precision)
    tensors = [t for t in bundle.tensor_map.tensors if t.editable]
    assert tensors and all(t.transposed is not rows for t in tensors)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.add_session_config_entry("session.disable_prepacking", "1")
    options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "optimised.onnx"), 3
    disabled = ["ConstantFolding", "NchwcTransformer"]
    ort.InferenceSession(str(bundle.path / "model.onnx"), options, providers=["CPUExecutionProvider"], disabled_optimizers=disabled)
    nodes = onnx.load(str(tmp_path / "optimised.onnx"), load_external_data=False).graph.node
    named = {t.name for t in tensors}
    assert not [n for n in nodes if n.op_type == "Transpose" and named & set(n.input)]
    assert named <= {name for n in nodes for name in n.input}


def test_a_matrix_that_something_else_reads_too_stays_as_it_is() -> None:
    from onnx import TensorProto, helper, numpy_helper

    from edgeedit.deploy.graph import store_rows

    values = {name: numpy_helper.from_array(np.ones((2, 3), np.float32), name) for name in ("product", "shared", "first")}
    nodes = [
        helper.make_node("MatMul", ["x", "product"], ["a"]),
        helper.make_node("MatMul", ["x", "shared"], ["b"]),
        helper.make_node("Add", ["shared", "shared"], ["c"]),
        helper.make_node("MatMul", ["first", "y"], ["d"]),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 2]), helper.make_tensor_value_info("y", TensorProto.FLOAT, [3, 1])]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "abcd"]
    model = helper.make_model(helper.make_graph(nodes, "g", inputs, outputs, list(values.values())))
    assert store_rows(model, ["product", "shared", "first", "absent"]) == {"product"}
    assert [n.op_type for n in model.graph.node] == ["Transpose", "MatMul", "MatMul", "Add", "MatMul"]
    assert {t.name: list(t.dims) for t in model.graph.initializer} == {"product": [3, 2], "shared": [2, 3], "first": [2, 3]}
