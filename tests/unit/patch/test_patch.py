"""Patches round trip; the bytes are repeatable; keys are made once and never readable by others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeedit.delta import LowRankPart, SparsePart, TensorDelta
from edgeedit.errors import InputError, IntegrityError
from edgeedit.patch.describe import describe
from edgeedit.patch.keys import load_private_key, load_trust, new_key, public_half
from edgeedit.patch.read import load_patch, read_unverified
from edgeedit.patch.write import PatchContent, build_patch, write_patch
from edgeedit.rounding import legal_step

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(9, 41)))


def _delta(rng: np.random.Generator, name: str) -> TensorDelta:
    height, width = int(rng.integers(1, 9)), int(rng.integers(1, 30))
    sparse, low = None, None
    if rng.random() < 0.7:
        count = int(rng.integers(1, height * width + 1))
        q = rng.integers(1, 128, count) * rng.choice([-1, 1], count)
        sparse = SparsePart(
            np.sort(rng.choice(height * width, count, replace=False)).astype(np.int64), q.astype(np.int16), legal_step(rng.random() + 1e-6)
        )
    if sparse is None or rng.random() < 0.5:
        rows = np.sort(rng.choice(height, int(rng.integers(1, height + 1)), replace=False)).astype(np.int64)
        cols = np.sort(rng.choice(width, int(rng.integers(1, width + 1)), replace=False)).astype(np.int64)
        rank = int(rng.integers(1, 4))
        a, b = rng.integers(-127, 128, (rows.size, rank)).astype(np.int8), rng.integers(-127, 128, (rank, cols.size)).astype(np.int8)
        low = LowRankPart(rows, cols, a, b, 2.0 ** int(rng.integers(-30, 5)))
    return TensorDelta(name, (height, width), sparse, low)


def _content(deltas: list[TensorDelta], seed: int = 0) -> PatchContent:
    rng = np.random.default_rng(seed)
    digests = {d.name: f"{number:064x}" for number, d in enumerate(deltas)}
    expected = rng.normal(size=(3, 5)).astype(np.float32)
    info = {"seed": seed, "share": 0.1, "note": "Größe"}
    return PatchContent(
        "1" * 64, "2" * 64, "float16", "tiny", deltas, digests, digests, dict.fromkeys(digests, "float16"), expected, 2.5e-3, info
    )


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 100_000))
def test_round_trip(seed: int) -> None:
    rng = np.random.default_rng(seed)
    deltas = [_delta(rng, f"block.{n}.weight::T") for n in range(int(rng.integers(1, 5)))]
    content = _content(deltas, seed)
    data = build_patch(content, [KEY])
    assert data == build_patch(content, [KEY])
    patch = read_unverified(data).verify([public_half(KEY)])
    assert (patch.manifest.parent, patch.manifest.result, patch.manifest.precision) == ("1" * 64, "2" * 64, "float16")
    assert patch.manifest.probe.tolerance == 2.5e-3
    assert np.array_equal(patch.expected(), content.expected)
    for delta in deltas:
        again = patch.tensor_delta(delta.name)
        assert again.shape == delta.shape
        assert (again.sparse is None, again.low_rank is None) == (delta.sparse is None, delta.low_rank is None)
        if delta.sparse is not None and again.sparse is not None:
            assert np.array_equal(again.sparse.index, delta.sparse.index)
            assert np.array_equal(again.sparse.q, delta.sparse.q)
            assert again.sparse.step == delta.sparse.step
        if delta.low_rank is not None and again.low_rank is not None:
            for field in ("rows", "cols", "a", "b"):
                assert np.array_equal(getattr(again.low_rank, field), getattr(delta.low_rank, field))
            assert again.low_rank.scale == delta.low_rank.scale


def test_two_signers_and_either_one_trusted() -> None:
    other = Ed25519PrivateKey.generate()
    data = build_patch(_content([_delta(np.random.default_rng(0), "w")]), [KEY, other])
    for key in (KEY, other):
        assert read_unverified(data).verify([public_half(key)]).signers == (public_half(key).key_id,)
    with pytest.raises(IntegrityError):
        read_unverified(data).verify([public_half(Ed25519PrivateKey.generate())])


def test_written_file_is_described(tmp_path: Path) -> None:
    private, public = tmp_path / "ml.key", tmp_path / "ml.pub"
    key_id = new_key(private, public)
    digest = write_patch(tmp_path / "p.eep", _content([_delta(np.random.default_rng(1), "w")]), [load_private_key(private)])
    patch = load_patch(tmp_path / "p.eep", load_trust([public]))
    assert patch.digest == digest
    summary = describe(patch)
    assert key_id in str(summary["signers"])
    assert [t["name"] for t in summary["tensors"]] == ["w"]
    for row in summary["tensors"]:
        if "nnz" in row:
            assert row["bits_per_entry"] == pytest.approx(8 * row["sparse_bytes"] / row["nnz"], abs=0.005)


def test_keys_are_private_and_never_overwritten(tmp_path: Path) -> None:
    private, public = tmp_path / "a.key", tmp_path / "a.pub"
    new_key(private, public)
    assert private.stat().st_mode & 0o077 == 0
    kept = private.read_bytes(), public.read_bytes()
    with pytest.raises(InputError):
        new_key(private, public)
    assert (private.read_bytes(), public.read_bytes()) == kept
    assert b"PRIVATE" not in public.read_bytes()
    with pytest.raises(InputError):
        load_trust([tmp_path / "absent.pub"])
