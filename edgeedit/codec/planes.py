"""Signed integers as byte planes under raw deflate (FORMAT 8): for lists that are short, or whose order has no structure to model.

    integer d -> zigzag 2d, or -2d - 1 below zero -> `width` bytes -> all first bytes, then all second ones, ... -> RFC 1951

Guarantees: whatever the bytes, `unpack` returns exactly `count` integers of that width or raises IntegrityError, and allocates no
more than those and one byte.  Does not know what the integers mean.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np

from edgeedit.errors import IntegrityError
from edgeedit.limits import MAX_PATCH_BYTES

Array = np.ndarray[Any, Any]
_RAW = -15  # window bits of zlib for deflate without header and checksum
_EXPANSION = 1032  # deflate makes no more bytes than this of one


def pack(values: Array, width: int) -> bytes:
    """`values` (1-D integers, -2^(8 width - 1) <= v < 2^(8 width - 1)) as one raw deflate stream; `width` is 2 or 4 bytes.  The smaller
    of one run of blocks and of one for each plane, which have different statistics."""
    wide = values.astype(np.int64)
    if wide.size and not (-(1 << (8 * width - 1)) <= int(wide.min()) and int(wide.max()) < 1 << (8 * width - 1)):
        raise IntegrityError(f"integers do not fit {width} bytes: got {int(wide.min())}..{int(wide.max())}")
    zigzag = ((wide << 1) ^ (wide >> 63)).astype(f"<u{width}")
    planes = np.ascontiguousarray(zigzag.view(np.uint8).reshape(-1, width).T)
    return min(
        (_deflate(planes, strategy, apart) for strategy in (zlib.Z_DEFAULT_STRATEGY, zlib.Z_HUFFMAN_ONLY) for apart in (False, True)),
        key=len,
    )


def _deflate(planes: Array, strategy: int, apart: bool) -> bytes:
    state = zlib.compressobj(9, zlib.DEFLATED, _RAW, 9, strategy)
    parts = []
    for number, plane in enumerate(planes):
        if apart and number:
            parts.append(state.flush(zlib.Z_SYNC_FLUSH))
        parts.append(state.compress(plane.tobytes()))
    return b"".join([*parts, state.flush()])


def unpack(data: bytes | memoryview, count: int, width: int, what: str) -> Array:
    """The `count` integers (int64) of a stream that `pack` made; `what` is named in a message.  Raises IntegrityError."""
    size = count * width
    if size > MAX_PATCH_BYTES or size > _EXPANSION * len(data):
        raise IntegrityError(f"{what} is too large: expected at most {MAX_PATCH_BYTES} bytes unpacked, got {size}")
    state = zlib.decompressobj(_RAW)
    try:
        # One byte more than expected: the end mark must be reached, and a stream that goes on is seen without unfolding it.
        content = state.decompress(data, size + 1)
    except zlib.error as error:
        raise IntegrityError(f"cannot unpack {what}: expected a deflate stream, got {error}") from error
    if len(content) != size or not state.eof or state.unused_data:
        raise IntegrityError(f"{what} has a wrong length: expected exactly {size} bytes in one deflate stream")
    planes = np.frombuffer(content, np.uint8).reshape(width, count)
    zigzag = np.ascontiguousarray(planes.T).view(f"<u{width}").reshape(-1).astype(np.int64)
    result: Array = (zigzag >> 1) ^ -(zigzag & 1)
    return result
