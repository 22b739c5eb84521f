"""The room's reader agrees with a second one that was written from FORMAT.md alone, on random and on frozen patches."""

from __future__ import annotations

import importlib.util
import struct
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeedit.bundle import DTYPES
from edgeedit.codec.probes import round_probes
from edgeedit.delta import ExactPart, LowRankPart, SparsePart, TensorDelta
from edgeedit.digest import TensorDigest, fingerprint
from edgeedit.errors import IntegrityError
from edgeedit.patch.keys import public_half
from edgeedit.patch.read import Patch, read_unverified
from edgeedit.patch.write import PatchContent, build_patch
from edgeedit.rounding import legal_step, narrow

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


def _base(dtype: str, shape: tuple[int, ...]) -> Any:
    """Codes that any |q| <= 20 fits, or finite floats of many magnitudes, in the numpy dtype that carries `dtype`."""
    rng = np.random.default_rng(int(np.prod(shape)))
    if dtype == "int8":
        return rng.integers(-100, 101, shape).astype(np.int8)
    return narrow((rng.normal(0, 1, shape) * 2.0 ** rng.integers(-12, 3, shape)).astype(np.float32), DTYPES[dtype])


def _same(patch: Patch, other: dict[str, Any]) -> None:
    assert [t.name for t in patch.manifest.tensors] == list(other["tensors"])
    assert np.array_equal(patch.expected(), other["expected"])
    assert patch.manifest.provenance == other["manifest"]["provenance"]
    assert patch.manifest.probe.tolerance == float(other["manifest"]["probe"]["tolerance"])
    for tensor in patch.manifest.tensors:
        delta, found = patch.tensor_delta(tensor.name), other["tensors"][tensor.name]
        assert (delta.shape, tensor.dtype) == (found["shape"], found["dtype"])
        assert (delta.sparse is not None, delta.low_rank is not None) == ("q" in found, "a" in found)
        if delta.sparse is not None:
            assert np.array_equal(delta.sparse.index, found["index"])
            assert np.array_equal(delta.sparse.q, found["q"])
            assert delta.sparse.step == found["step"]
        if delta.low_rank is not None:
            assert all(np.array_equal(getattr(delta.low_rank, key), found[key]) for key in ("rows", "cols", "a", "b"))
            assert delta.low_rank.scale == found["scale"]
        assert (delta.exact is not None) == ("difference" in found)
        if delta.exact is not None:
            assert np.array_equal(delta.exact.index, found["exact_index"])
            assert np.array_equal(delta.exact.difference, found["difference"])


def _same_result(patch: Patch, second: ModuleType, other: dict[str, Any]) -> None:
    """What the room's core makes of a tensor is what the second reader makes of its bytes; a refusal is one of both."""
    for row in patch.manifest.tensors:
        base = _base(row.dtype, row.shape)
        try:
            new = patch.apply(row.name, base)
        except IntegrityError:  # a result that is not finite, or no code
            if row.dtype == "int8":
                with pytest.raises(struct.error):
                    second.apply(other["tensors"][row.name], base.tobytes())
            continue
        assert second.apply(other["tensors"][row.name], base.tobytes()) == new.tobytes()


@st.composite
def deltas(draw: st.DrawFn, codes: bool = False) -> list[TensorDelta]:
    """One to four deltas: sparse of any rank up to 3, low rank on matrices, both; for `codes` small integers alone."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    found = []
    for number in range(draw(st.integers(1, 4))):
        shape = tuple(draw(st.lists(st.integers(1, 12), min_size=1, max_size=3)))
        sparse, low = None, None
        if len(shape) == 2 and not codes and draw(st.booleans()):
            rows, cols = (np.sort(rng.choice(n, draw(st.integers(1, n)), replace=False)).astype(np.int64) for n in shape)
            rank = draw(st.integers(1, 5))
            a, b = (rng.integers(-128, 128, size).astype(np.int8) for size in ((rows.size, rank), (rank, cols.size)))
            low = LowRankPart(rows, cols, a, b, 2.0 ** draw(st.integers(-60, 20)))
        if low is None or draw(st.booleans()):
            size = int(np.prod(shape))
            index = np.sort(rng.choice(size, draw(st.integers(1, size)), replace=False)).astype(np.int64)
            top = draw(st.sampled_from([2, 21] if codes else [2, 128, 256]))
            q = rng.integers(1, top, index.size) * rng.choice([-1, 1], index.size)
            sparse = SparsePart(index, q.astype(np.int16), 1.0 if codes else legal_step(draw(st.floats(1e-12, 1e3))))
        exact = None
        if not codes and draw(st.booleans()):
            size = int(np.prod(shape))
            index = np.sort(rng.choice(size, draw(st.integers(1, size)), replace=False)).astype(np.int64)
            top = draw(st.sampled_from([2, 300, 1 << 15]))
            exact = ExactPart(index, rng.integers(1, top, index.size) * rng.choice([-1, 1], index.size))
        found.append(TensorDelta(f"{draw(st.text('aé. /', max_size=5))}{number}", shape, sparse, low, exact))
    return found


def _kinds_and_deltas() -> st.SearchStrategy[tuple[str, list[TensorDelta]]]:
    return st.sampled_from(sorted(DTYPES)).flatmap(lambda dtype: st.tuples(st.just(dtype), deltas(dtype == "int8")))


@settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.too_slow])
@given(_kinds_and_deltas(), st.integers(1, 6), st.integers(1, 40), st.floats(1e-30, 1e30), st.booleans())
def test_random_patches(
    second: ModuleType, drawn: tuple[str, list[TensorDelta]], count: int, width: int, tolerance: float, plain: bool
) -> None:
    precision, changes = drawn
    digests = {d.name: f"{n:064x}" for n, d in enumerate(changes)}
    expected = np.round(np.linspace(-1, 1, count * width), 1).astype(np.float32).reshape(count, width)
    expected = round_probes(expected, tolerance)
    kinds = dict.fromkeys(digests, precision)
    provenance = {"x": 0.1, "deep": [{"y": (1e-300, -0.0, None, True)}]}
    content = PatchContent("1" * 64, "2" * 64, precision, "tiny", changes, digests, digests, kinds, expected, tolerance, provenance)
    data = build_patch(content, [KEY], plain=plain)
    patch = read_unverified(data).verify([public_half(KEY)])
    assert patch.manifest.provenance == {"x": "0.1", "deep": [{"y": ["1e-300", "-0.0", None, True]}]}
    assert patch.manifest.probe.tolerance == tolerance
    other = second.read(data)
    _same(patch, other)
    _same_result(patch, second, other)


@pytest.mark.parametrize("path", GOOD, ids=lambda path: path.stem)
def test_frozen_patches(second: ModuleType, path: Path) -> None:
    data = path.read_bytes()
    other = second.read(data)
    patch = read_unverified(data).verify(GOLDEN_TRUST, allow_test_keys=True)
    _same(patch, other)
    _same_result(patch, second, other)
    raw = {key.key_id: key.raw for key in GOLDEN_TRUST}
    for key_id, signature in other["slots"]:
        Ed25519PublicKey.from_public_bytes(raw[key_id]).verify(signature, other["message"])


def test_the_fingerprint_is_what_the_page_says(second: ModuleType) -> None:
    names = ['a"b\\', "größe", "\U0001f600", "\ufffd", "z/.", "a", "\x80"]
    rows = [(name, "float16", (n + 1,) * (n % 3 + 1), f"{n:064x}") for n, name in enumerate(names)]
    assert second.fingerprint(rows) == second.fingerprint(rows[::-1]) == fingerprint(TensorDigest(*row) for row in rows)
    assert second.fingerprint(rows[1:]) != second.fingerprint(rows)
