"""FORMAT.md says what the code does: its limits are limits.py's, its dump is the golden file byte for byte."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from edgeedit import limits


@pytest.fixture(scope="module")
def annotate() -> ModuleType:
    """`tests/support/annotate_v1.py`."""
    path = Path(__file__).parents[2] / "support" / "annotate_v1.py"
    spec = importlib.util.spec_from_file_location("annotate_v1", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_generated_parts_are_up_to_date(annotate: ModuleType) -> None:
    page = annotate.PAGE.read_text("utf-8")
    assert annotate.page_with_both(page) == page, "run python tests/support/annotate_v1.py"


def test_every_limit_is_listed_with_its_value(annotate: ModuleType) -> None:
    page = annotate.PAGE.read_text("utf-8")
    rows = re.findall(r"^\| ([A-Z_]+) \| (.+?) \| \S.* \|$", page, re.MULTILINE)
    known = {name: getattr(limits, name) for name in dir(limits) if name.isupper()}
    assert [name for name, _ in rows] == list(dict(rows)), "each once"
    assert {name: eval(value, {"__builtins__": {}}, known) for name, value in rows} == known


def test_the_dump_is_the_golden_file(annotate: ModuleType) -> None:
    page = annotate.PAGE.read_text("utf-8")
    dump = page.split("<!-- dump -->\n```\n")[1].split("\n```\n<!-- /dump -->")[0]
    data = annotate.GOLDEN.read_bytes()
    assert annotate.undump(dump) == data
    assert int(dump.splitlines()[-1], 16) == len(data)
    damaged = dump.replace("89 45 45 50", "89 45 45 51")
    assert annotate.undump(damaged) != data
