"""SHA-256 digests and the fingerprint of a set of named tensors.

Guarantees: the fingerprint depends on name, dtype, shape and bytes of every tensor and on nothing else; the order in
which tensors are given does not matter.  All digests are lower-case hexadecimal strings of 64 characters.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class TensorDigest:
    """Identity of one deployed tensor: name, dtype word (see `dtype_word`), shape, SHA-256 of its C-order bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    sha256: str


def dtype_word(dtype: np.dtype[Any]) -> str:
    """The word of a deployed dtype: float32, float16, int8; bfloat16 for uint16, because numpy has no bfloat16 and its
    16 bits are carried as they are (no deployed weight is an unsigned integer)."""
    return "bfloat16" if dtype.name == "uint16" else str(dtype.name)


def digest_bytes(data: bytes | memoryview) -> str:
    """SHA-256 of bytes, hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def digest_array(array: np.ndarray[Any, Any]) -> str:
    """SHA-256 of the C-order little-endian bytes of an array."""
    little = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"), copy=False))
    return hashlib.sha256(little.data).hexdigest()


def digest_blocks(blocks: Iterable[bytes]) -> str:
    """SHA-256 of bytes that come in pieces."""
    state = hashlib.sha256()
    for block in blocks:
        state.update(block)
    return state.hexdigest()


def digest_file(path: Path) -> str:
    """SHA-256 of a file, read in blocks of 1 MiB."""
    state = hashlib.sha256()
    with path.open("rb") as handle:
        while block := handle.read(1 << 20):
            state.update(block)
    return state.hexdigest()


def tensor_digest(name: str, array: np.ndarray[Any, Any]) -> TensorDigest:
    """The identity of one tensor."""
    return TensorDigest(name, dtype_word(array.dtype), tuple(array.shape), digest_array(array))


def fingerprint(tensors: Iterable[TensorDigest]) -> str:
    """Fingerprint over sorted (name, dtype, shape, digest) of all deployed tensors."""
    rows = sorted([t.name, t.dtype, list(t.shape), t.sha256] for t in tensors)
    return digest_bytes(json.dumps(rows, separators=(",", ":"), ensure_ascii=True).encode())
