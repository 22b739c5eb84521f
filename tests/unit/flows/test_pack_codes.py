"""Packing onto an int8 Bundle: codes of the changed weights, probes of what the codes stand for, and the survival figure told."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edgeedit.bundle import Bundle, MappedTensor, TensorMap, save_bundle
from edgeedit.catalog import load_profile, load_recipe
from edgeedit.cli.main import run
from edgeedit.codec.probes import round_probes
from edgeedit.delta import Delta, SparsePart, TensorDelta
from edgeedit.deploy.compare import run_encoder
from edgeedit.deploy.export import export_bundle
from edgeedit.deploy.materialize import layout, write_tensors
from edgeedit.digest import digest_array, dtype_word, fingerprint
from edgeedit.encoder.encoder import Encoder
from edgeedit.encoder.load import finish
from edgeedit.encoder.values import parameter_values, with_values
from edgeedit.errors import InputError
from edgeedit.flows.pack import pack
from edgeedit.patch.keys import new_key, public_half
from edgeedit.patch.read import load_patch
from tests.support.tiny_dinov2 import SIZE, tiny_dinov2

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(21, 53)))
FC1, QUERY = "fc1", "q_proj"


def _encoder() -> Encoder:
    return finish(tiny_dinov2(7, blocks=1), load_recipe("dinov2"), SIZE)


def _quantised(bundle: Bundle) -> Bundle:
    """The Bundle with every editable matrix as int8 codes, one scale a column, the scales beside it as float32."""
    arrays, rows = bundle.weights(), {tensor.name: tensor for tensor in bundle.tensor_map.tensors}
    for tensor in bundle.tensor_map.tensors:
        if tensor.editable:
            scales = (np.abs(arrays[tensor.name]).max(0) / 127).astype(np.float32)
            arrays[f"{tensor.name}_scale"] = scales
            arrays[tensor.name] = np.rint(arrays[tensor.name] / scales.astype(np.float64)).astype(np.int8)
            rows[tensor.name] = replace(tensor, scales=f"{tensor.name}_scale", axis=1)
            rows[f"{tensor.name}_scale"] = MappedTensor(f"{tensor.name}_scale", "", False, "float32", scales.shape, 0, 0, "", False)
    names = sorted(arrays)
    offsets = dict(zip(names, layout([arrays[name].nbytes for name in names]), strict=True))
    write_tensors(bundle.path / "weights.bin", [(offsets[name], arrays[name]) for name in names])
    table = tuple(
        replace(rows[n], dtype=dtype_word(arrays[n].dtype), offset=offsets[n], length=arrays[n].nbytes, sha256=digest_array(arrays[n]))
        for n in names
    )
    made = replace(bundle, precision="int8", tensor_map=TensorMap(table), fingerprint=fingerprint(row.digest() for row in table))
    save_bundle(made)
    return made


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Encoder, Bundle]:
    encoder = _encoder()
    out = tmp_path_factory.mktemp("codes") / "bundle"
    return encoder, _quantised(export_bundle(encoder, out, profile=load_profile("linux-cpu"), precision="float32"))


def _delta(encoder: Encoder, step: float) -> Delta:
    rng = np.random.default_rng(3)
    shapes = {name: tuple(p.shape) for name, p in encoder.parameters_by_name().items()}
    changes = []
    for word in (FC1, QUERY):
        name = next(n for n in encoder.editable() if word in n)
        index = np.sort(rng.choice(int(np.prod(shapes[name])), 300, replace=False)).astype(np.int64)
        q = (rng.integers(1, 120, 300) * rng.choice([-1, 1], 300)).astype(np.int16)
        changes.append(TensorDelta(name, shapes[name], SparsePart(index, q, step)))
    info = {
        "encoder": {"source_digest": encoder.source_digest(), "precision": "int8"},
        "metrics": {"gate": {"verdict": "pass", "reasons": []}},
    }
    return Delta(tuple(changes), info)


def test_a_pack_onto_codes_rounds_the_changed_weights_and_says_what_survives(made: tuple[Encoder, Bundle], tmp_path: Path) -> None:
    encoder, bundle = made
    delta = _delta(encoder, 2.0**-12)  # up to 0.03, some codes wide; many changes are below half a scale
    packed = pack(delta, bundle, [KEY], tmp_path / "p.eep", encoder=encoder)
    patch = load_patch(tmp_path / "p.eep", [public_half(KEY)])
    base, floats = bundle.weights(), parameter_values(encoder, "float32")
    values: dict[str, Any] = dict(floats)
    for tensor in bundle.tensor_map.tensors:
        if tensor.dtype != "int8":
            continue
        scales, codes = base[tensor.scales].astype(np.float64), base[tensor.name].astype(np.int64)
        change = next((c for c in delta.tensors if c.name == tensor.parameter), None)
        if change is not None and change.sparse is not None:
            wanted = np.zeros(change.shape)
            wanted.reshape(-1)[change.sparse.index] = change.sparse.step * change.sparse.q.astype(np.float64)
            goal, moved = floats[tensor.parameter] + wanted, wanted != 0
            goal, moved, wanted = (a.T if tensor.transposed else a for a in (goal, moved, wanted))
            new = np.where(moved, np.clip(np.rint(goal / scales), -127, 127), codes)
            told = packed.survival[tensor.name]
            assert np.array_equal(packed.new[tensor.name], new)
            assert np.array_equal(patch.apply(tensor.name, base[tensor.name]), new)
            assert (told.declared, told.moved) == (300, int((new != codes).sum()))
            assert told.share == pytest.approx(((new - codes) * scales * wanted).sum() / (wanted**2).sum())
            codes = new
        values[tensor.parameter] = (codes * scales).T.astype(np.float32) if tensor.transposed else (codes * scales).astype(np.float32)
    expected = run_encoder(with_values(encoder, values), bundle.probes())
    assert np.array_equal(patch.expected(), round_probes(expected, bundle.tolerance))
    assert np.abs(patch.expected() - expected).max() <= bundle.tolerance / 4
    recorded = patch.manifest.provenance["survival"]
    assert {name: float(row["share"]) for name, row in recorded.items()} == {n: round(s.share, 6) for n, s in packed.survival.items()}
    assert len(recorded) == 2 and all(row["moved"] <= row["declared"] == 300 for row in recorded.values())


def test_the_command_prints_the_survival(
    made: tuple[Encoder, Bundle], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, bundle = made
    monkeypatch.setattr("edgeedit.flows.pack.encoder_of", lambda _: encoder)
    _delta(encoder, 2.0**-12).save(tmp_path / "d.delta")
    new_key(tmp_path / "k.key", tmp_path / "k.pub")
    command = [
        "pack",
        str(tmp_path / "d.delta"),
        "--bundle",
        str(bundle.path),
        "--key",
        str(tmp_path / "k.key"),
        "-o",
        str(tmp_path / "p.eep"),
    ]
    assert run(command) == 0
    assert capsys.readouterr().out.count("of the change survives") == 2
    assert run([*command, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["survival"]
    assert len(rows) == 2 and all(0 < row["share"] < 1.5 and 0 < row["error"] < 1 for row in rows.values())


def test_an_edit_that_no_code_can_say_writes_nothing(made: tuple[Encoder, Bundle], tmp_path: Path) -> None:
    encoder, bundle = made
    with pytest.raises(InputError, match=r"no int8 code changes|no probe sees the edit"):
        pack(_delta(encoder, 2.0**-40), bundle, [KEY], tmp_path / "p.eep", encoder=encoder)
    assert not (tmp_path / "p.eep").exists()
