"""The JSON of everything that is signed (manifests, FORMAT 3; rollouts; receipts): no floats, no duplicate keys, bounded nesting
and integers.

Guarantees: `parse` raises IntegrityError for everything FORMAT 3 refuses and nothing else escapes from it; `encode`
always gives the same bytes for the same value.  Does not know which fields a document has.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NoReturn

import numpy as np

from edgeedit.errors import InputError, IntegrityError
from edgeedit.limits import MAX_JSON_DEPTH

_HINT = "get it again from whoever made it"
_INT64 = range(-(2**63), 2**63)
_INT64_CHARS = 20  # longest decimal text of an int64


def parse(data: bytes, what: str = "manifest") -> dict[str, Any]:
    """The outermost object; raises IntegrityError that names `what` when the bytes break a rule of FORMAT 3."""
    _check_depth(data, what)
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_float=_no_float,
            parse_constant=_no_float,
            parse_int=_bounded_int,
        )
        json.dumps(value, ensure_ascii=False).encode("utf-8")  # a lone surrogate cannot be encoded
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"{what} is not JSON: got {error}", hint=_HINT) from error
    if not isinstance(value, dict):
        raise IntegrityError(f"{what} is wrong: expected an object, got {type(value).__name__}", hint=_HINT)
    return value


def encode(value: Mapping[str, Any]) -> bytes:
    """Canonical bytes: sorted keys, no white space, UTF-8."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode("utf-8")


def without_floats(value: Any) -> Any:
    """A JSON value in which every float is its shortest decimal string (`repr`); tuples become lists, numpy scalars plain
    ones.  Raises InputError for a type that JSON has not and for integers beyond 64 bits."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, (float, np.floating)):
        return repr(float(value))
    if isinstance(value, np.bool_):
        return bool(value)
    if isinstance(value, (int, np.integer)):
        if int(value) not in _INT64:
            raise InputError(f"provenance has an integer that does not fit: expected 64 bits, got {value}")
        return int(value)
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise InputError("provenance has a key that is no string")
        return {key: without_floats(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_floats(item) for item in value]
    raise InputError(f"provenance is not JSON: got a value of type {type(value).__name__}")


def _check_depth(data: bytes, what: str) -> None:
    """Refuse deep nesting before the recursive parser sees it.  Linear: drop escapes, then every second piece between
    quotes lies outside strings.  Up to the first syntax error, where the parser stops, the count is exact."""
    outside = b"".join(data.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')[::2])
    marks = np.frombuffer(outside, dtype=np.uint8)
    opened = (marks == ord("[")) | (marks == ord("{"))
    closed = (marks == ord("]")) | (marks == ord("}"))
    depth = np.cumsum(opened.astype(np.int8) - closed.astype(np.int8), dtype=np.int32)
    if depth.size and int(depth.max()) > MAX_JSON_DEPTH:
        raise IntegrityError(f"{what} nests too deep: expected at most {MAX_JSON_DEPTH}, got {int(depth.max())}", hint=_HINT)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a duplicate key")
    return found


def _no_float(text: str) -> NoReturn:
    raise ValueError(f"the float {text[:_INT64_CHARS]}")


def _bounded_int(text: str) -> int:
    if len(text) > _INT64_CHARS or int(text) not in _INT64:
        raise ValueError("an integer beyond 64 bits")
    return int(text)
