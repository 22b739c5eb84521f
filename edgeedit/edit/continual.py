"""A chain of edits: sessions 1..T, each patch on top of the former, and the figures of continual learning.

Guarantees: session t starts from exactly the weights that the former patches produce at the deployed precision; the
matrix has a row for the base and one after each session, and every row judges the held-out images of EVERY session.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgeedit.delta import Delta
from edgeedit.edit.drift import Drift, borderline_agreement, embedding_shift, linear_cka, rows_of
from edgeedit.edit.evaluate import features, reader_labels
from edgeedit.edit.readers import Reader
from edgeedit.edit.shots import Shots, load_pixels
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


def run_chain(
    encoder: Encoder,
    sessions: Sequence[Session],
    control: Shots,
    reader: Reader,
    step: Step,
    *,
    precision: str = "float32",
    progress: Callable[[int, int, str], None] | None = None,
) -> ChainResult:
    """Run `step(current encoder, session, number)` for each session and judge every state; `control` is held out, labelled.

    A step returns a Delta (applied by the one rounding rule) or, for a rival that has none, the edited Encoder."""
    if not sessions:
        raise InputError("chain is empty: expected at least one session, got none")
    pixels = [load_pixels(s.heldout, encoder.preprocess) for s in sessions]
    labels = [reader_labels(s.heldout, reader) for s in sessions]
    kept, kept_labels = load_pixels(control, encoder.preprocess), reader_labels(control, reader)
    values = parameter_values(encoder, precision)
    current = with_values(encoder, values)
    base_blocks, base_rows = rows_of(current, kept)
    base_logits = reader.logits_numpy(base_rows)
    count = len(reader.classes)
    errors = [_errors(current, reader, pixels, labels)]
    held = [balanced_error(kept_labels, base_logits.argmax(1))]
    shares, agreement = [verdict_shares(base_logits.argmax(1), count)], [1.0]
    drifts: list[Drift] = []
    deltas: list[Delta] = []
    borderline = borderline_agreement(base_logits, base_logits)[1]
    for number, session in enumerate(sessions):
        if progress is not None:
            progress(number, len(sessions), f"session {session.name}")
        made = step(current, session, number)
        if isinstance(made, Delta):
            values = {**values, **{t.name: apply_delta(values[t.name], t) for t in made.tensors}}
            deltas.append(made)
        else:
            values = parameter_values(made, precision)
        current = with_values(encoder, values)
        blocks, rows = rows_of(current, kept)
        logits = reader.logits_numpy(rows)
        errors.append(_errors(current, reader, pixels, labels))
        held.append(balanced_error(kept_labels, logits.argmax(1)))
        shares.append(verdict_shares(logits.argmax(1), count))
        stands, _ = borderline_agreement(base_logits, logits)
        agreement.append(float("nan") if stands is None else stands)
        cka = tuple(linear_cka(a, b) for a, b in zip(base_blocks, blocks, strict=True))
        drifts.append(Drift(cka, *embedding_shift(base_rows, rows)))
    names = tuple(s.name for s in sessions)
    arrays = [np.array(v) for v in (errors, held, agreement, shares)]
    return ChainResult(names, arrays[0], arrays[1], arrays[2], borderline, tuple(drifts), arrays[3], tuple(deltas))


def _errors(encoder: Encoder, reader: Reader, pixels: Sequence[Array], labels: Sequence[Array]) -> list[float]:
    # Many small sets: one pass over all of them fills the batches.
    rows = features(encoder, np.concatenate(pixels))
    parts = np.split(reader.logits_numpy(rows).argmax(1), np.cumsum([len(p) for p in pixels])[:-1])
    return [balanced_error(own, verdicts) for own, verdicts in zip(labels, parts, strict=True)]


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
