"""One image of the report as a card: picture, verdicts, truth, score.

Guarantees: its words are of the sheet's language; a picture that cannot be read gives its name.
"""

from __future__ import annotations

from typing import Any

from edgeedit.report.pictures import thumbnail
from edgeedit.report.sheet import Sheet


def card(sheet: Sheet, path: str) -> dict[str, Any]:
    """The card of the verdict at `path` in `report.json`."""
    row = sheet.value(path)
    flip = row["flip"] or "none"
    known = row["score_before"] is not None and row["score_after"] is not None
    scores = sheet.say("score", scores=sheet.pair(f"{path}.score_before", f"{path}.score_after", "decimal2")) if known else None
    return {
        "picture": thumbnail(row["image"]),
        "alt": row["name"],
        "name": sheet.text(f"{path}.name"),
        "flip": flip,
        "word": sheet.say(f"flip_{flip}"),
        "truth": sheet.say("truth", label=sheet.text(f"{path}.label")),
        "before": sheet.text(f"{path}.before"),
        "after": sheet.text(f"{path}.after"),
        "group": sheet.text(f"{path}.group") if row["group"] not in ("", row["name"]) else None,
        "scores": scores,
    }
