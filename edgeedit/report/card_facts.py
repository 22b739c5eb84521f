"""What a model card and a bill of materials are written from: the record of an edit, and of its patch and Bundle where they are known.

Guarantees: plain facts, each as the result states it; a missing one is None or empty, never made up.  A patch's record, whose numbers
are decimal strings, reads like a Delta's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from edgeedit.bundle import Bundle
from edgeedit.errors import InputError
from edgeedit.metrics import EditMetrics, SetResult, metrics_from_json

_INTERVALS = ("wrong_before", "wrong_after", "change")
_NUMBERS = ("error_before", "error_after", "auc_before", "auc_after", "mcnemar_p")
_HINT = "was it made by `edgeedit edit`?"
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Signed:
    """A verified patch: SHA-256 and bytes of its file, fingerprints of parent and result, words of the model, key ids of the signers that
    are trusted, number of probes and their tolerance (absolute, in units of the features)."""

    digest: str
    size: int
    parent: str
    result: str
    precision: str
    recipe: str
    signers: tuple[str, ...]
    probes: int
    tolerance: float


@dataclass(frozen=True)
class CardFacts:
    """`info` is the record of the edit; `metrics` None when nothing was judged; `tensors` the changed weight matrices by name; `device`
    what the demo measured on a device; `when` an ISO 8601 date of the result that a person stated."""

    info: Mapping[str, Any]
    metrics: EditMetrics | None
    tensors: tuple[str, ...]
    signed: Signed | None = None
    bundle: Bundle | None = None
    device: Mapping[str, Any] | None = None
    when: str | None = None

    def part(self, key: str) -> Mapping[str, Any]:
        """One object of the record, empty when it is absent; raises InputError when it is something else."""
        value = self.info.get(key)
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            raise InputError(f"cannot read the record: expected {key} to be an object, got {type(value).__name__}", hint=_HINT)
        return value

    def sets(self) -> Iterator[SetResult]:
        """The held-out sets that were judged."""
        if self.metrics is not None:
            for row in (self.metrics.target, self.metrics.control, self.metrics.unrelated):
                if row is not None:
                    yield row

    @property
    def recipe(self) -> str:
        """The encoder's recipe; empty where it is not known."""
        known = self.signed.recipe if self.signed else self.bundle.recipe if self.bundle else ""
        return str(self.part("encoder").get("recipe") or known)

    @property
    def precision(self) -> str:
        """The deployed precision; empty where it is not known."""
        known = self.signed.precision if self.signed else self.bundle.precision if self.bundle else ""
        return str(known or self.part("encoder").get("precision") or "")

    @property
    def task(self) -> str:
        """What the reader made of the features, as a word of model hubs; empty where the reader is not known."""
        if self.info.get("vlm"):
            return "visual-question-answering"
        return "image-classification" if self.part("reader") else ""

    @property
    def notes(self) -> tuple[str, ...]:
        """Licence notes of the data, as stated."""
        notes = self.info.get("licence_notes") or ()
        return (notes,) if isinstance(notes, str) else tuple(str(note) for note in notes)


def read_numbers(info: Mapping[str, Any]) -> EditMetrics | None:
    """The metrics of a Delta's or a patch's record, None when nothing was judged; raises InputError when they are malformed."""
    value = info.get("metrics")
    if not value:
        return None
    try:
        sets = {key: _set(value[key]) for key in ("target", "control", "unrelated")}
        gate = {**value["gate"], "limit": float(value["gate"]["limit"])}
        shares = {"changed_share": float(value["changed_share"]), "edit_seconds": _number(value["edit_seconds"])}
        return metrics_from_json({**value, **sets, **shares, "gate": gate})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"cannot read the record: expected the metrics of an edit, got {error!r}", hint=_HINT) from error


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _set(row: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if not row:
        return None
    intervals = {key: {end: float(row[key][end]) for end in ("low", "high")} for key in _INTERVALS}
    shares = {key: [(name, float(share)) for name, share in row.get(key, ())] for key in ("shares_before", "shares_after")}
    return {**row, **{key: _number(row[key]) for key in _NUMBERS}, **intervals, **shares}


def checked(render: Callable[[CardFacts], str], facts: CardFacts) -> str:
    """What `render` makes of the facts; raises InputError when a digest or a figure of the record is of the wrong kind."""
    named = [("reader", "digest"), ("shots", "digest"), ("former", "digest"), ("control", "digest")]
    named += [("encoder", "source_digest"), ("encoder", "patched_from")]
    for part, key in named:
        value = facts.part(part).get(key)
        if value is not None and not (isinstance(value, str) and _SHA256.fullmatch(value)):
            raise InputError(f"cannot read the record: expected a SHA-256 as {key} of {part}, got {str(value)[:80]!r}", hint=_HINT)
    try:
        return render(facts)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"cannot read the record: expected figures as `edgeedit edit` writes them, got {error!r}", hint=_HINT) from error
