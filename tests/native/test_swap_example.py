"""The example program on a Bundle exported from a transformers encoder: its features are those of Python's ONNX Runtime on the
materialised Bundle, before the swap and after it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import native_cases as cases
import numpy as np
import onnxruntime
import pytest

from edgeedit.bundle import Bundle
from edgeedit.catalog import load_profile, load_recipe
from edgeedit.delta import ExactPart, SparsePart, TensorDelta
from edgeedit.deploy.export import export_bundle
from edgeedit.digest import digest_array, fingerprint, tensor_digest
from edgeedit.encoder.load import finish
from edgeedit.patch.algebra_materialize import materialize_bundle
from edgeedit.patch.keys import public_half
from edgeedit.patch.read import read_unverified
from edgeedit.patch.write import PatchContent, build_patch
from edgeedit.rounding import apply_delta
from tests.support.tiny_dinov2 import SIZE, tiny_dinov2


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A small DINOv2 without weights of anybody, exported as for a camera."""
    encoder = finish(tiny_dinov2(7, blocks=1), load_recipe("dinov2"), SIZE)
    return export_bundle(encoder, tmp_path_factory.mktemp("swap") / "bundle", profile=load_profile("linux-cpu"), precision="float32")


def _patch(bundle: Bundle) -> bytes:
    """All that a patch can carry on two editable tensors."""
    rng, weights = np.random.default_rng(5), bundle.weights()
    deltas = []
    for tensor in [tensor for tensor in bundle.tensor_map.tensors if tensor.editable][:2]:
        size = int(np.prod(tensor.shape))
        index, places = (np.sort(rng.choice(size, size // share, replace=False)).astype(np.int64) for share in (4, 50))
        q = (rng.integers(1, 100, index.size) * rng.choice([-1, 1], index.size)).astype(np.int16)
        exact = ExactPart(places, rng.integers(1, 1 << 16, places.size))
        deltas.append(TensorDelta(tensor.name, tensor.shape, SparsePart(index, q, 2.0**-8), exact=exact))
    new = {delta.name: apply_delta(weights[delta.name], delta) for delta in deltas}
    result = fingerprint(tensor_digest(t.name, new.get(t.name, weights[t.name])) for t in bundle.tensor_map.tensors)
    before, after = ({name: digest_array(state[name]) for name in new} for state in (weights, new))
    expected = np.ones((1, bundle.output_width), np.float32)
    kinds = dict.fromkeys(new, "float32")
    content = PatchContent(
        bundle.fingerprint, result, "float32", bundle.recipe, deltas, before, after, kinds, expected, 1e-3, {"made": "for a test"}
    )
    return build_patch(content, [cases.KEY])


def _features(bundle: Bundle, frame: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(bundle.path / "model.onnx"), providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run([bundle.output_name], {bundle.input_name: frame})[0]
    return found


def test_the_example_gives_pythons_features_before_and_after_the_swap(native: Path, bundle: Bundle, tmp_path: Path) -> None:
    frame, data = bundle.probes()[:1], _patch(bundle)
    for name, content in (("key.pub", cases.public_pem()), ("fix.eep", data), ("frame", frame.tobytes())):
        (tmp_path / name).write_bytes(content)
    words = [str(native / "swap_example"), str(bundle.path), *(str(tmp_path / name) for name in ("key.pub", "fix.eep", "frame", "out"))]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    patch = read_unverified(data).verify([public_half(cases.KEY)])
    assert (done.returncode, done.stdout) == (0, f"runs generation {patch.manifest.result[:12]}\n"), done.stderr
    before, after = np.fromfile(tmp_path / "out", np.float32).reshape(2, 1, bundle.output_width)
    patched = materialize_bundle(bundle, [patch], tmp_path / "patched")
    np.testing.assert_allclose(before, _features(bundle, frame), rtol=0, atol=1e-6)
    np.testing.assert_allclose(after, _features(patched, frame), rtol=0, atol=1e-6)
    assert np.abs(after - before).max() > 0.1
    (tmp_path / "fix.eep").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    refused = subprocess.run(words, capture_output=True, text=True, check=False)
    assert refused.returncode == 5 and "digest differs" in refused.stderr
