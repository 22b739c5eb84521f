"""The history of a chain of updates from files: judged anew on every session's held-out images, stored and shown again, or as the
updates' own records have it.

Guarantees: updates that do not follow each other are refused; a stored chain goes on only from the same files; nothing of a patch is read
before a trusted key verified it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgeedit.bundle import Bundle, load_bundle
from edgeedit.delta import Delta, load_delta
from edgeedit.deploy.lower import lower
from edgeedit.deploy.probes import deployed_encoder, deployed_values
from edgeedit.digest import digest_array, digest_bytes, digest_file
from edgeedit.edit.continual import Progress, Session, State, run_chain, state_from_json
from edgeedit.edit.history import Limits, Step, measured, recorded
from edgeedit.edit.readers import Reader, load_reader
from edgeedit.edit.shots import Shots, load_shots
from edgeedit.encoder.encoder import Encoder
from edgeedit.encoder.values import parameter_values, with_values
from edgeedit.errors import InputError, IntegrityError, MismatchError
from edgeedit.files import read_json, write_json
from edgeedit.flows.server import encoder_of
from edgeedit.flows.wrap import is_patch
from edgeedit.limits import MAX_BUNDLE_JSON_BYTES
from edgeedit.patch.algebra_chain import check_fits, load_chain
from edgeedit.patch.keys import load_trust
from edgeedit.patch.read import Patch
from edgeedit.report.card_facts import read_numbers
from edgeedit.rounding import apply_delta
from edgeedit.strict_json import encode

Array = np.ndarray[Any, Any]
Show = Callable[[int, int, str], None]
_MEASURE = "give --bundle, --reader, --control and one --heldout for each update"


@dataclass(frozen=True)
class HistoryRequest:
    """What `edgeedit history UPDATES` was asked: .delta files, .eep files or one stored chain (.json), in order; with `bundle`,
    `reader_path`, `control` and one `heldout` for each update the chain is judged, and kept in `out`."""

    updates: tuple[Path, ...]
    bundle: Path | None = None
    reader_path: Path | None = None
    control: Path | None = None
    heldout: tuple[Path, ...] = ()
    trust: tuple[Path, ...] = ()
    out: Path | None = None
    limits: Limits = field(default_factory=Limits)


def history(request: HistoryRequest, progress: Show) -> dict[str, Any]:
    """One JSON object, see `edgeedit.edit.history`; raises InputError (2), MismatchError (4) or IntegrityError (5)."""
    wanted = (request.bundle, request.reader_path, request.control, *request.heldout)
    if len(request.updates) == 1 and request.updates[0].suffix == ".json":
        if any(wanted):
            raise InputError(f"{request.updates[0]} is judged already: expected updates with --bundle, got a stored chain")
        return stored(request.updates[0], request.limits)
    updates = _updates(request)
    if not any(wanted):
        return recorded([_step(path, info) for path, info in zip(request.updates, _records(updates), strict=True)], request.limits)
    return _judged(request, updates, progress)


def stored(path: Path, limits: Limits) -> dict[str, Any]:
    """A chain that was judged before: `matrix`, `control` and `shift` of a JSON file; sessions without an edit yet are left out."""
    value = read_json(path, MAX_BUNDLE_JSON_BYTES)
    try:
        shift = [float(v) for v in value["shift"]]
        done = len(shift)
        matrix = np.array([[float(v) for v in row[:done]] for row in value["matrix"]]).reshape(-1, done)
        names = [str(name) for name in value.get("sessions") or range(1, done + 1)][:done]
        return measured(names, matrix, [float(v) for v in value["control"]], shift, value.get("cka"), limits)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise InputError(f"cannot read {path}: expected a chain with matrix, control and shift, got {error!r}", hint=_MEASURE) from error


def _updates(request: HistoryRequest) -> tuple[Delta, ...] | tuple[Patch, ...]:
    kinds = {is_patch(path) for path in request.updates}
    if len(kinds) > 1:
        raise InputError("updates are mixed: expected .delta files or patches, got both")
    if kinds == {False}:
        return tuple(load_delta(path) for path in request.updates)
    if not request.trust:
        raise InputError("patches cannot be verified: expected --trust KEY, got none", hint="give the signer's public key")
    return load_chain(request.updates, load_trust(list(request.trust)))


def _records(updates: Sequence[Delta] | Sequence[Patch]) -> list[Mapping[str, Any]]:
    return [u.info if isinstance(u, Delta) else u.manifest.provenance for u in updates]


def _step(path: Path, info: Mapping[str, Any]) -> Step:
    metrics = read_numbers(info)
    if metrics is None:
        raise InputError(f"{path} was never judged: expected the metrics of an edit, got none", hint=_MEASURE)
    own = metrics.target
    control = metrics.control.error_after if metrics.control else None
    return Step(path.stem, own.error_before, own.error_after, own.error_before - own.error_after, control=control)


def _judged(request: HistoryRequest, updates: tuple[Delta, ...] | tuple[Patch, ...], progress: Show) -> dict[str, Any]:
    if request.bundle is None or request.reader_path is None or request.control is None or len(request.heldout) != len(updates):
        raise InputError(
            f"cannot judge the chain: expected {len(updates)} times --heldout with the rest, got {len(request.heldout)}", hint=_MEASURE
        )
    bundle, reader, control = load_bundle(request.bundle), load_reader(request.reader_path), load_shots(request.control)
    held = [load_shots(path) for path in request.heldout]
    for path, shots in zip((request.control, *request.heldout), (control, *held), strict=True):
        if (shots.labels < 0).any():
            raise InputError(f"{path} has no labels: expected a label for every image")
    replay = _Replay(encoder_of(bundle), bundle, updates)
    names = [path.stem for path in request.updates]
    sessions = [Session(name, shots, shots) for name, shots in zip(names, held, strict=True)]
    key = _key(bundle, reader, [control, *held], request.updates)
    store = _Kept(request.out, key, names, replay)
    run_chain(replay.base, sessions, control, reader, replay.step, precision=replay.precision, progress=progress, store=store)
    return measured(names, *store.figures(), limits=request.limits)


def _key(bundle: Bundle, reader: Reader, sets: Sequence[Shots], updates: Sequence[Path]) -> str:
    """What a stored chain was judged on; another key is another chain."""
    files = [digest_file(path) for path in updates]
    return digest_bytes(
        encode({"bundle": bundle.fingerprint, "reader": reader.digest(), "sets": [s.digest for s in sets], "updates": files})
    )


class _Replay:
    """The states of a chain again, from its updates."""

    def __init__(self, encoder: Encoder, bundle: Bundle, updates: tuple[Delta, ...] | tuple[Patch, ...]) -> None:
        self.bundle, self.updates = bundle, updates
        self.patches = tuple(u for u in updates if isinstance(u, Patch))
        self.source = encoder.source_digest()
        if self.patches:
            check_fits(bundle, self.patches)
            # What the deployed tensors stand for, in float32: exact for every precision.
            encoder = deployed_encoder(encoder, bundle, bundle.weights())
        self.base, self.precision = encoder, "float32" if self.patches else bundle.precision

    def values(self, count: int) -> dict[str, Array]:
        """The parameters after `count` updates; raises IntegrityError when a patch does not give what it promises."""
        if not self.patches:
            values = parameter_values(self.base, self.precision)
            for update in self.updates[:count]:
                if isinstance(update, Delta):
                    values |= {t.name: _applied(values, t) for t in update.tensors}
            return values
        weights = dict(self.bundle.weights())
        for patch in self.patches[:count]:
            for row in patch.manifest.tensors:
                weights[row.name] = patch.apply(row.name, weights[row.name])
                if digest_array(weights[row.name]) != row.after:
                    raise IntegrityError(f"tensor {row.name} came out wrong: expected digest {row.after[:12]}")
        return deployed_values(parameter_values(self.base, "float32"), self.bundle, weights)

    def fingerprint(self, count: int) -> str:
        """What the deployed tensors are named after `count` Deltas, as `materialize` names them."""
        weights, found = dict(self.bundle.weights()), self.bundle.fingerprint
        name = {"source_digest": self.bundle.source_digest, "precision": self.bundle.precision}
        for update in self.updates[:count]:
            lowered = lower(Delta(update.tensors, {"encoder": name}), self.bundle, weights)  # type: ignore[union-attr]
            weights, found = {**weights, **lowered.new}, lowered.result
        return found

    def step(self, current: Encoder, session: Session, number: int) -> Delta | Encoder:
        """The next update of the chain; raises MismatchError when it was made on other weights."""
        update = self.updates[number]
        if not isinstance(update, Delta):
            return with_values(self.base, self.values(number + 1))
        made_on = (update.info.get("encoder") or {}).get("source_digest")
        expected = [current.source_digest(), *([self.source] if number == 0 else [])]
        if made_on not in expected and made_on != self.fingerprint(number):
            got = str(made_on)[:12] if made_on else "no word about it"
            raise MismatchError(
                f"updates do not follow each other: expected {session.name} on {expected[0][:12]}, got {got}",
                hint="give them in the order in which they were made, each on the result of the one before",
            )
        return update


def _applied(values: Mapping[str, Array], change: Any) -> Array:
    if change.name not in values:
        raise MismatchError(f"delta does not fit the encoder: expected a weight named {change.name}, got none")
    return apply_delta(values[change.name], change)


class _Kept:
    """The judged states in a JSON file (None: in memory only), so that an interrupted run goes on."""

    def __init__(self, path: Path | None, key: str, names: Sequence[str], replay: _Replay) -> None:
        self.path, self.key, self.names, self.replay = path, key, names, replay
        self.states: tuple[State, ...] = ()

    def load(self) -> Progress | None:
        """How far it is; raises InputError when the file holds another chain."""
        if self.path is None or not self.path.exists():
            return None
        value = read_json(self.path, MAX_BUNDLE_JSON_BYTES)
        if not isinstance(value, dict) or value.get("key") != self.key:
            raise InputError(f"{self.path} is of other files: expected the states of this chain", hint="give another -o")
        self.states = tuple(state_from_json(row) for row in value["states"])
        done = len(self.states) - 1
        deltas = tuple(u for u in self.replay.updates[:done] if isinstance(u, Delta))
        return Progress(self.replay.values(done), deltas, self.states)

    def keep(self, chain: Progress) -> None:
        """Write the states whole or not at all."""
        self.states = chain.states
        if self.path is None:
            return
        matrix, control, shift, cka = self.figures()
        rows = {"matrix": matrix.tolist(), "control": control, "shift": shift, "cka": cka, "sessions": list(self.names)}
        states = [state.to_json() for state in self.states]
        write_json(self.path, {"schema_version": 1, "key": self.key, "states": states, **rows})

    def figures(self) -> tuple[Array, list[float], list[float], list[list[float]]]:
        """Matrix, control errors, shifts and CKA per block of the states so far."""
        moved = [state.drift for state in self.states if state.drift is not None]
        matrix = np.array([state.errors for state in self.states])
        return matrix, [s.control for s in self.states], [d.shift for d in moved], [list(d.cka) for d in moved]
