"""The same seed gives the same file, in another process with another hash seed; what `save` leaves behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgeedit.delta import load_delta
from edgeedit.edit.evaluate import features
from edgeedit.edit.methods.default import Default
from edgeedit.edit.methods.no_edit import NoEdit
from edgeedit.edit.readers import fit_linear
from edgeedit.edit.run import EditResult, HeldOut, edit
from edgeedit.edit.saving import rejected_path
from edgeedit.edit.shots import Shots, load_pixels
from edgeedit.encoder.encoder import Encoder
from edgeedit.errors import InputError
from edgeedit.metrics import GateVerdict

SCRIPT = """
import sys
from pathlib import Path
from edgeedit.catalog import load_recipe
from edgeedit.edit.evaluate import features
from edgeedit.edit.lorsu import Lorsu
from edgeedit.edit.readers import fit_linear
from edgeedit.edit.run import HeldOut, edit
from edgeedit.edit.shots import load_pixels, load_shots
from edgeedit.encoder.load import random_encoder

root, out, seed = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
config = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 28, "patch_size": 7}
encoder = random_encoder(load_recipe("dinov2"), config, seed=3)
base, shots, control, target = (load_shots(root / name) for name in ("base", "shots", "control", "target"))
reader = fit_linear(features(encoder, load_pixels(base, encoder.preprocess)), base.labels, base.classes)
method = Lorsu(steps=6, batch=5, rank=2, heads=1, rounding_steps=2, lr=1e-3)
result = edit(encoder, shots, control, reader, method=method, precision="float32", heldout=HeldOut(target), seed=seed, limit=1.0)
result.delta.save(out)
"""


def test_two_processes_write_the_same_bytes(sets: dict[str, Shots], tmp_path: Path) -> None:
    root = sets["base"].paths[0].parents[2]
    written = []
    for number, (hash_seed, seed) in enumerate((("1", "7"), ("2", "7"), ("1", "8"))):
        out = tmp_path / f"{number}.delta"
        found = {**os.environ, "PYTHONHASHSEED": hash_seed, "OMP_NUM_THREADS": "1"}
        subprocess.run([sys.executable, "-c", SCRIPT, str(root), str(out), seed], check=True, env=found, timeout=240)
        written.append(out.read_bytes())
    assert written[0] == written[1]
    first, other = (load_delta(tmp_path / f"{n}.delta") for n in (0, 2))
    same = [np.array_equal(a.sparse.q, b.sparse.q) for a, b in zip(first.tensors, other.tensors, strict=True) if a.sparse and b.sparse]
    assert same and not all(same), "another seed must make another delta"


def test_save_writes_what_the_gate_allows(encoder: Encoder, sets: dict[str, Shots], tmp_path: Path) -> None:
    base, out = sets["base"], tmp_path / "fix.delta"
    reader = fit_linear(features(encoder, load_pixels(base, encoder.preprocess)), base.labels, base.classes)

    def run(method: Default | NoEdit) -> EditResult:
        held = HeldOut(sets["target"])
        return edit(encoder, sets["shots"], sets["control"], reader, method=method, precision="float32", heldout=held, seed=0, limit=1.0)

    result = run(Default(steps=3, batch=4, rounding_steps=1))
    assert result.metrics.edit_seconds is not None and result.metrics.edit_seconds > 0
    passed, failed = (replace(result, metrics=replace(result.metrics, gate=GateVerdict(v, (), 1.0))) for v in ("pass", "fail"))
    passed.save(out)
    stored = load_delta(out)
    assert stored.info["metrics"]["edit_seconds"] is None
    assert [t.name for t in stored.tensors] == [t.name for t in result.delta.tensors]
    for one, other in zip(stored.tensors, result.delta.tensors, strict=True):
        assert (one.sparse is None, one.low_rank is None) == (other.sparse is None, other.low_rank is None)
        if one.sparse is not None and other.sparse is not None:
            assert np.array_equal(one.sparse.q, other.sparse.q)
        if one.low_rank is not None and other.low_rank is not None:
            assert np.array_equal(one.low_rank.a, other.low_rank.a) and np.array_equal(one.low_rank.b, other.low_rank.b)
    failed.save(out)
    assert not out.exists() and json.loads(rejected_path(out).read_text("utf-8"))["method"]["name"] == "edgeedit"
    with pytest.raises(InputError, match="has no delta"):
        run(NoEdit()).save(out)
