"""The room's reader agrees with a second one that was written from FORMAT.md alone, on random and on frozen patches."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeedit.delta import LowRankPart, SparsePart, TensorDelta
from edgeedit.patch.keys import public_half
from edgeedit.patch.read import Patch, read_unverified
from edgeedit.patch.write import PatchContent, build_patch
from edgeedit.rounding import legal_step

TESTS = Path(__file__).parents[2]
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(11, 43)))
GOLDEN_TRUST = [public_half(Ed25519PrivateKey.from_private_bytes(bytes(range(n, n + 32)))) for n in (1, 2)]
GOOD = sorted((TESTS / "golden").glob("v1-*.eep"))


@pytest.fixture(scope="module")
def second() -> ModuleType:
    """`tests/support/reader_v1.py`."""
    spec = importlib.util.spec_from_file_location("reader_v1", TESTS / "support" / "reader_v1.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _same(patch: Patch, other: dict[str, Any]) -> None:
    assert [t.name for t in patch.manifest.tensors] == list(other["tensors"])
    assert np.array_equal(patch.expected(), other["expected"])
    assert patch.manifest.provenance == other["manifest"]["provenance"]
    assert patch.manifest.probe.tolerance == float(other["manifest"]["probe"]["tolerance"])
    for tensor in patch.manifest.tensors:
        delta, found = patch.tensor_delta(tensor.name), other["tensors"][tensor.name]
        assert delta.shape == found["shape"]
        assert (delta.sparse is not None, delta.low_rank is not None) == ("q" in found, "a" in found)
        if delta.sparse is not None:
            assert np.array_equal(delta.sparse.index, found["index"])
            assert np.array_equal(delta.sparse.q, found["q"])
            assert delta.sparse.step == found["step"]
        if delta.low_rank is not None:
            assert all(np.array_equal(getattr(delta.low_rank, key), found[key]) for key in ("rows", "cols", "a", "b"))
            assert delta.low_rank.scale == found["scale"]


@st.composite
def deltas(draw: st.DrawFn) -> list[TensorDelta]:
    """One to four deltas: sparse of any rank up to 3, low rank on matrices, both."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    found = []
    for number in range(draw(st.integers(1, 4))):
        shape = tuple(draw(st.lists(st.integers(1, 12), min_size=1, max_size=3)))
        sparse, low = None, None
        if len(shape) == 2 and draw(st.booleans()):
            rows, cols = (np.sort(rng.choice(n, draw(st.integers(1, n)), replace=False)).astype(np.int64) for n in shape)
            rank = draw(st.integers(1, 5))
            a, b = (rng.integers(-128, 128, size).astype(np.int8) for size in ((rows.size, rank), (rank, cols.size)))
            low = LowRankPart(rows, cols, a, b, 2.0 ** draw(st.integers(-60, 20)))
        if low is None or draw(st.booleans()):
            size = int(np.prod(shape))
            index = np.sort(rng.choice(size, draw(st.integers(1, size)), replace=False)).astype(np.int64)
            q = rng.integers(1, draw(st.sampled_from([2, 128, 256])), index.size) * rng.choice([-1, 1], index.size)
            sparse = SparsePart(index, q.astype(np.int16), legal_step(draw(st.floats(1e-12, 1e3))))
        found.append(TensorDelta(f"{draw(st.text('aé. /', max_size=5))}{number}", shape, sparse, low))
    return found


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(deltas(), st.integers(1, 6), st.integers(1, 40), st.floats(1e-30, 1e30))
def test_random_patches(second: ModuleType, changes: list[TensorDelta], count: int, width: int, tolerance: float) -> None:
    digests = {d.name: f"{n:064x}" for n, d in enumerate(changes)}
    expected = np.round(np.linspace(-1, 1, count * width), 1).astype(np.float32).reshape(count, width)
    kinds = dict.fromkeys(digests, "float32")
    provenance = {"x": 0.1, "deep": [{"y": (1e-300, -0.0, None, True)}]}
    content = PatchContent("1" * 64, "2" * 64, "float32", "tiny", changes, digests, digests, kinds, expected, tolerance, provenance)
    data = build_patch(content, [KEY])
    patch = read_unverified(data).verify([public_half(KEY)])
    assert patch.manifest.provenance == {"x": "0.1", "deep": [{"y": ["1e-300", "-0.0", None, True]}]}
    assert patch.manifest.probe.tolerance == tolerance
    _same(patch, second.read(data))


@pytest.mark.parametrize("path", GOOD, ids=lambda path: path.stem)
def test_frozen_patches(second: ModuleType, path: Path) -> None:
    data = path.read_bytes()
    other = second.read(data)
    _same(read_unverified(data).verify(GOLDEN_TRUST, allow_test_keys=True), other)
    raw = {key.key_id: key.raw for key in GOLDEN_TRUST}
    for key_id, signature in other["slots"]:
        Ed25519PublicKey.from_public_bytes(raw[key_id]).verify(signature, other["message"])
