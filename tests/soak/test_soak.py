"""The short form of the two-process soak; `make soak` runs ten minutes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path


def test_agent_and_application_survive_kills_without_a_bad_answer(tmp_path: Path) -> None:
    command = [sys.executable, str(Path(__file__).parent / "soak.py"), "--seconds", "15", "--json", str(tmp_path / "soak.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    found = json.loads((tmp_path / "soak.json").read_text("utf-8"))
    assert found["kills"] >= 1 and found["generations answered"] >= 2, found
