"""Byte budgets: what a change costs on the wire, which settings fit a budget, and what each budget buys.

Guarantees: an estimate is an entropy bound with the parts a patch really stores (index, steps, factors); choosing settings
looks at shots' gradients only.  Sizes of a finished patch are measured by packing it, not here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from edgeedit.edit.locality import Locality, select
from edgeedit.edit.settings import Settings
from edgeedit.encoder.encoder import Encoder
from edgeedit.errors import InputError

Array = np.ndarray[Any, Any]
S = TypeVar("S", bound=Settings)
UNITS = {"b": 1, "kb": 1000, "mb": 1000**2, "kib": 1024, "mib": 1024**2}
OVERHEAD = 4096  # bytes: manifest, signatures, section headers
FACTOR_BYTES = 1.0  # per int8 factor element
SHARES = (0.1, 0.075, 0.05, 0.03, 0.02, 0.01, 0.005, 0.002, 0.001, 0.0005, 0.0)


def parse_bytes(text: str) -> int:
    """`2MB`, `500 kB`, `1MiB` or a plain number of bytes; raises InputError."""
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([a-zA-Z]*)\s*", text)
    unit = (found.group(2).lower() or "b") if found else ""
    if found is None or unit not in UNITS or float(found.group(1)) <= 0:
        raise InputError(f"budget is not a size: expected for example 2MB or 500kB, got {text}")
    return int(float(found.group(1)) * UNITS[unit])


def mask_bits(share: float) -> float:
    """Entropy in bits per chosen entry of a mask with that share: H(share) / share."""
    if not 0 < share < 1:
        return 0.0
    return -(share * math.log2(share) + (1 - share) * math.log2(1 - share)) / share


def expected_bytes(encoder: Encoder, locality: Locality, settings: Settings) -> int:
    """Size that an edit with this locality will have, about: steps of `bits` bits (measured: 4.0 at 4), int8 factors."""
    shapes = {name: tuple(p.shape) for name, p in encoder.parameters_by_name().items()}
    total = float(OVERHEAD)
    for name, index in locality.entries.items():
        total += index.size * (mask_bits(index.size / math.prod(shapes[name])) + settings.bits) / 8
    for name, rows in locality.rows.items():
        total += (rows.size + shapes[name][1]) * settings.rank * FACTOR_BYTES
    for name, columns in locality.columns.items():
        total += (shapes[name][0] + columns.size) * settings.rank * FACTOR_BYTES
    return math.ceil(total)


@dataclass(frozen=True)
class Choice:
    """Settings that fit a budget: their expected bytes and the share of the squared gradient norm (all candidate
    weights) that their mask holds, which is the first-order gain per step relative to changing all of them."""

    settings: Settings
    bytes: int
    gain: float


def gain(encoder: Encoder, scores: Mapping[str, Array], locality: Locality) -> float:
    """||m * g||^2 / ||g||^2 over `scores`."""
    squares = {name: score.astype(np.float64) ** 2 for name, score in scores.items()}
    total = sum(float(s.sum()) for s in squares.values())
    held = sum(float(s[locality.declared(name, s.shape)].sum()) for name, s in squares.items())
    return held / total if total else 0.0


def fit_budget(encoder: Encoder, scores: Mapping[str, Array], settings: S, budget: int) -> tuple[S, Choice]:
    """Share, heads, rank and bits with the largest first-order gain within `budget` bytes; ties go to the smaller patch.

    Raises InputError when nothing fits."""
    best: tuple[S, Choice] | None = None
    for share in SHARES:
        for heads in sorted({0, 1, settings.heads}):
            if share == 0 and heads == 0:
                continue
            one = replace(settings, share=share, heads=heads)
            locality = select(encoder, scores, one)
            held = gain(encoder, scores, locality)
            forms = [
                (rank, bits) for rank in sorted({1, 2, 4, settings.rank}, reverse=True) for bits in sorted({settings.bits, 3}, reverse=True)
            ]
            for rank, bits in forms if heads else [(settings.rank, b) for b in sorted({settings.bits, 3}, reverse=True)]:
                tried = replace(one, rank=rank, bits=bits)
                size = expected_bytes(encoder, locality, tried)
                if size <= budget and (best is None or (held, -size) > (best[1].gain, -best[1].bytes)):
                    best = tried, Choice(tried, size, held)
                if size <= budget:
                    break  # the richest form of this mask that fits
    if best is None:
        raise InputError(f"budget is too small: expected more than {budget} bytes for any edit of this encoder", hint="raise --budget")
    return best


def curve(encoder: Encoder, scores: Mapping[str, Array], settings: Settings, budget: int) -> tuple[Choice, ...]:
    """What an eighth, a quarter, half, once, twice and four times the budget would buy."""
    found = []
    for part in (0.125, 0.25, 0.5, 1.0, 2.0, 4.0):
        try:
            found.append(fit_budget(encoder, scores, settings, int(budget * part))[1])
        except InputError:
            continue  # below the smallest edit there is
    return tuple(found)
