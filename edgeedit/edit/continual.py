"""A chain of edits: sessions 1..T, each patch on top of the former, and the figures of continual learning.

Guarantees: session t starts from exactly the weights that the former patches produce at the deployed precision; the
matrix has a row for the base and one after each session, and every row judges the held-out images of EVERY session.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from edgeedit.delta import Delta
from edgeedit.edit.drift import Drift, borderline_agreement, embedding_shift, linear_cka, rows_of
from edgeedit.edit.evaluate import features, reader_labels
from edgeedit.edit.readers import Reader
from edgeedit.edit.shots import Shots, load_pixels, subset
from edgeedit.edit.statistics import balanced_error, verdict_shares
from edgeedit.encoder.encoder import Encoder
from edgeedit.encoder.values import parameter_values, with_values
from edgeedit.errors import InputError
from edgeedit.rounding import apply_delta

Array = np.ndarray[Any, Any]
Step = Callable[[Encoder, "Session", int], "Delta | Encoder"]


@dataclass(frozen=True)
class Session:
    """One mistake of the chain: labelled shots and the held-out images that judge it."""

    name: str
    shots: Shots
    heldout: Shots


@dataclass(frozen=True)
class State:
    """One state of a chain as judged: balanced `errors` on every session's held-out images, `control` error, `shares` of the
    control verdicts, `agreement` with the base's borderline verdicts (None: no such image), `drift` (None for the base)."""

    errors: tuple[float, ...]
    control: float
    shares: tuple[float, ...]
    agreement: float | None
    drift: Drift | None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON object."""
        return asdict(self)


def state_from_json(value: Mapping[str, Any]) -> State:
    """Inverse of `State.to_json`."""
    moved = value["drift"]
    own = None if moved is None else Drift(tuple(moved["cka"]), moved["shift"], moved["cosine"])
    return State(tuple(value["errors"]), value["control"], tuple(value["shares"]), value["agreement"], own)


@dataclass(frozen=True)
class Progress:
    """How far a chain is: the current weights, its Deltas and its judged states, the base first.  Enough to go on from."""

    values: Mapping[str, Array]
    deltas: tuple[Delta, ...]
    states: tuple[State, ...]


class Store(Protocol):
    """Where a chain is kept between its edits."""

    def load(self) -> Progress | None:
        """How far it is, None for a new one."""

    def keep(self, chain: Progress) -> None:
        """Keep it, whole or not at all."""


@dataclass(frozen=True)
class ChainResult:
    """`matrix` (T + 1, T): balanced error on session i's held-out images after t edits (row 0 is the base); `control`
    (T + 1,) errors, `agreement` (T + 1,) share of the base's borderline control verdicts that stand (NaN: none),
    `borderline` their number, `drifts` one per edit, `shares` (T + 1, classes) of the control verdicts, `deltas` in order."""

    sessions: tuple[str, ...]
    matrix: Array
    control: Array
    agreement: Array
    borderline: int
    drifts: tuple[Drift, ...]
    shares: Array
    deltas: tuple[Delta, ...]


class _Judge:
    """Judges states of a chain on the same images; pictures that several sessions hold are computed once."""

    def __init__(self, base: Encoder, sessions: Sequence[Session], control: Shots, reader: Reader) -> None:
        first: dict[Path, int] = {}
        sources: list[tuple[Shots, int]] = []
        for session in sessions:
            for number, path in enumerate(session.heldout.paths):
                if path not in first:
                    first[path] = len(first)
                    sources.append((session.heldout, number))
        self.reader, self.places = reader, [[first[path] for path in s.heldout.paths] for s in sessions]
        self.labels = [reader_labels(s.heldout, reader) for s in sessions]
        self.pixels = np.concatenate([load_pixels(subset(shots, [number]), base.preprocess) for shots, number in sources])
        self.kept, self.kept_labels = load_pixels(control, base.preprocess), reader_labels(control, reader)
        self.blocks, self.rows = rows_of(base, self.kept)
        self.logits = reader.logits_numpy(self.rows)

    def state(self, encoder: Encoder, *, base: bool) -> State:
        """The figures of one state; the base's own have no drift."""
        verdicts = self.reader.logits_numpy(features(encoder, self.pixels)).argmax(1)
        errors = [balanced_error(own, verdicts[rows]) for own, rows in zip(self.labels, self.places, strict=True)]
        blocks, rows = (self.blocks, self.rows) if base else rows_of(encoder, self.kept)
        logits = self.reader.logits_numpy(rows)
        cka = tuple(linear_cka(a, b) for a, b in zip(self.blocks, blocks, strict=True))
        moved = None if base else Drift(cka, *embedding_shift(self.rows, rows))
        shares = verdict_shares(logits.argmax(1), len(self.reader.classes))
        stands = borderline_agreement(self.logits, logits)[0]
        control = float(balanced_error(self.kept_labels, logits.argmax(1)))
        return State(tuple(float(e) for e in errors), control, tuple(float(v) for v in shares), stands, moved)


def run_chain(
    encoder: Encoder,
    sessions: Sequence[Session],
    control: Shots,
    reader: Reader,
    step: Step,
    *,
    precision: str = "float32",
    progress: Callable[[int, int, str], None] | None = None,
    store: Store | None = None,
) -> ChainResult:
    """Run `step(current encoder, session, number)` for each session and judge every state; `control` is held out, labelled.

    A step returns a Delta (applied by the one rounding rule) or, for a rival that has none, the edited Encoder.  `store`
    keeps the chain after every edit and says where to go on: the result is that of an unbroken run.  States are judged
    where `encoder` is; a step gets its encoder on the CPU."""
    if not sessions:
        raise InputError("chain is empty: expected at least one session, got none")
    base, device = parameter_values(encoder, precision), encoder.device
    judge = _Judge(with_values(encoder, base).to(device), sessions, control, reader)
    now = (store.load() if store is not None else None) or Progress(
        base, (), (judge.state(with_values(encoder, base).to(device), base=True),)
    )
    if len(now.states) > len(sessions) + 1 or len(now.states[0].errors) != len(sessions) or set(now.values) != set(base):
        raise InputError(f"chain cannot go on: expected a state of {len(sessions)} sessions, got one of another chain")
    for number, session in list(enumerate(sessions))[len(now.states) - 1 :]:
        if progress is not None:
            progress(number, len(sessions), f"session {session.name}")
        made = step(with_values(encoder, now.values), session, number)
        if isinstance(made, Delta):
            values = {**now.values, **{t.name: apply_delta(now.values[t.name], t) for t in made.tensors}}
        else:
            values = parameter_values(made, precision)
        deltas = (*now.deltas, made) if isinstance(made, Delta) else now.deltas
        now = Progress(values, deltas, (*now.states, judge.state(with_values(encoder, values).to(device), base=False)))
        if store is not None:
            store.keep(now)
    return _result(sessions, now, borderline_agreement(judge.logits, judge.logits)[1])


def _result(sessions: Sequence[Session], chain: Progress, borderline: int) -> ChainResult:
    states = chain.states
    agreement = [1.0, *(float("nan") if s.agreement is None else s.agreement for s in states[1:])]
    arrays = [np.array(v) for v in ([s.errors for s in states], [s.control for s in states], agreement, [s.shares for s in states])]
    drifts = tuple(s.drift for s in states if s.drift is not None)
    return ChainResult(tuple(s.name for s in sessions), arrays[0], arrays[1], arrays[2], borderline, drifts, arrays[3], chain.deltas)


def summary(matrix: Array, control: Array) -> Mapping[str, float]:
    """Figures of a chain from its errors, all as shares: `matrix` (T + 1, T), row 0 the base; `control` (T + 1,).

    acc: mean accuracy on all sessions at the end.  bwt: mean over sessions but the last of (accuracy at the end - accuracy
    right after its own edit) (Lopez-Paz and Ranzato 2017).  forgetting: mean over sessions but the last of (best accuracy
    from its own edit to the end's predecessor - accuracy at the end) (Chaudhry et al. 2018).  target_improvement: mean of
    (base error - error right after its own edit).  control_change: control error at the end - at the base."""
    sessions = matrix.shape[1]
    if matrix.shape != (sessions + 1, sessions) or control.shape != (sessions + 1,):
        raise InputError(f"matrix does not fit: expected (T + 1, T) and (T + 1,), got {matrix.shape} and {control.shape}")
    accuracy = 1.0 - matrix
    own = np.array([accuracy[t + 1, t] for t in range(sessions)])
    last = accuracy[-1]
    best = np.array([accuracy[t + 1 : sessions, t].max() if t + 1 < sessions else last[t] for t in range(sessions)])
    return {
        "acc": float(last.mean()),
        "bwt": float((last - own)[:-1].mean()) if sessions > 1 else 0.0,
        "forgetting": float((best - last)[:-1].mean()) if sessions > 1 else 0.0,
        "target_improvement": float((own - accuracy[0]).mean()),
        "control_change": float(control[-1] - control[0]),
    }


def backward_transfer(matrix: Array, seed: int = 0, draws: int = 2000) -> tuple[float, float, float]:
    """(BWT, low, high): the mean over sessions but the last of (accuracy at the end - accuracy right after its own edit), with
    a 95 % percentile bootstrap over sessions.  Unlike forgetting by the best state, which is a maximum over noisy figures and
    so never below zero on average, it is unbiased where sessions are small.  (0, 0, 0) for one session."""
    sessions = matrix.shape[1]
    if sessions < 2:
        return 0.0, 0.0, 0.0
    moved = np.array([matrix[t + 1, t] - matrix[-1, t] for t in range(sessions - 1)])
    means = moved[np.random.default_rng(seed).integers(0, moved.size, (draws, moved.size))].mean(axis=1)
    return float(moved.mean()), float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))
