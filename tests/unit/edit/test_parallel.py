"""Two processes, as torchrun starts them, train the edit that one trains: same seed, same batches, gradients averaged by accelerate."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgeedit.edit.parallel import Team
from edgeedit.edit.settings import Settings
from edgeedit.edit.shots import Shots
from edgeedit.errors import InputError

Array = np.ndarray[Any, Any]
SCRIPT = """
import sys
from pathlib import Path
import torch
from edgeedit.catalog import load_recipe
from edgeedit.edit.evaluate import features
from edgeedit.edit.methods.local import Local
from edgeedit.edit.parallel import team
from edgeedit.edit.readers import fit_linear
from edgeedit.edit.run import HeldOut, edit
from edgeedit.edit.shots import load_pixels, load_shots
from edgeedit.encoder.load import random_encoder

torch.set_num_threads(1)
root, out = Path(sys.argv[1]), Path(sys.argv[2])
config = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 28, "patch_size": 7}
encoder = random_encoder(load_recipe("dinov2"), config, seed=3)
base, shots, control, target = (load_shots(root / name) for name in ("base", "shots", "control", "target"))
reader = fit_linear(features(encoder, load_pixels(base, encoder.preprocess)), base.labels, base.classes)
method = Local(steps=12, batch=4, patterns=2, rank=2, heads=1, lr=1e-3, amp="off", drift=0.1, rounding_steps=2)
result = edit(encoder, shots, control, reader, method=method, precision="float32", heldout=HeldOut(target), seed=7, limit=1.0)
result.delta.save(out / f"{team().rank}-of-{team().size}.delta")
"""


def _values(path: Path) -> dict[str, Array]:
    from edgeedit.delta import load_delta
    from edgeedit.rounding import low_rank_product

    found: dict[str, Array] = {}
    for tensor in load_delta(path).tensors:
        found[tensor.name] = np.zeros(tensor.shape, np.float64)
        if tensor.sparse is not None:
            found[tensor.name].reshape(-1)[tensor.sparse.index] = tensor.sparse.step * tensor.sparse.q.astype(np.float64)
        if tensor.low_rank is not None:
            found[tensor.name][tensor.low_rank.rows] += tensor.low_rank.scale * low_rank_product(tensor.low_rank).astype(np.float64)
    return found


def test_two_processes_make_the_delta_of_one(sets: dict[str, Shots], tmp_path: Path) -> None:
    """All processes hold the same bytes; against one process only the order of sums differs: within 1 % of the change's norm."""
    root, script = sets["base"].paths[0].parents[2], tmp_path / "script.py"
    script.write_text(SCRIPT, "utf-8")
    found = {**os.environ, "OMP_NUM_THREADS": "1"}
    for start in ([], ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]):
        subprocess.run([sys.executable, *start, str(script), str(root), str(tmp_path)], check=True, env=found, timeout=200)
    assert (tmp_path / "0-of-2.delta").read_bytes() == (tmp_path / "1-of-2.delta").read_bytes()
    alone, together = _values(tmp_path / "0-of-1.delta"), _values(tmp_path / "0-of-2.delta")
    assert set(alone) == set(together)
    for name, value in alone.items():
        gap = np.linalg.norm(value - together[name]) / np.linalg.norm(value)
        assert gap < 0.01, name
    assert all(np.linalg.norm(value) > 0 for value in alone.values())


def test_every_image_is_in_one_part() -> None:
    rows = torch.arange(12)
    parts = [Team(rank, 3).part(rows) for rank in range(3)]
    assert sorted(torch.cat(parts).tolist()) == rows.tolist() and {len(p) for p in parts} == {4}
    Team(0, 4).check(Settings(batch=16, patterns=8))
    for wrong in (Settings(batch=6, patterns=8), Settings(batch=16, patterns=2)):
        with pytest.raises(InputError, match="cannot be shared"):
            Team(0, 4).check(wrong)
