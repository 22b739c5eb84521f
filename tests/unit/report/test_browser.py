"""The report in a real browser: PDF and pictures in every language, read back with poppler; needs `make test-deps`.

With EDGEEDIT_REPORT_ARTEFACTS=FOLDER the pages, PDFs and pictures are left there to be looked at.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from report_browser import browse, plain, print_pdf, text_of, tool
from report_page import COST, DEVICE

from edgeedit.delta import Delta
from edgeedit.report.html import save_report
from edgeedit.report.language import LANGUAGES, load_texts
from edgeedit.report.settings import ReportSettings

WIDTH, HEIGHT = 1000, 6000  # pixels of the window; the page is 900 wide
QUESTIONS = ("what_wrong", "what_changed", "effect", "why", "who", "when", "data", "undo", "gauge", "examples", "signature", "decision")
DETAILS = (
    "Error and retention",
    "Confusion",
    "Verdicts that changed",
    "How far the features moved",
    "Where the encoder was edited",
    "As deployed",
)
MM = 72 / 25.4  # PDF points


def words_of(pdf: Path) -> list[tuple[float, float, float]]:
    """(left, right, page width) of every word, in points."""
    done = subprocess.run([tool("pdftotext"), "-bbox", pdf, "-"], check=True, capture_output=True, timeout=60)
    found, width = [], 0.0
    for line in done.stdout.decode("utf-8").splitlines():
        if match := re.search(r'<page width="([\d.]+)"', line):
            width = float(match[1])
        elif match := re.search(r'<word xMin="([\d.-]+)" yMin="[\d.-]+" xMax="([\d.-]+)"', line):
            found.append((float(match[1]), float(match[2]), width))
    return found


def ink(picture: Path) -> np.ndarray[Any, Any]:
    """True where a picture is not white, (height, width)."""
    with Image.open(picture) as opened:
        dark: np.ndarray[Any, Any] = np.asarray(opened.convert("L")) < 250
    return dark


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    kept = os.environ.get("EDGEEDIT_REPORT_ARTEFACTS")
    return Path(kept).resolve() if kept else tmp_path_factory.mktemp("browser")


@pytest.fixture(scope="module")
def pages(delta: Delta, settings: ReportSettings, explanation: dict[str, Any], folder: Path) -> dict[str, Path]:
    """The report in each language: language -> page."""
    made = {language: folder / language / "report.html" for language in LANGUAGES}
    for language, page in made.items():
        page.parent.mkdir(parents=True, exist_ok=True)
        save_report(delta, page, cost=COST, device=DEVICE, explanation=explanation, settings=settings, language=language)
    return made


def inside(pdf: Path) -> bool:
    """Whether every word stands between the page's margins of 14 mm."""
    return all(14 * MM - 1 <= left <= right <= width - 14 * MM + 1 for left, right, width in words_of(pdf))


@pytest.mark.parametrize("language", LANGUAGES)
def test_page_one_prints_on_one_sheet_and_nothing_leaves_a_sheet(pages: dict[str, Path], language: str, tmp_path: Path) -> None:
    page = pages[language]
    pdf = page.with_suffix(".pdf")
    print_pdf(page, pdf, tmp_path / "profile")
    texts = load_texts(language)
    first, rest = text_of(pdf, 1, 1), text_of(pdf, 2, 99)
    for key in QUESTIONS:  # all of an auditor's questions and the signatures stand on the first sheet
        assert plain(texts[key]) in first, (key, first)
    for text in ("43.3", "11.7", "CR-2026-041", "2026-05-06", "edgeedit rollback --store DIR", "New lamp since May"):
        assert plain(text) in first, text
    for text in DETAILS:
        assert plain(text) in rest, text
        assert plain(text) not in first, text
    assert inside(pdf)
    subprocess.run([tool("pdftoppm"), "-r", "40", "-gray", "-png", pdf, page.parent / "sheet"], check=True, timeout=60)
    sheets = sorted(page.parent.glob("sheet-*.png"))
    assert 5 <= len(sheets) <= 20
    edge = int(13.5 / 25.4 * 40)
    for sheet in sheets:
        marks = ink(sheet)
        assert marks.mean() > 0.005, sheet
        assert not marks[:, :edge].any(), sheet
        assert not marks[:, -edge:].any(), sheet


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_page_shows_on_a_screen_and_nothing_leaves_its_column(pages: dict[str, Path], language: str, tmp_path: Path) -> None:
    page = pages[language]
    screen = page.with_suffix(".png")
    browse(page, tmp_path / "profile", f"--window-size={WIDTH},{HEIGHT}", f"--screenshot={screen}")
    shown = ink(screen)
    assert 0.02 < shown.mean() < 0.6
    assert not shown[:, : (WIDTH - 900) // 2 - 1].any()
    assert not shown[:, WIDTH - (WIDTH - 900) // 2 + 1 :].any()


def test_long_names_and_many_classes_do_not_leave_the_page(delta: Delta, folder: Path, tmp_path: Path) -> None:
    """Names without a blank, eight classes with long names, and eighty characters of a class in every card."""
    names = [f"class_number_{i}_with_a_rather_long_name_that_has_no_blank" for i in range(8)]
    rows = [
        {**row, "label": names[i % 8], "before": names[(i + (i % 3 == 0)) % 8], "after": names[(i + (i % 5 == 0)) % 8], "group": "g" * 60}
        for i, row in enumerate(delta.info["verdicts"])
    ]
    info = {**delta.info, "verdicts": rows, "reader": {"kind": "linear", "classes": names}}
    page, pdf, narrow = folder / "long" / "report.html", folder / "long" / "report.pdf", folder / "long" / "report.png"
    page.parent.mkdir(parents=True, exist_ok=True)
    save_report(Delta(delta.tensors, info), page, cost=COST, device=DEVICE)
    print_pdf(page, pdf, tmp_path / "profile")
    assert inside(pdf)
    browse(page, tmp_path / "profile", f"--window-size={WIDTH},{HEIGHT}", f"--screenshot={narrow}")
    shown = ink(narrow)
    assert not shown[:, WIDTH - (WIDTH - 900) // 2 + 1 :].any()
