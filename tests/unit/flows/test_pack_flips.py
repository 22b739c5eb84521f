"""`pack --max-flips`: the share stands signed in the patch, one that is no share is refused, and who needs it is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.stats import binomtest

from edgeedit.cli.main import run
from edgeedit.delta import load_delta
from edgeedit.flows.pack import flips_warning, usual_flips
from edgeedit.metrics import GateVerdict
from edgeedit.patch.keys import new_key
from edgeedit.patch.manifest import USUAL_FLIPS, stated_flips
from tests.support.tiny_dinov2 import SIZE, tiny_dinov2


def _metrics(**sets: tuple[int, int, int]) -> dict[str, Any]:
    """What a Delta stores of held-out flips: set -> (fixed, broken, n)."""
    return {name: {"fixed": f, "broken": b, "n": n} for name, (f, b, n) in sets.items()} | {"unrelated": None}


def test_the_warning_says_from_which_mix_of_frames_on() -> None:
    assert flips_warning(_metrics(target=(3, 2, 100), control=(1, 1, 100)), USUAL_FLIPS) == ""
    told = flips_warning(_metrics(target=(30, 12, 100), control=(1, 1, 100)), USUAL_FLIPS)
    # 0.02 + x (0.42 - 0.02) = 0.05 at x = 7.5 %
    assert "42.0% of the target's and 2.0% of the control's" in told and "from about 8% frames" in told and "--max-flips" in told
    assert flips_warning(_metrics(target=(30, 12, 100), control=(1, 1, 100)), 0.42) == ""
    assert "on control images already" in flips_warning(_metrics(target=(30, 0, 100), control=(5, 5, 100)), USUAL_FLIPS)
    assert "from about 12% frames" in flips_warning(_metrics(target=(42, 0, 100)), USUAL_FLIPS)
    assert flips_warning({}, USUAL_FLIPS) == ""


def test_what_the_gate_accepted_on_control_images_is_stated() -> None:
    assert usual_flips(_metrics(target=(30, 12, 100), control=(0, 0, 30))) is None
    assert usual_flips(_metrics(target=(30, 12, 100), control=(2, 2, 400))) is None  # up to 2.5 %
    high = binomtest(15, 165).proportion_ci(0.95, "wilson").high
    assert usual_flips(_metrics(target=(30, 12, 100), control=(8, 7, 165))) == pytest.approx(high, abs=1e-3)
    assert usual_flips({}) is None and usual_flips({"control": None}) is None
    assert usual_flips(_metrics(control=(1, 1, 2))) == 1.0


@pytest.mark.parametrize(
    ("text", "share"), [("0.25", 0.25), ("1.0", 1.0), ("0", None), ("1.5", None), ("-1", None), (0.3, None), ("nan", None), (None, None)]
)
def test_a_field_that_is_no_share_has_no_meaning(text: object, share: float | None) -> None:
    assert stated_flips({"max_flips": text}) == share


def _pictures(folder: Path, lift: int) -> Path:
    rng = np.random.default_rng(lift)
    for name, level in (("dark", 80), ("light", 120)):
        (folder / name).mkdir(parents=True)
        for number in range(8):
            noise = rng.normal(level + lift, 30, (SIZE, SIZE, 3))
            Image.fromarray(np.clip(noise, 0, 255).astype(np.uint8)).save(folder / name / f"{number}.png")
    return folder


def test_it_stands_in_the_patch_and_inspect_shows_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgeedit.edit.run.decide", lambda *row: GateVerdict("pass", (), row[-1]))
    tiny_dinov2(5, biases=0.1).save_pretrained(tmp_path / "dinov2")
    base, shots = _pictures(tmp_path / "base", 0), _pictures(tmp_path / "shots", 40)
    bundle, reader, delta = tmp_path / "bundle", tmp_path / "reader.npz", tmp_path / "fix.delta"
    export = ["--recipe", "dinov2", "--device", "linux-cpu", "--size", str(SIZE), "-o", str(bundle)]
    assert run(["export", str(tmp_path / "dinov2"), *export]) == 0
    assert run(["reader", "fit", str(base), "--bundle", str(bundle), "-o", str(reader)]) == 0
    fixed = ["--control", str(base), "--reader", str(reader), "--steps", "12", "--share", "0.5", "-o", str(delta)]
    assert run(["edit", str(shots), "--bundle", str(bundle), *fixed]) == 0
    new_key(tmp_path / "ml.key", tmp_path / "ml.pub")
    common = ["pack", str(delta), "--bundle", str(bundle), "--key", str(tmp_path / "ml.key")]
    trust = ["--trust", str(tmp_path / "ml.pub"), "--json"]
    usual = usual_flips(load_delta(delta).info["metrics"])
    for share, shown in ((None, usual or USUAL_FLIPS), ("0.4", 0.4)):
        out = tmp_path / f"{share}.eep"
        assert run([*common, *(["--max-flips", share] if share else []), "-o", str(out)]) == 0
        capsys.readouterr()
        assert run(["inspect", str(out), *trust]) == 0
        assert json.loads(capsys.readouterr().out)["max_flips"] == shown
    # Whoever packs for an update engine is warned alike.
    monkeypatch.setattr("edgeedit.flows.pack.flips_warning", lambda _, allowed: f"above {allowed}")
    capsys.readouterr()
    wrapped = [*common, "--max-flips", "0.4", "--for", "mender", "--compatible", "camera", "-o", str(tmp_path / "fix.mender"), "--json"]
    for command in ([*common, "--max-flips", "0.4", "-o", str(tmp_path / "again.eep"), "--json"], wrapped):
        assert run(command) == 0
        assert json.loads(capsys.readouterr().out)["warning"] == "above 0.4"
    for wrong in ("0", "1.01", "-0.1", "nan"):
        assert run([*common, "--max-flips", wrong, "-o", str(tmp_path / "wrong.eep")]) == 2, wrong
    assert not (tmp_path / "wrong.eep").exists()
    ready = ["pack", str(tmp_path / "0.4.eep"), "--for", "mender", "--max-flips", "0.5", "-o", str(tmp_path / "x")]
    assert run(ready) == 2
    assert "signed already" in capsys.readouterr().err
