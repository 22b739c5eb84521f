"""A hand-made Bundle (two matrices) and signed patches for it; needs onnx to write the graph, never torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from onnx import TensorProto, helper

from edgeedit.bundle import Bundle, MappedTensor, Preprocess, TensorMap, save_bundle
from edgeedit.delta import LowRankPart, SparsePart, TensorDelta
from edgeedit.digest import TensorDigest, digest_array, digest_file, fingerprint
from edgeedit.patch.keys import load_private_key, new_key
from edgeedit.patch.write import PatchContent, build_patch
from edgeedit.rounding import apply_delta

Array = np.ndarray[Any, Any]
SHAPES = {"first": (48, 32), "second": (32, 8), "bias": (32,)}
EDITABLE = ("first", "second")


def forward(weights: dict[str, Array], pixels: Array) -> Array:
    """The same network in numpy."""
    hidden = np.maximum(pixels.reshape(len(pixels), -1) @ weights["first"] + weights["bias"], 0)
    features: Array = hidden @ weights["second"]
    return features


def _graph(folder: Path, rows: list[MappedTensor]) -> None:
    nodes = [
        helper.make_node("Reshape", ["pixels", "shape"], ["flat"]),
        helper.make_node("MatMul", ["flat", "first"], ["a"]),
        helper.make_node("Add", ["a", "bias"], ["b"]),
        helper.make_node("Relu", ["b"], ["c"]),
        helper.make_node("MatMul", ["c", "second"], ["features"]),
    ]
    tensors = []
    for row in rows:
        tensor = TensorProto(name=row.name, data_type=TensorProto.FLOAT, dims=row.shape, data_location=TensorProto.EXTERNAL)
        for key, value in (("location", "weights.bin"), ("offset", str(row.offset)), ("length", str(row.length))):
            tensor.external_data.add(key=key, value=value)
        tensors.append(tensor)
    tensors.append(helper.make_tensor("shape", TensorProto.INT64, [2], [0, -1]))
    given = helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["n", 3, 4, 4])
    made = helper.make_tensor_value_info("features", TensorProto.FLOAT, ["n", 8])
    model = helper.make_model(
        helper.make_graph(nodes, "tiny", [given], [made], tensors), opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    onnx.save(model, str(folder / "model.onnx"))


def make_bundle(folder: Path, shapes: dict[str, tuple[int, ...]] = SHAPES) -> Bundle:
    """Write the tiny Bundle, or one of other widths."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    weights = {name: rng.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}
    rows, content = [], b""
    for name in sorted(weights):
        data = weights[name].tobytes()
        rows.append(
            MappedTensor(name, name, False, "float32", shapes[name], len(content), len(data), digest_array(weights[name]), name in EDITABLE)
        )
        content += data + b"\0" * (-len(data) % 4096)
    (folder / "weights.bin").write_bytes(content)
    _graph(folder, rows)
    np.save(folder / "probes.npy", rng.normal(size=(4, 3, 4, 4)).astype(np.float32))
    bundle = Bundle(
        folder, "tiny", "0" * 64, "float32", "linux-cpu", "pixels", (3, 4, 4), "features", 8,
        Preprocess(4, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)), 1e-4, digest_file(folder / "model.onnx"), digest_file(folder / "probes.npy"),
        fingerprint(r.digest() for r in rows), TensorMap(tuple(rows)),
    )  # fmt: skip
    save_bundle(bundle)
    return bundle


def random_deltas(seed: int) -> list[TensorDelta]:
    """A sparse change of `first`, a low-rank change of `second`."""
    rng = np.random.default_rng(seed)
    index = np.sort(rng.choice(48 * 32, 150, replace=False)).astype(np.int64)
    sparse = SparsePart(index, rng.choice(np.array([-9, -2, 3, 11], np.int16), 150), 2.0**-6)
    low = LowRankPart(
        np.arange(4, 12, dtype=np.int64),
        np.arange(8, dtype=np.int64),
        rng.integers(-90, 90, (8, 2)).astype(np.int8),
        rng.integers(-90, 90, (2, 8)).astype(np.int8),
        2.0**-14,
    )
    return [TensorDelta("first", (48, 32), sparse=sparse), TensorDelta("second", (32, 8), low_rank=low)]


@dataclass
class World:
    """A Bundle, its signer, and the weights that the server thinks are deployed."""

    bundle: Bundle
    key: Ed25519PrivateKey
    public: Path
    weights: dict[str, Array]

    def patch(self, seed: int, *, wrong_probe: bool = False, key: Ed25519PrivateKey | None = None, **changes: Any) -> bytes:
        """A signed patch on the present weights, which then become the patched ones; `changes` replace fields of its content."""
        deltas = random_deltas(seed)
        new = {d.name: apply_delta(self.weights[d.name], d) for d in deltas}
        before = {d.name: digest_array(self.weights[d.name]) for d in deltas}
        parent = self.mark(self.weights)
        self.weights = {**self.weights, **new}
        expected = forward(self.weights, self.bundle.probes()).astype(np.float32) + np.float32(1.0 if wrong_probe else 0.0)
        content = PatchContent(
            parent=parent, result=self.mark(self.weights), precision="float32", recipe="tiny", deltas=deltas, before=before,
            after={n: digest_array(a) for n, a in new.items()}, dtypes=dict.fromkeys(new, "float32"), expected=expected, tolerance=1e-4,
            provenance={"seed": seed},
        )  # fmt: skip
        return build_patch(replace(content, **changes), [key or self.key])

    @staticmethod
    def mark(weights: dict[str, Array]) -> str:
        """Fingerprint of deployed weights."""
        return fingerprint(TensorDigest(n, "float32", tuple(a.shape), digest_array(a)) for n, a in weights.items())


def _world(folder: Path, shapes: dict[str, tuple[int, ...]] = SHAPES) -> World:
    bundle = make_bundle(folder / "bundle", shapes)
    private, public = folder / "ml.key", folder / "ml.pub"
    new_key(private, public)
    return World(bundle, load_private_key(private), public, {n: np.array(a) for n, a in bundle.weights().items()})


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A fresh bundle and key."""
    return _world(tmp_path)


@pytest.fixture(scope="module")
def wide_world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """One with a layer of 3 million weights."""
    width = 65_536
    return _world(tmp_path_factory.mktemp("wide"), {"first": (48, width), "second": (width, 8), "bias": (width,)})


@pytest.fixture
def tree() -> Callable[[Path], dict[str, bytes]]:
    """All files of a store, byte for byte."""
    return lambda path: {str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


@pytest.fixture
def reference() -> Callable[[dict[str, Array], Array], Array]:
    """The network in numpy."""
    return forward
