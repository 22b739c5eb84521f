"""Counts the named attacks on updates and receipts, so that nobody loses one unseen.  Cases of one name are not counted: there are more
than twice as many (`pytest --collect-only tests/trust`)."""

from __future__ import annotations

import ast
from pathlib import Path

FILES = ("test_update_attacks.py", "test_update_content_attacks.py", "test_update_way_attacks.py", "test_receipt_attacks.py")


def test_at_least_60_named_attacks_on_updates() -> None:
    names = []
    for file in FILES:
        tree = ast.parse(Path(__file__).with_name(file).read_text("utf-8"))
        found = [node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]
        assert all(isinstance(node, ast.FunctionDef) for node in tree.body if getattr(node, "name", "").startswith("test_"))
        names += [name for name in found if "without_an_attack" not in name]
    assert len(set(names)) == len(names) >= 60, len(names)
