"""Frozen patch files: what was written once is read for ever, what was refused stays refused; public keys are never trusted."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edgeedit.digest import digest_array
from edgeedit.errors import IntegrityError
from edgeedit.patch.keys import public_half
from edgeedit.patch.read import Patch, read_unverified

FOLDER = Path(__file__).parent
TRUST = [public_half(Ed25519PrivateKey.from_private_bytes(bytes(range(n, n + 32)))) for n in (1, 2)]
FROZEN = {
    "bad-v1-bomb": "3728b4eb9112d6682f23ca7903e15cfbbd2586aabb503e24568789c4071d845d",
    "bad-v1-corrected-codes": "51aa7d7dfee7024566cf9ffa2552ad90dd44c01776a48cc1f5bfe905ce388f86",
    "bad-v1-dense-too-large": "1a88aff86115a89a10349bb28e5fc35e12e528d1a62010c98e1b0f7ff3685e12",
    "bad-v1-packed-and-more": "d5d4e998a581f7aedd611aabe6d9f1c0dc56892ed0408c78414b2f46f6652e8c",
    "bad-v1-two-codings": "a0753d9cac87a582550e4eb16dad028f574ddaff4744c8d1dfc307b3461caa72",
    "v1-squash": "14bb224d41aebc9c17dd1cc2140c0d35577d11a4bd1776033b9ea01a35d75166",
    "bad-v1-duplicate-key": "7133dd8b0b6a656df737b18787bdf3a96c364d244243464888ee8a33b1450bf7",
    "bad-v1-float": "db0605872a277e59ae205e906a7f28ddcb09d47472bc67b0d507c9f21d144d72",
    "bad-v1-hole": "aea7a374234184ad4df9aec1d8c76c6ded969c79c19741fe08da2c69a496964c",
    "bad-v1-overlap": "8d7493fdb4c60b63ed71632146836d912298572a4ee1d2db8b33b05697e95896",
    "bad-v1-section-digest": "0213499b26970696d361a429f38bc2b8eed5eb2b214e2a9e5f6e28982cd42b79",
    "bad-v1-step": "b7010204bce5b0af7b087cd6ff2530dd576de1fe3cfe817c58ac82d1fc21284d",
    "bad-v1-unknown-row-field": "59560d963cba8759f7be8450b734f29d5ae22fdfab331324ee0fb1100ce1b163",
    "bad-v1-version-2": "9f4d2be6afcc33d2b46bbe1bb3d3c1084375388689b8f67ebdd620fc51b8b6e1",
    "v0-small": "e989590567474c0303bb8fe5cd553b74c70a903a67193d08979478f834596191",
    "v0-wide": "bebf514f0b73672af2d52062327ceeb7dad99ad968a6120564b34827894e7ef7",
    "v1-dtypes": "0d1033b7acbc4bb212f578b254d150b00c48ae694808891a53851f29c091ee73",
    "v1-heads": "800c0ebbf173aaeb2f49affb4f0d5bac83265a002aa152fbb9639ec995d29fba",
    "v1-lanes": "cec9fe198fbd236e5bb80a58635b54ca1b22f1ec3be9888f7b36adf3d81dc0db",
    "v1-small": "5b51e5c7261f88c8c4291391884e1828d4c9f2f525dcf6f3e31462be7b311c59",
    "v1-wide": "bae91495f0899fd9043efc455d673f5922bc56ff4e52febce2978bffab463493",
}
GOOD = [stem for stem in FROZEN if stem.startswith("v1-")]
BAD = {
    "v0-small": "format version: expected 1, got 0",
    "v0-wide": "format version: expected 1, got 0",
    "bad-v1-version-2": "format version",
    "bad-v1-overlap": "offset",
    "bad-v1-hole": "section table",
    "bad-v1-float": "float",
    "bad-v1-duplicate-key": "duplicate key",
    "bad-v1-step": "significant bits",
    "bad-v1-section-digest": "digest differs",
    "bad-v1-unknown-row-field": "tensor row",
    "bad-v1-bomb": "at most 8388608 bytes",
    "bad-v1-corrected-codes": "int8 tensor",
    "bad-v1-dense-too-large": "65536 elements",
    "bad-v1-packed-and-more": "one zlib stream",
    "bad-v1-two-codings": "sparse or dense",
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
    made = {stem: hashlib.sha256(data).hexdigest() for stem, data in generator.files().items()}
    assert made == {stem: digest for stem, digest in FROZEN.items() if not stem.startswith("v0-")}


@pytest.mark.parametrize("stem", ["v0-small", "v0-wide"])
def test_the_old_format_says_what_to_do(stem: str) -> None:
    with pytest.raises(IntegrityError) as caught:
        _verified(_read(stem))
    assert "pack it again" in caught.value.hint


def test_small_reads_to_the_frozen_numbers() -> None:
    patch = _verified(_read("v1-small"))
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
    patch = _verified(_read("v1-wide"))
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


def test_lanes_reads_to_the_generators_numbers(generator: ModuleType) -> None:
    """Streams of eight lanes, which only long sections have."""
    patch = _verified(_read("v1-lanes"))
    section = patch.section_bytes(patch.manifest.sections[0])
    assert tuple(section[:2]) == (8, 8)
    found, made = patch.tensor_delta("w").sparse, generator.lanes_content().deltas[0].sparse
    assert found is not None and np.array_equal(found.index, made.index) and np.array_equal(found.q, made.q)


def test_codes_and_bfloat16_lead_to_the_frozen_digests(generator: ModuleType) -> None:
    """int8 codes that reach -127 and -128 by integer addition, bfloat16 with both parts and a subnormal."""
    patch = _verified(_read("v1-dtypes"))
    base = generator.dtypes_base()
    assert {row.name: row.dtype for row in patch.manifest.tensors} == {"codes.weight_q": "int8", "gain": "bfloat16"}
    assert patch.manifest.precision == "int8"
    for row in patch.manifest.tensors:
        assert digest_array(base[row.name]) == row.before
        assert digest_array(patch.apply(row.name, base[row.name])) == row.after
    codes, gain = (patch.tensor_delta(name).sparse for name in ("codes.weight_q", "gain"))
    assert codes is not None and gain is not None
    assert (codes.step, codes.index.tolist()[:2]) == (1.0, [0, 1])
    assert (codes.q.min(), gain.q.tolist(), gain.step) == (-255, [1, -255, 40, 2], 40961 * 2.0**-30)
    new = patch.apply("codes.weight_q", base["codes.weight_q"]).reshape(-1)
    old = base["codes.weight_q"].reshape(-1).astype(int)
    assert new[codes.index].tolist() == (old[codes.index] + codes.q).tolist()


def test_squash_reads_to_the_frozen_numbers_and_digests(generator: ModuleType) -> None:
    """Corrections after each kind of part and alone, a dense part, probes as multiples, a packed manifest."""
    patch = _verified(_read("v1-squash"))
    base, rows = generator.squash_base(), {row.name: row for row in patch.manifest.tensors}
    for name, row in rows.items():
        assert digest_array(base[name]) == row.before
        assert digest_array(patch.apply(name, base[name])) == row.after
    assert rows["norm"].dense is not None and rows["norm"].sparse is None
    assert (rows["only"].step, rows["only"].scale) == (None, None)
    only = patch.tensor_delta("only").exact
    assert only is not None and only.index.tolist() == [0, 1, 58, 59]
    assert only.difference.tolist() == [1 << 23, -(1 << 22), 70000, -1]
    old, new = (array.reshape(-1).view("<u4").astype(int) for array in (base["only"], patch.apply("only", base["only"])))
    assert (new - old)[[0, 1, 2, 58, 59]].tolist() == [1 << 23, -(1 << 22), 0, 70000, -1]
    assert patch.manifest.probe.step == 2.0**-8 and np.array_equal(patch.expected(), generator.squash_content().expected)
    assert patch.data[408:409] == b"\x78"


def test_heads_read_to_the_frozen_numbers_and_digests(generator: ModuleType) -> None:
    """Indices as gaps: of rows and columns, and of columns alone."""
    patch, base = _verified(_read("v1-heads")), generator.heads_base()
    for row in patch.manifest.tensors:
        assert row.low_rank is not None
        assert digest_array(base[row.name]) == row.before
        assert digest_array(patch.apply(row.name, base[row.name])) == row.after
    flags = [patch.section_bytes(row.low_rank)[12] for row in patch.manifest.tensors if row.low_rank is not None]
    assert flags == [4, 5]
    low = patch.tensor_delta("k").low_rank
    assert low is not None and low.rows.tolist() == [*range(8, 24), *range(40, 56)] and low.cols.tolist() == [*range(5, 37)]
    assert (low.a[1].tolist(), low.b[2, :3].tolist(), low.scale) == ([61, -77, 111], [-21, -115, 116], 2.0**-16)


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
    """All of the file but, where there is one, the signature of the signer that this reader does not trust (FORMAT 2)."""
    data = bytearray(_read(stem))
    count = int.from_bytes(data[10:12], "little")
    slots = {data[at : at + 32].hex(): range(at + 32, at + 96) for at in range(24, 24 + 96 * count, 96)}
    if TRUST[key].key_id not in slots:
        return
    foreign = {at for key_id, slot in slots.items() if key_id != TRUST[key].key_id for at in slot}
    for position in sorted(set(range(len(data))) - foreign):
        for bit in range(8):
            data[position] ^= 1 << bit
            with pytest.raises(IntegrityError):
                read_unverified(bytes(data)).verify([TRUST[key]], allow_test_keys=True)
            data[position] ^= 1 << bit


def test_a_damaged_slot_of_two_trusted_signers_is_refused() -> None:
    """The key ids are covered, so nobody can take one of two signers away."""
    data = bytearray(_read("v1-wide"))
    _verified(bytes(data))
    for position in range(24, 24 + 2 * 96):
        data[position] ^= 1
        with pytest.raises(IntegrityError):
            _verified(bytes(data))
        data[position] ^= 1


@pytest.mark.parametrize("stem", GOOD)
def test_public_test_keys_are_refused_without_the_flag(stem: str) -> None:
    with pytest.raises(IntegrityError, match="test key"):
        read_unverified(_read(stem)).verify(TRUST)
