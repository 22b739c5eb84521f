"""The explanation block: its parts, its sentence on what it does not prove, its refusals; colours of a map."""

from __future__ import annotations

import base64
import copy
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from report_page import Page

from edgeedit.delta import Delta
from edgeedit.errors import InputError
from edgeedit.report.explanation import check_explanation, explanation_view
from edgeedit.report.html import save_report
from edgeedit.report.language import load_texts
from edgeedit.report.pictures import heat
from edgeedit.report.record import Given, build
from edgeedit.report.sheet import Sheet

Row = dict[str, Any]


def view(delta: Delta, explanation: Row | None) -> Any:
    return explanation_view(Sheet(build(delta, Given(explanation=explanation)), load_texts("en")))


def test_parts_of_an_explanation_are_shown_with_their_baseline_and_their_limits(delta: Delta, explanation: Row, tmp_path: Path) -> None:
    save_report(delta, tmp_path / "r.html", explanation=explanation)
    page = Page((tmp_path / "r.html").read_text("utf-8"))
    for text in (
        "The chosen places hold 41.2 % of the measured importance",
        "as many places chosen at random hold 11.3 % (nearly always below 12.1 %).",
        "81 234 of 21 895 926 weights differ bit for bit; 0 of them outside the declared places.",
        "It does not prove why. Attention maps are not shown: they are no evidence.",
        "full colour at 2.73 logits",
        "Of 128 stored images the nearest by cosine. The right label: 44 % of them before, 78 % after.",
        "0.9731",
        "Largest effect first; report.json lists all.",
    ):
        assert text in page.words, text
    shown = view(delta, explanation)
    assert [row["name"].striptags() for row in shown["components"]] == [row["name"] for row in explanation["components"]][:10]
    right = [[near["right"] for near in row["before"]] for row in shown["neighbours"]["rows"]]
    assert right == [[near["label"] == row["label"] for near in row["before"]] for row in explanation["neighbours"]["images"]]


def test_parts_that_were_not_measured_are_left_out(delta: Delta, explanation: Row) -> None:
    bare = {**explanation, "importance": None, "saliency": None, "neighbours": None, "components": []}
    bare["components"] = [{**row, "control": None} for row in explanation["components"][:1]]
    del bare["components"][0]["control"]
    shown = view(delta, bare)
    assert shown["baseline"] is shown["maps"] is shown["neighbours"] is None
    assert shown["components"][0]["control"] == "\N{EM DASH}"
    assert not shown["more"]
    assert view(delta, None) is None


def _cut(path: str) -> Callable[[Row], None]:
    def change(value: Row) -> None:
        *steps, last = path.split(".")
        found: Any = value
        for step in steps:
            found = found[int(step)] if step.isdecimal() else found[step]
        del found[last]

    return change


@pytest.mark.parametrize(
    "change",
    [
        *(
            _cut(path)
            for path in ("schema_version", "census", "census.outside", "components", "components.0.name", "components.3.target.loss_rise")
        ),
        *(_cut(path) for path in ("drift.target.cka", "saliency.images.1.after", "neighbours.images.0.before.1.cosine")),
        lambda value: value.update(schema_version=2),
        lambda value: value["saliency"]["images"][0]["before"].pop(),
        lambda value: value["saliency"]["images"][0]["before"][0].__setitem__(0, float("nan")),
        lambda value: value["drift"].update(target=3),
    ],
)
def test_a_malformed_explanation_is_refused(explanation: Row, change: Callable[[Row], None]) -> None:
    broken = copy.deepcopy(explanation)
    change(broken)
    with pytest.raises(InputError, match="explanation"):
        check_explanation(broken)
    check_explanation(explanation)


def test_a_map_is_red_where_the_margin_falls_and_blue_where_it_rises() -> None:
    uri = heat("/nowhere.png", [[2.0, 0.0], [-2.0, 0.5]], 2.0)
    with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as opened:
        pixels = np.asarray(opened.convert("RGB")).astype(int)
    half = len(pixels) // 4
    red, white, blue, weak = (pixels[y, x] for y, x in ((half, half), (half, 3 * half), (3 * half, half), (3 * half, 3 * half)))
    assert red[0] > red[1] + 80
    assert red[0] > red[2] + 80
    assert blue[2] > blue[0] + 80
    assert white.min() > 245
    assert red[1] < weak[1] < white[1]  # a quarter of the limit is a quarter of the colour
