"""`edgeedit compare` against an engine: the profile's own, another Bundle's, and what runs in a store after a patch."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeedit.bundle import Bundle
from edgeedit.catalog import load_profile, load_recipe
from edgeedit.cli.main import run
from edgeedit.delta import Delta, SparsePart, TensorDelta
from edgeedit.deploy.compare import difference, run_graph
from edgeedit.deploy.export import export_bundle
from edgeedit.deploy.materialize import write_weights
from edgeedit.device.apply import apply_patch
from edgeedit.device.store import Store
from edgeedit.encoder.encoder import Encoder
from edgeedit.encoder.load import random_encoder
from edgeedit.flows.pack import pack
from edgeedit.patch.keys import load_private_key, new_key

Compared = Callable[..., dict[str, Any]]
SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 28, "patch_size": 7}


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return random_encoder(load_recipe("clip"), {**SMALL, "intermediate_size": 256, "projection_dim": 32}, seed=11)


@pytest.fixture(scope="module")
def bundles(encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    at = tmp_path_factory.mktemp("compare")
    return {
        name: export_bundle(encoder, at / name, profile=load_profile(name), precision="float32")
        for name in ("linux-cpu", "linux-cpu-inputs")
    }


@pytest.fixture
def compared(capsys: pytest.CaptureFixture[str]) -> Compared:
    def compared(*arguments: object) -> dict[str, Any]:
        capsys.readouterr()
        assert run(["compare", *map(str, arguments), "--json"]) == 0
        value: dict[str, Any] = json.loads(capsys.readouterr().out)
        return value

    return compared


def test_the_engine_of_every_profile_gives_what_its_graph_gives(bundles: dict[str, Bundle], compared: Compared) -> None:
    for name, bundle in bundles.items():
        value = compared(bundle.path, "--engine")
        assert value["max_abs"] <= bundle.tolerance and value["cosine_min"] > 0.99999, name
        assert bundle.mode in value["engine"]
    crossed = compared(bundles["linux-cpu"].path, bundles["linux-cpu-inputs"].path, "--engine")
    assert crossed["max_abs"] <= bundles["linux-cpu"].tolerance and "inputs" in crossed["engine"]


def test_a_store_is_compared_with_the_weights_of_its_head(
    encoder: Encoder, bundles: dict[str, Bundle], tmp_path: Path, compared: Compared
) -> None:
    bundle = bundles["linux-cpu"]
    name = next(n for n in encoder.editable() if ".fc1." in n)
    shape = tuple(encoder.parameters_by_name()[name].shape)
    index = np.arange(0, int(np.prod(shape)), 7, dtype=np.int64)
    part = SparsePart(index, np.where(index % 2, 9, -9).astype(np.int16), 2.0**-6)
    made_for = {"source_digest": encoder.source_digest(), "precision": "float32"}
    delta = Delta((TensorDelta(name, shape, part),), {"encoder": made_for, "metrics": {"gate": {"verdict": "pass", "reasons": []}}})
    new_key(tmp_path / "ml.key", tmp_path / "ml.pub")
    packed = pack(delta, bundle, [load_private_key(tmp_path / "ml.key")], tmp_path / "p.eep", encoder=encoder)
    Store.create(tmp_path / "store", bundle.path, [tmp_path / "ml.pub"]).close()
    before = compared(bundle.path, tmp_path / "store")
    assert before["max_abs"] <= bundle.tolerance and before["engine"].endswith("generation 0")
    apply_patch(tmp_path / "store", tmp_path / "p.eep")
    after = compared(bundle.path, tmp_path / "store")
    write_weights(bundle, {**bundle.weights(), **packed.new}, tmp_path / "new")
    pixels = bundle.probes()
    expected = difference(run_graph(bundle.path, pixels), run_graph(tmp_path / "new", pixels))
    assert after["engine"].endswith("generation 1") and expected.max_abs > 10 * bundle.tolerance
    assert abs(after["max_abs"] - expected.max_abs) <= bundle.tolerance


def test_an_engine_has_no_layers(bundles: dict[str, Bundle], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["compare", str(bundles["linux-cpu"].path), "--engine", "--per-layer"]) == 2
    assert "no layers to compare" in capsys.readouterr().err
