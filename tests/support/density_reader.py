"""A second decoder of density sections in plain Python.  Slow; for small tensors.

Written from FORMAT 6 and not from the C++ code; the density tables are read from that page.
"""

from __future__ import annotations

import re
import struct
from pathlib import Path

TOTAL, LOW = 4096, 1 << 16


class DamagedError(Exception):
    """The bytes are no section."""


class _Stream:
    def __init__(self, data: bytes, lanes: int) -> None:
        if len(data) < 4 * lanes or len(data) % 2:
            raise DamagedError("stream length")
        self.states = list(struct.unpack_from(f"<{lanes}I", data))
        self.words = list(struct.unpack(f"<{(len(data) - 4 * lanes) // 2}H", data[4 * lanes :]))
        self.number = self.used = 0
        if min(self.states) < LOW:
            raise DamagedError("state")

    def get(self, frequencies: dict[int, int]) -> int:
        lane = self.number % len(self.states)
        self.number += 1
        state = self.states[lane]
        place, start = state % TOTAL, 0
        for symbol in sorted(frequencies):
            if place < start + frequencies[symbol]:
                break
            start += frequencies[symbol]
        state = frequencies[symbol] * (state // TOTAL) + place - start
        if state < LOW:
            if self.used == len(self.words):
                raise DamagedError("stream is short")
            state = state << 16 | self.words[self.used]
            self.used += 1
        self.states[lane] = state
        return symbol

    def close(self) -> None:
        if self.used != len(self.words) or any(s != LOW for s in self.states):
            raise DamagedError("stream does not end")


def _take(data: bytes, length: int) -> tuple[bytes, bytes]:
    if length > len(data):
        raise DamagedError("short")
    return data[:length], data[length:]


def _table(data: bytes, bound: int) -> tuple[dict[int, int], bytes]:
    head, data = _take(data, 2)
    low, high = head
    if low > high or high >= bound:
        raise DamagedError("table range")
    if low == high:
        return {low: TOTAL}, data
    count = high - low + 1
    packed, data = _take(data, (count * 12 + 7) // 8)
    whole = int.from_bytes(packed, "little")
    found = [(whole >> (12 * i)) & 0xFFF for i in range(count)]
    if whole >> (12 * count) or sum(found) != TOTAL or not found[0] or not found[-1]:
        raise DamagedError("table")
    return {low + i: f for i, f in enumerate(found) if f}, data


def page_tables() -> list[tuple[int, list[int], int]]:
    """(limit, frequency of one byte with 0..limit bits, frequency of the escape) of every density table, as FORMAT 6 prints them."""
    text = (Path(__file__).parents[2] / "edgeedit" / "patch" / "FORMAT.md").read_text("utf-8")
    rows = re.findall(r"^\| (\d+) \| (\d) \|((?: [\d-]+ \|){9}) (\d+) \|$", text, re.MULTILINE)
    if [int(row[0]) for row in rows] != list(range(33)):
        raise ValueError("FORMAT.md does not print 33 density tables")
    return [(int(limit), [int(f) for f in cells.split("|")[:-1] if f.strip() != "-"], int(escape)) for _, limit, cells, escape in rows]


TABLES = page_tables()


def _mask_table(m: int) -> tuple[dict[int, int], int]:
    limit, frequencies, escape = TABLES[m]
    found = {byte: frequencies[byte.bit_count()] for byte in range(256) if byte.bit_count() <= limit}
    if limit < 8:
        found[255] = escape
    return found, limit


def decode(data: bytes, rows: int, cols: int) -> dict[int, int]:  # noqa: C901, PLR0912 - one walk through the layout
    """Flat position -> step."""
    head, data = _take(data, 26)
    mask_lanes, step_lanes, count, margins, mask, mask_escapes, steps, step_escapes = struct.unpack("<BB6I", head)
    if mask_lanes not in (1, 8) or step_lanes not in (1, 8) or not 1 <= count <= rows * cols:
        raise DamagedError("header")
    row_table, data = _table(data, 65)
    col_table, data = _table(data, 64)
    step_table, data = _table(data, 32)
    part, data = _take(data, margins)
    stream = _Stream(part, 1)
    row_class = [stream.get(row_table) for _ in range(rows)]
    col_class = [stream.get(col_table) for _ in range(cols)]
    stream.close()
    part, data = _take(data, mask)
    mask_stream = _Stream(part, mask_lanes)
    raw, data = _take(data, mask_escapes)
    escapes = list(raw)
    part, data = _take(data, steps)
    step_stream = _Stream(part, step_lanes)
    raw, data = _take(data, step_escapes)
    more = list(raw)
    if data:
        raise DamagedError("trailing bytes")
    order = sorted((j for j in range(cols) if col_class[j]), key=lambda j: (col_class[j], j))
    groups = [order[i : i + 8] for i in range(0, len(order), 8)]
    tables = [_mask_table(m) for m in range(33)]
    found: dict[int, int] = {}
    for i in range(rows):
        if not row_class[i]:
            continue
        for group in groups:
            total, n = sum(col_class[j] - 32 for j in group), len(group)
            mean = (2 * abs(total) + n) // (2 * n) * (1 if total >= 0 else -1)
            logit = max(-32, min(32, row_class[i] - 33 + mean))
            frequencies, limit = tables[abs(logit)]
            byte = mask_stream.get(frequencies)
            if byte == 255 and limit < 8:
                if not escapes:
                    raise DamagedError("escapes")
                byte = escapes.pop(0)
                if byte.bit_count() <= limit:
                    raise DamagedError("needless escape")
            if byte >> n:
                raise DamagedError("bits behind the last column")
            if logit > 0:
                byte ^= (1 << n) - 1
            for k, j in enumerate(group):
                if byte >> k & 1:
                    symbol = step_stream.get(step_table)
                    size = symbol // 2 + 1
                    if size > 15:
                        if not more:
                            raise DamagedError("step escapes")
                        size = 16 + more.pop(0)
                    if size > 255 or len(found) == count:
                        raise DamagedError("step")
                    found[i * cols + j] = -size if symbol % 2 else size
    mask_stream.close()
    step_stream.close()
    if escapes or more or len(found) != count:
        raise DamagedError("left over")
    return found
