"""Rules of the house that a linter does not hold: sizes, room docstrings, forbidden names, no device names in code."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "edgeedit").rglob("*.py"))
MAX_FILE, MAX_FUNCTION = 400, 60  # lines


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_file_follows_the_house_rules(path: Path) -> None:
    text = path.read_text("utf-8")
    tree = ast.parse(text)
    assert ast.get_docstring(tree), "no module docstring"
    assert len(text.splitlines()) <= MAX_FILE
    assert path.stem not in {"utils", "common", "misc", "manager", "helpers"}
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert (node.end_lineno or 0) - node.lineno < MAX_FUNCTION, node.name
        assert not isinstance(node, ast.Assert), "assert is no input check"


def test_rooms_have_docstring_only_inits() -> None:
    for path in (ROOT / "edgeedit").glob("*/__init__.py"):
        if path.parent.name != "catalog":
            body = ast.parse(path.read_text("utf-8")).body
            assert len(body) == 1 and isinstance(body[0], ast.Expr), path


def test_no_device_name_in_code() -> None:
    for path in SOURCES:
        assert not re.search(r"\b(orin|thor|xavier)\b", path.read_text("utf-8").lower()), path


def test_only_the_engines_import_a_runtime_in_the_device_room() -> None:
    for path in (ROOT / "edgeedit" / "device").rglob("*.py"):
        if path.parent.name != "engines":
            assert not re.search(r"^\s*(import|from) onnxruntime", path.read_text("utf-8"), re.M), path


def test_exit_codes_are_the_documented_ones() -> None:
    from edgeedit import errors

    codes = {c.__name__: c.exit_code for c in vars(errors).values() if isinstance(c, type) and issubclass(c, errors.EdgeEditError)}
    assert codes == {
        "EdgeEditError": 1,
        "InputError": 2,
        "GateError": 3,
        "MismatchError": 4,
        "IntegrityError": 5,
        "RefusedError": 6,
        "RevertedError": 7,
        "UnreachableError": 8,
    }
