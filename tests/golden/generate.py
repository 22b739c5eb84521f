"""Writes the frozen patch files with fixed, PUBLIC keys and fixed content; run by hand when a file is added.

    python tests/golden/generate.py

Golden files are append-only: a frozen file never changes; a new version, or a new case, adds one.  `v1-*.eep` are good,
`bad-v1-*.eep` are correctly signed files that every reader must refuse.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edgeedit.delta import ExactPart, LowRankPart, SparsePart, TensorDelta
from edgeedit.digest import digest_array, fingerprint, tensor_digest
from edgeedit.patch.header import FIXED, HEADER_BYTES, MAGIC, SLOT, signed_message
from edgeedit.patch.keys import public_half
from edgeedit.patch.write import PatchContent, build_patch
from edgeedit.rounding import apply_delta

TEST_KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))
SECOND_TEST_KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(2, 34)))


def content() -> PatchContent:
    """One sparse tensor, one low-rank one, two probes."""
    sparse = SparsePart(np.array([0, 5, 17, 29], np.int64), np.array([1, -127, 3, 64], np.int16), 2.0**-10)
    factors = np.array([[1, -2], [127, 0], [5, 5]], np.int8), np.array([[3, 0, -1, 9], [1, 1, 1, -127]], np.int8)
    low = LowRankPart(np.array([0, 2, 5], np.int64), np.arange(4, dtype=np.int64), *factors, 2.0**-12)
    deltas = [TensorDelta("blocks.0.fc1.weight::T", (3, 10), sparse), TensorDelta("blocks.0.q.weight", (6, 4), None, low)]
    before, after = ({d.name: character * 64 for d in deltas} for character in "ab")
    expected = np.array([[0.5, -1.25], [2.0, 0.0]], np.float32)
    kinds = dict.fromkeys(before, "float16")
    return PatchContent("1" * 64, "2" * 64, "float16", "dinov2", deltas, before, after, kinds, expected, 1e-3, {"seed": 0})


def wide_content() -> PatchContent:
    """What `content` has not: both parts on one tensor, 16-bit steps, a step of 16 bits, a vector, compressed probes, float32,
    a name and a provenance beyond ASCII."""
    sparse = SparsePart(np.array([1, 2, 23], np.int64), np.array([255, -128, 1], np.int16), 65535 * 2.0**-30)
    factors = np.array([[-128], [0], [7], [1]], np.int8), np.array([[1, 127]], np.int8)
    low = LowRankPart(np.arange(4, dtype=np.int64), np.array([0, 5], np.int64), *factors, 2.0**-60)
    bias = SparsePart(np.array([6], np.int64), np.array([-1], np.int16), 1.0)
    deltas = [TensorDelta("größe.weight", (4, 6), sparse, low), TensorDelta("bias", (7,), bias)]
    before, after = ({d.name: character * 64 for d in deltas} for character in "cd")
    info = {"seed": 2**63 - 1, "share": 0.1, "rates": [1e-05, -0.0], "note": 'Größe "x" \\ \n', "none": None, "yes": True}
    kinds = dict.fromkeys(before, "float32")
    return PatchContent(
        "3" * 64, "4" * 64, "float32", "clip", deltas, before, after, kinds, np.full((3, 40), 0.125, np.float32), 2.5e-05, info
    )


def lanes_content() -> PatchContent:
    """Streams long enough for eight lanes, which real patches have; nearly every element of one matrix, most steps 1."""
    rng = np.random.default_rng(8)
    mask, twos = rng.random(512 * 256) < 0.998, rng.random(512 * 256) < 0.005
    index = np.flatnonzero(mask).astype(np.int64)
    q = np.where(twos[index], -300, 1).clip(-200, 1).astype(np.int16)
    deltas = [TensorDelta("w", (512, 256), SparsePart(index, q, 2.0**-9))]
    expected = np.ones((1, 1), np.float32)
    return PatchContent(
        "5" * 64, "6" * 64, "float16", "vit", deltas, {"w": "e" * 64}, {"w": "f" * 64}, {"w": "float16"}, expected, 1e-3, {}
    )


def dtypes_base() -> dict[str, Any]:
    """Tensors by integer arithmetic alone: int8 codes from end to end, bfloat16 (its bits as uint16) of many magnitudes, both signs."""
    place = np.arange(96, dtype=np.int64)
    codes = (place * 89 % 256 - 128).astype(np.int8).reshape(8, 12)
    bits = (0x3A00 + place[:60] * 997 % 0x0500 + (place[:60] % 2) * 0x8000).astype("<u2").reshape(6, 10)
    bits[5, 9] = 0x0001  # the smallest subnormal
    return {"codes.weight_q": codes, "gain": bits}


def dtypes_content() -> PatchContent:
    """An int8 Bundle: codes that reach both ends of their range, and a bfloat16 tensor with both parts."""
    base = dtypes_base()
    flat = base["codes.weight_q"].reshape(-1).astype(np.int16)
    low_end, high_end = int(np.argmin(flat)), int(np.argmax(flat))
    places = np.array(sorted({low_end, high_end, 1, 30, 31, 90}), np.int64)
    wanted = {low_end: -127, high_end: -128}
    q = np.array([wanted[i] - flat[i] if i in wanted else (9 if flat[i] < 0 else -9) for i in places.tolist()], np.int16)
    sparse = SparsePart(np.array([0, 7, 33, 59], np.int64), np.array([1, -255, 40, 2], np.int16), 40961 * 2.0**-30)
    low = LowRankPart(
        np.array([1, 5], np.int64),
        np.arange(10, dtype=np.int64),
        np.array([[3], [-90]], np.int8),
        np.arange(-5, 5).astype(np.int8)[None],
        2.0**-18,
    )
    deltas = [TensorDelta("codes.weight_q", (8, 12), SparsePart(places, q, 1.0)), TensorDelta("gain", (6, 10), sparse, low)]
    new = {delta.name: apply_delta(base[delta.name], delta) for delta in deltas}
    before, after = ({name: digest_array(array) for name, array in state.items()} for state in (base, new))
    parent, result = (fingerprint(tensor_digest(name, array) for name, array in state.items()) for state in (base, new))
    expected = np.array([[0.25, -3.0]], np.float32)
    kinds = {"codes.weight_q": "int8", "gain": "bfloat16"}
    return PatchContent(parent, result, "int8", "siglip", deltas, before, after, kinds, expected, 0.5, {"seed": 9})


def squash_base() -> dict[str, Any]:
    """Floats of all three dtypes by integer arithmetic alone."""
    place = np.arange(96, dtype=np.int64)
    half = (0x2400 + place * 997 % 0x1800 + (place % 2) * 0x8000).astype("<u2").view("<f2").reshape(8, 12)
    single = (0x3B000000 + place[:60] * 7919993 % 0x03000000 + (place[:60] % 3 % 2) * 0x80000000).astype("<u4").view("<f4").reshape(6, 10)
    return {"fc1": half, "norm": single[:4].reshape(40).copy(), "only": single, "wide": (single.view("<u4") >> 16).astype("<u2")}


def squash_content() -> PatchContent:
    """What a squash adds: corrections alone, after a sparse part and after a low-rank part; a dense part; coded probes and a
    packed manifest."""
    base = squash_base()
    mask = np.flatnonzero(np.arange(96) * 37 % 5 < 2).astype(np.int64)
    sparse = SparsePart(mask, (mask * 11 % 19 - 9 + (mask * 11 % 19 == 9)).astype(np.int16), 45875 * 2.0**-28)
    near = ExactPart(mask[::3], np.where(mask[::3] % 2, 1, -1).astype(np.int64))
    every = np.flatnonzero(np.arange(40) % 7).astype(np.int64)
    bias = SparsePart(every, ((every * 53 % 401) - 200 + (every * 53 % 401 == 200)).astype(np.int16), 2.0**-14)
    far = ExactPart(np.array([0, 1, 58, 59], np.int64), np.array([1 << 23, -(1 << 22), 70000, -1], np.int64))
    low = LowRankPart(
        np.array([0, 3], np.int64),
        np.arange(10, dtype=np.int64),
        np.array([[5], [-7]], np.int8),
        np.arange(10).astype(np.int8)[None],
        2.0**-12,
    )
    deltas = [
        TensorDelta("fc1", (8, 12), sparse, exact=near),
        TensorDelta("norm", (40,), bias),
        TensorDelta("only", (6, 10), exact=far),
        TensorDelta("wide", (6, 10), None, low, ExactPart(np.array([3, 40], np.int64), np.array([-128, 255], np.int64))),
    ]
    new = {delta.name: apply_delta(base[delta.name], delta) for delta in deltas}
    before, after = ({name: digest_array(array) for name, array in state.items()} for state in (base, new))
    parent, result = (fingerprint(tensor_digest(name, array) for name, array in state.items()) for state in (base, new))
    kinds = {"fc1": "float16", "norm": "float32", "only": "float32", "wide": "bfloat16"}
    expected = (np.arange(24).reshape(3, 8) * 41 % 97 - 48).astype(np.float32) * np.float32(2.0**-8)
    return PatchContent(
        parent, result, "float16", "dinov2", deltas, before, after, kinds, expected, 0.01, {"squash_of": ["a" * 64, "b" * 64]}
    )


def heads_base() -> dict[str, Any]:
    """Two matrices, float16 and bfloat16 (its bits as uint16), by integer arithmetic alone."""
    place = np.arange(64 * 48, dtype=np.int64)
    half = (0x2800 + place * 1973 % 0x1400 + (place % 2) * 0x8000).astype("<u2").view("<f2").reshape(64, 48)
    return {"k": half, "v": (0x3B00 + place * 499 % 0x0480 + (place % 3 % 2) * 0x8000).astype("<u2").reshape(64, 48)}


def heads_content() -> PatchContent:
    """Low-rank parts of neighbouring rows and columns, as heads have them: their indices are stored as gaps."""
    base = heads_base()
    place = np.arange(64 * 4, dtype=np.int64)
    noise = (place * place * 40503 // 97 % 255 - 127).astype(np.int8)
    rows, cols, every = np.r_[8:24, 40:56].astype(np.int64), np.arange(5, 37, dtype=np.int64), np.arange(64, dtype=np.int64)
    both = LowRankPart(rows, cols, noise[:96].reshape(32, 3), noise[96:192].reshape(3, 32), 2.0**-16)
    some = LowRankPart(every, cols, noise[:128].reshape(64, 2), noise[128:192].reshape(2, 32), 2.0**-17)
    deltas = [TensorDelta("k", (64, 48), None, both), TensorDelta("v", (64, 48), None, some)]
    new = {delta.name: apply_delta(base[delta.name], delta) for delta in deltas}
    before, after = ({name: digest_array(array) for name, array in state.items()} for state in (base, new))
    parent, result = (fingerprint(tensor_digest(name, array) for name, array in state.items()) for state in (base, new))
    expected = (np.arange(4).reshape(1, 4) - 2).astype(np.float32)
    kinds = {"k": "float16", "v": "bfloat16"}
    return PatchContent(parent, result, "float16", "dinov2", deltas, before, after, kinds, expected, 1.0, {"seed": 3})


def forge(manifest: bytes, payload: bytes, version: int = 1) -> bytes:
    """A correctly signed file around any manifest bytes."""
    fixed = FIXED.pack(MAGIC, version, 1, len(manifest), HEADER_BYTES + len(manifest) + len(payload))
    key_id = bytes.fromhex(public_half(TEST_KEY).key_id)
    slot = SLOT.pack(key_id, TEST_KEY.sign(signed_message(fixed, [key_id], manifest)))
    return (fixed + slot).ljust(HEADER_BYTES, b"\0") + manifest + payload


def _text(manifest: Mapping[str, Any]) -> bytes:
    return json.dumps(manifest, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def bad_files(good: bytes) -> dict[str, bytes]:
    """Correctly signed files that break one rule each."""
    length = FIXED.unpack_from(good)[3]
    stored, payload = good[HEADER_BYTES : HEADER_BYTES + length], good[HEADER_BYTES + length :]

    def changed(path: Sequence[str | int], value: Any) -> bytes:
        manifest = json.loads(stored)
        row = manifest
        for key in path[:-1]:
            row = row[key]
        row[path[-1]] = value
        return forge(_text(manifest), payload)

    return {
        "bad-v1-version-2": forge(stored, payload, version=2),
        "bad-v1-overlap": changed(["sections", 1, "offset"], 0),
        "bad-v1-hole": forge(stored, payload + b"\0"),
        "bad-v1-float": changed(["provenance", "seed"], 0.5),
        "bad-v1-duplicate-key": forge(b'{"parent":"' + b"5" * 64 + b'",' + stored[1:], payload),
        "bad-v1-step": changed(["tensors", 0, "step"], (1 + 2.0**-20).hex()),
        "bad-v1-section-digest": changed(["sections", 0, "sha256"], "0" * 64),
        "bad-v1-unknown-row-field": changed(["tensors", 0, "clip"], 1),
    }


def bad_squash_files(good: bytes) -> dict[str, bytes]:
    """The same for what only the later codings can break."""
    length = FIXED.unpack_from(good)[3]
    manifest, payload = json.loads(zlib.decompress(good[HEADER_BYTES : HEADER_BYTES + length])), good[HEADER_BYTES + length :]
    rows = {row["name"]: row for row in manifest["tensors"]}

    def changed(name: str, **fields: Any) -> bytes:
        tensors = [row | (fields if row["name"] == name else {}) for row in manifest["tensors"]]
        return forge(zlib.compress(_text(manifest | {"tensors": tensors}), 9), payload)

    twice = zlib.compress(_text(manifest), 9)
    return {
        "bad-v1-two-codings": changed("norm", sparse=rows["norm"]["dense"]),
        "bad-v1-corrected-codes": changed("only", dtype="int8"),
        "bad-v1-dense-too-large": changed("norm", shape=[1 << 16, 2]),
        "bad-v1-bomb": forge(zlib.compress(b" " * (8 << 20) + _text(manifest), 9), payload),
        "bad-v1-packed-and-more": forge(twice + b"\0", payload),
    }


def files() -> dict[str, bytes]:
    """File stem -> bytes of every golden file."""
    small, squashed = build_patch(content(), [TEST_KEY], plain=True), build_patch(squash_content(), [TEST_KEY])
    return {
        "v1-small": small,
        "v1-wide": build_patch(wide_content(), [TEST_KEY, SECOND_TEST_KEY], plain=True),
        "v1-lanes": build_patch(lanes_content(), [TEST_KEY], plain=True),
        "v1-dtypes": build_patch(dtypes_content(), [TEST_KEY], plain=True),
        "v1-squash": squashed,
        "v1-heads": build_patch(heads_content(), [TEST_KEY]),
        **bad_files(small),
        **bad_squash_files(squashed),
    }


if __name__ == "__main__":
    for stem, data in files().items():
        path = Path(__file__).parent / f"{stem}.eep"
        if not path.exists():
            path.write_bytes(data)
