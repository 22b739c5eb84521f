"""Attacks on a patch file, by name.  Every one ends in IntegrityError (exit 5) before a payload byte is used."""

from __future__ import annotations

import hashlib
import json
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edgeedit.delta import SparsePart, TensorDelta
from edgeedit.errors import IntegrityError
from edgeedit.patch.header import FIXED, HEADER_BYTES, MAGIC, SLOT, VERSION, signed_message
from edgeedit.patch.keys import public_half
from edgeedit.patch.manifest import plain_manifest
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
    data = build_patch(_content(), [KEY], plain=True)
    read_unverified(data).verify(TRUST)
    return data


def _parts(data: bytes) -> tuple[dict[str, Any], bytes]:
    length = FIXED.unpack_from(data)[3]
    return json.loads(plain_manifest(data[HEADER_BYTES : HEADER_BYTES + length])), data[HEADER_BYTES + length :]


def _signed(manifest: bytes, payload: bytes, key: Ed25519PrivateKey = KEY) -> bytes:
    """A file whose manifest the attacker could get signed: what the reader must refuse by itself."""
    fixed = FIXED.pack(MAGIC, VERSION, 1, len(manifest), HEADER_BYTES + len(manifest) + len(payload))
    key_id = bytes.fromhex(public_half(key).key_id)
    slot = SLOT.pack(key_id, key.sign(signed_message(fixed, [key_id], manifest)))
    return fixed + slot + b"\0" * (HEADER_BYTES - FIXED.size - SLOT.size) + manifest + payload


def _encoded(manifest: dict[str, Any]) -> bytes:
    return json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()


def _with_section(data: bytes, number: int, content: bytes) -> bytes:
    """The file with one section replaced, its table and digest made right, and signed: only the decoder can refuse it."""
    manifest, payload = _parts(data)
    pieces = [payload[row["offset"] : row["offset"] + row["length"]] for row in manifest["sections"]]
    pieces[number] = content
    end = 0
    for row, piece in zip(manifest["sections"], pieces, strict=True):
        row.update(offset=end, length=len(piece), sha256=hashlib.sha256(piece).hexdigest())
        end += len(piece)
    return _signed(_encoded(manifest), b"".join(pieces))


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
    other = _signed(_encoded(manifest), payload)
    _refused(other[: FIXED.size] + good[FIXED.size : HEADER_BYTES] + other[HEADER_BYTES:])


def _table(change: Callable[[dict[str, Any]], None]) -> Callable[[bytes], bytes]:
    def attack(data: bytes) -> bytes:
        manifest, payload = _parts(data)
        change(manifest)
        return _signed(_encoded(manifest), payload)

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
    "nesting one level too deep": _table(lambda m: m["provenance"].__setitem__("x", json.loads("[" * 31 + "]" * 31))),
    "integer beyond 64 bits": _table(lambda m: m["provenance"].__setitem__("x", 1 << 63)),
    "lone surrogate": _table(lambda m: m["provenance"].__setitem__("x", "\ud800")),
    "infinity": _table(lambda m: m["provenance"].__setitem__("x", float("inf"))),
    "true as a number": _table(lambda m: m["probe"].__setitem__("count", True)),
    "control characters in a name": _table(lambda m: m["tensors"][0].__setitem__("name", "w\x1b[2J")),
    "one section for two parts": _table(lambda m: m["probe"].__setitem__("section", m["tensors"][0]["sparse"])),
    "part without a step": _table(lambda m: m["tensors"][0].pop("step")),
    "unknown field of a row": _table(lambda m: m["tensors"][0].__setitem__("clip", 1)),
    "section digest of other bytes": _set(0, "sha256", "0" * 64),
    "tolerance of zero": _table(lambda m: m["probe"].__setitem__("tolerance", "0.0")),
    "infinite tolerance": _table(lambda m: m["probe"].__setitem__("tolerance", "1e+999")),
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
        _refused(_signed(_encoded(manifest), payload))


def test_other_versions_say_what_to_do(good: bytes) -> None:
    for version, what in ((VERSION + 1, "upgrade"), (0, "pack it again")):
        other = good[:8] + struct.pack("<H", version) + good[10:]
        with pytest.raises(IntegrityError, match="version") as caught:
            read_unverified(other)
        assert what in caught.value.hint


def test_file_digest_is_the_content_address(good: bytes) -> None:
    assert read_unverified(good).verify(TRUST).digest == hashlib.sha256(good).hexdigest()


def test_unknown_fields_of_the_manifest_are_kept(good: bytes) -> None:
    data = _table(lambda m: m.__setitem__("later", {"x": 1}))(good)
    assert read_unverified(data).verify(TRUST).manifest.extra == {"later": {"x": 1}}
    _use(_table(lambda m: m["provenance"].__setitem__("x", json.loads("[" * 30 + "]" * 30)))(good))  # the deepest legal one


def test_deep_text_that_the_parser_would_recurse_into(good: bytes) -> None:
    _, payload = _parts(good)
    for text in (b"[" * 200_000, b'{"a":' * 200_000, b'{"a\\\\":"\\"[",' + b'"b":' + b"[" * 200_000):
        _refused(_signed(text, payload))


def test_not_utf8_and_not_an_object(good: bytes) -> None:
    _, payload = _parts(good)
    for text in (b'{"parent":"\xff"}', b"[]", b"null", b"\xef\xbb\xbf{}", b"{} {}", b"{"):
        _refused(_signed(text, payload))


def test_nothing_unsigned_is_parsed(good: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest, payload = _parts(good)
    foreign = _signed(_encoded(manifest), payload, Ed25519PrivateKey.generate())

    def parsed(*_: object) -> None:
        raise AssertionError("an unsigned manifest was parsed")

    monkeypatch.setattr("edgeedit.patch.read.parse_manifest", parsed)
    with pytest.raises(IntegrityError, match="no trusted signature"):
        read_unverified(foreign).verify(TRUST)


def test_one_bad_signature_among_trusted_keys_condemns_the_file() -> None:
    other = Ed25519PrivateKey.from_private_bytes(bytes(range(8, 40)))
    data = bytearray(build_patch(_content(), [KEY, other]))
    trust = [*TRUST, public_half(other)]
    assert len(read_unverified(bytes(data)).verify(trust).signers) == 2
    data[FIXED.size + SLOT.size + 32 + 5] ^= 1
    with pytest.raises(IntegrityError, match="signature is wrong"):
        read_unverified(bytes(data)).verify(trust)


def test_second_signature_stripped_or_repeated() -> None:
    other = Ed25519PrivateKey.from_private_bytes(bytes(range(8, 40)))
    data = build_patch(_content(), [KEY, other])
    slots = [data[FIXED.size + n * SLOT.size : FIXED.size + (n + 1) * SLOT.size] for n in range(2)]
    mine = next(slot for slot in slots if slot[:32].hex() == TRUST[0].key_id)
    one = data[:10] + b"\1\0" + data[12 : FIXED.size] + mine + bytes(HEADER_BYTES - FIXED.size - SLOT.size) + data[HEADER_BYTES:]
    _refused(one)
    _refused(data[: FIXED.size] + mine + mine + data[FIXED.size + 2 * SLOT.size :])
    _refused(data[: FIXED.size] + slots[1] + slots[0] + data[FIXED.size + 2 * SLOT.size :])


def test_header_that_declares_huge_or_empty_sizes(good: bytes) -> None:
    for offset, form, values in ((10, "<H", (0, 2, 5, 0xFFFF)), (12, "<I", (0, 1 << 31, 0xFFFFFFFF)), (16, "<Q", (0, 1 << 40, 2**64 - 1))):
        for value in values:
            _refused(good[:offset] + struct.pack(form, value) + good[offset + struct.calcsize(form) :])


def test_bytes_in_an_unused_slot(good: bytes) -> None:
    _refused(good[: HEADER_BYTES - 1] + b"\1" + good[HEADER_BYTES:])


def _bombs() -> dict[str, tuple[int, bytes]]:
    zeros, bitmap, steps = (zlib.compress(bytes(n)) for n in (64 << 20, 8, 3))
    ones = zlib.compress(b"\1" + bytes(7))
    return {
        "bitmap": (0, struct.pack("<III", 1, len(zeros), len(steps)) + zeros + steps),
        "steps": (0, struct.pack("<III", 1, len(ones), len(zeros)) + ones + zeros),
        "probes": (1, zlib.compress(bytes(64 << 20))[:20]),
        "empty bitmap": (0, struct.pack("<III", 1, len(bitmap), len(steps)) + bitmap + steps),
    }


@pytest.mark.parametrize("name", ["bitmap", "steps", "probes", "empty bitmap"])
def test_zip_bomb_signed(name: str, good: bytes) -> None:
    data = _with_section(good, *_bombs()[name])
    tracemalloc.start()
    try:
        _refused(data)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_probe_that_is_not_finite_signed(value: float, good: bytes) -> None:
    outputs = np.ones((2, 3), "<f4")
    outputs[1, 2] = value
    _refused(_with_section(good, 1, outputs.tobytes()))


def test_probe_section_of_the_wrong_size_signed(good: bytes) -> None:
    ones = np.ones((2, 3), "<f4").tobytes()
    _use(_with_section(good, 1, ones))
    for content in (ones + b"\0", ones[:-1], zlib.compress(ones) + b"\0", zlib.compress(ones[:-4]), zlib.compress(ones + ones)[:20]):
        _refused(_with_section(good, 1, content))


def test_sections_swapped_signed(good: bytes) -> None:
    def swap(manifest: dict[str, Any]) -> None:
        tensor, probe = manifest["tensors"][0], manifest["probe"]
        tensor["sparse"], probe["section"] = probe["section"], tensor["sparse"]

    _refused(_table(swap)(good))
