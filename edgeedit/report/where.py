"""Where the encoder was edited: per block the heads, the share of first-FFN weights, entries and bytes.

Guarantees: entries are counted in the Delta itself; bytes are those of a written patch and None without one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from edgeedit.delta import Delta
from edgeedit.errors import InputError
from edgeedit.report.words import number
from edgeedit.rounding import changed_elements

_BLOCK = re.compile(r"(?:^|\.)(\d{1,4})\.")


def block_of(name: str) -> int | None:
    """The block's number in a parameter's name, None where there is none."""
    found = _BLOCK.search(name)
    return int(found[1]) if found else None


def _locality(delta: Delta) -> dict[int, dict[str, Any]]:
    try:
        blocks = (delta.info.get("locality") or {}).get("blocks") or []
        return {
            int(row["block"]): {
                "fc1_share": number(row, "fc1_share"),
                "heads": [{"score": number(head, "score"), "chosen": bool(head["chosen"])} for head in row["heads"]],
            }
            for row in blocks
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"cannot report: expected a locality of blocks and heads, got {error!r}") from error


def where(delta: Delta, tensor_bytes: Any) -> dict[str, Any]:
    """`blocks` (block, fc1_share, heads, entries, bytes) and `tensors` (name, block, entries, size, bytes).

    `tensor_bytes` is name -> bytes in the patch.  Raises InputError when the locality is malformed."""
    known: Mapping[str, Any] = tensor_bytes if isinstance(tensor_bytes, Mapping) else {}
    tensors: list[dict[str, Any]] = []
    for tensor in delta.tensors:
        changed = changed_elements(tensor)
        row = {"name": tensor.name, "block": block_of(tensor.name), "entries": int(changed.sum()), "size": int(changed.size)}
        tensors.append({**row, "bytes": number(known, tensor.name)})
    found = _locality(delta)
    blocks = []
    for block in sorted(found.keys() | {row["block"] for row in tensors if row["block"] is not None}):
        own = [row for row in tensors if row["block"] == block]
        sizes = [row["bytes"] for row in own if row["bytes"] is not None]
        place: dict[str, Any] = found.get(block, {"fc1_share": None, "heads": []})
        chosen = sum(head["chosen"] for head in place["heads"])
        entries = sum(row["entries"] for row in own)
        blocks.append({"block": block, **place, "chosen": chosen, "entries": entries, "bytes": sum(sizes) if sizes else None})
    return {"blocks": blocks, "tensors": tensors, "measured": any(row["bytes"] is not None for row in blocks)}
