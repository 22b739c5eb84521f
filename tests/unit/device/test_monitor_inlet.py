"""Overrides from other programs: the C example compiled and run, what is no override, and a socket that was left behind."""

from __future__ import annotations

import shutil
import socket
import stat
import subprocess
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeedit.device.monitor.collect import Collection, read_frames
from edgeedit.device.monitor.inlet import OverrideInlet
from edgeedit.device.monitor.monitor import Monitor
from edgeedit.device.runtime import Runtime
from edgeedit.device.store import Store
from edgeedit.errors import RefusedError

EXAMPLE = Path(__file__).resolve().parents[3] / "edgeedit" / "native" / "examples" / "override.c"


def _until(what: Callable[[], bool], seconds: float = 20.0) -> bool:
    end = time.monotonic() + seconds
    while not what() and time.monotonic() < end:
        time.sleep(0.02)
    return what()


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("override") / "override"
    compiler = shutil.which("cc") or shutil.which("gcc") or "cc"
    command = [compiler, "-std=gnu11", "-Wall", "-Wextra", "-Werror", str(EXAMPLE), "-o", str(made)]
    subprocess.run(command, check=True, timeout=60)
    return made


def test_an_operator_at_a_program_in_c_overrides_a_frame_of_the_camera(program: Path, world: Any, tmp_path: Path) -> None:
    Store.create(tmp_path / "store", world.bundle.path, [world.public]).close()
    monitor = Monitor(every=0.0, frames=4, background=False, collection=Collection(tmp_path / "kept"))
    # The application keeps the frames that an operator may still see on the screen.
    shown: deque[tuple[str, Any]] = deque(maxlen=8)
    path, rng = tmp_path / "override.sock", np.random.default_rng(0)

    def send(verdict: str, group: str, frame: str) -> int:
        return subprocess.run([program, path, verdict, group, frame], check=False, timeout=30, capture_output=True).returncode

    with Runtime(tmp_path / "store", poll_seconds=0, monitor=monitor) as runtime:
        assert send("intact", "", "") == 8  # nobody listens yet
        with OverrideInlet(path, runtime.override, lambda name: dict(shown).get(name)) as inlet:
            for number in range(20):
                pixels = rng.random((1, 3, 4, 4), np.float32)
                runtime.run(pixels)
                shown.append((str(number), pixels))
            assert send("intact", "module-17", "15") == 0
            assert send("defective", "module-3", "2") == 0  # no longer on the screen: it counts, without a picture
            assert send('in"tact', "", "") == 2
            assert _until(lambda: inlet.counts["taken"] == 2) and inlet.counts["wrong"] == 0
        monitor.work()
        assert monitor.figures().plain["edgeedit_overrides_total"] == 2 and not monitor.errors and not path.exists()
    ((_, taken),) = read_frames(tmp_path / "kept")
    assert (taken.kind, taken.verdict, taken.group) == ("overridden", "intact", "module-17")


def test_what_is_no_override_is_counted_and_dropped(tmp_path: Path) -> None:
    got: list[tuple[Any, str, str]] = []
    path = tmp_path / "override.sock"

    def broken(name: str) -> None:
        raise KeyError(name)

    # A program that was killed leaves its socket.
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as left:
        left.bind(str(path))
    with OverrideInlet(path, lambda *what: got.append(what), broken) as inlet:
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
            for data in (
                b"",
                b"{",
                b"[]",
                b'{"verdict": 1}',
                b'{"path": "/etc/passwd"}',
                b"[" * 4000,
                b'{"verdict": "' + b"x" * 5000,
                b"\xff",
            ):
                out.sendto(data, str(path))
            out.sendto('{"verdict": "ü", "frame": "7"}'.encode(), str(path))
        assert _until(lambda: inlet.counts["taken"] == 1)
        assert inlet.counts == {"wrong": 8, "taken": 1, "failed": 1} and got == [(None, "ü", "")]
    (tmp_path / "file").write_text("of somebody else")
    with pytest.raises(RefusedError, match="cannot listen"):
        OverrideInlet(tmp_path / "file", lambda *_: None)
    assert (tmp_path / "file").read_text() == "of somebody else"
