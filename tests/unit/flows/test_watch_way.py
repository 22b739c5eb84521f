"""From the field back to the desk: a reference in the Bundle, a watched camera, and an edit from the frames that operators changed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeedit.bundle import Bundle, load_bundle
from edgeedit.cli.main import run
from edgeedit.device.monitor.collect import Collection
from edgeedit.device.monitor.monitor import Monitor
from edgeedit.device.monitor.projection import PROJECTED, to_pixels
from edgeedit.device.runtime import Runtime
from edgeedit.device.store import Store
from edgeedit.edit.readers import load_reader
from edgeedit.flows.server import export_model
from edgeedit.patch.keys import new_key
from tests.support.tiny_dinov2 import SIZE, tiny_dinov2


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("model")
    tiny_dinov2(11).save_pretrained(folder / "dinov2")
    return export_model(str(folder / "dinov2"), "dinov2", "linux-cpu", folder / "bundle", size=SIZE)


def _picture(rng: np.random.Generator, level: float) -> np.ndarray:
    return np.clip(rng.normal(level, 25, (3, SIZE, SIZE)), 0, 255).astype(np.uint8)


def _folder(folder: Path, count: int) -> Path:
    rng = np.random.default_rng(0)
    for name, level in (("dark", 80), ("light", 150)):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            Image.fromarray(_picture(rng, level).transpose(1, 2, 0)).save(folder / name / f"{number}.png")
    return folder


def test_what_operators_changed_becomes_the_shots_of_an_edit(bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, reader = _folder(tmp_path / "base", 20), tmp_path / "reader.npz"
    assert run(["reader", "fit", str(base), "--bundle", str(bundle.path), "-o", str(reader)]) == 0
    assert run(["reference", str(base), "--bundle", str(bundle.path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["images"] == 40
    shipped = load_bundle(bundle.path)
    assert shipped.fingerprint == bundle.fingerprint and shipped.reference() is not None
    assert shipped.reference().shape == (40, PROJECTED)  # type: ignore[union-attr]

    new_key(tmp_path / "ml.key", tmp_path / "ml.pub")
    Store.create(tmp_path / "store", bundle.path, [tmp_path / "ml.pub"]).close()
    monitor = Monitor(reader=load_reader(reader).logits_numpy, every=0.0, background=False, collection=Collection(tmp_path / "kept"))
    rng = np.random.default_rng(3)
    with Runtime(tmp_path / "store", threads=1, poll_seconds=0, monitor=monitor) as runtime:
        for number in range(24):  # a new lamp: dark parts are as light as light ones were
            name = ("dark", "light")[number % 2]
            pixels = to_pixels(_picture(rng, (125, 195)[number % 2])[None], shipped.preprocess)
            runtime.run(pixels)
            runtime.override(pixels, name, group=f"part-{number // 4}")
            monitor.work()
    assert not monitor.errors

    shots, out = tmp_path / "next", tmp_path / "fix.delta"
    assert run(["shots", "export", str(tmp_path / "kept"), "-o", str(shots)]) == 0
    assert "24 with an operator's verdict" in capsys.readouterr().out
    command = ["edit", str(shots / "shots.jsonl"), "--control", str(base), "--bundle", str(bundle.path), "--reader", str(reader)]
    code = run([*command, "--steps", "2", "-o", str(out), "--json"])
    # Two steps repair little; what counts is that the set was read, split by part and judged.
    assert code in (0, 3)
    judged = json.loads(capsys.readouterr().out.splitlines()[0])["metrics"]
    assert 0 < judged["target"]["n"] < 24 and judged["target"]["n"] % 4 == 0 and judged["outside_mask"] == 0


def test_too_few_images_are_no_reference(bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["reference", str(_folder(tmp_path / "few", 5)), "--bundle", str(bundle.path)]) == 2
    assert "expected at least 32, got 10" in capsys.readouterr().err
