"""The README's example of the field monitor runs as it is printed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeedit.device.monitor.collect import read_frames
from edgeedit.device.store import Store

README = Path(__file__).resolve().parents[3] / "README.md"


def test_the_readmes_example_runs_and_keeps_the_overridden_frame(world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    section = README.read_text("utf-8").split("\n## Watch the field\n")[1].split("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    Store.create(tmp_path / "store", world.bundle.path, [world.public]).close()
    # A free port, as the test may not be alone on this machine.
    names: dict[str, Any] = {"logits": lambda features: features[:, :2], "pixels": np.zeros((1, 3, 4, 4), np.float32)}
    exec(compile(code.replace("port=9464", "port=0"), str(README), "exec"), names)
    assert np.isfinite(names["answer"].output).all() and not names["monitor"].errors
    ((_, taken),) = read_frames(tmp_path / "kept")
    assert (taken.verdict, taken.group) == ("intact", "module-17") and not (tmp_path / "override.sock").exists()
    figures = names["monitor"].figures().plain
    assert (figures["edgeedit_frames_total"], figures["edgeedit_overrides_total"]) == (1, 1)
    listed = section.split("**Events:**")[1].split(". With")[0].replace("\n", " ").strip().split(", ")
    from edgeedit.device.monitor import outlets

    assert all(kind in (outlets.Event.__doc__ or "") for kind in listed) and len(listed) == 10
