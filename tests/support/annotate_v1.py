"""Writes the two generated parts of FORMAT.md: the limits, from edgeedit/limits.py, and the annotated bytes of a golden file.

    python tests/support/annotate_v1.py

A test compares the page with what this makes and puts the dump together again, byte for byte.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "edgeedit" / "patch" / "FORMAT.md"
GOLDEN = ROOT / "tests" / "golden" / "v1-small.eep"
LIMITS = ROOT / "edgeedit" / "limits.py"
_LIMIT = re.compile(r"^([A-Z_]+) = (.+?)(?:  # (.*))?$", re.MULTILINE)


def limits_table() -> str:
    """One row per constant of limits.py: name, expression, what it limits; a constant without a comment belongs to the one before."""
    rows, before = ["| constant | value | of what |", "|---|---|---|"], ""
    for name, value, comment in _LIMIT.findall(LIMITS.read_text("utf-8")):
        before = comment or before
        rows.append(f"| {name} | {value} | {before.replace('|', chr(92) + '|')} |")
    return "\n".join(rows)


def hexdump() -> str:
    """The golden file as lines `offset  hex bytes  text | meaning`, one field after the other; `*` repeats the line before up to
    the next offset; the last line is the end."""
    data = GOLDEN.read_bytes()
    lines, at = [], 0
    for length, name in _fields(data):
        end, former, meaning = at + length, b"", name
        while at < end:
            chunk = data[at : min(at + 16, end)]
            if chunk == former and end - at > 16:
                if lines[-1] != "*":
                    lines.append("*")
            else:
                text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in chunk)
                lines.append(f"{at:04x}  {chunk.hex(' '):47}  {text:16} {meaning}".rstrip())
            former, meaning, at = chunk, "", at + len(chunk)
    return "\n".join([*lines, f"{at:04x}"])


def undump(text: str) -> bytes:
    """The bytes that a dump stands for, whatever it says about them."""
    data, former = b"", b""
    for line in text.splitlines():
        if line == "*":
            former = data[-16:]
            continue
        at = int(line[:4], 16)
        if former:
            data += former * ((at - len(data)) // len(former))
            former = b""
        if at != len(data):
            raise ValueError(f"dump has a hole before {line[:4]}")
        data += bytes.fromhex(line[6:53])
    return data


def _fields(data: bytes) -> Iterator[tuple[int, str]]:
    _, _, count, length, total = struct.unpack("<8sHHIQ", data[:24])
    yield 8, "magic"
    yield 2, "version 1"
    yield 2, f"{count} signature"
    yield 4, f"manifest of {length} bytes"
    yield 8, f"file of {total} bytes"
    for slot in range(count):
        yield 32, f"slot {slot}: key id"
        yield 64, f"slot {slot}: signature"
    yield 96 * (4 - count), f"{4 - count} unused slots"
    yield length, "manifest"
    manifest = json.loads(data[408 : 408 + length])
    kinds = {row[key]: key for row in manifest["tensors"] for key in ("sparse", "low_rank") if key in row}
    for section in manifest["sections"]:
        content = data[408 + length + section["offset"] :][: section["length"]]
        kind = kinds.get(section["name"], "probe")
        parts = {"sparse": _sparse, "low_rank": _low_rank, "probe": _probe}[kind](content)
        yield from ((size, f"{section['name']}: {meaning}") for size, meaning in parts)


def _sparse(content: bytes) -> Iterator[tuple[int, str]]:
    lanes, entries, margin, mask, mask_escapes, step, step_escapes = (content[:2], *struct.unpack("<6I", content[2:26]))
    yield 2, f"lanes {lanes[0]}, {lanes[1]}"
    yield 4, f"{entries} entries"
    yield 4, f"margin stream of {margin} bytes"
    yield 4, f"mask stream of {mask} bytes"
    yield 4, f"{mask_escapes} mask escapes"
    yield 4, f"step stream of {step} bytes"
    yield 4, f"{step_escapes} step escapes"
    at = 26
    for table in ("row", "column", "step"):
        low, high = content[at], content[at + 1]
        size = 2 + (0 if low == high else (12 * (high - low + 1) + 7) // 8)
        yield 2, f"{table} table, symbols {low} to {high}"
        yield size - 2, f"{table} table, frequencies"
        at += size
    yield from ((margin, "margin stream"), (mask, "mask stream"), (mask_escapes, "mask escapes"))
    yield from ((step, "step stream"), (step_escapes, "step escapes"))


def _low_rank(content: bytes) -> Iterator[tuple[int, str]]:
    rank, rows, cols, flags, packed = struct.unpack("<5I", content[:20])
    yield from ((4, f"rank {rank}"), (4, f"{rows} rows"), (4, f"{cols} columns"), (4, f"flags {flags}"))
    yield 4, f"{packed} bytes packed"
    yield packed, "zlib stream"


def _probe(content: bytes) -> Iterator[tuple[int, str]]:
    yield len(content), "raw float32"


def replaced(page: str, mark: str, content: str) -> str:
    """The page with what stands between `<!-- mark -->` and `<!-- /mark -->` exchanged."""
    start, end = f"<!-- {mark} -->\n", f"<!-- /{mark} -->\n"
    head, rest = page.split(start)
    return head + start + content + "\n" + end + rest.split(end)[1]


def page_with_both(page: str) -> str:
    """The page with its generated parts made again."""
    return replaced(replaced(page, "limits", limits_table()), "dump", f"```\n{hexdump()}\n```")


if __name__ == "__main__":
    PAGE.write_text(page_with_both(PAGE.read_text("utf-8")), "utf-8")
