"""Checks of single fields of the documents that are signed: rollouts and receipts.

Guarantees: every function returns a value of the stated type or raises IntegrityError that names the field.
"""

from __future__ import annotations

import re
from typing import Any

from edgeedit.errors import IntegrityError
from edgeedit.limits import MAX_OTA_NAME_BYTES, MAX_OTA_TEXT_BYTES

HINT = "ask whoever signed it for a right one, or upgrade edgeedit here"
_DIGEST = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
MAX_INTEGER = 2**53 - 1  # what every JSON reader keeps


def wrong(what: str, expected: str, got: object) -> IntegrityError:
    """The error for a field."""
    return IntegrityError(f"{what} is wrong: expected {expected}, got {str(got)[:80]!a}", hint=HINT)


def fields(row: Any, what: str, names: frozenset[str]) -> dict[str, Any]:
    """An object with exactly these fields."""
    if not isinstance(row, dict) or row.keys() != names:
        raise wrong(what, f"the fields {sorted(names)}", sorted(row) if isinstance(row, dict) else type(row).__name__)
    return row


def name(value: Any, what: str) -> str:
    """A name that may be a file name, a role and a topic: letters, digits, `.`, `_`, `-`; no leading dot, no slash."""
    if not isinstance(value, str) or len(value) > MAX_OTA_NAME_BYTES or not _NAME.fullmatch(value):
        raise wrong(what, f"1..{MAX_OTA_NAME_BYTES} letters, digits, '.', '_' or '-'", value)
    return value


def text(value: Any, what: str) -> str:
    """A free text without control characters, perhaps empty."""
    if not isinstance(value, str) or len(value.encode("utf-8")) > MAX_OTA_TEXT_BYTES or any(c < " " or c == "\x7f" for c in value):
        raise wrong(what, f"a text of at most {MAX_OTA_TEXT_BYTES} bytes without control characters", value)
    return value


def digest(value: Any, what: str, *, empty: bool = False) -> str:
    """64 lower-case hexadecimal digits; with `empty`, also no text at all."""
    if not isinstance(value, str) or not (_DIGEST.fullmatch(value) or (empty and value == "")):
        raise wrong(what, "64 hexadecimal digits", value)
    return value


def integer(value: Any, what: str, low: int, high: int = MAX_INTEGER) -> int:
    """An integer in low..high."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise wrong(what, f"an integer in {low}..{high}", value)
    return value


def flag(value: Any, what: str) -> bool:
    """A boolean."""
    if not isinstance(value, bool):
        raise wrong(what, "true or false", value)
    return value


def rows(value: Any, what: str, limit: int) -> list[Any]:
    """A list of at most `limit` values."""
    if not isinstance(value, list) or len(value) > limit:
        raise wrong(what, f"a list of at most {limit}", len(value) if isinstance(value, list) else type(value).__name__)
    return value


def word(value: Any, what: str, words: tuple[str, ...]) -> str:
    """One of these words."""
    if not isinstance(value, str) or value not in words:
        raise wrong(what, " or ".join(words), value)
    return value
