"""Frames kept of clean days and of now: as pictures without loss, packed, and never more than a stated number of bytes.

Guarantees: `unpack(pack(x))` is `x` bit for bit; a Reservoir is a uniform sample of what it was given (Vitter 1985, algorithm R) until
its bytes are used up, after which frames are only replaced by ones that fit.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def pack(picture: Array) -> bytes:
    """A picture uint8 (3, s, s), packed: the planes' differences to green, so that a grey camera costs one plane."""
    planes = np.stack([picture[1], picture[0] - picture[1], picture[2] - picture[1]])
    planes[:, :, 1:] -= planes[:, :, :-1].copy()
    return zlib.compress(planes.tobytes(), 1)


def unpack(data: bytes, side: int) -> Array:
    """The picture of `pack`, uint8 (3, side, side); raises ValueError when it has another size, zlib.error when it is damaged."""
    stream = zlib.decompressobj()
    flat = np.frombuffer(stream.decompress(data, 3 * side * side + 1), dtype=np.uint8)
    green, red, blue = np.cumsum(flat.reshape(3, side, side), axis=2, dtype=np.uint8)
    return np.stack([red + green, green, blue + green])


@dataclass(frozen=True)
class Kept:
    """A frame of clean days: packed `picture`; `row` float32 (PROJECTED,), `verdict` and `margin` of the generation that answered."""

    picture: bytes
    row: Array
    verdict: int
    margin: float


class Reservoir:
    """At most `count` frames and `limit` bytes of packed pictures."""

    def __init__(self, count: int, limit: int, seed: int = 0) -> None:
        self.kept: list[Kept] = []
        self._count, self._limit, self._bytes, self._seen = count, limit, 0, 0
        self._rng = np.random.default_rng(seed)

    def add(self, frame: Kept) -> None:
        """Offer a frame."""
        self._seen += 1
        size = len(frame.picture)
        if len(self.kept) < self._count and self._bytes + size <= self._limit and self._seen == len(self.kept) + 1:
            self.kept.append(frame)
            self._bytes += size
        elif self.kept and (place := int(self._rng.integers(self._seen))) < len(self.kept):
            grown = self._bytes + size - len(self.kept[place].picture)
            if grown <= self._limit:
                self.kept[place], self._bytes = frame, grown
