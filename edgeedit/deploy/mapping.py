"""Finds which deployed tensor holds which parameter, by content.

torch's exporter renames, transposes, folds and shares tensors.  A graph is therefore traced from *stand-in* values, in
which every editable and every ambiguous parameter (equal to another one, constant, or tiny) is random and distinct;
`match` then compares bytes under {same, transposed}.  Guarantees: each editable parameter is matched by exactly one
tensor, or InputError names it.  Does not read or write files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgeedit.errors import InputError
from edgeedit.rounding import narrow

Array = np.ndarray[Any, Any]
TINY = 8  # elements; below this, equal content by chance is likely
REDRAWS = 64


@dataclass(frozen=True)
class Match:
    """The tensor `initialiser` of the traced graph holds `parameter` ("" for none); it is deployed as `name`.  `primary` is
    False for a further copy of a parameter that no patch can touch."""

    initialiser: str
    name: str
    parameter: str
    transposed: bool
    primary: bool


def content_key(array: Array) -> bytes:
    """Digest of dtype and C-order bytes, whatever the shape."""
    return hashlib.blake2b(array.dtype.name.encode() + array.tobytes(), digest_size=16).digest()


def _keys(value: Array) -> tuple[bytes, ...]:
    return (content_key(value), content_key(value.T)) if value.ndim == 2 else (content_key(value),)


def ambiguous(values: Mapping[str, Array]) -> frozenset[str]:
    """Names of the parameters whose content does not identify them: equal under {same, transposed}, constant, or tiny."""
    owners: dict[bytes, set[str]] = {}
    for name, value in values.items():
        for key in _keys(value):
            owners.setdefault(key, set()).add(name)
    shared = {name for names in owners.values() if len(names) > 1 for name in names}
    return frozenset(shared | {name for name, value in values.items() if value.size < TINY or value.min() == value.max()})


def stand_ins(values: Mapping[str, Array], chosen: Collection[str], seed: int) -> dict[str, Array]:
    """`values` with each `chosen` parameter replaced by random numbers that equal no other parameter."""
    generator = np.random.default_rng(seed)
    seen = {key for name, value in values.items() if name not in chosen for key in _keys(value)}
    result = dict(values)
    for name in sorted(chosen):
        for _ in range(REDRAWS):
            # Far from 0 and 1: an optimiser drops x*1 and x+0.
            drawn = narrow(np.asarray(generator.normal(0.0, 3.0, values[name].shape), np.float32), values[name].dtype)
            if seen.isdisjoint(_keys(drawn)):
                break
        else:
            raise InputError(f"cannot tell {name} from other parameters: expected distinct stand-in values")
        seen.update(_keys(drawn))
        result[name] = drawn
    return result


def match(initialisers: Mapping[str, Array], values: Mapping[str, Array], editable: Collection[str]) -> dict[str, Match]:
    """Initialiser name -> Match, for each float tensor of the graph traced from `values`.

    Raises InputError when an editable parameter is held by no tensor, or by two: a patch would reach only one of them.
    """
    same = {content_key(value): (name, False) for name, value in reversed(list(values.items()))}
    flipped = {content_key(value.T): (name, True) for name, value in reversed(list(values.items())) if value.ndim == 2}
    result: dict[str, Match] = {}
    taken: set[str] = set()
    for initialiser, array in initialisers.items():
        key = content_key(array)
        parameter, transposed = same.get(key) or flipped.get(key) or ("", False)
        if parameter in taken and parameter in editable:
            raise InputError(f"cannot map {parameter}: expected one deployed tensor, got two", hint="the graph holds it twice")
        primary = bool(parameter) and parameter not in taken
        taken.add(parameter)
        name = (f"{parameter}::T" if transposed else parameter) if primary else initialiser
        result[initialiser] = Match(initialiser, name, parameter, transposed, primary)
    _check_editable(result, initialisers, values, editable)
    return result


def _check_editable(
    matches: Mapping[str, Match], initialisers: Mapping[str, Array], values: Mapping[str, Array], editable: Collection[str]
) -> None:
    held = {found.parameter: found for found in matches.values() if found.primary}
    for name in sorted(editable):
        if name not in held:
            raise InputError(f"cannot map {name}: expected one deployed tensor, got none", hint="the exporter folded or dropped it")
        shape = initialisers[held[name].initialiser].shape
        expected = values[name].shape[::-1] if held[name].transposed else values[name].shape
        if shape != expected:
            raise InputError(f"cannot map {name}: expected a deployed tensor of shape {expected}, got {shape}")
