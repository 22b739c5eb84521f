"""Byte layout of the fixed header and what a signature covers (FORMAT 1 and 2); shared by the reader and the writer.

Guarantees: these constants are the only place that knows an offset.  Does not read or check anything.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from edgeedit.limits import MAX_SIGNATURES

MAGIC = b"\x89EEP\r\n\x1a\n"
VERSION = 1
DOMAIN = b"edgeedit-patch-v1\x00"
FIXED = struct.Struct("<8sHHIQ")  # magic, version, signature count, manifest length, total length
SLOT = struct.Struct("<32s64s")  # key id, Ed25519 signature
HEADER_BYTES = FIXED.size + MAX_SIGNATURES * SLOT.size


def signed_message(fixed: bytes, key_ids: Iterable[bytes], manifest: bytes) -> bytes:
    """What is signed: domain prefix, the 24 fixed bytes, the key ids of the used slots in their order, the manifest as stored."""
    return DOMAIN + fixed + b"".join(key_ids) + manifest
