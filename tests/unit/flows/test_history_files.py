"""`edgeedit history` from files: the same states as the chain itself, deltas and patches alike, an interrupted run that goes on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgeedit.bundle import Bundle, load_bundle
from edgeedit.cli.main import run
from edgeedit.delta import Delta, SparsePart, TensorDelta, load_delta
from edgeedit.deploy.lower import lower
from edgeedit.digest import digest_array, fingerprint
from edgeedit.edit.continual import _Judge
from edgeedit.edit.evaluate import features, reader_labels
from edgeedit.edit.history import Limits
from edgeedit.edit.readers import load_reader
from edgeedit.edit.shots import load_pixels, load_shots
from edgeedit.encoder.encoder import Encoder
from edgeedit.encoder.values import parameter_values, with_values
from edgeedit.flows.history import HistoryRequest, history
from edgeedit.flows.server import encoder_of, export_model
from edgeedit.patch.keys import load_private_key, new_key
from edgeedit.patch.write import PatchContent, write_patch
from edgeedit.rounding import apply_delta
from tests.support.tiny_dinov2 import SIZE, tiny_dinov2


def draw(folder: Path, seed: int) -> Path:
    rng = np.random.default_rng(seed)
    for name, level in (("dark", 95), ("light", 125)):
        (folder / name).mkdir(parents=True)
        for number in range(8):
            pixels = np.clip(rng.normal(level, 40, (SIZE, SIZE, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


def judged(error: float, after: float) -> dict[str, Any]:
    end = {"low": 0.1, "high": 0.5}
    row = {"name": "target", "n": 16, "error_before": error, "error_after": after, "auc_before": None, "auc_after": None}
    row |= {"wrong_before": end, "wrong_after": end, "change": end, "fixed": 1, "broken": 0, "mcnemar_p": 1.0}
    gate = {"verdict": "pass", "reasons": [], "limit": 0.02}
    rest = {"gate": gate, "edit_seconds": None, "changed_count": 1, "changed_share": 0.1, "outside_mask": 0, "total_weights": 10}
    return {"target": row, "control": None, "unrelated": None, **rest}


def update(encoder: Encoder, number: int) -> Delta:
    """A change of one first FFN matrix, made on `encoder` as it is."""
    name, rng = encoder.fc1_name(number % 2), np.random.default_rng(number)
    shape = tuple(encoder.parameters_by_name()[name].shape)
    index = np.sort(rng.choice(int(np.prod(shape)), 300, replace=False)).astype(np.int64)
    q = rng.choice(np.array([-90, 60, 90], np.int16), index.size)
    made_on = {"source_digest": encoder.source_digest(), "precision": "float32"}
    info = {"encoder": made_on, "metrics": judged(0.5, 0.5 - 0.125 * number)}
    return Delta((TensorDelta(name, shape, SparsePart(index, q, 2.0**-9)),), info)


def sign(bundle: Bundle, weights: dict[str, Any], delta: Delta, key: Path, out: Path) -> dict[str, Any]:
    """A patch of `delta` on the deployed `weights`; returns those after it."""
    rows = tuple(replace(t, sha256=digest_array(weights[t.name])) for t in bundle.tensor_map.tensors)
    table = replace(bundle.tensor_map, tensors=rows)
    base = replace(bundle, tensor_map=table, fingerprint=fingerprint(row.digest() for row in rows))
    made = lower(
        Delta(delta.tensors, {**delta.info, "encoder": {"source_digest": base.source_digest, "precision": "float32"}}), base, weights
    )
    expected = np.zeros((len(base.probes()), base.output_width), np.float32)
    content = PatchContent(
        made.parent, made.result, base.precision, base.recipe, made.deltas, made.before, made.after, made.dtypes, expected, 1e-3, delta.info
    )
    write_patch(out, content, [load_private_key(key)])
    return {**weights, **made.new}


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """bundle/, reader.npz, control/, a/ b/ c/ (held-out), 1..3.delta and 1..3.eep of one chain, ml.pub."""
    root = tmp_path_factory.mktemp("history")
    tiny_dinov2(11).save_pretrained(root / "dinov2")
    bundle = export_model(str(root / "dinov2"), "dinov2", "linux-cpu", root / "bundle", size=SIZE)
    for seed, name in enumerate(("base", "control", "a", "b", "c")):
        draw(root / name, seed)
    assert run(["reader", "fit", str(root / "base"), "--bundle", str(root / "bundle"), "-o", str(root / "reader.npz")]) == 0
    new_key(root / "ml.key", root / "ml.pub")
    encoder, weights = encoder_of(bundle), dict(bundle.weights())
    values = parameter_values(encoder, "float32")
    for number in (1, 2, 3):
        delta = update(with_values(encoder, values), number)
        delta.save(root / f"{number}.delta")
        weights = sign(bundle, weights, delta, root / "ml.key", root / f"{number}.eep")
        values |= {t.name: apply_delta(values[t.name], t) for t in delta.tensors}
    return root


def request(plant: Path, ending: str = "delta", out: Path | None = None, count: int = 3) -> HistoryRequest:
    updates = tuple(plant / f"{n}.{ending}" for n in range(1, count + 1))
    held = tuple(plant / name for name in ("a", "b", "c")[:count])
    return HistoryRequest(updates, plant / "bundle", plant / "reader.npz", plant / "control", held, (plant / "ml.pub",), out, Limits())


def silent(*_: object) -> None:
    pass


def test_the_matrix_is_that_of_the_weights_after_each_update(plant: Path) -> None:
    found = history(request(plant), silent)
    encoder, reader = encoder_of(load_bundle(plant / "bundle")), load_reader(plant / "reader.npz")
    values, tables = parameter_values(encoder, "float32"), []
    control = load_pixels(load_shots(plant / "control"), encoder.preprocess)
    before = features(encoder, control)
    for number in range(4):
        if number:
            made = load_delta(plant / f"{number}.delta")
            values |= {t.name: apply_delta(values[t.name], t) for t in made.tensors}
        tower, row = with_values(encoder, values), []
        for name in ("a", "b", "c"):
            shots = load_shots(plant / name)
            wrong = reader.logits_numpy(features(tower, load_pixels(shots, encoder.preprocess))).argmax(1) != reader_labels(shots, reader)
            row.append(np.mean([wrong[reader_labels(shots, reader) == c].mean() for c in (0, 1)]))
        moved = (features(tower, control) - before) / np.maximum(before.std(axis=0), 1e-6)
        tables.append((row, float(np.sqrt((moved**2).mean()))))
    matrix = np.array([row for row, _ in tables])
    rows = found["updates"]
    assert [r["before"] for r in rows] == pytest.approx([matrix[t, t] for t in range(3)])
    assert [r["after"] for r in rows] == pytest.approx([matrix[t + 1, t] for t in range(3)])
    assert [r["forgotten"] for r in rows] == pytest.approx([matrix[3, t] - matrix[t + 1, t] for t in range(3)])
    assert [r["mean_error"] for r in rows] == pytest.approx(list(matrix[1:].mean(axis=1)))
    assert [r["shift"] for r in rows] == pytest.approx([shift for _, shift in tables[1:]], rel=1e-4)
    assert rows[2]["shift"] > rows[0]["shift"] > 0 and len({tuple(row) for row, _ in tables}) > 1


def test_patches_give_what_their_deltas_give(plant: Path) -> None:
    assert history(request(plant, "eep"), silent) == history(request(plant), silent)


def test_an_interrupted_run_goes_on_and_gives_the_same(plant: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, out, states = history(request(plant, out=tmp_path / "whole.json"), silent), tmp_path / "cut.json", []

    def cut(done: int, *_: object) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        history(request(plant, out=out), cut)
    partial = history(HistoryRequest((out,)), silent)
    assert partial["length"] == 2 and [r["gain"] for r in partial["updates"]] == [r["gain"] for r in whole["updates"][:2]]
    judge = _Judge.state
    monkeypatch.setattr(_Judge, "state", lambda self, tower, *, base: (states.append(base), judge(self, tower, base=base))[1])
    assert history(request(plant, out=out), silent) == whole
    assert states == [False]  # only the update that was missing
    assert out.read_bytes() == (tmp_path / "whole.json").read_bytes()
    assert history(HistoryRequest((out,)), silent) == whole


def test_the_command_prints_a_table_and_writes_the_page(plant: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(plant / f"{n}.delta") for n in (1, 2, 3)]
    assert run(["history", *files, "--html", str(tmp_path / "h.html")]) == 0
    text = capsys.readouterr().out
    assert "+0.125" in text and "+0.375" in text and "shift" not in text and "measure: drift and forgetting" in text
    assert "<svg" in (tmp_path / "h.html").read_text("utf-8")
    assert run(["history", *[f.replace(".delta", ".eep") for f in files], "--trust", str(plant / "ml.pub"), "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert [row["gain"] for row in value["updates"]] == pytest.approx([0.125, 0.25, 0.375]) and value["measured"] is False


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "expected UPDATES or --ledger"),
        (["1.delta", "--verify"], 2, "only a ledger is verified here"),
        (["1.delta", "2.eep"], 2, "updates are mixed"),
        (["1.eep"], 2, "expected --trust KEY, got none"),
        (["2.eep", "1.eep", "--trust", "ml.pub"], 4, "patches do not follow each other"),
        (["1.delta", "--bundle", "bundle"], 2, "expected 1 times --heldout"),
        (["1.delta", "--max-drift", "0"], 2, "limits are out of range"),
        (["bundle/bundle.json"], 2, "expected a chain with matrix, control and shift"),
        (["1.delta", "1.delta", "{judge}", "--heldout", "a", "--heldout", "b"], 4, "updates do not follow each other: expected 1 on"),
        (["2.delta", "{judge}", "--heldout", "a"], 4, "updates do not follow each other: expected 2 on"),
        (["2.eep", "{judge}", "--heldout", "a", "--trust", "ml.pub"], 4, "chain does not start at the bundle"),
        (["1.delta", "{judge}", "--heldout", "a", "-o", "kept.json"], 2, "is of other files: expected the states of this chain"),
    ],
)
def test_what_does_not_belong_together_is_one_sentence(
    plant: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, message: str
) -> None:
    monkeypatch.chdir(plant)
    monkeypatch.delenv("EDGEEDIT_LEDGER", raising=False)
    Path("kept.json").write_text(json.dumps({"key": "another"}))
    judge = ["--bundle", "bundle", "--reader", "reader.npz", "--control", "control"]
    given = [word for a in arguments for word in (judge if a == "{judge}" else [a])]
    assert run(["history", *given]) == code
    told = capsys.readouterr().err.strip().splitlines()  # progress comes before
    lines = told[next(n for n, line in enumerate(told) if line.startswith("error: ")) :]
    assert message in lines[0] and not lines[0].endswith(".") and len(lines) <= 2


def test_without_updates_it_is_the_ledgers_log(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    new_key(tmp_path / "device.key", tmp_path / "device.pub")
    monkeypatch.setenv("EDGEEDIT_LEDGER", str(tmp_path / "ledger.db"))
    words = ["fleet", "enrol", "cam-1", "--public", str(tmp_path / "device.pub"), "--site", "plant-7", "--profile", "linux-cpu"]
    assert run(words) == 0
    capsys.readouterr()
    assert run(["history", "--verify", "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["verified"] is True and value["count"] == 1 and value["rows"][0]["subject"] == "cam-1"
