"""Random Bundles and patches for the native tests, made with the Python side alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edgeedit.bundle import DTYPES, Bundle, MappedTensor, Preprocess, TensorMap, save_bundle
from edgeedit.delta import ExactPart, LowRankPart, SparsePart, TensorDelta
from edgeedit.deploy.materialize import layout, write_tensors
from edgeedit.digest import digest_array, fingerprint, tensor_digest
from edgeedit.patch.write import PatchContent, build_patch
from edgeedit.rounding import apply_delta, narrow

Array = np.ndarray[Any, Any]
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(100, 132)))
SHAPES = {
    "bias ü \U0001f600": (7,),
    'a"quoted\\name': (12, 30),
    "blocks.0.fc1": (33, 17),
    "cube": (2, 3, 5),
    "lanes": (300, 517),  # long enough for streams of eight lanes
    "untouched": (64,),
}


def public_pem(key: Ed25519PrivateKey = KEY) -> bytes:
    """The .pub file of a key."""
    return key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def weights_by_rule(dtype: str, shape: tuple[int, ...]) -> Array:
    """The weights that tests/native/digest_many.cc makes: the same rule, written a second time."""
    i = np.arange(int(np.prod(shape)), dtype=np.uint64)
    mixed = (i * np.uint64(2654435761) & np.uint64(0xFFFFFFFF)).astype(np.uint32)
    if dtype == "float32":
        bits = (np.uint32(0x3A000000) + mixed % np.uint32(0x05000000) + ((mixed & np.uint32(1)) << np.uint32(31))).astype("<u4")
        return bits.view("<f4").reshape(shape)
    if dtype == "bfloat16":
        single = weights_by_rule("float32", shape).view("<u4")
        return (single >> np.uint32(16)).astype("<u2")
    if dtype == "int8":
        return (((mixed >> np.uint32(16)) % np.uint32(41)).astype(np.int64) - 20).astype(np.int8).reshape(shape)
    half = np.where(i % 10 == 9, mixed % 0x400, 0x1C00 + mixed % 0x1C00) | ((mixed >> 16) & 0x8000)
    return half.astype("<u2").view("<f2").reshape(shape)


def random_delta(rng: np.random.Generator, name: str, shape: tuple[int, ...], dtype: str = "float32") -> TensorDelta:
    """A sparse part, a low-rank part where the shape allows it, or both; corrections for a third of the floats, now and then alone; codes
    of int8 get small integers."""
    size = int(np.prod(shape))
    both = rng.integers(3) if len(shape) == 2 and dtype != "int8" else 0
    sparse = low = None
    if both != 1:
        index = np.sort(rng.choice(size, rng.integers(1, size + 1), replace=False)).astype(np.int64)
        limit = 35 if dtype == "int8" else 127 if rng.integers(2) else 255
        q = (rng.integers(1, limit + 1, index.size) * rng.choice([-1, 1], index.size)).astype(np.int16)
        step = 1.0 if dtype == "int8" else float(rng.integers(1, 1 << 16)) * 2.0 ** int(rng.integers(-34, -22))
        sparse = SparsePart(index, q, step)
    if both != 0:
        rank, height, width = int(rng.integers(1, 9)), *shape
        rows = np.sort(rng.choice(height, rng.integers(1, height + 1), replace=False)).astype(np.int64)
        cols = np.sort(rng.choice(width, rng.integers(1, width + 1), replace=False)).astype(np.int64)
        a, b = (rng.integers(-128, 128, size).astype(np.int8) for size in ((rows.size, rank), (rank, cols.size)))
        low = LowRankPart(rows, cols, a, b, 2.0 ** int(rng.integers(-26, -16)))
    exact = None
    if dtype != "int8" and rng.integers(3) == 0:
        index = np.sort(rng.choice(size, rng.integers(1, size + 1), replace=False)).astype(np.int64)
        top = 3 if rng.integers(2) else 120
        exact = ExactPart(index, rng.integers(1, top, index.size))  # upwards: no small weight wraps round to no number
        if rng.integers(4) == 0:
            sparse = low = None
    return TensorDelta(name, shape, sparse, low, exact)


def make_bundle(folder: Path, precision: str, seed: int) -> tuple[Bundle, dict[str, Array]]:
    """A Bundle of random weights; its graph is a stand-in, because the native side never opens it."""
    rng = np.random.default_rng(seed)
    folder.mkdir()
    if precision == "int8":
        weights = {name: rng.integers(-20, 21, shape).astype(np.int8) for name, shape in SHAPES.items()}
    else:
        weights = {name: narrow(rng.normal(0, 0.05, shape).astype(np.float32), DTYPES[precision]) for name, shape in SHAPES.items()}
    names = sorted(weights)
    offsets = layout([weights[name].nbytes for name in names])
    rows = tuple(
        MappedTensor(name, "", False, precision, SHAPES[name], offset, weights[name].nbytes, digest_array(weights[name]), True)
        for name, offset in zip(names, offsets, strict=True)
    )
    write_tensors(folder / "weights.bin", [(offset, weights[name]) for name, offset in zip(names, offsets, strict=True)])
    found = fingerprint(row.digest() for row in rows)
    picture = Preprocess(8, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    digests = ("0" * 64, "0" * 64)
    bundle = Bundle(
        folder, "clip", "0" * 64, precision, "linux-cpu", "x", (3, 8, 8), "y", 2, picture, 1e-3, *digests, found, TensorMap(rows)
    )
    save_bundle(bundle)
    return bundle, weights


def make_patch(weights: Mapping[str, Array], precision: str, seed: int, key: Ed25519PrivateKey = KEY) -> tuple[bytes, dict[str, Array]]:
    """A signed patch on `weights` that touches all but the last of SHAPES, and the weights that numpy makes of it."""
    rng = np.random.default_rng(seed)
    deltas = [random_delta(rng, name, SHAPES[name], precision) for name in list(SHAPES)[:-1]]
    new = dict(weights) | {delta.name: apply_delta(weights[delta.name], delta) for delta in deltas}
    before, after = ({d.name: digest_array(state[d.name]) for d in deltas} for state in (weights, new))
    parent, result = (fingerprint(tensor_digest(name, array) for name, array in state.items()) for state in (weights, new))
    expected = np.ones((1, 2), np.float32)
    kinds = dict.fromkeys(before, precision)
    return build_patch(
        PatchContent(parent, result, precision, "clip", deltas, before, after, kinds, expected, 1e-3, {"seed": seed}), [key]
    ), new
