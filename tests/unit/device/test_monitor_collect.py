"""Frames for the next shots: what is kept, how much, and that `edgeedit edit` can read what is exported."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from edgeedit.cli.main import cli, run
from edgeedit.device.monitor.collect import Collection, Taken, export_shots, png, read_frames
from edgeedit.device.monitor.monitor import Monitor
from edgeedit.device.runtime import Runtime
from edgeedit.device.store import Store
from edgeedit.errors import InputError


def _taken(kind: str, number: int = 0, verdict: str = "") -> Taken:
    return Taken(kind, verdict, 1, 0.25, number, f"part-{number}", 1e9 + number)


@pytest.mark.parametrize("grey", [False, True])
def test_pillow_reads_the_png(tmp_path: Path, grey: bool) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (3, 5, 7), dtype=np.uint8)
    if grey:
        picture[1:] = picture[0]
    (tmp_path / "a.png").write_bytes(png(picture))
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode == ("L" if grey else "RGB")
        assert (np.asarray(image.convert("RGB")).transpose(2, 0, 1) == picture).all()


def test_the_ring_keeps_to_its_bytes_and_overridden_frames_longest(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    folder = tmp_path / "kept"
    ring = Collection(folder, max_bytes=20_000)
    folder.mkdir()
    (folder / "notes.txt").write_text("of somebody else")
    for number in range(40):
        picture = rng.integers(0, 256, (3, 32, 32), dtype=np.uint8)
        assert ring.add(picture, _taken("overridden" if number in (1, 30) else "low_margin", number))
        assert sum(path.stat().st_size for path in folder.glob("*-*")) <= 20_000
    kept = read_frames(folder)
    assert [taken.generation for _, taken in kept][:2] == [1, 30] and kept[-1][1].generation == 39 and len(kept) == 6
    assert (folder / "notes.txt").exists() and not ring.add(rng.integers(0, 256, (3, 99, 99), dtype=np.uint8), _taken("overridden"))
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.glob("*-*")} == {0o600}
    # A power failure between picture and JSON: no frame, and its bytes count.
    kept[-1][0].with_suffix(".json").unlink()
    assert len(read_frames(folder)) == 5
    for number in range(40):
        ring.add(rng.integers(0, 256, (3, 32, 32), dtype=np.uint8), _taken("overridden", number))
    assert not kept[-1][0].exists()


def test_what_a_monitor_kept_becomes_shots(world: Any, tmp_path: Path) -> None:
    from edgeedit.edit.shots import load_shots

    Store.create(tmp_path / "store", world.bundle.path, [world.public]).close()
    rng = np.random.default_rng(0)
    collection = Collection(tmp_path / "kept")
    settings: dict[str, Any] = {"every": 0.0, "frames": 16, "learn": 64, "background": False, "collection": collection}
    monitor = Monitor(reader=lambda features: features[:, :2], **settings)
    with Runtime(tmp_path / "store", poll_seconds=0, monitor=monitor) as runtime:
        for number in range(16 * 90):
            pixels = rng.random((1, 3, 4, 4), np.float32)
            runtime.run(pixels)
            if number % 300 == 0:
                runtime.override(pixels, "intact" if number else "defective", group=f"module-{number % 2}")
            monitor.work()
        runtime.override()
    assert not monitor.errors and monitor.figures().plain["edgeedit_overrides_total"] == 6
    frames = read_frames(tmp_path / "kept")
    low = [taken for _, taken in frames if taken.kind == "low_margin"]
    # One window in two or so holds a frame below the clean days' 5 %; none is kept before there are clean days.
    assert 5 <= len(low) <= 26 and len(frames) - len(low) == 5
    assert run(["shots", "export", str(tmp_path / "kept"), "-o", str(tmp_path / "out"), "--json"]) == 0
    shots = load_shots(tmp_path / "out" / "shots.jsonl")
    assert shots.classes == ("defective", "intact") and sorted(shots.labels) == [0, 1, 1, 1, 1] and set(shots.groups) == {"module-0"}
    control = load_shots(tmp_path / "out" / "to-label.jsonl")
    assert len(control.paths) == len(low) and set(control.labels) == {-1} and all(g.startswith("hour-") for g in control.groups)


def test_export_refuses_what_is_no_collection(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="folder of a Collection"):
        export_shots(tmp_path / "none", tmp_path / "out")
    with pytest.raises(InputError, match="at least one"):
        export_shots(tmp_path, tmp_path / "out")
    Collection(tmp_path / "kept").add(np.zeros((3, 4, 4), np.uint8), _taken("overridden", verdict="intact"))
    with pytest.raises(InputError, match="there already"):
        export_shots(tmp_path / "kept", tmp_path)
    done = CliRunner().invoke(cli, ["shots", "export", str(tmp_path / "kept"), "-o", str(tmp_path / "out")])
    assert done.exit_code == 0 and "1 with an operator's verdict" in done.output
    path = next((tmp_path / "kept").glob("*.json"))
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), "kind": "other"}))
    with pytest.raises(InputError, match="kept frame"):
        read_frames(tmp_path / "kept")
