"""The image controls and the language side's digest as lines for a person."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgeedit.edit.controls import ImageControls


def control_lines(vlm: Mapping[str, Any]) -> list[str]:
    """One line per set that has controls, and the digest that proves the language side unchanged."""
    lines = []
    for key, text in (("base_on_control", "base on control"), ("edited_on_target", "edited on target")):
        if key in vlm:
            row = vlm[key]
            lines.append(f"{text}: {ImageControls(row['n'], row['accuracy'], row['blank'], row['shuffled']).sentence()}")
    lines.append(f"language side unchanged, digest {vlm['language_digest'][:16]}")
    return lines
