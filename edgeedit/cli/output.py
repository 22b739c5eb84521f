"""What every command shares: the `--json` switch, printing of results, progress on a terminal or as plain lines."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])


def json_option(command: Command) -> Command:
    """Add `--json`: print one JSON object on stdout."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")(command)


def emit(value: Mapping[str, Any], text: str, *, as_json: bool) -> None:
    """Print the result: one JSON object with `schema_version`, or the text."""
    click.echo(json.dumps({"schema_version": 1, **value}, sort_keys=True, ensure_ascii=False, default=str) if as_json else text)


def progress() -> Callable[[int, int, str], None]:
    """A callback (done, total, text): a bar that rewrites its line on a terminal, one plain line every 5 s otherwise."""
    last = [0.0]
    terminal = sys.stderr.isatty()

    def show(done: int, total: int, text: str) -> None:
        now = time.monotonic()
        if terminal:
            filled = 24 * done // max(total, 1)
            end = "\n" if done >= total else ""
            click.echo(f"\r[{'#' * filled}{'.' * (24 - filled)}] {done}/{total} {text:<44}{end}", err=True, nl=False)
        elif done >= total or now - last[0] >= 5:
            last[0] = now
            click.echo(f"{done}/{total} {text}", err=True)

    return show
