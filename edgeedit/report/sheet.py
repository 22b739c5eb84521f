"""`Sheet`: the one way in which a figure or a stored text enters the page.

Guarantees: every number on the page stands in a `<data>` element that names its place in `report.json` and holds the value that
is there; a stored text that may hold digits stands in an element that names its place too; all else is escaped.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from markupsafe import Markup, escape

from edgeedit.report import words

STYLES: Mapping[str, Callable[[Any], str]] = {
    "percent": words.percent,
    "small_percent": words.small_percent,
    "whole_percent": words.whole_percent,
    "points": words.points,
    "points_of": words.points_of,
    "change": words.signed_points,
    "share": words.bare_percent,
    "count": words.count,
    "signed_count": words.signed_count,
    "decimal2": lambda value: words.decimal(value, 2),
    "decimal3": words.decimal,
    "decimal4": lambda value: words.decimal(value, 4),
    "signed3": lambda value: words.signed(value, 3),
    "signed4": lambda value: words.signed(value, 4),
    "signed2": lambda value: words.signed(value, 2),
    "p": words.p_value,
    "size": words.size,
    "milliseconds": words.milliseconds,
    "seconds": words.seconds,
    "significant": words.significant,
    "money": words.money,
    "plain": words.plain_number,
    "short": lambda value: str(value)[:12],
}


class Sheet:
    """Figures and texts of one report in one language; `report` is the object that is written as `report.json`."""

    def __init__(self, report: Mapping[str, Any], texts: Mapping[str, str]) -> None:
        self.report = report
        self.texts = texts

    def value(self, path: str) -> Any:
        """What stands at a dotted path such as `sets.target.flips.0.score_after`, None where nothing does."""
        found: Any = self.report
        for step in path.split("."):
            if isinstance(found, Mapping):
                found = found.get(step)
            elif isinstance(found, list) and step.isdecimal() and int(step) < len(found):
                found = found[int(step)]
            else:
                return None
        return found

    def show(self, path: str, style: str) -> Markup:
        """The figure at `path` in a style; the language's words for a figure that is not there."""
        value = self.value(path)
        if value is None or isinstance(value, bool) or (isinstance(value, str) and style != "short"):
            return Markup('<span class="soft">') + self.say("not_measured") + Markup("</span>")
        return Markup('<data data-figure="{}" value="{}">{}</data>').format(path, json.dumps(value), STYLES[style](value))

    def text(self, path: str) -> Markup:
        """The stored text at `path`, as it is."""
        value = self.value(path)
        return Markup('<span data-text="{}" translate="no">{}</span>').format(path, "" if value is None else value)

    def say(self, key: str, **given: Any) -> Markup:
        """A text of the catalogue; what is put in is escaped unless it is a figure."""
        return escape(self.texts[key]).format(**given)

    def fill(self, text: str, **given: Any) -> Markup:
        """An English sentence with figures put in."""
        return escape(text).format(**given)

    def join(self, parts: Sequence[Markup]) -> Markup:
        """Sentences one after another, as the language writes them."""
        return self.say("between_sentences").join(parts)

    def list(self, parts: Sequence[Markup]) -> Markup:
        """Items of an enumeration."""
        return self.say("between_items").join(parts)

    def span(self, path: str, low: str = "low", high: str = "high") -> Markup:
        """An interval of shares in percent."""
        return self.say("interval", low=self.show(f"{path}.{low}", "share"), high=self.show(f"{path}.{high}", "percent"))

    def change(self, path: str) -> Markup:
        """An interval of a change in percentage points."""
        return self.say("interval", low=self.show(f"{path}.low", "change"), high=self.show(f"{path}.high", "points"))

    def pair(self, before: str, after: str, style: str) -> Markup:
        """Two figures with an arrow between them."""
        return self.show(before, style) + Markup(" \N{RIGHTWARDS ARROW} ") + self.show(after, style)
