"""Reading a report's page strictly, and comparing every number of it with `report.json`, independently of the report's own code."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from typing import Any

VOID = {"meta", "img", "br", "hr", "link", "input"}
_LAYOUT = "html head meta title style body main header section div figure figcaption img table caption thead tbody tfoot tr th td"
_TEXT = "strong b span p ul li dl dt dd h1 h2 h3 code data"
ALLOWED = {*_LAYOUT.split(), *_TEXT.split()}
UNITS = {"%": 0.01, "pt": 0.01, "GB": 1e9, "MB": 1e6, "kB": 1e3, "bytes": 1.0, "ms": 1.0, "s": None, "": 1.0}
COST: dict[str, Any] = {
    "patch_bytes": 412_345,
    "encoder_bytes": 88_412_345,
    "signers": ["3f9ac0d1" * 8],
    "probe_tolerance": 0.00012,
    "patch_digest": "9a" * 32,
    "parent": "8b" * 32,
    "result": "7c" * 32,
    "edit_seconds": 144.9,
    "tensor_bytes": {"encoder.layer.3.mlp.fc1.weight": 361_204},
    "compare": {"cosine_min": 0.99999, "max_abs": 4.1e-5, "mean_abs": 2.2e-6},
}
DEVICE: dict[str, Any] = {
    "prepare_ms": 412.0,
    "swap_ms": 3.42,
    "probe_ms": 88.1,
    "rebuild_default_ms": 1530.0,
    "rebuild_noprepack_ms": 640.0,
    "frames_served": 512,
    "frames_lost": 0,
    "frames_torn": 0,
    "device_equals_server": True,
    "rollback_exact": True,
    "max_output_difference": 2.1e-6,
}
_NUMBER = re.compile(r"^(?P<below>< )?(?P<number>[+−-]?[\d\u202f]+(\.\d+)?(e[+−-]?\d+)?)\u00a0?(?P<unit>[%A-Za-z]*)$")


class Page(HTMLParser):
    """Parses strictly: every element is closed in order.  Keeps text, attributes, figures, named texts and the digits of all else."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.stack: list[tuple[str, dict[str, str]]] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text: list[str] = []
        self.figures: list[tuple[str, str, str]] = []  # place in report.json, value attribute, text
        self.named: list[tuple[str, str]] = []  # place in report.json, text
        self.bare: list[str] = []  # text with digits that says no place
        self.feed(source)
        self.close()
        assert self.stack == [], self.stack

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, key, value or "") for key, value in attrs]
        assert tag in ALLOWED, tag
        if tag not in VOID:
            self.stack.append((tag, {key: value or "" for key, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.stack and self.stack.pop()[0] == tag, tag

    def handle_data(self, data: str) -> None:
        tag, own = self.stack[-1] if self.stack else ("", {})
        if tag == "style":
            return
        self.text.append(data)
        if "data-figure" in own:
            self.figures.append((own["data-figure"], own["value"], data))
        elif "data-text" in own:
            self.named.append((own["data-text"], data))
        elif "data-key" in own:
            self.named.append((f"{own['data-key']}[]", data))
        elif any(character.isdigit() for character in data):
            self.bare.append(data)

    @property
    def words(self) -> str:
        """The visible text, one blank between words and none where an element ends before a full stop, comma or bracket."""
        text = " ".join(" ".join(self.text).split())
        return re.sub(r"\( ", "(", re.sub(r" ([.,;:)])", r"\1", text))

    @property
    def cards(self) -> list[str]:
        """Kinds of the cards in their order."""
        return [value.split()[1] for tag, key, value in self.attributes if tag == "figure" and key == "class" and value.startswith("card ")]


def look_up(report: Any, path: str) -> Any:
    """The value at a dotted path; fails when there is none."""
    for step in path.split("."):
        report = report[int(step)] if isinstance(report, list) else report[step]
    return report


def agrees(text: str, value: Any) -> bool:
    """Whether a shown figure is `value` rounded to the digits that are shown."""
    if isinstance(value, str):
        return value.startswith(text) and (text == value or len(text) >= 12)
    found = _NUMBER.match(text)
    if not found:
        return False
    shown = found["number"].replace("\u202f", "").replace("−", "-")
    unit = found["unit"]
    if unit not in UNITS:
        return False
    digits, _, power = shown.partition("e")
    step = 10.0 ** (int(power or 0) - len(digits.partition(".")[2]))
    factors = [1.0, 1000.0] if unit == "s" else [UNITS[unit]] if unit else [1.0, 0.01]
    if found["below"]:
        return 0 <= float(value) < float(shown)
    return any(abs(float(shown) * factor - float(value)) <= 0.5000001 * step * factor for factor in factors if factor)


def check_numbers(source: str, report: Any) -> Page:
    """Every number of the page is the one in `report.json` at the place that the page names; nothing else on it has a digit."""
    page = Page(source)
    assert page.bare == [], page.bare[:5]
    for place, stored, text in page.figures:
        value = look_up(report, place)
        assert json.loads(stored) == value, (place, stored, value)
        assert agrees(text, value), (place, text, value)
    for place, text in page.named:
        if place.endswith("[]"):
            assert text in look_up(report, place[:-2]), (place, text)
        else:
            assert str(look_up(report, place)) == text, (place, text)
    return page


def check_self_contained(source: str) -> Page:
    """No script, no handler, no address outside, no file but what is inlined."""
    page = Page(source)
    for tag, key, value in page.attributes:
        assert not key.startswith("on"), (tag, key)
        if key in {"src", "href", "action", "srcset", "data", "poster", "background"}:
            assert value.startswith("data:image/"), (tag, key, value[:60])
    style = source[source.index("<style>") : source.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    assert "<script" not in source.lower()
    return page
