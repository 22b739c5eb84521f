"""The command line from outside: help without heavy imports, exit codes, message form, one JSON object."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from edgeedit.cli.main import COMMANDS, cli, run


def _process(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "edgeedit.cli.main", *arguments], capture_output=True, text=True, check=False)


def test_help_lists_every_command_and_the_exit_codes() -> None:
    done = CliRunner().invoke(cli, ["--help"])
    assert done.exit_code == 0
    assert all(name in done.output for name in COMMANDS)
    assert "3 quality gate" in done.output


def test_help_imports_no_heavy_package() -> None:
    code = (
        "import sys\nfrom edgeedit.cli.main import run\nrun(['--help'])\n"
        "bad = {'numpy', 'torch', 'onnx', 'cryptography', 'jinja2'} & set(sys.modules)\n"
        "print('LEAK' if bad else 'CLEAN', bad)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "CLEAN" in done.stdout


def _cpu_seconds(*command: str) -> float:
    """CPU time of a process and its own: what it takes on a machine that has nothing else to do."""
    before = os.times()
    subprocess.run([sys.executable, *command], check=True, capture_output=True)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def test_help_is_fast() -> None:
    main = ("-c", "from edgeedit.cli.main import run\nrun(['--help'])")
    # What edgeedit adds to a bare interpreter start; the interpreter itself takes the rest of the 0.25 s.
    assert min(_cpu_seconds(*main) - _cpu_seconds("-c", "pass") for _ in range(5)) < 0.25


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_has_help(command: str) -> None:
    done = CliRunner().invoke(cli, [command, "--help"])
    assert done.exit_code == 0, done.output
    assert "Usage: " in done.output


def test_user_error_is_one_sentence_and_a_hint_without_a_trace(tmp_path: Path) -> None:
    done = _process("verify", str(tmp_path / "absent.eep"), "--trust", str(tmp_path))
    assert done.returncode == 2
    assert done.stdout == ""
    lines = done.stderr.strip().splitlines()
    assert lines[0].startswith("error: ")
    assert not lines[0].endswith(".")
    assert "Traceback" not in done.stderr


def test_usage_error_is_code_2() -> None:
    assert _process("verify").returncode == 2
    assert _process("nonsense").returncode == 2


def test_keys_new_writes_a_private_key_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "ml.key"
    assert run(["keys", "new", str(path), "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert len(value["key_id"]) == 64
    assert value["schema_version"] == 1
    assert path.stat().st_mode & 0o077 == 0
    before = path.read_bytes()
    assert run(["keys", "new", str(path), "--json"]) == 2
    assert path.read_bytes() == before
    assert json.loads(capsys.readouterr().out)["code"] == 2


def test_doctor_answers_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    code = run(["doctor", "--json"])
    value = json.loads(capsys.readouterr().out.splitlines()[0])
    assert {"name", "level", "text", "fix"} <= set(value["checks"][0])
    assert (code == 0) == value["ok"]
