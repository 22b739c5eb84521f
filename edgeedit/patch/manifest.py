"""`Manifest`: the signed JSON part of a patch as frozen types, and the checks that turn verified bytes into it (FORMAT 3, 4).

Guarantees: a Manifest satisfies every rule of FORMAT 4 (names, digests, shapes, scales, the whole section table against
the payload's size, one use per section), so code that holds one need not check again.  Reads no payload byte.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from edgeedit.bundle import DTYPES
from edgeedit.errors import IntegrityError
from edgeedit.limits import (
    MAX_DENSE_ELEMENTS,
    MAX_DIMS,
    MAX_MANIFEST_BYTES,
    MAX_NAME_BYTES,
    MAX_PROBE_VALUES,
    MAX_PROBES,
    MAX_SECTIONS,
    MAX_TENSOR_ELEMENTS,
    MAX_TENSORS,
)
from edgeedit.rounding import check_scale
from edgeedit.strict_json import parse

_HINT = "get the patch again from whoever made it"
_DIGEST = re.compile(r"[0-9a-f]{64}")
_HEX_FLOAT = re.compile(r"0x1\.[0-9a-f]{13}p[+-](0|[1-9][0-9]{0,3})")
_DECIMAL = re.compile(r"(?=.{1,32}\Z)[0-9]+(\.[0-9]+)?(e[+-][0-9]+)?", re.ASCII)
_KNOWN = frozenset({"parent", "result", "precision", "recipe", "tensors", "probe", "provenance", "sections"})
_ONE = (1.0).hex()  # the step of int8 codes
# Share of a camera's verdicts that a patch may change which says nothing of it (FORMAT 4); three honest edits changed 2.1, 2.4 and 4.0 % of
# 327 development cells that held no mistake to repair.
USUAL_FLIPS = 0.05
_TENSOR = frozenset({"name", "dtype", "shape", "before", "after"})
_PARTS = frozenset({"step", "sparse", "dense", "scale", "low_rank", "exact"})
_PACKED = b"\x78"  # first byte of a zlib stream; no JSON begins with it


@dataclass(frozen=True)
class Section:
    """One piece of the payload: `offset` in bytes from the end of the manifest, `length` in bytes, SHA-256."""

    name: str
    offset: int
    length: int
    sha256: str


@dataclass(frozen=True)
class PatchTensor:
    """The change of one deployed tensor: digests before and after, step and section of the sparse part (coded `sparse` or `dense`),
    scale and section of the low-rank part, section of the corrections; None where the part is absent."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    before: str
    after: str
    step: float | None = None
    scale: float | None = None
    sparse: Section | None = None
    low_rank: Section | None = None
    dense: Section | None = None
    exact: Section | None = None


@dataclass(frozen=True)
class ProbeTable:
    """Expected outputs of the Bundle's probes: `count` x `width` float32 in `section`, compared with `tolerance` (absolute); with a
    `step` they are stored as whole multiples of it."""

    count: int
    width: int
    tolerance: float
    section: Section
    step: float | None = None


@dataclass(frozen=True)
class Manifest:
    """Everything a patch says about itself; `extra` holds unknown fields as they were."""

    parent: str
    result: str
    precision: str
    recipe: str
    tensors: tuple[PatchTensor, ...]
    probe: ProbeTable
    provenance: Mapping[str, Any]
    sections: tuple[Section, ...]
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def max_flips(self) -> float:
        """Share of a camera's usual verdicts that the patch may change, in (0, 1]: what it states, else `USUAL_FLIPS`."""
        return stated_flips(self.extra) or USUAL_FLIPS


def stated_flips(extra: Mapping[str, Any]) -> float | None:
    """The optional field `max_flips` of a manifest; None where it is absent or no share (FORMAT 4: then it has no meaning)."""
    text = extra.get("max_flips")
    if not isinstance(text, str) or not _DECIMAL.fullmatch(text) or not 0.0 < float(text) <= 1.0:
        return None
    return float(text)


def plain_manifest(stored: bytes) -> bytes:
    """The JSON bytes of a stored manifest, which may be one zlib stream (FORMAT 3); raises IntegrityError.  Only for verified bytes."""
    if stored[:1] != _PACKED:
        return stored
    state = zlib.decompressobj()
    try:
        data = state.decompress(stored, MAX_MANIFEST_BYTES + 1)
    except zlib.error as error:
        raise _wrong("manifest", "a zlib stream", error) from error
    if len(data) > MAX_MANIFEST_BYTES or not state.eof or state.unused_data:
        raise _wrong("manifest", f"one zlib stream of at most {MAX_MANIFEST_BYTES} bytes", len(data))
    return data


def parse_manifest(data: bytes, payload_bytes: int) -> Manifest:
    """The Manifest of verified bytes whose payload has `payload_bytes`; raises IntegrityError when a rule is broken."""
    value = parse(data)
    for key in sorted(_KNOWN - value.keys()):
        raise _wrong("manifest", f"the field {key}", "none")
    sections = _sections(_rows(value["sections"], "sections", MAX_SECTIONS), payload_bytes)
    free = {section.name: section for section in sections}  # each may be taken once
    tensors = tuple(_tensor(row, free) for row in _rows(value["tensors"], "tensors", MAX_TENSORS))
    _unique((tensor.name for tensor in tensors), "tensor")
    probe = _probe(value["probe"], free)
    for name in free:
        raise _wrong(f"section {name}", "a tensor or the probe table that uses it", "none")
    if not isinstance(value["provenance"], dict):
        raise _wrong("provenance", "an object", value["provenance"])
    return Manifest(
        parent=_digest(value["parent"], "parent"),
        result=_digest(value["result"], "result"),
        precision=_dtype(value["precision"], "precision"),
        recipe=_name(value["recipe"], "recipe"),
        tensors=tensors,
        probe=probe,
        provenance=value["provenance"],
        sections=sections,
        extra={key: item for key, item in value.items() if key not in _KNOWN},
    )


def _wrong(what: str, expected: str, got: object) -> IntegrityError:
    return IntegrityError(f"{what} is wrong: expected {expected}, got {str(got)[:80]}", hint=_HINT)


def _rows(value: Any, what: str, limit: int) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not 0 < len(value) <= limit or not all(isinstance(row, dict) for row in value):
        raise _wrong(what, f"1..{limit} objects", len(value) if isinstance(value, list) else value)
    return value


def _fields(row: Any, what: str, required: frozenset[str], optional: frozenset[str] = frozenset()) -> dict[str, Any]:
    if not isinstance(row, dict) or not required <= row.keys() <= required | optional:
        raise _wrong(what, f"the fields {sorted(required)}", sorted(row) if isinstance(row, dict) else row)
    return row


def _name(value: Any, what: str) -> str:
    if not isinstance(value, str) or not 0 < len(value.encode("utf-8")) <= MAX_NAME_BYTES or any(c < " " or c == "\x7f" for c in value):
        raise _wrong(what, f"a name of 1..{MAX_NAME_BYTES} bytes without control characters", ascii(value))
    return value


def _digest(value: Any, what: str) -> str:
    if not isinstance(value, str) or not _DIGEST.fullmatch(value):
        raise _wrong(what, "64 hexadecimal digits", value)
    return value


def _dtype(value: Any, what: str) -> str:
    if not isinstance(value, str) or value not in DTYPES:
        raise _wrong(what, " or ".join(DTYPES), value)
    return value


def _integer(value: Any, what: str, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise _wrong(what, f"an integer in {low}..{high}", value)
    return value


def _unique(names: Iterable[str], what: str) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise _wrong(f"{what} {name}", "a unique name", "it twice")
        seen.add(name)


def _sections(rows: list[dict[str, Any]], payload_bytes: int) -> tuple[Section, ...]:
    """The whole table, before any byte of the payload is looked at.  Python integers do not overflow; every value is bounded
    by the payload's size all the same, so that a reader with fixed-width integers meets the same rule."""
    found: list[Section] = []
    end = 0
    for row in rows:
        _fields(row, "section row", frozenset({"name", "offset", "length", "sha256"}))
        name = _name(row["name"], "section name")
        offset = _integer(row["offset"], f"offset of section {name}", end, end)
        length = _integer(row["length"], f"length of section {name}", 1, payload_bytes - end)
        found.append(Section(name, offset, length, _digest(row["sha256"], f"digest of section {name}")))
        end += length
    if end != payload_bytes:
        raise _wrong("section table", f"an end at payload byte {payload_bytes}", end)
    _unique((section.name for section in found), "section")
    return tuple(found)


def _take(free: dict[str, Section], name: Any, what: str) -> Section:
    if not isinstance(name, str) or name not in free:
        raise _wrong(what, "the name of a section that nothing else uses", name)
    return free.pop(name)


def _scale(value: Any, what: str, *, power_of_two: bool) -> float:
    if not isinstance(value, str) or not _HEX_FLOAT.fullmatch(value):
        raise _wrong(what, "a hex-float", value)
    try:
        number = float.fromhex(value)
    except OverflowError as error:
        raise _wrong(what, "a hex-float in range", value) from error
    check_scale(number, power_of_two=power_of_two)
    return number


def _shape(value: Any, what: str) -> tuple[int, ...]:
    if not isinstance(value, list) or not 0 < len(value) <= MAX_DIMS:
        raise _wrong(what, f"1..{MAX_DIMS} dimensions", value)
    shape = tuple(_integer(n, what, 1, MAX_TENSOR_ELEMENTS) for n in value)
    if math.prod(shape) > MAX_TENSOR_ELEMENTS:
        raise _wrong(what, f"at most {MAX_TENSOR_ELEMENTS} elements", math.prod(shape))
    return shape


def _tensor(row: dict[str, Any], free: dict[str, Section]) -> PatchTensor:
    _fields(row, "tensor row", _TENSOR, _PARTS)
    name = _name(row["name"], "tensor name")
    shape = _shape(row["shape"], f"shape of {name}")
    steps = ("sparse" in row) + ("dense" in row)
    if ("step" in row) != steps or ("scale" in row) != ("low_rank" in row) or not _PARTS & row.keys():
        raise _wrong(f"tensor {name}", "step with sparse or dense, scale with low_rank, one part at least", sorted(_PARTS & row.keys()))
    if "low_rank" in row and len(shape) != 2:
        raise _wrong(f"shape of {name}", "2 dimensions for a low-rank part", len(shape))
    if "dense" in row and math.prod(shape) > MAX_DENSE_ELEMENTS:
        raise _wrong(f"shape of {name}", f"at most {MAX_DENSE_ELEMENTS} elements for a dense part", math.prod(shape))
    dtype = _dtype(row["dtype"], f"dtype of {name}")
    if dtype == "int8" and ("low_rank" in row or "exact" in row or row.get("step", _ONE) != _ONE):
        raise _wrong(f"int8 tensor {name}", f"integers with step {_ONE} alone", sorted(_PARTS & row.keys()))
    return PatchTensor(
        name=name,
        dtype=dtype,
        shape=shape,
        before=_digest(row["before"], f"digest of {name} before"),
        after=_digest(row["after"], f"digest of {name} after"),
        step=_scale(row["step"], f"step of {name}", power_of_two=False) if "step" in row else None,
        scale=_scale(row["scale"], f"scale of {name}", power_of_two=True) if "scale" in row else None,
        sparse=_take(free, row["sparse"], f"sparse part of {name}") if "sparse" in row else None,
        low_rank=_take(free, row["low_rank"], f"low-rank part of {name}") if "low_rank" in row else None,
        dense=_take(free, row["dense"], f"dense part of {name}") if "dense" in row else None,
        exact=_take(free, row["exact"], f"corrections of {name}") if "exact" in row else None,
    )


def _probe(value: Any, free: dict[str, Section]) -> ProbeTable:
    _fields(value, "probe table", frozenset({"count", "width", "tolerance", "section"}), frozenset({"step"}))
    count = _integer(value["count"], "number of probes", 1, MAX_PROBES)
    width = _integer(value["width"], "width of probes", 1, MAX_PROBE_VALUES // count)
    text = value["tolerance"]
    if not isinstance(text, str) or not _DECIMAL.fullmatch(text) or not 0.0 < float(text) < math.inf:
        raise _wrong("probe tolerance", "a positive decimal string", text)
    step = _scale(value["step"], "step of probes", power_of_two=True) if "step" in value else None
    return ProbeTable(count, width, float(text), _take(free, value["section"], "section of probes"), step)
