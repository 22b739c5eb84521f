"""Writes the seed corpora of the fuzz targets from the golden patch files; files that exist already stay as they are.

python tests/fuzz/make_seeds.py
"""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from pathlib import Path

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


def _sections(manifest: dict[str, object], payload: bytes) -> None:
    table = {row["name"]: payload[row["offset"] : row["offset"] + row["length"]] for row in manifest["sections"]}  # type: ignore[attr-defined]
    for row in manifest["tensors"]:  # type: ignore[attr-defined]
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
