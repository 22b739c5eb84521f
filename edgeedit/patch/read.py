"""Read and verify a patch file (FORMAT 1 to 5): bytes -> `UnverifiedPatch` -> `Patch`.

Guarantees: before the signature of a trusted key verifies, only the fixed header is read; a `Patch` exists only with a
verified signature, a checked manifest and section table, and matching section digests.  Payloads are decoded on demand,
with sizes checked first.  On bytes in memory nothing can change in between; of a file, whatever is read again is digested again.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgeedit.bundle import DTYPES
from edgeedit.delta import ExactPart, LowRankPart, SparsePart, TensorDelta
from edgeedit.digest import digest_blocks, digest_bytes
from edgeedit.errors import InputError, IntegrityError
from edgeedit.files import Octets, blocks
from edgeedit.limits import MAX_MANIFEST_BYTES, MAX_PATCH_BYTES, MAX_SIGNATURES
from edgeedit.patch.header import FIXED, HEADER_BYTES, MAGIC, SLOT, VERSION, signed_message
from edgeedit.patch.keys import TEST_KEY_IDS, PublicKey
from edgeedit.patch.manifest import Manifest, PatchTensor, Section, parse_manifest, plain_manifest

Array = np.ndarray[Any, Any]
_HINT = "get the patch again from whoever made it"
_UPGRADE = f"upgrade edgeedit here, or ask for the patch in format version {VERSION}"
_OLD = "ask whoever made it to pack it again with a present edgeedit; the old format is not read any more"
_TRUST = "give the signer's public key, or ask who made this patch"


@dataclass(frozen=True)
class Patch:
    """A verified patch: `manifest`, `digest` (SHA-256 of the whole file), `signers` (key ids that are trusted and verified),
    `data` (the whole file: bytes, or an open file)."""

    manifest: Manifest
    digest: str
    signers: tuple[str, ...]
    data: Octets = field(repr=False)
    payload_start: int = field(repr=False)

    def section_bytes(self, section: Section) -> bytes:
        """The stored bytes of one section of this patch's manifest; raises IntegrityError when the file changed since it was verified."""
        start = self.payload_start + section.offset
        found = self.data[start : start + section.length]
        if not isinstance(self.data, bytes) and digest_bytes(found) != section.sha256:
            raise _changed(section)
        return found

    def tensor(self, name: str) -> PatchTensor:
        """The manifest row of a deployed tensor; raises InputError when the patch does not touch it."""
        for tensor in self.manifest.tensors:
            if tensor.name == name:
                return tensor
        raise InputError(f"patch does not touch {name}", hint="see `edgeedit inspect`")

    def tensor_delta(self, name: str) -> TensorDelta:
        """Decode the change of one tensor; raises IntegrityError when a section does not decode to a legal change."""
        # Imported here so that verifying needs no native library.
        from edgeedit.codec.sections import decode_dense, decode_sparse

        tensor = self.tensor(name)
        sparse = None
        if tensor.sparse is not None and tensor.step is not None:
            sparse = SparsePart(*decode_sparse(self.section_bytes(tensor.sparse), tensor.shape), tensor.step)
        if tensor.dense is not None and tensor.step is not None:
            sparse = SparsePart(*decode_dense(self.section_bytes(tensor.dense), tensor.shape), tensor.step)
        return TensorDelta(name, tensor.shape, sparse, self._low_rank(tensor), self._exact(tensor))

    def apply(self, name: str, old: Array) -> Array:
        """The new tensor: what `apply_delta(old, self.tensor_delta(name))` gives, without a list of positions; raises IntegrityError."""
        from edgeedit.codec.apply import apply_coded, apply_delta

        tensor = self.tensor(name)
        if tuple(old.shape) != tensor.shape:
            raise IntegrityError(f"patch does not fit {name}: expected shape {tensor.shape}, got {tuple(old.shape)}")
        if tensor.sparse is None or tensor.step is None:
            return apply_delta(old, self.tensor_delta(name))
        section = self.section_bytes(tensor.sparse)
        return apply_coded(old, name, section, tensor.step, self._low_rank(tensor), self._exact(tensor))

    def _exact(self, tensor: PatchTensor) -> ExactPart | None:
        from edgeedit.codec.sections import decode_exact

        if tensor.exact is None:
            return None
        return ExactPart(*decode_exact(self.section_bytes(tensor.exact), tensor.shape, DTYPES[tensor.dtype].itemsize))

    def _low_rank(self, tensor: PatchTensor) -> LowRankPart | None:
        from edgeedit.codec.sections import decode_low_rank

        if tensor.low_rank is None or tensor.scale is None:
            return None
        return LowRankPart(*decode_low_rank(self.section_bytes(tensor.low_rank), tensor.shape), tensor.scale)

    def expected(self) -> Array:
        """Expected probe outputs, float32 (count, width); raises IntegrityError when damaged or not finite."""
        probe = self.manifest.probe
        if probe.step is not None:
            from edgeedit.codec.probes import decode_probes

            return decode_probes(self.section_bytes(probe.section), probe.count, probe.width, probe.step)
        size = 4 * probe.count * probe.width
        raw = self.section_bytes(probe.section)
        if len(raw) < size:
            raw = _inflate(raw, size)
        if len(raw) != size:
            raise IntegrityError(f"probe section has the wrong size: expected {size} bytes, got {len(raw)}", hint=_HINT)
        values = np.frombuffer(raw, dtype="<f4").astype(np.float32).reshape(probe.count, probe.width)
        if not np.isfinite(values).all():
            raise IntegrityError("probe section is not finite: expected finite outputs", hint=_HINT)
        return values


def _inflate(data: bytes, size: int) -> bytes:
    """Expand one zlib stream of exactly `size` bytes, never allocating more than that and one byte."""
    stream = zlib.decompressobj()
    try:
        raw = stream.decompress(data, size + 1)
    except zlib.error as error:
        raise IntegrityError(f"probe section is damaged: expected a zlib stream, got {error}", hint=_HINT) from error
    if not stream.eof or stream.unused_data or len(raw) != size:
        raise IntegrityError(f"probe section is damaged: expected one zlib stream of {size} bytes", hint=_HINT)
    return raw


def _changed(section: Section) -> IntegrityError:
    return IntegrityError(f"section {section.name} was changed: its digest differs", hint=_HINT)


@dataclass(frozen=True)
class UnverifiedPatch:
    """A file of which only the fixed header was read.  The one thing to do with it is `verify`."""

    manifest_bytes: int
    slots: tuple[tuple[str, bytes], ...] = field(repr=False)
    data: Octets = field(repr=False)

    def verify(self, trusted: Sequence[PublicKey], *, allow_test_keys: bool = False) -> Patch:
        """The Patch, or IntegrityError (exit 5): no trusted signature, a wrong one under a trusted key, a broken manifest or
        section table, a section whose digest differs.  `allow_test_keys` is for tests only."""
        payload_start = HEADER_BYTES + self.manifest_bytes
        manifest_data = self.data[HEADER_BYTES:payload_start]
        key_ids = [bytes.fromhex(key_id) for key_id, _ in self.slots]
        signers = self._signers(trusted, signed_message(self.data[: FIXED.size], key_ids, manifest_data), allow_test_keys)
        manifest = parse_manifest(plain_manifest(manifest_data), len(self.data) - payload_start)
        for section in manifest.sections:
            start = payload_start + section.offset
            if digest_blocks(blocks(self.data, start, start + section.length)) != section.sha256:
                raise _changed(section)
        return Patch(manifest, digest_blocks(blocks(self.data)), signers, self.data, payload_start)

    def _signers(self, trusted: Sequence[PublicKey], message: bytes, allow_test_keys: bool) -> tuple[str, ...]:
        known = {key.key_id: key for key in trusted}
        signers: list[str] = []
        for key_id, signature in self.slots:
            if key_id in TEST_KEY_IDS and not allow_test_keys:
                continue
            if key_id in known:
                # A bad signature under a trusted key condemns the file, whatever the other slots say.
                if not known[key_id].verifies(signature, message):
                    raise IntegrityError(f"signature is wrong: key {key_id} did not sign this patch", hint=_HINT)
                signers.append(key_id)
        if not signers:
            named = ", ".join(key_id for key_id, _ in self.slots)
            test = " (a test key)" if any(key_id in TEST_KEY_IDS for key_id, _ in self.slots) else ""
            raise IntegrityError(f"no trusted signature: expected one of {len(known)} trusted keys, got {named}{test}", hint=_TRUST)
        return tuple(signers)


def read_unverified(data: Octets) -> UnverifiedPatch:
    """Read the fixed header (FORMAT 1, 2) and nothing else; raises IntegrityError when it is wrong."""
    head = data[:HEADER_BYTES]
    if head[: len(MAGIC)] != MAGIC:
        raise IntegrityError("not a patch: the first 8 bytes are no patch magic", hint="give a .eep file")
    version = int.from_bytes(head[len(MAGIC) : len(MAGIC) + 2], "little")
    if version != VERSION:
        raise IntegrityError(
            f"patch has another format version: expected {VERSION}, got {version}", hint=_UPGRADE if version > VERSION else _OLD
        )
    if not HEADER_BYTES < len(data) <= MAX_PATCH_BYTES:
        raise IntegrityError(
            f"patch has an impossible size: expected {HEADER_BYTES + 1}..{MAX_PATCH_BYTES} bytes, got {len(data)}", hint=_HINT
        )
    _, _, count, manifest_bytes, total = FIXED.unpack_from(head)
    if total != len(data):
        raise IntegrityError(f"patch is cut off or longer than it says: expected {total} bytes, got {len(data)}", hint=_HINT)
    if not 1 <= count <= MAX_SIGNATURES:
        raise IntegrityError(f"number of signatures is wrong: expected 1..{MAX_SIGNATURES}, got {count}", hint=_HINT)
    if not 1 <= manifest_bytes <= min(MAX_MANIFEST_BYTES, total - HEADER_BYTES):
        raise IntegrityError(f"manifest has an impossible size: got {manifest_bytes} bytes", hint=_HINT)
    slots = [SLOT.unpack_from(head, FIXED.size + number * SLOT.size) for number in range(count)]
    if any(first[0] >= second[0] for first, second in itertools.pairwise(slots)):
        raise IntegrityError("signatures are out of order: expected strictly ascending key ids", hint=_HINT)
    if any(head[FIXED.size + count * SLOT.size : HEADER_BYTES]):
        raise IntegrityError("an unused signature slot is not empty", hint=_HINT)
    return UnverifiedPatch(manifest_bytes, tuple((key_id.hex(), signature) for key_id, signature in slots), data)


def load_patch(path: Path, trusted: Sequence[PublicKey], *, allow_test_keys: bool = False) -> Patch:
    """Read a file of at most MAX_PATCH_BYTES and verify it; raises InputError (exit 2) when it cannot be read, IntegrityError
    (exit 5) when anything about it is wrong."""
    try:
        with path.open("rb") as handle:
            data = handle.read(MAX_PATCH_BYTES + 1)
    except OSError as error:
        raise InputError(f"cannot read patch {path}: {error.strerror or error}", hint="check the path") from error
    return read_unverified(data).verify(trusted, allow_test_keys=allow_test_keys)
