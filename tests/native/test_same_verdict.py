"""The native manifest reader against the Python one: correctly signed manifests, odd by hand or by chance, get the same verdict."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import native_cases as cases
import numpy as np

from edgeedit.digest import digest_array
from edgeedit.errors import IntegrityError
from edgeedit.patch.header import FIXED, HEADER_BYTES, MAGIC, SLOT, VERSION, signed_message
from edgeedit.patch.keys import public_half
from edgeedit.patch.read import read_unverified
from edgeedit.rounding import apply_delta

GOOD = Path(__file__).resolve().parents[1] / "golden" / "v1-small.eep"
CHANCE = 3000

# Texts put in place of a value of `provenance`, which has no other rule than FORMAT 3.
TEXTS = (
    """
0|-0|-|+1|01|1.|.5|1.0|1e5|1E5|9223372036854775807|9223372036854775808|-9223372036854775808|-9223372036854775809|99999999999999999999999
NaN|Infinity|-Infinity|true|True|null|nul|nullx|"\\u0000"|"\\uD83D\\uDE00"|"\\ud83d"|"\\ude00"|"\\ud83dx"|"\\ud83d\\u0041"|"\\u12"|"\\u12G4"|"\\x41"
"\\/"|"\t"|"\x7f"|"\u0001"|"é"|"\U0001f600"|"|[]|[1,]|[,1]|[1 , 2]|{}
{"a":1,"a":1}|{"a":1,"\\u0061":1}|{"a":1,}|{"a" : 1}|{a:1}|{1:1}|'a'|1 2|[|]|{|}
""".strip("\n")
    .replace("\n", "|")
    .split("|")
)
BYTES = [
    b'"\xff"',
    b'"\xc0\x80"',
    b'"\xed\xa0\x80"',
    b'"\xf4\x90\x80\x80"',
    b'"\xf0\x80\x80\x80"',
    b'"\xe2\x82"',
    b'"\xc3',
    b'"\x00"',
    b"1\x0b",
    b"1\x00",
]
DEPTHS = [b"[" * n + b"]" * n for n in (29, 30, 31, 32, 33, 200000)]
FIELDS: dict[tuple[Any, ...], list[Any]] = {
    ("probe", "tolerance"): [
        "1",
        "1.",
        ".5",
        "1e5",
        "1e+5",
        "1e-5",
        "1e",
        "1e-400",
        "0",
        "0.0",
        "1e400",
        "5e-324",
        "2e-324",
        "1E-5",
        "-1",
        "+1",
        "٣",
        "1" * 32,
        "1" * 33,
        1,
    ],
    ("probe", "count"): [0, 1, 2, 256, 257, True, "2", -1],
    ("probe", "width"): [0, 1, 1 << 21, (1 << 21) + 1],
    ("tensors", 0, "step"): [
        "0x1.0000000000000p-60",
        "0x1.0000000000000p-61",
        "0x1.0000000000000p+20",
        "0x1.0000000000001p+20",
        "0x1.fffe000000000p-9",
        "0x1.ffff000000000p-9",
        "0x1.0000000000000p-09",
        "0x1.0000000000000p-0",
        "0x1.0000000000000p+9999",
        "0x1.0000000000000p+10000",
        "0X1.0000000000000p-9",
        "0x1.000000000000p-9",
        "-0x1.0000000000000p-9",
        "0x1.0000000000000p-9 ",
        "0x0.0000000000000p+0",
        1,
    ],
    ("tensors", 1, "scale"): ["0x1.0000000000000p-12", "0x1.8000000000000p-12", "0x1.0000000000000p-61"],
    ("tensors", 0, "shape"): [
        [30],
        [10, 3],
        [1, 1, 30],
        [1] * 6 + [3, 10],
        [1] * 7 + [3, 10],
        [],
        [0, 10],
        [3, -10],
        [3, True],
        [1 << 28, 1 << 28],
        [1 << 63],
        30,
        [31],
        [29],
    ],
    ("tensors", 0, "name"): ["", "a" * 512, "a" * 513, "é" * 256, "é" * 257, "a\x1fb", "a\x7f", "\x80", "blocks.0.q.weight", 5, None],
    ("tensors", 0, "dtype"): ["float32", "float64", "bfloat16", "int8", "", None],
    ("tensors", 0, "before"): ["A" * 64, "a" * 63, "a" * 65, "g" * 64, None],
    ("parent",): ["A" * 64, "a" * 64, 5],
    ("recipe",): ["", "x", "\n", None],
    ("precision",): ["float32", "float8", 1],
    ("provenance",): [{}, [], None, "x"],
    ("unknown",): [{"a": [1, {"b": None}]}, 1],
    ("sections", 0, "offset"): [0, 1, -1, None, True],
    ("sections", 0, "length"): [0, 1, 1 << 62, (1 << 63) - 1],
    ("sections", 0, "name"): ["0.sparse", "1.low_rank", "probe", "x"],
    ("tensors", 0, "sparse"): ["1.low_rank", "probe", "x", 0],
    ("tensors", 1, "low_rank"): ["0.sparse"],
    ("tensors",): [[], {}, [1], None],
    ("sections",): [[], {}, None],
}


def _signed(manifest: bytes, payload: bytes) -> bytes:
    fixed = FIXED.pack(MAGIC, VERSION, 1, len(manifest), HEADER_BYTES + len(manifest) + len(payload))
    key_id = bytes.fromhex(public_half(cases.KEY).key_id)
    slot = SLOT.pack(key_id, cases.KEY.sign(signed_message(fixed, [key_id], manifest)))
    return (fixed + slot).ljust(HEADER_BYTES, b"\0") + manifest + payload


def _by_hand(stored: bytes) -> Iterator[bytes]:
    odd = [text.encode("utf-8", "surrogatepass") for text in TEXTS] + BYTES + DEPTHS
    for text in odd:
        yield stored.replace(b'"provenance":{"seed":0}', b'"provenance":{"seed":' + text + b"}")
    for before, after in ((b"", b" \n"), (b"\xef\xbb\xbf", b""), (b"", b"x"), (b"", b"\0"), (b"\t\r\n ", b""), (b"[", b"]"), (b"", b"{}")):
        yield before + stored + after
    for path, values in FIELDS.items():
        for value in values:
            manifest = json.loads(stored)
            row = manifest
            for key in path[:-1]:
                row = row[key]
            row[path[-1]] = value
            yield json.dumps(manifest, ensure_ascii=False).encode()
    for path in (("probe",), ("tensors", 0), ("tensors", 1), ("sections", 0), ()):
        manifest = json.loads(stored)
        row = manifest
        for key in path:
            row = row[key]
        for name in list(row):
            kept = row.pop(name)
            yield json.dumps(manifest).encode()
            row[name] = kept
        row["strange"] = 1
        yield json.dumps(manifest).encode()


def _by_chance(stored: bytes) -> Iterator[bytes]:
    """One to three bytes replaced, often by bytes that mean something in JSON."""
    rng = np.random.default_rng(11)
    for _ in range(CHANCE):
        changed = bytearray(stored)
        for place in rng.integers(0, len(stored), rng.integers(1, 4)):
            changed[place] = rng.choice(list(b'"\\{}[],:0123456789-+.eaft \n\x00\x7f\x80\xc3\xed\xff'))
        yield bytes(changed)


def _python_line(path: Path) -> str | None:
    """What digest_many should print, None for a refusal."""
    fields = [str(path), "0"]
    try:
        patch = read_unverified(path.read_bytes()).verify([public_half(cases.KEY)])
        for row in patch.manifest.tensors:
            fields += [row.name, digest_array(apply_delta(cases.weights_by_rule(row.dtype, row.shape), patch.tensor_delta(row.name)))]
    except IntegrityError:
        return None
    return "\t".join(fields)


def test_odd_manifests_get_the_same_verdict(native: Path, tmp_path: Path) -> None:
    data = GOOD.read_bytes()
    length = FIXED.unpack_from(data)[3]
    stored, payload = data[HEADER_BYTES : HEADER_BYTES + length], data[HEADER_BYTES + length :]
    assert b'"provenance":{"seed":0}' in stored
    paths = []
    for number, manifest in enumerate([stored, *_by_hand(stored), *_by_chance(stored)]):
        paths.append(tmp_path / f"{number}.eep")
        paths[-1].write_bytes(_signed(manifest, payload))
    keys = tmp_path / "keys.bin"
    keys.write_bytes(public_half(cases.KEY).raw)
    given = "".join(f"{path}\n" for path in paths).encode()
    done = subprocess.run([str(native / "digest_many"), str(keys)], input=given, capture_output=True, check=True)
    accepted = 0
    for line, path in zip(done.stdout.split(b"\n"), paths, strict=False):
        expected = _python_line(path)
        if expected is None:
            assert line.split(b"\t")[:2] == [str(path).encode(), b"5"], (path.read_bytes()[HEADER_BYTES : -len(payload)], line)
            continue
        accepted += 1
        assert line == expected.encode(), (path.read_bytes()[HEADER_BYTES : -len(payload)], line)
    assert len(paths) // 50 < accepted < len(paths)
