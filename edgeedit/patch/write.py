"""Build, sign and write a patch file (FORMAT 1 to 5).

Guarantees: the same content and keys give the same bytes; what is returned was read back by the reader first, so a file
that a device would refuse is never written; the file replaces its path durably.  Does not judge the change itself.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edgeedit.bundle import DTYPES
from edgeedit.delta import TensorDelta
from edgeedit.digest import digest_bytes
from edgeedit.errors import InputError, IntegrityError
from edgeedit.files import replace_file
from edgeedit.limits import MAX_DENSE_ELEMENTS, MAX_MANIFEST_BYTES, MAX_PATCH_BYTES, MAX_SIGNATURES
from edgeedit.patch.header import FIXED, HEADER_BYTES, MAGIC, SLOT, VERSION, signed_message
from edgeedit.patch.keys import public_half
from edgeedit.patch.read import read_unverified
from edgeedit.strict_json import encode, without_floats

Array = np.ndarray[Any, Any]
_ZLIB_LEVEL = 9


@dataclass(frozen=True)
class PatchContent:
    """What goes into a patch.  `deltas` are in deployed names and layout; `before`, `after` (SHA-256) and `dtypes` are keyed by
    deployed name; `expected` is float32 (probes, width); `provenance` is JSON whose floats become decimal strings; `max_flips` is the
    share of a camera's verdicts that the patch may change, in (0, 1], None for the usual one."""

    parent: str
    result: str
    precision: str
    recipe: str
    deltas: Sequence[TensorDelta]
    before: Mapping[str, str]
    after: Mapping[str, str]
    dtypes: Mapping[str, str]
    expected: Array
    tolerance: float
    provenance: Mapping[str, Any]
    max_flips: float | None = None


class _Payload:
    """Sections in the order in which they are added, and their table."""

    def __init__(self) -> None:
        self.table: list[dict[str, Any]] = []
        self.parts: list[bytes] = []
        self._end = 0

    def add(self, name: str, data: bytes) -> str:
        """Append one section; returns its name."""
        self.table.append({"name": name, "offset": self._end, "length": len(data), "sha256": digest_bytes(data)})
        self.parts.append(data)
        self._end += len(data)
        return name


def _tensor_row(number: int, delta: TensorDelta, content: PatchContent, payload: _Payload, plain: bool) -> dict[str, Any]:
    from edgeedit.codec.sections import encode_exact, encode_low_rank

    try:
        row: dict[str, Any] = {
            "name": delta.name,
            "dtype": content.dtypes[delta.name],
            "shape": list(delta.shape),
            "before": content.before[delta.name],
            "after": content.after[delta.name],
        }
    except KeyError as error:
        raise InputError(f"patch content is incomplete: expected digests and dtype of {delta.name}") from error
    if delta.sparse is not None:
        row["step"] = float(delta.sparse.step).hex()
        kind, section = _steps(delta, plain)
        row[kind] = payload.add(f"{number}.{kind}", section)
    if delta.low_rank is not None:
        row["scale"] = float(delta.low_rank.scale).hex()
        row["low_rank"] = payload.add(f"{number}.low_rank", encode_low_rank(delta))
    if delta.exact is not None:
        row["exact"] = payload.add(f"{number}.exact", encode_exact(delta, DTYPES[row["dtype"]].itemsize))
    return row


def _steps(delta: TensorDelta, plain: bool) -> tuple[str, bytes]:
    """The smaller of the two codings of a sparse part."""
    from edgeedit.codec.sections import encode_dense, encode_sparse

    found = [("sparse", encode_sparse(delta))]
    if not plain and math.prod(delta.shape) <= MAX_DENSE_ELEMENTS:
        found.append(("dense", encode_dense(delta)))
    return min(found, key=lambda coded: len(coded[1]))


def _probe_row(content: PatchContent, payload: _Payload, plain: bool) -> dict[str, Any]:
    from edgeedit.codec.probes import encode_probes, probe_step

    expected = content.expected
    if expected.ndim != 2 or expected.dtype != np.float32 or not expected.size or not np.isfinite(expected).all():
        raise InputError(f"probe outputs are unusable: expected finite 2-D float32, got {expected.dtype} {expected.shape}")
    raw = expected.astype("<f4").tobytes()
    packed = zlib.compress(raw, _ZLIB_LEVEL)
    count, width = expected.shape
    row: dict[str, Any] = {"count": count, "width": width, "tolerance": repr(float(content.tolerance))}
    section = min(packed, raw, key=len)
    step = probe_step(content.tolerance)
    coded = None if plain else encode_probes(expected, step)
    if coded is not None and len(coded) < len(section):
        row["step"], section = step.hex(), coded
    return row | {"section": payload.add("probe", section)}


def _stated(max_flips: float | None) -> dict[str, str]:
    if max_flips is None:
        return {}
    if not 0.0 < max_flips <= 1.0:
        raise InputError(f"max_flips is out of range: expected a share above 0 and at most 1, got {max_flips}")
    return {"max_flips": repr(float(max_flips))}


def build_patch(content: PatchContent, keys: Sequence[Ed25519PrivateKey], *, plain: bool = False) -> bytes:
    """The bytes of the signed patch; the smallest coding of every part, or, `plain`, only those that the first files of format v1
    knew (FORMAT 5 raw or zlib, no dense section, manifest as it is).  Raises InputError (exit 2) when the content or the keys
    cannot make a legal patch."""
    if len({public_half(key).key_id for key in keys}) != len(keys) or not 1 <= len(keys) <= MAX_SIGNATURES:
        raise InputError(f"wrong signing keys: expected 1..{MAX_SIGNATURES} different keys, got {len(keys)}")
    payload = _Payload()
    deltas = sorted(content.deltas, key=lambda delta: delta.name)
    tensors = [_tensor_row(number, delta, content, payload, plain) for number, delta in enumerate(deltas)]
    probe = _probe_row(content, payload, plain)
    manifest = {
        "parent": content.parent,
        "result": content.result,
        "precision": content.precision,
        "recipe": content.recipe,
        "tensors": tensors,
        "probe": probe,
        "provenance": without_floats(content.provenance),
        "sections": payload.table,
        **_stated(content.max_flips),
    }
    try:
        stored = encode(manifest)
        if len(stored) > MAX_MANIFEST_BYTES:
            raise InputError(
                f"manifest is too large: expected at most {MAX_MANIFEST_BYTES} bytes, got {len(stored)}", hint="edit fewer tensors"
            )
        data = _sign(stored if plain else min(stored, zlib.compress(stored, _ZLIB_LEVEL), key=len), b"".join(payload.parts), keys)
        read_unverified(data).verify([public_half(key) for key in keys], allow_test_keys=True)
    except (IntegrityError, UnicodeEncodeError) as error:
        raise InputError(f"content makes no legal patch: {error}", hint="see edgeedit/patch/FORMAT.md") from error
    return data


def _sign(manifest: bytes, payload: bytes, keys: Sequence[Ed25519PrivateKey]) -> bytes:
    total = HEADER_BYTES + len(manifest) + len(payload)
    if total > MAX_PATCH_BYTES:
        raise InputError(f"patch is too large: expected at most {MAX_PATCH_BYTES} bytes, got {total}", hint="edit fewer weights")
    fixed = FIXED.pack(MAGIC, VERSION, len(keys), len(manifest), total)
    by_id = {bytes.fromhex(public_half(key).key_id): key for key in keys}
    message = signed_message(fixed, sorted(by_id), manifest)
    slots = [SLOT.pack(key_id, by_id[key_id].sign(message)) for key_id in sorted(by_id)]
    return b"".join([(fixed + b"".join(slots)).ljust(HEADER_BYTES, b"\0"), manifest, payload])


def write_patch(path: Path, content: PatchContent, keys: Sequence[Ed25519PrivateKey]) -> str:
    """Build and write durably; returns the SHA-256 of the file.  Raises InputError (exit 2) for unusable content,
    RefusedError (exit 6) when the disk refuses; the path then holds what it held before."""
    data = build_patch(content, keys)
    replace_file(path, data)
    return digest_bytes(data)
