"""Writes the seed corpora of the fuzz targets from the golden patch files; files that exist already stay as they are.

python tests/fuzz/make_seeds.py
"""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
GOLDEN = HERE.parent / "golden"
HEADER_BYTES = 408
BOMBS = {"bad-v1-bomb", "bad-v1-packed-and-more"}  # their manifests are not unpacked here
DTYPES = {"float16": 0, "float32": 1, "bfloat16": 2, "int8": 3}
LANES = (512, 256)  # shape of v1-lanes.eep, which the sparse target knows by a bit of the dtype's byte


def _save(target: str, data: bytes) -> None:
    folder = HERE / "corpus" / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)


def _sections(manifest: dict[str, Any], payload: bytes) -> None:
    table = {row["name"]: payload[row["offset"] : row["offset"] + row["length"]] for row in manifest["sections"]}
    for row in manifest["tensors"]:
        shape = row["shape"] if len(row["shape"]) == 2 else [1, row["shape"][0]]
        dtype = DTYPES[row["dtype"]]
        if tuple(shape) == LANES:
            _save("sparse", bytes([0, 0, dtype | 0x80]) + table[row["sparse"]])
        if "dense" in row and shape[0] * shape[1] <= 256:
            _save("dense", bytes([shape[0] * shape[1] - 1, dtype]) + table[row["dense"]])
        if max(shape) > 64:  # the other targets make matrices of at most 64 x 64
            continue
        for kind in ("sparse", "low_rank", "exact"):
            if kind in row:
                _save(kind, bytes([shape[0] - 1, shape[1] - 1, dtype]) + table[row[kind]])
        if dtype != DTYPES["int8"]:
            _save("tensor", _whole(row, shape, dtype, table))


def _whole(row: dict[str, Any], shape: list[int], dtype: int, table: dict[str, bytes]) -> bytes:
    """All sections of a tensor, as fuzz_tensor.cc takes them."""
    kinds = sum(bit for kind, bit in (("sparse", 0x10), ("dense", 0x20), ("low_rank", 0x40), ("exact", 0x80)) if kind in row)
    first, second, third = (
        table[row[kind]] if kind in row else b"" for kind in ("dense" if kinds & 0x20 else "sparse", "low_rank", "exact")
    )
    return bytes([shape[0] - 1, shape[1] - 1, dtype | kinds]) + struct.pack("<HH", len(first), len(second)) + first + second + third


def main() -> None:
    """All targets."""
    for path in sorted(GOLDEN.glob("*.eep")):
        data = path.read_bytes()
        length = struct.unpack_from("<I", data, 12)[0]
        manifest, payload = data[HEADER_BYTES : HEADER_BYTES + length], data[HEADER_BYTES + length :]
        _save("container", data)
        _save("manifest", struct.pack("<I", len(payload)) + manifest)
        if path.stem in BOMBS:
            continue
        if manifest[:1] == b"\x78":
            manifest = zlib.decompress(manifest)
            _save("manifest", struct.pack("<I", len(payload)) + manifest)
        _save("json", manifest)
        if path.stem.startswith("v"):
            _sections(json.loads(manifest), payload)
    for seed in (bytes([3, 9, 4, 1, 2, 1, 1, flags]) + bytes(range(1, 64)) for flags in range(8)):
        _save("apply", seed)


if __name__ == "__main__":
    main()
