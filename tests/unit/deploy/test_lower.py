"""A lowered Delta makes the deployed graph compute what torch computes with the edited weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from edgeedit.delta import Delta
from edgeedit.deploy.compare import run_encoder
from edgeedit.deploy.lower import lower
from edgeedit.deploy.materialize import write_weights
from edgeedit.deploy.probes import check_probes, edited_encoder, expectations
from edgeedit.digest import digest_array, fingerprint, tensor_digest
from edgeedit.encoder.values import parameter_values
from edgeedit.errors import InputError, MismatchError
from edgeedit.rounding import apply_delta


@pytest.mark.parametrize("family", ["dinov2", "clip", "siglip"])
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_patched_graph_equals_edited_encoder(tiny_bundle: Any, delta_for: Any, tmp_path: Path, family: str, precision: str) -> None:
    encoder, bundle = tiny_bundle(family, precision)
    delta = delta_for(encoder, precision)
    weights = bundle.weights()
    lowered = lower(delta, bundle, weights)
    graph = write_weights(bundle, {**weights, **lowered.new}, tmp_path / "generation")
    session = ort.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    got = session.run(None, {"pixels": bundle.probes()})[0]
    expected = expectations(encoder, delta, bundle)
    assert np.array_equal(expected, run_encoder(edited_encoder(encoder, delta, precision), bundle.probes()))
    # An edit scales the features; the tolerance was measured on the parent and is four times what was seen there.
    assert np.abs(got - expected).max() <= bundle.tolerance * (2 if precision == "float16" else 1)
    check_probes(expectations(encoder, None, bundle), expected, bundle.tolerance)


def test_transposed_square_matrices_follow_the_numpy_reference(tiny_bundle: Any, delta_for: Any) -> None:
    encoder, bundle = tiny_bundle("dinov2", "float16")
    delta = delta_for(encoder, "float16")
    lowered = lower(delta, bundle, bundle.weights())
    values = parameter_values(encoder, "float16")
    seen = 0
    for change in delta.tensors:
        tensor = bundle.tensor_map.by_parameter(change.name)
        new = apply_delta(values[change.name], change)
        assert np.array_equal(lowered.new[tensor.name], new.T if tensor.transposed else new)
        assert not np.array_equal(new, values[change.name])
        seen += tensor.transposed and tensor.shape[0] == tensor.shape[1]
    assert seen == 2


def test_fingerprints_cover_all_tensors(tiny_bundle: Any, delta_for: Any) -> None:
    encoder, bundle = tiny_bundle("clip", "float32")
    weights = bundle.weights()
    lowered = lower(delta_for(encoder), bundle, weights)
    assert lowered.parent == bundle.fingerprint
    assert lowered.result == fingerprint(tensor_digest(n, a) for n, a in {**weights, **lowered.new}.items()) != lowered.parent
    for name, array in lowered.new.items():
        assert (lowered.before[name], lowered.after[name]) == (digest_array(weights[name]), digest_array(array))
        assert lowered.dtypes[name] == "float32"
    # A second patch starts where the first ended, and neither changed the bundle.
    second = lower(delta_for(encoder, step=0.0625), bundle, {**weights, **lowered.new})
    assert second.parent == lowered.result
    assert lower(delta_for(encoder), bundle, bundle.weights()).result == lowered.result


def test_what_does_not_belong_together_is_refused(tiny_bundle: Any, delta_for: Any) -> None:
    encoder, bundle = tiny_bundle("clip", "float32")
    delta, weights = delta_for(encoder), bundle.weights()
    made_for = dict(delta.info["encoder"])
    with pytest.raises(MismatchError, match="source_digest"):
        lower(Delta(delta.tensors, {"encoder": {**made_for, "source_digest": "0" * 64}}), bundle, weights)
    with pytest.raises(MismatchError, match="expected encoder precision float32, got float16"):
        lower(Delta(delta.tensors, {"encoder": {**made_for, "precision": "float16"}}), bundle, weights)
    with pytest.raises(MismatchError, match="source_digest"):
        lower(Delta(delta.tensors), bundle, weights)

    def with_first(**changes: Any) -> Delta:
        return Delta((replace(delta.tensors[0], **changes),), delta.info)

    height, width = delta.tensors[0].shape
    with pytest.raises(MismatchError, match="expected shape"):
        lower(with_first(shape=(width, height)), bundle, weights)
    frozen = delta.tensors[0].name.replace("fc1", "fc2")
    with pytest.raises(MismatchError, match="may not be edited"):
        lower(with_first(name=frozen, shape=(width, height)), bundle, weights)
    with pytest.raises(InputError, match="not in the bundle: got nonsense"):
        lower(with_first(name="nonsense"), bundle, weights)
    with pytest.raises(MismatchError, match="delta does not fit the encoder"):
        edited_encoder(encoder, with_first(name="nonsense"), "float32")
    with pytest.raises(MismatchError, match="weights do not fit the bundle"):
        lower(delta, bundle, {n: a for n, a in weights.items() if n != bundle.tensor_map.by_parameter(delta.tensors[0].name).name})
    with pytest.raises(MismatchError, match="weights do not fit the bundle"):
        lower(delta, bundle, {n: a.astype(np.float16) for n, a in weights.items()})
