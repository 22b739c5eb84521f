"""A float16 patch carries a tolerance measured on its own weights, so that a gentle edit can be shown, and no other is taken for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edgeedit.bundle import Bundle
from edgeedit.catalog import load_profile, load_recipe
from edgeedit.delta import Delta, SparsePart, TensorDelta
from edgeedit.deploy.compare import run_encoder, run_graph
from edgeedit.deploy.export import export_bundle
from edgeedit.deploy.materialize import write_weights
from edgeedit.deploy.probes import edited_encoder, expectations
from edgeedit.encoder.encoder import Encoder
from edgeedit.encoder.load import random_encoder
from edgeedit.errors import InputError
from edgeedit.flows.pack import pack
from edgeedit.patch.keys import public_half
from edgeedit.patch.read import load_patch

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 28, "patch_size": 7}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Encoder, Bundle]:
    encoder = random_encoder(load_recipe("clip"), {**SMALL, "intermediate_size": 256, "projection_dim": 32}, seed=11)
    out = tmp_path_factory.mktemp("half") / "bundle"
    return encoder, export_bundle(encoder, out, profile=load_profile("linux-cpu-fp16"), precision="float16")


def edit(encoder: Encoder, exponent: int) -> Delta:
    """A tenth of every first FFN matrix by whole steps of a power of two."""
    rng, changes = np.random.default_rng(3), []
    for name in (n for n in encoder.editable() if ".fc1." in n):
        shape = tuple(encoder.parameters_by_name()[name].shape)
        index = np.sort(rng.choice(int(np.prod(shape)), int(np.prod(shape)) // 10, replace=False)).astype(np.int64)
        changes.append(TensorDelta(name, shape, SparsePart(index, rng.choice(np.array([-9, 4, 9], np.int16), index.size), 2.0**-exponent)))
    made_for = {"source_digest": encoder.source_digest(), "precision": "float16"}
    return Delta(tuple(changes), {"encoder": made_for, "metrics": {"gate": {"verdict": "pass", "reasons": []}}})


def shift(encoder: Encoder, bundle: Bundle, delta: Delta) -> float:
    """The largest change of a feature, in the Bundle's tolerances."""
    return float(np.abs(expectations(encoder, delta, bundle) - expectations(encoder, None, bundle)).max()) / bundle.tolerance


def test_a_gentle_edit_is_packed_and_only_its_own_weights_pass(made: tuple[Encoder, Bundle], tmp_path: Path) -> None:
    encoder, bundle = made
    gentle = [d for d in (edit(encoder, n) for n in range(6, 16)) if 5 < shift(encoder, bundle, d) < 10]
    assert gentle, "no step makes an edit between five and ten tolerances of the base"
    packed = pack(gentle[0], bundle, [KEY], tmp_path / "p.eep", encoder=encoder)
    patch = load_patch(tmp_path / "p.eep", [public_half(KEY)])
    expected, tolerance = patch.expected(), patch.manifest.probe.tolerance
    write_weights(bundle, {**bundle.weights(), **packed.new}, tmp_path / "new")
    pixels = bundle.probes()
    assert np.abs(run_graph(tmp_path / "new", pixels) - expected).max() <= tolerance / 2, "a sound device keeps half of it"
    exact = run_encoder(edited_encoder(encoder, gentle[0], "float16"), pixels)
    assert np.abs(expected - exact).max() <= tolerance / 4
    assert np.abs(run_graph(bundle.path, pixels) - expected).max() > 2 * tolerance, "the parent must not pass by any arithmetic"


def test_an_edit_below_three_tolerances_is_still_refused(made: tuple[Encoder, Bundle], tmp_path: Path) -> None:
    encoder, bundle = made
    faint = next(d for d in (edit(encoder, n) for n in range(6, 24)) if shift(encoder, bundle, d) < 1)
    with pytest.raises(InputError, match="no probe sees the edit"):
        pack(faint, bundle, [KEY], tmp_path / "p.eep", encoder=encoder)
    assert not (tmp_path / "p.eep").exists()


def test_the_tolerance_is_that_of_the_changed_weights(made: tuple[Encoder, Bundle], tmp_path: Path, monkeypatch: Any) -> None:
    """Where their own arithmetic is coarser than the base's, a sound device must not be turned away."""
    from edgeedit.deploy import proving

    encoder, bundle = made
    half, calls = proving.half_features, []

    def coarse(twin: Encoder, values: Any, precision: str, pixels: Any) -> Any:
        calls.append(values)
        found = half(twin, values, precision, pixels)
        return found + np.float32(3 * bundle.tolerance / 4) if len(calls) == 1 else found

    monkeypatch.setattr(proving, "half_features", coarse)
    pack(edit(encoder, 6), bundle, [KEY], tmp_path / "p.eep", encoder=encoder)
    assert load_patch(tmp_path / "p.eep", [public_half(KEY)]).manifest.probe.tolerance > 2 * bundle.tolerance
