"""Multi-objective search over the edit's locality: target error, control rise and bytes, on a validation split only.

Guarantees: the images that judge a trial are part of the shots and control given, never a held-out set; a study lives in any
SQLAlchemy URL (SQLite by default), so a search can be continued and shared by many workers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgeedit.edit.cost import delta_bytes
from edgeedit.edit.lorsu import Lorsu
from edgeedit.edit.readers import Reader
from edgeedit.edit.run import HeldOut, edit
from edgeedit.edit.shots import Shots, split_by_group
from edgeedit.encoder.encoder import Encoder
from edgeedit.errors import EdgeEditError, InputError, UnreachableError

OBJECTIVES = ("target_error", "control_rise", "bytes")


@dataclass(frozen=True)
class Point:
    """One finished trial: settings, mean target error and control rise on validation images (0..1), bytes of the delta."""

    number: int
    settings: dict[str, Any]
    target_error: float
    control_rise: float
    bytes: int

    def to_json(self) -> dict[str, Any]:
        """Plain JSON object."""
        return asdict(self)


@dataclass(frozen=True)
class Search:
    """What is searched and where it is kept: `trials` more trials in study `name` of the database `storage`."""

    trials: int
    storage: str
    name: str
    seed: int = 0
    steps: tuple[int, int] = (10, 60)


def tune(
    encoder: Encoder,
    shots: Shots,
    control: Shots,
    reader: Reader,
    search: Search,
    *,
    precision: str,
    progress: Callable[[int, int, str], None] | None = None,
) -> tuple[list[Point], list[Point]]:
    """(Pareto front, all finished trials) of the study after `search.trials` more trials; both sorted by target error.

    A third of the groups of `shots` and of labelled `control` is the validation split.  Raises InputError when a set is
    too small to be split, UnreachableError when the database cannot be opened.  Trials that diverge are pruned."""
    learn, target = split_by_group(shots, 2 / 3, search.seed)
    keep, kept = split_by_group(control, 2 / 3, search.seed)
    study = _study(search)

    def objective(trial: Any) -> tuple[float, float, int]:
        import optuna

        method = _suggest(trial, search)
        try:
            result = edit(
                encoder,
                learn,
                keep,
                reader,
                method=method,
                precision=precision,
                heldout=HeldOut(target, kept),
                seed=search.seed,
                limit=1.0,
            )
        except InputError as error:
            raise optuna.TrialPruned(error.message) from error
        found = result.metrics
        rise = 0.0 if found.control is None else found.control.error_after - found.control.error_before
        return found.target.error_after, rise, delta_bytes(result.delta.tensors)

    for number in range(search.trials):
        if progress is not None:
            progress(number, search.trials, f"trial {number + 1} of {search.trials}")
        study.optimize(objective, n_trials=1)
    finished = [t for t in study.trials if t.values is not None and t.state.name == "COMPLETE"]
    if not finished:
        raise InputError("search found nothing: expected at least one finished trial, got none", hint="give more trials or lower rates")
    order = {t.number: _point(t) for t in finished}
    front = [order[t.number] for t in study.best_trials if t.number in order]
    return _sorted(front), _sorted(list(order.values()))


def _sorted(points: list[Point]) -> list[Point]:
    return sorted(points, key=lambda p: (p.target_error, p.bytes))


def _suggest(trial: Any, search: Search) -> Lorsu:
    share = trial.suggest_float("share", 0.005, 0.3, log=True)
    heads = trial.suggest_int("heads", 0, 4)
    rank = trial.suggest_categorical("rank", [4, 8, 16, 32])
    steps = trial.suggest_int("steps", *search.steps, log=True)
    lr = trial.suggest_float("lr", 2e-5, 5e-4, log=True)
    return Lorsu(share=share, heads=heads, rank=rank, steps=steps, lr=lr, lr_low_rank=10 * lr, bits=trial.suggest_int("bits", 2, 6))


def _study(search: Search) -> Any:
    import optuna
    from sqlalchemy.exc import SQLAlchemyError

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # A seeded sampler repeats its draws in every worker, so only a first worker is seeded.
    try:
        storage = optuna.storages.RDBStorage(search.storage)
        old = search.name in [s.study_name for s in optuna.get_all_study_summaries(storage, include_best_trial=False)]
        sampler = optuna.samplers.NSGAIISampler(seed=None if old else search.seed, population_size=16)
        study = optuna.create_study(
            storage=storage, study_name=search.name, directions=["minimize"] * len(OBJECTIVES), sampler=sampler, load_if_exists=True
        )
    except (SQLAlchemyError, ImportError) as error:
        raise UnreachableError(f"cannot open the study: expected a database at {search.storage}, got {error}") from error
    except ValueError as error:
        raise InputError(f"study does not fit: expected {len(OBJECTIVES)} objectives in {search.name}, got {error}") from error
    if len(study.directions) != len(OBJECTIVES):
        raise InputError(f"study does not fit: expected {len(OBJECTIVES)} objectives, got {len(study.directions)}")
    return study


def _point(trial: Any) -> Point:
    return Point(trial.number, dict(trial.params), float(trial.values[0]), float(trial.values[1]), int(trial.values[2]))


def save_plot(front: list[Point], points: list[Point], out: Path) -> None:
    """Validation error against bytes; the colour is the control rise, the front is ringed."""
    try:
        import matplotlib
    except ModuleNotFoundError as error:
        raise EdgeEditError("package is missing: expected matplotlib", hint='pip install "edgeedit[report]"') from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(6.4, 4.4), layout="constrained")
    shown = axis.scatter(
        [p.bytes / 1000 for p in points], [p.target_error for p in points], c=[p.control_rise for p in points], cmap="cividis"
    )
    axis.scatter([p.bytes / 1000 for p in front], [p.target_error for p in front], s=110, facecolors="none", edgecolors="#d55e00")
    figure.colorbar(shown, label="rise of the control error")
    axis.set(xlabel="delta, kB", ylabel="target error on validation images", xscale="log")
    axis.grid(alpha=0.25)
    figure.savefig(out, dpi=130)
    pyplot.close(figure)
