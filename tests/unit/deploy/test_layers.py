"""Layer by layer: an honest export drifts nowhere, a spoiled tensor is named at the first place that it reaches."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeedit.bundle import load_bundle
from edgeedit.deploy.layers import compare_layers, first_drift, graph_layers, torch_layers
from edgeedit.deploy.materialize import write_weights
from edgeedit.errors import InputError


@pytest.mark.parametrize("family", ["dinov2", "clip"])
def test_honest_export_drifts_nowhere(tiny_bundle: Any, family: str) -> None:
    encoder, bundle = tiny_bundle(family, "float32")
    pixels = bundle.probes()[:3]
    layers = compare_layers(torch_layers(encoder, "float32", pixels), graph_layers(bundle, pixels))
    assert [layer.name for layer in layers][-1] == "output"
    assert {layer.name for layer in layers} == {*encoder.editable(), "output"}
    assert first_drift(layers) == "" and max(layer.figures.max_abs for layer in layers) < 1e-3


def test_spoiled_tensor_is_found_where_it_first_shows(tiny_bundle: Any, tmp_path: Path) -> None:
    encoder, bundle = tiny_bundle("clip", "float32")
    pixels = bundle.probes()[:3]
    weights = {name: np.array(array) for name, array in bundle.weights().items()}
    row = bundle.tensor_map.by_parameter(encoder.fc1_name(0))
    weights[row.name] *= np.float32(-9)
    write_weights(bundle, weights, tmp_path)
    spoiled = replace(load_bundle(bundle.path), path=tmp_path)
    layers = compare_layers(torch_layers(encoder, "float32", pixels), graph_layers(spoiled, pixels))
    first = first_drift(layers)
    assert "layers.1" in first  # its own input is still right; the next block reads the spoiled result
    sound = [layer.name for layer in layers[: [layer.name for layer in layers].index(first)]]
    assert encoder.fc1_name(0) in sound


def test_models_without_common_parameters_do_not_compare() -> None:
    with pytest.raises(InputError, match="in common"):
        compare_layers({"a": np.zeros((1, 2)), "output": np.zeros((1, 2))}, {"b": np.zeros((1, 2)), "output": np.zeros((1, 2))})
