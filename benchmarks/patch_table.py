"""The table of patch sizes in README.md, made from the recorded run and from nothing else.

Run: python benchmarks/patch_table.py      rewrites the part between the marks; a test compares it with the record.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "README.md"
RECORD = ROOT / "benchmarks" / "results" / "patch_size.json"
OPEN, CLOSE = "<!-- sizes: python benchmarks/patch_table.py -->\n", "<!-- /sizes -->"
RIVALS = ("bsdiff", "xdelta3 -9", "zstd -19 --patch-from", "bitmap + int8 + zstd")


def _bytes(value: int | None) -> str:
    return "not run" if value is None else f"{value:,}"


def rows(record: dict[str, Any]) -> list[str]:
    """Lines of the table: bytes of the whole signed patch, of its weight sections, and of the rivals; nothing is left out."""
    lines = ["| edit | our patch | of it weights | " + " | ".join(RIVALS) + " |", "|---|---|---|" + "---|" * len(RIVALS)]
    for row in record["rows"]:
        weights = row["ours_sparse_sections"] + row["ours_low_rank_sections"] if row["entries"] else None
        cells = [_bytes(row["ours"]), "-" if weights is None else _bytes(weights), *(_bytes(row["rivals"].get(name)) for name in RIVALS)]
        lines.append(f"| {row['case']} | " + " | ".join(cells) + " |")
    return lines


def page_with_table(page: str, record: dict[str, Any]) -> str:
    """`page` with the table of `record` between the marks; raises ValueError where they are missing."""
    before, opened, rest = page.partition(OPEN)
    _, closed, after = rest.partition(CLOSE)
    if not opened or not closed:
        raise ValueError(f"README.md has no place for the sizes: expected {OPEN.strip()} and {CLOSE}")
    lost = [goal["name"] for goal in record["goals"] if not goal["met"]]
    told = "Goals missed in this run: " + ("; ".join(lost) if lost else "none") + "."
    return before + opened + "\n".join([*rows(record), "", told]) + "\n" + closed + after


def main() -> None:
    """Rewrite the page."""
    PAGE.write_text(page_with_table(PAGE.read_text("utf-8"), json.loads(RECORD.read_text("utf-8"))), "utf-8")


if __name__ == "__main__":
    main()
