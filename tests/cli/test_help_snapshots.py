"""Frozen help texts: a changed option, default or sentence shows up in review as a changed file.

After a deliberate change: `EDGEEDIT_WRITE_SNAPSHOTS=1 pytest tests/cli/test_help_snapshots.py`, then read the diff.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from edgeedit.cli.main import COMMANDS, cli

SNAPSHOTS = Path(__file__).parent / "snapshots"


def _paths() -> Iterator[tuple[str, ...]]:
    yield ()
    for name in COMMANDS:
        yield (name,)
        command = cli.get_command(click.Context(cli), name)
        if isinstance(command, click.Group):
            yield from ((name, child) for child in command.commands)


@pytest.mark.parametrize("path", list(_paths()), ids=lambda p: "-".join(p) or "edgeedit")
def test_help_is_as_frozen(path: tuple[str, ...]) -> None:
    done = CliRunner().invoke(cli, [*path, "--help"], prog_name="edgeedit", terminal_width=100)
    assert done.exit_code == 0
    file = SNAPSHOTS / f"{'-'.join(path) or 'edgeedit'}.txt"
    if os.environ.get("EDGEEDIT_WRITE_SNAPSHOTS"):
        file.write_text(done.output, "utf-8")
    assert done.output == file.read_text("utf-8")


def test_no_snapshot_without_a_command() -> None:
    assert {f.stem for f in SNAPSHOTS.glob("*.txt")} == {"-".join(p) or "edgeedit" for p in _paths()}
