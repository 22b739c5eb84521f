"""What two verified patches have in common: `diff` (how they differ) and `conflicts` (where they would act on each other).

Guarantees: exact counts over every element that a patch declares it may change; `diff(b, a)` is `diff(a, b)` with the sides
swapped.  Compares what the patches say, not what they do to a base: neither needs weights.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgeedit.delta import TensorDelta
from edgeedit.errors import MismatchError
from edgeedit.patch.read import Patch
from edgeedit.rounding import changed_elements, low_rank_product

Array = np.ndarray[Any, Any]


def effect(delta: TensorDelta) -> Array:
    """What a change adds before rounding: float64 `s*q + t*(A.B)` in `delta.shape`, exact, 0 elsewhere.  Corrections of bits are no
    part of it: what they add depends on the base."""
    total = np.zeros(delta.shape, dtype=np.float64)
    if delta.sparse is not None:
        total.reshape(-1)[delta.sparse.index] = delta.sparse.step * delta.sparse.q.astype(np.float64)
    if delta.low_rank is not None:
        grid = np.ix_(delta.low_rank.rows, delta.low_rank.cols)
        total[grid] += delta.low_rank.scale * low_rank_product(delta.low_rank).astype(np.float64)
    return total


def diff(first: Patch, second: Patch) -> dict[str, Any]:
    """JSON-able: which of parent, result, recipe, precision and probes agree, and one row per tensor of either patch.

    A row counts elements declared `only_in_a`, `only_in_b`, in both with the `same` added value, in both with a `different`
    one, and holds the largest difference of the added values.  `identical` says that the two do the same to the same parent.
    Raises IntegrityError when a section does not decode."""
    pairs = _pairs(first, second)
    rows = [_diff_row(name, a, b) for name, (a, b) in pairs.items()]
    agree = {key: getattr(first.manifest, key) == getattr(second.manifest, key) for key in ("parent", "result", "recipe", "precision")}
    totals = {key: sum(row[key] for row in rows) for key in ("only_in_a", "only_in_b", "same", "different")}
    moved = totals["only_in_a"] + totals["only_in_b"] + totals["different"]
    return {
        "a": first.digest,
        "b": second.digest,
        "bytes_a": len(first.data),
        "bytes_b": len(second.data),
        **{f"same_{key}": value for key, value in agree.items()},
        "same_probes": _same_probes(first, second),
        **totals,
        "identical": all(agree.values()) and moved == 0,
        "tensors": rows,
    }


def conflicts(first: Patch, second: Patch) -> dict[str, Any]:
    """JSON-able: where two patches of one base change the same elements, one row per tensor that both touch.

    `relation` is `siblings` (same parent: only one of them can be applied, the other must be made again on its result),
    `chain` (one was made on the result of the other, so overlap is what its maker saw) or `unrelated`.  `both` counts
    elements that both may change, `opposing` those of them that are pushed in opposite directions.
    Raises MismatchError (exit 4) for another recipe, precision or shape, IntegrityError when a section does not decode."""
    for key in ("recipe", "precision"):
        mine, other = getattr(first.manifest, key), getattr(second.manifest, key)
        if mine != other:
            raise MismatchError(f"patches are for different models: expected one {key}, got {mine} and {other}")
    pairs = {name: pair for name, pair in _pairs(first, second).items() if pair[0] is not None and pair[1] is not None}
    rows = [_conflict_row(name, a, b) for name, (a, b) in pairs.items() if a is not None and b is not None]
    return {
        "a": first.digest,
        "b": second.digest,
        "relation": _relation(first, second),
        "tensors_a": len(first.manifest.tensors),
        "tensors_b": len(second.manifest.tensors),
        "tensors_in_both": len(rows),
        "both": sum(row["both"] for row in rows),
        "opposing": sum(row["opposing"] for row in rows),
        "low_rank_rows": sum(row["low_rank_rows"] for row in rows),
        "overlap": any(row["both"] for row in rows),
        "tensors": rows,
    }


def _pairs(first: Patch, second: Patch) -> dict[str, tuple[TensorDelta | None, TensorDelta | None]]:
    names = [{row.name for row in patch.manifest.tensors} for patch in (first, second)]
    pairs = {}
    for name in sorted(names[0] | names[1]):
        a = first.tensor_delta(name) if name in names[0] else None
        b = second.tensor_delta(name) if name in names[1] else None
        if a is not None and b is not None and a.shape != b.shape:
            raise MismatchError(f"patches do not fit one base: expected one shape of {name}, got {a.shape} and {b.shape}")
        pairs[name] = (a, b)
    return pairs


def _diff_row(name: str, a: TensorDelta | None, b: TensorDelta | None) -> dict[str, Any]:
    shape = a.shape if a is not None else b.shape if b is not None else ()
    masks = [np.zeros(shape, dtype=bool) if delta is None else changed_elements(delta) for delta in (a, b)]
    sums = [np.zeros(shape) if delta is None else effect(delta) for delta in (a, b)]
    both = masks[0] & masks[1]
    differ = both & ((sums[0] != sums[1]) | (_corrections(a, shape) != _corrections(b, shape)))
    row: dict[str, Any] = {
        "name": name,
        "in": "both" if a is not None and b is not None else "a" if a is not None else "b",
        "only_in_a": int((masks[0] & ~masks[1]).sum()),
        "only_in_b": int((masks[1] & ~masks[0]).sum()),
        "same": int((both & ~differ).sum()),
        "different": int(differ.sum()),
        "largest_difference": float(np.abs(sums[0] - sums[1]).max()),
    }
    for side, delta in (("a", a), ("b", b)):
        row[f"step_{side}"] = delta.sparse.step if delta is not None and delta.sparse is not None else None
        row[f"corrections_{side}"] = int(delta.exact.index.size) if delta is not None and delta.exact is not None else 0
        row[f"rank_{side}"] = int(delta.low_rank.a.shape[1]) if delta is not None and delta.low_rank is not None else 0
    return row


def _corrections(delta: TensorDelta | None, shape: tuple[int, ...]) -> Array:
    """Difference of bits by element, int64; 0 where nothing is corrected."""
    found = np.zeros(shape, dtype=np.int64)
    if delta is not None and delta.exact is not None:
        found.reshape(-1)[delta.exact.index] = delta.exact.difference
    return found


def _conflict_row(name: str, a: TensorDelta, b: TensorDelta) -> dict[str, Any]:
    both = changed_elements(a) & changed_elements(b)
    opposing = both & (np.sign(effect(a)) * np.sign(effect(b)) < 0)
    rows = cols = 0
    if a.low_rank is not None and b.low_rank is not None:
        rows = int(np.intersect1d(a.low_rank.rows, b.low_rank.rows).size)
        cols = int(np.intersect1d(a.low_rank.cols, b.low_rank.cols).size)
    counts = int(changed_elements(a).sum()), int(changed_elements(b).sum())
    return {
        "name": name,
        "elements_a": counts[0],
        "elements_b": counts[1],
        "both": int(both.sum()),
        "share_of_smaller": int(both.sum()) / min(counts),
        "opposing": int(opposing.sum()),
        "low_rank_rows": rows,
        "low_rank_cols": cols,
    }


def _relation(first: Patch, second: Patch) -> str:
    a, b = first.manifest, second.manifest
    if a.parent == b.parent:
        return "siblings"
    return "chain" if a.result == b.parent or b.result == a.parent else "unrelated"


def _same_probes(first: Patch, second: Patch) -> bool:
    a, b = first.expected(), second.expected()
    return a.shape == b.shape and bool(np.array_equal(a, b)) and first.manifest.probe.tolerance == second.manifest.probe.tolerance
