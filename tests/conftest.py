"""Suite-wide rules: with CI=true a skip outside the `gpu` and `jetson` markers fails the run; what is slow or builds has a longer limit."""

from __future__ import annotations

import os
from collections.abc import Generator
from typing import Any

import pytest

_MAY_SKIP = {"gpu", "jetson"}
_forbidden: list[str] = []
_LONG = 900  # seconds


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that are marked slow, and native ones, whose fixtures build programs, may take longer than the suite's limit."""
    for item in items:
        if item.get_closest_marker("slow") or "native" in item.path.parts:
            item.add_marker(pytest.mark.timeout(_LONG))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, None]:
    """Collect skips that CI does not allow."""
    outcome = yield
    report = outcome.get_result()
    if report.skipped and not hasattr(report, "wasxfail") and not _MAY_SKIP & {mark.name for mark in item.iter_markers()}:
        _forbidden.append(f"{item.nodeid}: {report.longrepr}")


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Turn a forbidden skip into a failure under CI."""
    if os.environ.get("CI") == "true" and _forbidden and exitstatus == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name every skip that is not allowed."""
    for row in _forbidden:
        terminalreporter.write_line(f"skip outside gpu/jetson: {row}")
