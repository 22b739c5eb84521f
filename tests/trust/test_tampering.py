"""Attacks on a patch file, by name.  Every one ends in IntegrityError (exit 5) before a payload byte is used."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edgeedit.delta import SparsePart, TensorDelta
from edgeedit.errors import IntegrityError
from edgeedit.patch.header import FIXED, HEADER_BYTES, MAGIC, SLOT, signed_message
from edgeedit.patch.keys import public_half
from edgeedit.patch.read import read_unverified
from edgeedit.patch.write import PatchContent, build_patch

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(7, 39)))
TRUST = (public_half(KEY),)


def _content() -> PatchContent:
    delta = TensorDelta("w", (6, 10), SparsePart(np.array([1, 7, 40], np.int64), np.array([3, -2, 9], np.int16), 0.25))
    digests = {"w": "a" * 64}
    return PatchContent(
        "1" * 64, "2" * 64, "float32", "tiny", [delta], digests, digests, {"w": "float32"}, np.ones((2, 3), np.float32), 1e-4, {"seed": 1}
    )


@pytest.fixture(scope="module")
def good() -> bytes:
    """A small valid patch."""
    data = build_patch(_content(), [KEY])
    read_unverified(data).verify(TRUST)
    return data


def _parts(data: bytes) -> tuple[dict[str, Any], bytes]:
    length = FIXED.unpack_from(data)[3]
    return json.loads(data[HEADER_BYTES : HEADER_BYTES + length]), data[HEADER_BYTES + length :]


def _signed(manifest: bytes, payload: bytes, key: Ed25519PrivateKey = KEY) -> bytes:
    """A file whose manifest the attacker could get signed: what the reader must refuse by itself."""
    fixed = FIXED.pack(MAGIC, 0, 1, len(manifest), HEADER_BYTES + len(manifest) + len(payload))
    slot = SLOT.pack(bytes.fromhex(public_half(key).key_id), key.sign(signed_message(fixed, manifest)))
    return fixed + slot + b"\0" * (HEADER_BYTES - FIXED.size - SLOT.size) + manifest + payload


def _use(data: bytes) -> None:
    patch = read_unverified(data).verify(TRUST)
    for tensor in patch.manifest.tensors:
        patch.tensor_delta(tensor.name)
    patch.expected()


def _refused(data: bytes) -> None:
    with pytest.raises(IntegrityError) as caught:
        _use(data)
    assert caught.value.exit_code == 5


def test_truncation_at_every_length(good: bytes) -> None:
    for length in range(len(good)):
        _refused(good[:length])


def test_every_single_byte_changed(good: bytes) -> None:
    for position in range(len(good)):
        changed = bytearray(good)
        changed[position] ^= 1 << (position % 8)
        _refused(bytes(changed))


def test_trailing_bytes(good: bytes) -> None:
    _refused(good + b"\0")


def test_unknown_signer_and_no_trusted_key(good: bytes) -> None:
    _refused(build_patch(_content(), [Ed25519PrivateKey.generate()]))
    with pytest.raises(IntegrityError):
        read_unverified(good).verify(())


def test_trusted_key_id_with_a_foreign_signature(good: bytes) -> None:
    foreign = build_patch(_content(), [Ed25519PrivateKey.generate()])
    trusted_id = bytes.fromhex(TRUST[0].key_id)
    _refused(foreign[: FIXED.size] + trusted_id + foreign[FIXED.size + 32 :])


def test_signature_of_another_manifest_transplanted(good: bytes) -> None:
    manifest, payload = _parts(good)
    manifest["provenance"]["seed"] = 2
    other = _signed(json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode(), payload)
    _refused(other[: FIXED.size] + good[FIXED.size : HEADER_BYTES] + other[HEADER_BYTES:])


def _table(change: Callable[[dict[str, Any]], None]) -> Callable[[bytes], bytes]:
    def attack(data: bytes) -> bytes:
        manifest, payload = _parts(data)
        change(manifest)
        return _signed(json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode(), payload)

    return attack


def _set(row: int, key: str, value: Any) -> Callable[[bytes], bytes]:
    return _table(lambda m: m["sections"][row].__setitem__(key, value))


ATTACKS: dict[str, Callable[[bytes], bytes]] = {
    "overlapping sections": _set(1, "offset", 0),
    "hole between sections": _set(1, "offset", 10_000),
    "negative length": _set(0, "length", -1),
    "length beyond 64 bits": _set(0, "length", 1 << 70),
    "duplicate section names": _table(lambda m: m["sections"][1].__setitem__("name", m["sections"][0]["name"])),
    "duplicate tensors": _table(lambda m: m["tensors"].append(m["tensors"][0])),
    "section of nobody": _table(lambda m: m["tensors"].clear()),
    "tensor of 2^60 elements": _table(lambda m: m["tensors"][0].__setitem__("shape", [1 << 30, 1 << 30])),
    "empty shape": _table(lambda m: m["tensors"][0].__setitem__("shape", [])),
    "probe count of 2^31": _table(lambda m: m["probe"].__setitem__("count", 1 << 31)),
    "float in the manifest": _table(lambda m: m["provenance"].__setitem__("x", 0.5)),
    "deep nesting": _table(lambda m: m["provenance"].__setitem__("x", json.loads("[" * 200 + "]" * 200))),
    "missing parent": _table(lambda m: m.pop("parent")),
    "parent that is no digest": _table(lambda m: m.__setitem__("parent", "../../etc")),
}


@pytest.mark.parametrize("name", sorted(ATTACKS))
def test_signed_but_hostile_manifest(name: str, good: bytes) -> None:
    _refused(ATTACKS[name](good))


def test_duplicate_json_keys_signed(good: bytes) -> None:
    manifest, payload = _parts(good)
    text = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
    _refused(_signed(('{"parent":"' + "3" * 64 + '",' + text[1:]).encode(), payload))


def test_illegal_step_signed(good: bytes) -> None:
    manifest, payload = _parts(good)
    for value in ("nan", "inf", "0x1p+40", "0.1"):
        manifest["tensors"][0]["step"] = value
        _refused(_signed(json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode(), payload))


def test_other_versions_say_what_to_do(good: bytes) -> None:
    newer = good[:8] + struct.pack("<H", 1) + good[10:]
    with pytest.raises(IntegrityError, match="version") as caught:
        read_unverified(newer)
    assert "upgrade" in caught.value.hint


def test_file_digest_is_the_content_address(good: bytes) -> None:
    assert read_unverified(good).verify(TRUST).digest == hashlib.sha256(good).hexdigest()
