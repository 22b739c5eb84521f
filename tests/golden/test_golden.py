"""Frozen patch files: what was written once is read for ever, what was refused stays refused; public keys are never trusted."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edgeedit.errors import IntegrityError
from edgeedit.patch.keys import public_half
from edgeedit.patch.read import Patch, read_unverified

FOLDER = Path(__file__).parent
TRUST = [public_half(Ed25519PrivateKey.from_private_bytes(bytes(range(n, n + 32)))) for n in (1, 2)]
FROZEN = {
    "v0-small": "e989590567474c0303bb8fe5cd553b74c70a903a67193d08979478f834596191",
    "v0-wide": "bebf514f0b73672af2d52062327ceeb7dad99ad968a6120564b34827894e7ef7",
    "bad-duplicate-key": "28dfb59c992a5dc42c44aa749f1837f8fa0b3d594fc3934de38b54d9a9f36e87",
    "bad-float": "5d48f7f6f7584686ae0651192b0fce6334abb05bfb472572af5af68defd107cd",
    "bad-hole": "9e95d1aec4d7c353e537ad4b90e30320ff24b31b7490fc098fc09f42592769ac",
    "bad-overlap": "119922701b0d5df1f91aa214dca4415d938201e06316b842e8c673536178b487",
    "bad-section-digest": "4a5c6b35b7a3c46d30493b9c61e7610a3658e761134d9045eda940c402ba85d3",
    "bad-step": "65b1df047688fbc2f35fb55029e529292a702d312e22f3376bbe60ed54a96d7c",
    "bad-unknown-row-field": "7e8100dfaf0622f268d0850fa112315d1c8c52179bff14040198007348538716",
    "bad-version-1": "62b7f0d694db232df3335ea22ea5811b0a74a5274995be9e09c85505ed385a2f",
}
GOOD = [stem for stem in FROZEN if stem.startswith("v0-")]
BAD = {
    "bad-version-1": "format version",
    "bad-overlap": "offset",
    "bad-hole": "section table",
    "bad-float": "float",
    "bad-duplicate-key": "duplicate key",
    "bad-step": "significant bits",
    "bad-section-digest": "digest differs",
    "bad-unknown-row-field": "tensor row",
}


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    """`generate.py`, which lies beside this file."""
    spec = importlib.util.spec_from_file_location("golden_generate", FOLDER / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _read(stem: str) -> bytes:
    return (FOLDER / f"{stem}.eep").read_bytes()


def _verified(data: bytes) -> Patch:
    return read_unverified(data).verify(TRUST, allow_test_keys=True)


def test_no_frozen_file_changed() -> None:
    assert {path.stem: hashlib.sha256(path.read_bytes()).hexdigest() for path in FOLDER.glob("*.eep")} == FROZEN


def test_the_generator_reproduces_every_file(generator: ModuleType) -> None:
    assert {stem: hashlib.sha256(data).hexdigest() for stem, data in generator.files().items()} == FROZEN


def test_small_reads_to_the_frozen_numbers() -> None:
    patch = _verified(_read("v0-small"))
    first, second = (patch.tensor_delta(t.name) for t in patch.manifest.tensors)
    assert first.sparse is not None and second.low_rank is not None
    assert first.sparse.index.tolist() == [0, 5, 17, 29]
    assert first.sparse.q.tolist() == [1, -127, 3, 64]
    assert first.sparse.step == 2.0**-10
    assert second.low_rank.rows.tolist() == [0, 2, 5]
    assert second.low_rank.b.tolist() == [[3, 0, -1, 9], [1, 1, 1, -127]]
    assert np.array_equal(patch.expected(), np.array([[0.5, -1.25], [2.0, 0.0]], np.float32))
    assert (patch.manifest.parent, patch.manifest.precision, patch.manifest.recipe) == ("1" * 64, "float16", "dinov2")


def test_wide_reads_to_the_frozen_numbers() -> None:
    patch = _verified(_read("v0-wide"))
    assert patch.signers == tuple(sorted(key.key_id for key in TRUST))
    bias, both = (patch.tensor_delta(name) for name in ("bias", "größe.weight"))
    assert bias.sparse is not None and both.sparse is not None and both.low_rank is not None
    assert (bias.shape, bias.sparse.index.tolist(), bias.sparse.q.tolist(), bias.sparse.step) == ((7,), [6], [-1], 1.0)
    assert (both.sparse.q.tolist(), both.sparse.step) == ([255, -128, 1], 65535 * 2.0**-30)
    assert (both.low_rank.rows.tolist(), both.low_rank.cols.tolist(), both.low_rank.scale) == ([0, 1, 2, 3], [0, 5], 2.0**-60)
    assert both.low_rank.a.tolist() == [[-128], [0], [7], [1]]
    assert np.array_equal(patch.expected(), np.full((3, 40), 0.125, np.float32))
    assert patch.manifest.provenance["rates"] == ["1e-05", "-0.0"]
    assert patch.manifest.provenance["seed"] == 2**63 - 1


@pytest.mark.parametrize("stem", sorted(BAD))
def test_bad_file_is_refused_for_its_own_reason(stem: str) -> None:
    with pytest.raises(IntegrityError, match=BAD[stem]) as caught:
        _verified(_read(stem))
    assert caught.value.exit_code == 5


@pytest.mark.parametrize("stem", GOOD)
def test_cut_at_every_length(stem: str) -> None:
    data = _read(stem)
    for length in range(len(data)):
        with pytest.raises(IntegrityError):
            _verified(data[:length])


@pytest.mark.parametrize("key", [0, 1])
@pytest.mark.parametrize("stem", GOOD)
def test_every_bit_that_a_trusted_key_covers_counts(stem: str, key: int) -> None:
    """All of the file but, where there is one, the slot of the signer that this reader does not trust (FORMAT 2)."""
    data = bytearray(_read(stem))
    count = int.from_bytes(data[10:12], "little")
    slots = {data[at : at + 32].hex(): range(at, at + 96) for at in range(24, 24 + 96 * count, 96)}
    if TRUST[key].key_id not in slots:
        return
    foreign = {at for key_id, slot in slots.items() if key_id != TRUST[key].key_id for at in slot}
    for position in sorted(set(range(len(data))) - foreign):
        for bit in range(8):
            data[position] ^= 1 << bit
            with pytest.raises(IntegrityError):
                read_unverified(bytes(data)).verify([TRUST[key]], allow_test_keys=True)
            data[position] ^= 1 << bit


def test_a_damaged_slot_of_two_trusted_signers_is_refused_or_not_a_signer_any_more() -> None:
    """A changed signature condemns the file; a changed key id only makes the slot somebody else's, who is then no signer."""
    data = bytearray(_read("v0-wide"))
    whole = _verified(bytes(data))
    for position in range(24, 24 + 2 * 96):
        data[position] ^= 1
        if (position - 24) % 96 < 32:
            try:
                patch = _verified(bytes(data))
            except IntegrityError:  # the order of the slots broke
                data[position] ^= 1
                continue
            assert len(patch.signers) == 1 and set(patch.signers) < set(whole.signers)
            assert patch.manifest == whole.manifest and patch.digest != whole.digest
        else:
            with pytest.raises(IntegrityError, match="signature is wrong"):
                _verified(bytes(data))
        data[position] ^= 1


@pytest.mark.parametrize("stem", GOOD)
def test_public_test_keys_are_refused_without_the_flag(stem: str) -> None:
    with pytest.raises(IntegrityError, match="test key"):
        read_unverified(_read(stem)).verify(TRUST)
