"""The texts of page one, one catalogue a language: `texts/LANGUAGE.toml`, a flat table of sentences with {placeholders}.

Guarantees: a catalogue that is loaded has exactly the keys and the placeholders of the English one; numbers are not in it,
they are put in by the caller and are written alike in every language.
"""

from __future__ import annotations

import string
import sys
from collections.abc import Mapping
from functools import cache
from importlib import resources

from edgeedit.errors import InputError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

LANGUAGES = ("en", "de", "ja", "zh")


def placeholders(text: str) -> frozenset[str]:
    """The names in braces of one text."""
    return frozenset(name for _, name, _, _ in string.Formatter().parse(text) if name)


def _read(language: str) -> dict[str, str]:
    file = resources.files("edgeedit.report") / "texts" / f"{language}.toml"
    return {str(key): str(text) for key, text in tomllib.loads(file.read_text("utf-8")).items()}


@cache
def load_texts(language: str) -> Mapping[str, str]:
    """Key -> text; raises InputError for a language that there is no catalogue of, or one that does not match the English one."""
    if language not in LANGUAGES:
        raise InputError(f"language is unknown: expected one of {', '.join(LANGUAGES)}, got {language}")
    texts, model = _read(language), _read("en")
    wrong = sorted(key for key in {*texts, *model} if placeholders(texts.get(key, "")) != placeholders(model.get(key, "")))
    wrong += sorted(set(texts) ^ set(model))
    if wrong:
        raise InputError(f"catalogue {language} is incomplete: expected the texts of en, got another {wrong[0]}")
    return texts
