"""On this machine: Bundles of a small CLIP tower, a signed patch for each, and what a device must come to.  FOLDER is filled."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from edgeedit.catalog import load_profile, load_recipe
from edgeedit.delta import Delta, LowRankPart, SparsePart, TensorDelta
from edgeedit.deploy.export import export_bundle
from edgeedit.encoder.load import random_encoder
from edgeedit.flows.pack import pack
from edgeedit.patch.keys import load_private_key, new_key

SHAPE = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 28, "patch_size": 7}


def make(folder: Path, precision: str) -> dict[str, object]:
    """One Bundle and patch in `folder`; returns the fingerprints and digests that the patch must lead to."""
    encoder = random_encoder(load_recipe("clip"), {**SHAPE, "intermediate_size": 256, "projection_dim": 32}, seed=11)
    bundle = export_bundle(encoder, folder / "bundle", profile=load_profile("linux-cpu"), precision=precision)
    rng = np.random.default_rng(5)
    shapes = {name: tuple(p.shape) for name, p in encoder.parameters_by_name().items()}
    tensors = []
    for name in encoder.editable():
        size = int(np.prod(shapes[name]))
        index = np.sort(rng.choice(size, size // 10, replace=False)).astype(np.int64)
        sparse = SparsePart(index, rng.choice(np.array([-90, -3, 5, 100], np.int16), index.size), 0.0009765625)
        low = None
        if "v_proj" in name:
            a, b = rng.integers(-20, 20, (16, 2)).astype(np.int8), rng.integers(-20, 20, (2, 64)).astype(np.int8)
            low = LowRankPart(np.arange(16, dtype=np.int64), np.arange(64, dtype=np.int64), a, b, 2.0**-12)
        tensors.append(TensorDelta(name, shapes[name], sparse, low))
    made_for = {"source_digest": encoder.source_digest(), "precision": precision}
    gate = {"gate": {"verdict": "undecided", "reasons": ["random tower"]}}
    delta = Delta(tuple(tensors), {"encoder": made_for, "metrics": gate})
    key = load_private_key(folder.parent / "ml.key")
    packed = pack(delta, bundle, [key], folder / "fix.eep", encoder=encoder, accept_undecided="arm64 check")
    return {"parent": packed.parent, "result": packed.result, "after": dict(packed.after), "bytes": packed.size}


def main() -> None:
    """Fill the folder named on the command line."""
    folder = Path(sys.argv[1])
    new_key(folder / "ml.key", folder / "ml.pub")
    expected = {}
    for precision in ("float32", "float16"):
        (folder / precision).mkdir()
        expected[precision] = make(folder / precision, precision)
    (folder / "expected.json").write_text(json.dumps(expected), "utf-8")


if __name__ == "__main__":
    main()
