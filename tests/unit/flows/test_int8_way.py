"""int8 and bfloat16 from export to a device: codes of the definition, a patched session like a fresh one, refusals with a way out."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from PIL import Image

from edgeedit.bundle import Bundle, load_bundle, verify_bundle
from edgeedit.catalog import check_precision, load_profile
from edgeedit.cli.main import run
from edgeedit.delta import Delta, SparsePart, TensorDelta
from edgeedit.deploy import export as export_room
from edgeedit.deploy.compare import difference, run_encoder
from edgeedit.deploy.materialize import write_weights
from edgeedit.deploy.tolerance import scale_of, tolerance_of
from edgeedit.device.engines.ort_session import SessionPlan, make_session, session_options
from edgeedit.device.runtime import Runtime
from edgeedit.device.store import Store
from edgeedit.edit.judging import judge_tensors
from edgeedit.edit.methods.local import Local
from edgeedit.edit.readers import load_reader
from edgeedit.edit.run import HeldOut, edit
from edgeedit.edit.shots import load_pixels, load_shots, split_by_group
from edgeedit.encoder.values import parameter_values, with_values
from edgeedit.errors import InputError, RefusedError
from edgeedit.flows.pack import pack
from edgeedit.flows.server import encoder_of, export_model, in_codes
from edgeedit.patch.keys import load_private_key, new_key
from tests.support.tiny_dinov2 import SIZE, tiny_dinov2


def _plain_float32(folder: Path) -> Any:
    """A session with default options, but activations that are not rounded to int8."""
    options = ort.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    return ort.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A transformers folder with a small DINOv2 whose biases and gains are not degenerate."""
    folder = tmp_path_factory.mktemp("model") / "dinov2"
    tiny_dinov2(11, biases=0.1).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def coded(model: Path) -> Bundle:
    return export_model(str(model), "dinov2", "linux-cpu-int8", model.parent / "int8", size=SIZE)


def test_exported_codes_are_those_of_the_definition(coded: Bundle) -> None:
    encoder, weights = encoder_of(coded), coded.weights()
    values = parameter_values(encoder, "float32")
    decoded = dict(values)
    rows = [t for t in coded.tensor_map.tensors if t.dtype == "int8"]
    for row in rows:
        matrix = values[row.parameter]  # (out, in): one scale for each output
        scales = (np.abs(matrix).max(1) / 127).astype(np.float32)
        codes = np.rint(matrix / scales[:, None].astype(np.float64))
        assert np.array_equal(weights[row.scales], scales)
        assert np.array_equal(weights[row.name].T if row.transposed else weights[row.name], codes)
        decoded[row.parameter] = (codes * scales[:, None].astype(np.float64)).astype(np.float32)
    assert set(encoder.editable()) <= {row.parameter for row in rows}
    expected = run_encoder(with_values(encoder, decoded), coded.probes())
    got = _plain_float32(coded.path).run(None, {"pixels": coded.probes()})[0]
    assert difference(expected, got).max_abs <= coded.tolerance <= 1e-3 * scale_of(expected)
    verify_bundle(load_bundle(coded.path))


def _made_by_hand(encoder: Any, precision: str) -> Delta:
    name = encoder.fc1_name(1)
    shape = tuple(encoder.parameters_by_name()[name].shape)
    rng = np.random.default_rng(4)
    index = np.sort(rng.choice(shape[0] * shape[1], 400, replace=False)).astype(np.int64)
    q = (rng.integers(20, 100, 400) * rng.choice([-1, 1], 400)).astype(np.int16)
    info = {
        "encoder": {"source_digest": encoder.source_digest(), "precision": precision},
        "metrics": {"gate": {"verdict": "pass", "reasons": []}},
    }
    return Delta((TensorDelta(name, shape, SparsePart(index, q, 2.0**-10)),), info)


def test_a_running_int8_session_takes_a_patch_and_equals_a_fresh_one(coded: Bundle, tmp_path: Path) -> None:
    new_key(tmp_path / "k.key", tmp_path / "k.pub")
    delta = _made_by_hand(encoder_of(coded), "int8")
    packed = pack(delta, coded, [load_private_key(tmp_path / "k.key")], tmp_path / "fix.eep")
    Store.create(tmp_path / "store", coded.path, [tmp_path / "k.pub"]).close()
    probes = np.array(coded.probes())
    with Runtime(tmp_path / "store", threads=1, poll_seconds=0) as runtime:
        old = runtime.run(probes).output.copy()
        with Store.open(tmp_path / "store") as store:
            store.stage((tmp_path / "fix.eep").read_bytes())
        swap = runtime.step()
        assert swap is not None and (swap.state, swap.generation) == ("confirmed", 1)
        new = runtime.run(probes).output.copy()
        with Store.open(tmp_path / "store") as store:
            store.rollback()
        assert runtime.step() is not None
        assert runtime.run(probes).output.tobytes() == old.tobytes()
    write_weights(coded, {**coded.weights(), **packed.new}, tmp_path / "fresh")
    plan = SessionPlan(threads=1)
    fresh = make_session(ort, tmp_path / "fresh", plan, session_options(ort, plan))
    assert new.tobytes() == fresh.run(None, {"pixels": probes})[0].tobytes()
    assert np.abs(new - old).max() >= 10 * coded.tolerance


def _pictures(folder: Path, shift: float, seed: int, count: int = 10) -> Path:
    rng = np.random.default_rng(seed)
    for name, level in (("dark", 80), ("light", 150)):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            picture = np.clip(rng.normal(level + shift, 25, (SIZE, SIZE, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(picture).save(folder / name / f"{number}.png")
    return folder


def test_an_edit_of_an_int8_bundle_judges_what_the_codes_stand_for(
    coded: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, shots = _pictures(tmp_path / "base", 0.0, 0), _pictures(tmp_path / "shots", 45.0, 1)
    bundle, reader, out = str(coded.path), str(tmp_path / "reader.npz"), tmp_path / "fix.delta"
    assert run(["reader", "fit", str(base), "--bundle", bundle, "-o", reader]) == 0
    command = ["edit", str(shots), "--control", str(base), "--bundle", bundle, "--reader", reader, "--steps", "2", "--method", "lorsu"]
    assert run([*command, "-o", str(out)]) == 3  # two steps repair nothing
    rejected = json.loads((tmp_path / "fix.delta.rejected.json").read_text("utf-8"))
    assert rejected["encoder"]["precision"] == "int8"
    found, fitted = load_shots(shots), load_reader(Path(reader))
    method = Local(share=0.2, steps=20, lr=5e-3, rounding_steps=8)
    found, judge = split_by_group(found, 0.5, 0)
    control, kept = split_by_group(load_shots(base), 0.5, 0)
    sets = HeldOut(judge, kept)
    delta = edit(
        encoder_of(coded), found, control, fitted,
        method=method, precision="int8", heldout=sets, seed=0, limit=0.5, deployed=in_codes(coded),
    ).delta  # fmt: skip
    assert delta.info["metrics"]["outside_mask"] == 0 < delta.info["metrics"]["changed_count"]
    # What was judged is what pack writes and a device computes: the features of its tensors give the same verdicts.
    new_key(tmp_path / "k.key", tmp_path / "k.pub")
    gate = {"metrics": {**delta.info["metrics"], "gate": {"verdict": "pass", "reasons": []}}}
    packed = pack(Delta(delta.tensors, {**delta.info, **gate}), coded, [load_private_key(tmp_path / "k.key")], tmp_path / "fix.eep")
    write_weights(coded, {**coded.weights(), **packed.new}, tmp_path / "patched")
    session = _plain_float32(tmp_path / "patched")
    rows = [row for row in delta.info["verdicts"] if row["set"] == "target"]
    assert rows
    features = session.run(None, {"pixels": load_pixels(judge, encoder_of(coded).preprocess)})[0]
    logits = fitted.logits_numpy(features)
    chance = np.exp(logits - logits.max(1, keepdims=True))
    chance /= chance.sum(1, keepdims=True)
    places = {str(path): place for place, path in enumerate(judge.paths)}
    for row in rows:
        place, label = places[row["image"]], fitted.classes.index(row["label"])
        assert row["score_after"] == pytest.approx(chance[place, label], abs=2e-4)
    capsys.readouterr()
    assert run(["tune", str(shots), "--control", str(base), "--bundle", bundle, "--reader", reader, "-o", str(tmp_path / "t")]) == 2
    assert "cannot compute with int8 codes here" in capsys.readouterr().err
    with pytest.raises(InputError, match="int8 codes"):
        judge_tensors(encoder_of(coded), delta.tensors, fitted, judge, None, precision="int8", limit=0.5)


def test_a_bfloat16_bundle_is_proven_in_float32_and_holds_bfloat16(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = export_model(str(model), "dinov2", "jetson-orin-nano-8gb", tmp_path / "b", precision="bfloat16", size=SIZE)
    encoder = encoder_of(bundle)
    graph = onnx.load(str(bundle.path / "model.onnx"), load_external_data=False).graph
    kinds = {t.name: t.data_type for t in graph.initializer}
    values = parameter_values(encoder, "bfloat16")
    for row in (t for t in bundle.tensor_map.tensors if t.parameter):
        assert (row.dtype, kinds[row.name]) == ("bfloat16", onnx.TensorProto.BFLOAT16)
        stored = bundle.weights()[row.name]
        assert np.array_equal((stored.T if row.transposed else stored).reshape(-1), values[row.parameter].reshape(-1))
    borders = Counter(a.i for node in graph.node if node.op_type == "Cast" for a in node.attribute if a.name == "to")
    assert borders[onnx.TensorProto.BFLOAT16] >= 1 and borders[onnx.TensorProto.FLOAT] >= 1
    assert {v.type.tensor_type.elem_type for v in (*graph.input, *graph.output)} == {onnx.TensorProto.FLOAT}
    # The tolerance covers a device that computes in bfloat16 throughout, by an independent way: torch's autocast-free half copy.
    half = with_values(encoder, values).to(torch.bfloat16)
    with torch.no_grad():
        coarse = half(torch.from_numpy(np.array(bundle.probes())).to(torch.bfloat16)).float().numpy()
    assert np.abs(coarse - run_encoder(with_values(encoder, values), bundle.probes())).max() <= bundle.tolerance
    assert run(["compare", str(bundle.path)]) == 6
    assert "no bfloat16 MatMul" in capsys.readouterr().err
    # A constant that the exporter got wrong is seen although no session here runs the graph as it is.
    honest = export_room.in_float32

    def broken(graph: Any) -> Any:
        twin = honest(graph)
        norm = next(node for node in twin.graph.node if node.op_type == "LayerNormalization")
        next(a for a in norm.attribute if a.name == "epsilon").f = 0.5
        return twin

    monkeypatch.setattr(export_room, "in_float32", broken)
    with pytest.raises(InputError, match="graph disagrees"):
        export_model(str(model), "dinov2", "jetson-orin-nano-8gb", tmp_path / "c", precision="bfloat16", size=SIZE)
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("device", "precision", "words"),
    [
        ("linux-cpu", "int8", "onnxruntime aliased"),
        ("linux-cpu-inputs", "int8", "onnxruntime inputs"),
        ("linux-cuda", "int8", "CUDAExecutionProvider"),
        ("linux-ort-trt", "int8", "TensorrtExecutionProvider"),
        ("jetson-orin-nano-8gb", "int8", "tensorrt refit"),
        ("linux-cpu", "bfloat16", "CPUExecutionProvider"),
        ("linux-cpu-int8", "bfloat16", "CPUExecutionProvider"),
        ("jetson-xavier", "float16", "JetPack 5"),
    ],
)
def test_a_precision_that_the_profile_cannot_run_is_refused_by_name(device: str, precision: str, words: str) -> None:
    with pytest.raises(RefusedError, match=words) as caught:
        check_precision(load_profile(device), precision)
    assert caught.value.exit_code == 6 and device in str(caught.value) and caught.value.hint


def test_the_refusal_reaches_the_command_line(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["export", str(model), "--recipe", "dinov2", "--size", str(SIZE), "--device", "jetson-agx-thor", "--precision", "int8"]
    assert run([*command, "-o", str(tmp_path / "b"), "--json"]) == 6
    assert "linux-cpu-int8" in capsys.readouterr().err and not (tmp_path / "b").exists()


def test_an_encoder_that_overflows_in_half_precision_is_refused(model: Path, tmp_path: Path) -> None:
    bundle = export_model(str(model), "dinov2", "linux-cpu-fp16", tmp_path / "b", size=SIZE)
    encoder = encoder_of(bundle)
    expected = run_encoder(encoder, bundle.probes())
    with pytest.raises(InputError, match="too coarse in float16"):
        tolerance_of(expected, [None, np.full_like(expected, np.inf)], "float16")
