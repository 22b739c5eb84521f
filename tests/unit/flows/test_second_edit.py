"""The second edit of a camera from files: made on what the first one left, remembered shots beside it, taken by the same store."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeedit.bundle import load_bundle
from edgeedit.cli.main import run
from edgeedit.delta import load_delta
from edgeedit.deploy.probes import deployed_values
from edgeedit.device.runtime import Runtime
from edgeedit.encoder.values import parameter_values
from edgeedit.errors import MismatchError
from edgeedit.flows.server import encoder_of
from edgeedit.metrics import GateVerdict
from edgeedit.patch.keys import load_trust, new_key
from edgeedit.patch.read import load_patch
from tests.support.tiny_dinov2 import SIZE, tiny_dinov2


def draw(folder: Path, seed: int, lift: int, stripes: int) -> Path:
    """Dark and light noise; `lift` moves both, `stripes` lie over them."""
    rng = np.random.default_rng(seed)
    for name, level in (("dark", 80), ("light", 120)):
        (folder / name).mkdir(parents=True)
        for number in range(8):
            noise = rng.normal(level + lift, 30, (SIZE, SIZE, 3))
            noise[:, ::4] += stripes
            Image.fromarray(np.clip(noise, 0, 255).astype(np.uint8)).save(folder / name / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """dinov2/, base/, control/, one/ and two/ (shots of two mistakes), ml.key."""
    root = tmp_path_factory.mktemp("plant")
    tiny_dinov2(5, biases=0.1).save_pretrained(root / "dinov2")
    for seed, (name, lift, stripes) in enumerate((("base", 0, 0), ("control", 0, 0), ("one", 40, 0), ("two", 40, 120))):
        draw(root / name, seed, lift, stripes)
    new_key(root / "ml.key", root / "ml.pub")
    return root


@pytest.fixture(autouse=True)
def undecided(monkeypatch: pytest.MonkeyPatch) -> None:
    """A random encoder learns nothing worth a gate, nor what float16 probes tell; how the second edit hangs on the first is tested here."""
    monkeypatch.setattr("edgeedit.edit.run.decide", lambda *row: GateVerdict("undecided", ("test",), row[-1]))
    monkeypatch.setattr("edgeedit.deploy.proving.check_probes", lambda *_: None)


def edited(plant: Path, shots: str, bundle: Path, out: Path, *more: str) -> None:
    """`edit` with few steps, then `pack`."""
    fixed = ["--control", str(plant / "control"), "--reader", str(out.parent / "reader.npz"), "--steps", "12"]
    fixed += ["--share", "0.5", "--heads", "2", "-o", str(out.with_suffix(".delta"))]
    code = run(["edit", str(plant / shots), "--bundle", str(bundle), *fixed, *more])
    assert code == 3
    packed = ["pack", str(out.with_suffix(".delta")), "--bundle", str(bundle), "--key", str(plant / "ml.key"), "--accept-undecided", "test"]
    assert run([*packed, "-o", str(out)]) == 0


@pytest.mark.parametrize("device", ["float32", "float16", "int8"])
def test_the_second_edit_starts_from_the_first_and_the_store_takes_both(
    plant: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], device: str
) -> None:
    bundle, first, second = tmp_path / "bundle", tmp_path / "1.eep", tmp_path / "2.eep"
    profile = ["--device", "linux-cpu-int8"] if device == "int8" else ["--device", "linux-cpu", "--precision", device]
    assert run(["export", str(plant / "dinov2"), "--recipe", "dinov2", *profile, "--size", str(SIZE), "-o", str(bundle)]) == 0
    assert run(["reader", "fit", str(plant / "base"), "--bundle", str(bundle), "-o", str(tmp_path / "reader.npz")]) == 0
    edited(plant, "one", bundle, first)
    now, trust = tmp_path / "bundle-1", ["--trust", str(plant / "ml.pub")]
    assert run(["materialize", str(first), "--bundle", str(bundle), *trust, "-o", str(now)]) == 0
    edited(plant, "two", now, second, "--former", str(plant / "one"))

    patches = [load_patch(path, load_trust([plant / "ml.pub"])) for path in (first, second)]
    assert patches[1].manifest.parent == patches[0].manifest.result
    info = load_delta(tmp_path / "2.delta").info
    base = load_bundle(bundle)
    assert info["encoder"]["patched_from"] == base.source_digest and info["former"]["n"] == 16
    # What the second edit was made on are the parameters that the deployed tensors of generation 1 stand for.
    made_on, weights = encoder_of(load_bundle(now)), {**base.weights()}
    weights |= {row.name: patches[0].apply(row.name, np.array(weights[row.name])) for row in patches[0].manifest.tensors}
    expected = deployed_values(parameter_values(encoder_of(base), "float32"), base, weights)
    found = parameter_values(made_on, "float32")
    assert found.keys() == expected.keys() and all(np.array_equal(found[name], expected[name]) for name in found)
    if device != "int8":  # whose graph also rounds activations
        capsys.readouterr()
        assert run(["compare", str(now), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["max_abs"] <= patches[0].manifest.probe.tolerance
    # No edit of one generation may be packed for the other.
    for number, wrong in ((1, now), (2, bundle)):
        refused = ["pack", str(tmp_path / f"{number}.delta"), "--bundle", str(wrong), "--key", str(plant / "ml.key")]
        assert run([*refused, "--accept-undecided", "test", "-o", str(tmp_path / "no.eep")]) == MismatchError.exit_code
    assert not (tmp_path / "no.eep").exists()

    store = ["--store", str(tmp_path / "store")]
    assert run(["provision", str(bundle), *store, *trust]) == 0
    assert run(["apply", str(second), *store]) == MismatchError.exit_code
    assert run(["apply", str(first), *store]) == 0 and run(["apply", str(second), *store]) == 0
    with Runtime(tmp_path / "store") as runtime:
        answer = runtime.run(base.probes()[:2])
    assert answer.generation == 2
    tolerance = patches[1].manifest.probe.tolerance
    assert np.abs(answer.output - patches[1].expected()[:2]).max() <= tolerance
    assert run(["rollback", *store]) == 0
    with Runtime(tmp_path / "store") as runtime:
        assert np.abs(runtime.run(base.probes()[:2]).output - patches[0].expected()[:2]).max() <= patches[0].manifest.probe.tolerance


def test_history_follows_deltas_that_name_the_deployed_weights(plant: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle, first = tmp_path / "bundle", tmp_path / "1.eep"
    export = ["export", str(plant / "dinov2"), "--recipe", "dinov2", "--device", "linux-cpu", "--size", str(SIZE), "-o", str(bundle)]
    assert run(export) == 0
    assert run(["reader", "fit", str(plant / "base"), "--bundle", str(bundle), "-o", str(tmp_path / "reader.npz")]) == 0
    edited(plant, "one", bundle, first)
    now = tmp_path / "bundle-1"
    assert run(["materialize", str(first), "--bundle", str(bundle), "--trust", str(plant / "ml.pub"), "-o", str(now)]) == 0
    edited(plant, "two", now, tmp_path / "2.eep", "--former", str(plant / "one"))
    judged = ["--reader", str(tmp_path / "reader.npz"), "--control", str(plant / "base")]
    judged += ["--heldout", str(plant / "one"), "--heldout", str(plant / "two"), "--json"]
    capsys.readouterr()
    tables = []
    for ending, more in (("delta", []), ("eep", ["--trust", str(plant / "ml.pub")])):
        updates = [str(tmp_path / f"{number}.{ending}") for number in (1, 2)]
        assert run(["history", *updates, "--bundle", str(bundle), *judged, *more]) == 0
        tables.append([{k: v for k, v in row.items() if k != "name"} for row in json.loads(capsys.readouterr().out)["updates"]])
    assert tables[0] == tables[1]
    # The second alone follows nothing here.
    assert run(["history", str(tmp_path / "2.delta"), "--bundle", str(bundle), *judged[:-3], "--json"]) == MismatchError.exit_code


def test_explain_and_tune_start_from_what_the_camera_runs(plant: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What they say of the deployed generation, which one edit changed, is not what they say of the base."""
    bundle, first, now = tmp_path / "bundle", tmp_path / "1.eep", tmp_path / "bundle-1"
    export = ["export", str(plant / "dinov2"), "--recipe", "dinov2", "--device", "linux-cpu", "--size", str(SIZE), "-o", str(bundle)]
    assert run(export) == 0
    reader = ["--reader", str(tmp_path / "reader.npz")]
    assert run(["reader", "fit", str(plant / "base"), "--bundle", str(bundle), "-o", reader[1]]) == 0
    edited(plant, "one", bundle, first)
    assert run(["materialize", str(first), "--bundle", str(bundle), "--trust", str(plant / "ml.pub"), "-o", str(now)]) == 0
    edited(plant, "two", now, tmp_path / "2.eep", "--former", str(plant / "one"))

    judged = [*reader, "--heldout", str(plant / "two"), "--heldout-control", str(plant / "base"), "--images", "4", "--maps", "1"]
    capsys.readouterr()
    assert run(["explain", str(tmp_path / "2.delta"), "--bundle", str(now), *judged, "-o", str(tmp_path / "e.json"), "--json"]) == 0
    found = json.loads((tmp_path / "e.json").read_text("utf-8"))
    changed = load_delta(tmp_path / "2.delta").info["metrics"]["changed_count"]
    assert found["census"]["changed"] == changed and found["census"]["outside"] == 0
    # The delta of one generation explains nothing of another.
    capsys.readouterr()
    refused = ["explain", str(tmp_path / "2.delta"), "--bundle", str(bundle), *judged, "-o", str(tmp_path / "no.json")]
    assert run(refused) == MismatchError.exit_code
    assert not (tmp_path / "no.json").exists()

    errors = []
    for number, of in enumerate((bundle, now)):
        out = tmp_path / f"tune-{number}"
        budget = ["--trials", "2", "--max-steps", "4", "--seed", "1", "-o", str(out), "--json"]
        assert run(["tune", str(plant / "two"), "--bundle", str(of), *reader, "--control", str(plant / "base"), *budget]) == 0
        errors.append(json.loads((out / "pareto.json").read_text("utf-8")))
    assert errors[0] != errors[1]
