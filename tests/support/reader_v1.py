"""A second reader of patch format v1, written from FORMAT.md alone: struct, json, zlib, hashlib, numpy; no edgeedit.

It shows that the page is enough to read a patch.  It checks no signature and no limit: never use it on a device.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np


def read(data: bytes) -> dict[str, Any]:
    """Fixed header, signed message, manifest, decoded parts by tensor name, expected probe outputs."""
    magic, version, count, manifest_length, total = struct.unpack("<8sHHIQ", data[:24])  # FORMAT 1
    if magic != bytes.fromhex("894545500d0a1a0a") or version != 1 or total != len(data):
        raise ValueError("not a v1 patch")
    slots = [(data[24 + 96 * i : 56 + 96 * i].hex(), data[56 + 96 * i : 120 + 96 * i]) for i in range(count)]  # FORMAT 2
    manifest_bytes = data[408 : 408 + manifest_length]
    manifest = json.loads(zlib.decompress(manifest_bytes) if manifest_bytes[0] == 0x78 else manifest_bytes)  # FORMAT 3
    payload = data[408 + manifest_length :]
    sections = {row["name"]: payload[row["offset"] : row["offset"] + row["length"]] for row in manifest["sections"]}  # FORMAT 4
    for row in manifest["sections"]:
        if hashlib.sha256(sections[row["name"]]).hexdigest() != row["sha256"]:
            raise ValueError(f"section {row['name']} differs")
    return {
        "slots": slots,
        "message": b"edgeedit-patch-v1\x00" + data[:24] + b"".join(bytes.fromhex(key_id) for key_id, _ in slots) + manifest_bytes,
        "manifest": manifest,
        "tensors": {row["name"]: _tensor(row, sections) for row in manifest["tensors"]},
        "expected": _expected(manifest["probe"], sections),
    }


def apply(tensor: dict[str, Any], old: bytes) -> bytes:
    """The little-endian C-order bytes of a tensor (an entry of `tensors`) after the change, from those before (FORMAT 4)."""
    if tensor["dtype"] == "int8":
        codes = [code - 256 if code > 127 else code for code in old]
        for place, q in zip(tensor["index"].tolist(), tensor["q"].tolist(), strict=True):
            codes[place] += q
        return struct.pack(f"{len(codes)}b", *codes)  # refuses what leaves int8
    kind = {"float32": "<f4", "float16": "<f2", "bfloat16": "<u2"}[tensor["dtype"]]
    stored = np.frombuffer(old, kind)
    single = (
        stored.astype("<f4") if kind != "<u2" else np.frombuffer(b"".join(b"\0\0" + old[i : i + 2] for i in range(0, len(old), 2)), "<f4")
    )
    work, touched = single.copy(), np.zeros(stored.size, bool)
    if "q" in tensor:
        work[tensor["index"]] += np.float32(tensor["step"]) * tensor["q"].astype(np.float32)
        touched[tensor["index"]] = True
    if "a" in tensor:
        grid = np.add.outer(tensor["rows"].astype(np.int64) * tensor["shape"][1], tensor["cols"].astype(np.int64))
        work[grid] += np.float32(tensor["scale"]) * (tensor["a"].astype(np.int64) @ tensor["b"].astype(np.int64)).astype(np.float32)
        touched[grid] = True
    rounded = work.astype(kind) if kind != "<u2" else _bfloat16(work)
    new = np.where(touched, rounded, stored).astype(kind)
    if "difference" in tensor:  # FORMAT 10
        size, places = new.itemsize, tensor["exact_index"].tolist()
        made = bytearray(new.tobytes())
        for place, difference in zip(places, tensor["difference"].tolist(), strict=True):
            here = slice(size * place, size * place + size)
            made[here] = ((int.from_bytes(made[here], "little") + difference) % 256**size).to_bytes(size, "little")
        return bytes(made)
    return new.tobytes()


def fingerprint(tensors: list[tuple[str, str, tuple[int, ...], str]]) -> str:
    """Of (name, dtype, shape, digest) of every deployed tensor, in any order (FORMAT 4)."""
    made = []
    for name, dtype, shape, digest in sorted(tensors):
        units = struct.iter_unpack("<H", name.encode("utf-16-le"))
        text = "".join("\\" + chr(u) if chr(u) in '"\\' else chr(u) if u < 0x80 else f"\\u{u:04x}" for (u,) in units)
        made.append(f'["{text}","{dtype}",[{",".join(map(str, shape))}],"{digest}"]')
    return hashlib.sha256(f"[{','.join(made)}]".encode("ascii")).hexdigest()


def _bfloat16(single: Any) -> Any:
    """Of the two neighbours with 16 zero bits behind, the nearer one; of two equally near ones the even one."""
    toward_zero = single.view("<u4") & np.uint32(0xFFFF0000)
    away = toward_zero + np.uint32(0x10000)
    value = single.astype(np.float64)
    near, far = (np.abs(bits.view("<f4").astype(np.float64) - value) for bits in (toward_zero, away))
    odd = (toward_zero >> np.uint32(16)) & np.uint32(1) == 1
    return (np.where((far < near) | ((far == near) & odd), away, toward_zero) >> np.uint32(16)).astype("<u2")


def _tensor(row: dict[str, Any], sections: dict[str, bytes]) -> dict[str, Any]:
    found: dict[str, Any] = {"shape": tuple(row["shape"]), "dtype": row["dtype"]}
    if "sparse" in row:
        found["step"] = float.fromhex(row["step"])
        found["index"], found["q"] = _sparse(sections[row["sparse"]], row["shape"])
    if "dense" in row:  # FORMAT 9
        found["step"] = float.fromhex(row["step"])
        q = _planes(sections[row["dense"]], int(np.prod(row["shape"])), 2)
        found["index"], found["q"] = np.flatnonzero(q), q[q != 0].astype(np.int16)
    if "exact" in row:  # FORMAT 10
        data = sections[row["exact"]]
        length = int.from_bytes(data[:4], "little")
        found["exact_index"], ones = _sparse(data[4 : 4 + length], row["shape"])
        if set(ones.tolist()) != {1}:
            raise ValueError("positions of corrections have other steps than 1")
        found["difference"] = _planes(data[4 + length :], ones.size, 4 if row["dtype"] == "float32" else 2)
    if "low_rank" in row:
        found["scale"] = float.fromhex(row["scale"])
        found |= _low_rank(sections[row["low_rank"]], *row["shape"])
    return found


def _planes(data: bytes, count: int, width: int) -> Any:
    plain = zlib.decompress(data, wbits=-15)  # FORMAT 8
    if len(plain) != count * width:
        raise ValueError("planes have another length")
    numbers = [int.from_bytes(plain[i::count], "little") for i in range(count)]
    return np.array([n // 2 if n % 2 == 0 else -(n + 1) // 2 for n in numbers], np.int64)


def _sparse(data: bytes, shape: list[int]) -> tuple[Any, Any]:
    rows = 1 if len(shape) == 1 else shape[0]  # FORMAT 6
    found = _density().decode(data, rows, int(np.prod(shape)) // rows)
    index = sorted(found)
    return np.array(index), np.array([found[i] for i in index], np.int16)


def _density() -> Any:
    # By its place: this file is also loaded where the tests are no package.
    spec = importlib.util.spec_from_file_location("density_reader", Path(__file__).parent / "density_reader.py")
    if spec is None or spec.loader is None:
        raise ImportError("density_reader.py is missing")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _indices(stored: bytes, flags: int) -> Any:
    found, last = [], -1
    for (number,) in struct.iter_unpack("<I", stored):
        last = last + 1 + number if flags & 4 else number
        found.append(last)
    return np.array(found)


def _low_rank(data: bytes, height: int, width: int) -> dict[str, Any]:
    rank, m, c, flags, _ = struct.unpack("<IIIII", data[:20])  # FORMAT 7
    content = zlib.decompress(data[20:])
    at = 0
    rows, cols = np.arange(height), np.arange(width)
    if not flags & 1:
        rows, at = _indices(content[at : at + 4 * m], flags), at + 4 * m
    if not flags & 2:
        cols, at = _indices(content[at : at + 4 * c], flags), at + 4 * c
    a = np.frombuffer(content, np.int8, m * rank, at).reshape(m, rank)
    b = np.frombuffer(content, np.int8, rank * c, at + m * rank).reshape(rank, c)
    return {"rows": rows, "cols": cols, "a": a, "b": b}


def _expected(probe: dict[str, Any], sections: dict[str, bytes]) -> Any:
    raw = sections[probe["section"]]  # FORMAT 5
    if "step" in probe:
        whole = _planes(raw, probe["count"] * probe["width"], 4)
        for i in range(probe["width"], whole.size):
            whole[i] += whole[i - probe["width"]]
        return np.array([float(n) * float.fromhex(probe["step"]) for n in whole.tolist()], np.float32).reshape(probe["count"], -1)
    if len(raw) < 4 * probe["count"] * probe["width"]:
        raw = zlib.decompress(raw)
    return np.frombuffer(raw, "<f4").reshape(probe["count"], probe["width"])
