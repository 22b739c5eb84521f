"""Every number of the page equals `report.json`, in all four languages, and the languages differ in words only."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import tomllib
from report_page import COST, DEVICE, check_numbers, check_self_contained

from edgeedit.delta import Delta
from edgeedit.errors import InputError
from edgeedit.report import language as languages
from edgeedit.report import page_one
from edgeedit.report.html import render_report, save_report
from edgeedit.report.language import LANGUAGES, load_texts, placeholders
from edgeedit.report.record import Given, build
from edgeedit.report.settings import ReportSettings
from edgeedit.report.sheet import Sheet

Row = dict[str, Any]
QUESTIONS = ("what_wrong", "what_changed", "why", "who", "when", "data", "undo", "gauge", "effect")


def test_every_number_is_in_report_json_in_every_language(delta: Delta, settings: ReportSettings, explanation: Row, tmp_path: Path) -> None:
    shown, stored = {}, {}
    for language in LANGUAGES:
        path = tmp_path / language / "r.html"
        path.parent.mkdir()
        save_report(delta, path, cost=COST, device=DEVICE, explanation=explanation, settings=settings, language=language)
        source = path.read_text("utf-8")
        stored[language] = json.loads(path.with_name("report.json").read_text("utf-8"))
        page = check_numbers(source, stored[language])
        check_self_contained(source)
        assert len(source.encode()) < 5_000_000
        shown[language] = sorted((place, value, text) for place, value, text in page.figures)
        texts = load_texts(language)
        for key in QUESTIONS:
            assert texts[key] in page.words, (language, key)
        for text in (
            "CR-2026-041",
            "Quality",
            "2026-05-06",
            "New lamp since May; intact cells were rejected.",
            "edgeedit rollback --store DIR",
        ):
            assert text in page.words
    assert stored["de"] == stored["ja"] == stored["zh"] == stored["en"]
    assert shown["de"] == shown["ja"] == shown["zh"] == shown["en"]
    assert len(shown["en"]) > 250


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_bare_delta_has_no_unnamed_number_either(delta: Delta, language: str, tmp_path: Path) -> None:
    for number, info in enumerate(({}, {"metrics": {**delta.info["metrics"], "control": None, "unrelated": None}})):
        path = tmp_path / str(number) / "r.html"
        path.parent.mkdir()
        save_report(Delta(delta.tensors, info), path, language=language)
        check_numbers(path.read_text("utf-8"), json.loads(path.with_name("report.json").read_text("utf-8")))


def test_a_changed_figure_or_an_unnamed_one_is_found(delta: Delta, tmp_path: Path) -> None:
    """The check itself: it must see what it is there for."""
    save_report(delta, tmp_path / "r.html", cost=COST, device=DEVICE)
    source, report = (tmp_path / "r.html").read_text("utf-8"), json.loads((tmp_path / "report.json").read_text("utf-8"))
    check_numbers(source, report)
    for wrong in (
        source.replace(">11.7\u00a0%</data>", ">11.6\u00a0%</data>"),
        source.replace("<figcaption>Left:", "<figcaption>Left 3:"),
        source.replace(">412\u00a0kB</data>", ">412\u00a0MB</data>"),
        source.replace("metrics.target.error_after", "metrics.target.error_before", 1),
        source.replace(">module-0</span>", ">module-7</span>"),
    ):
        assert wrong != source
        with pytest.raises(AssertionError):
            check_numbers(wrong, report)


@pytest.mark.parametrize("kind", ["not_fallen", "not_certain", "chance", "rose", "may_have_risen", "no_control"])
def test_the_gates_reasons_are_said_in_every_language_with_the_figures_of_the_metrics(delta: Delta, kind: str) -> None:
    from edgeedit.edit.gate import decide
    from edgeedit.metrics import Interval, metrics_from_json

    known = metrics_from_json(delta.info["metrics"])
    assert known.control is not None
    good = replace(known.control, change=Interval(-0.01, 0.01))
    target = known.target
    cases = {
        "not_fallen": (replace(target, error_after=0.9), good),
        "not_certain": (replace(target, change=Interval(-0.2, 0.01)), good),
        "chance": (replace(target, mcnemar_p=0.4), good),
        "rose": (target, replace(good, change=Interval(0.031, 0.05))),
        "may_have_risen": (target, replace(good, change=Interval(-0.01, 0.031))),
        "no_control": (target, None),
    }
    own, control = cases[kind]
    gate = decide(own, control, None, 0.02)
    metrics = replace(known, target=own, control=control, unrelated=None, gate=gate).to_json()
    changed = replace(delta, info={**delta.info, "metrics": metrics})
    report = build(changed, Given())
    for language in LANGUAGES:
        texts = load_texts(language)
        said = page_one.headline(Sheet(report, texts))["reasons"]
        assert len(said) == len(gate.reasons) == 1
        start = max(re.split(r"\{\w+\}", texts[f"reason_{kind}"]), key=len)
        assert start in said[0].unescape(), (language, said[0])
        assert "data-text" not in said[0]  # no English sentence stood in


def test_an_unknown_reason_keeps_its_words(delta: Delta) -> None:
    gate = {"verdict": "fail", "reasons": ["the moon was full 3 times"], "limit": 0.02}
    changed = replace(delta, info={**delta.info, "metrics": {**delta.info["metrics"], "gate": gate}})
    assert "the moon was full 3 times" in render_report(changed, language="ja")


@pytest.mark.parametrize("language", LANGUAGES)
def test_catalogues_are_complete_and_hold_no_number(language: str) -> None:
    folder = resources.files("edgeedit.report") / "texts"
    own, model = (tomllib.loads((folder / f"{name}.toml").read_text("utf-8")) for name in (language, "en"))
    assert list(own) == list(model)
    for key, text in own.items():
        assert placeholders(text) == placeholders(model[key]), key
        assert not any(character.isdigit() for character in text), key
        if not key.startswith("between_"):  # blanks between sentences, which some languages have none of
            assert text.strip() == text
            assert text
    same = [
        key
        for key in own
        if own[key] == model[key] and key not in ("tile_patch", "tile_patch_note", "name", "between_sentences", "between_items")
    ]
    assert language == "en" or same == [], same


def test_every_text_of_the_catalogue_is_used() -> None:
    room = resources.files("edgeedit.report")
    files = [entry for folder in (room, room / "templates") for entry in folder.iterdir() if entry.name.endswith((".py", ".j2"))]
    code = "\n".join(entry.read_text("utf-8") for entry in files)
    heads = ("reason_", "verdict_", "sentence_", "alarm_", "set_", "tile_", "flip_", "gauge_", "effect_")
    unused = [key for key in load_texts("en") if f'"{key}"' not in code and not key.startswith(heads)]
    assert unused == []


def test_a_broken_catalogue_and_an_unknown_language_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="language is unknown: expected one of en, de, ja, zh, got fr"):
        load_texts("fr")
    read = languages._read
    broken = {**read("de"), "mistake": "Meist wurde {truth} gelesen"}
    monkeypatch.setattr(languages, "_read", lambda name: broken if name == "de" else read(name))
    load_texts.cache_clear()
    with pytest.raises(InputError, match=r"catalogue de is incomplete.*mistake"):
        load_texts("de")
    load_texts.cache_clear()
