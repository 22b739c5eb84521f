"""How much of the shots' gradient a locality holds, and how much the same budget would hold at random.

Importance is the squared score (see `locality`): the share that a mask holds is the first-order gain of one step relative to changing
every candidate.  Guarantees: the random baseline is exact (its mean and spread are known in closed form), nothing is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from edgeedit.edit.locality import Locality
from edgeedit.edit.scores import part_name
from edgeedit.encoder.encoder import Encoder

Array = np.ndarray[Any, Any]
Z99 = 2.5758293035489004  # normal quantile of a two-sided 99 % interval


def importance(encoder: Encoder, scores: Mapping[str, Array], locality: Locality) -> dict[str, Any]:
    """JSON object: `covered` share of the squared scores inside the locality (0..1), `random_mean` and `random_high` (upper 99 % bound)
    of the share when the same number of entries per matrix and of heads per block is drawn without replacement, and per block the
    share of the whole importance that lies in its first FFN and in its heads, with the part of it that was chosen.

    For k of N values with mean m and variance S^2 (divisor N - 1), the sum has mean k m and variance k (1 - k/N) S^2 (sampling
    without replacement, Cochran 1977, theorem 2.2).  Matrices and blocks are drawn independently."""
    rows, total, mean, variance = [], 0.0, 0.0, 0.0
    for block in range(encoder.blocks):
        ffn_all = ffn_taken = 0.0
        for part in ("fc1", "fc2"):
            name = encoder.fc1_name(block) if part == "fc1" else _second(encoder, block, scores)
            if name is None or name not in scores:
                continue
            squares = scores[name].astype(np.float64).reshape(-1) ** 2
            chosen = locality.entries.get(name, np.empty(0, np.int64))
            ffn_all, ffn_taken = ffn_all + float(squares.sum()), ffn_taken + float(squares[chosen].sum())
            expected = _drawn(squares, chosen.size)
            mean, variance = mean + expected[0], variance + expected[1]
        heads, taken = locality.head_scores[block].astype(np.float64), locality.chosen[block]
        expected = _drawn(heads, int(taken.sum()))
        mean, variance = mean + expected[0], variance + expected[1]
        total += ffn_all + float(heads.sum())
        rows.append(
            {
                "block": block,
                "ffn": ffn_all,
                "ffn_chosen": ffn_taken,
                "heads": float(heads.sum()),
                "heads_chosen": float(heads[taken].sum()),
            }
        )
    scale = 1.0 / total if total else 0.0
    shares = [{key: value if key == "block" else value * scale for key, value in row.items()} for row in rows]
    return {
        "covered": sum(row["ffn_chosen"] + row["heads_chosen"] for row in shares),
        "random_mean": mean * scale,
        "random_high": min(1.0, (mean + Z99 * math.sqrt(variance)) * scale),
        "blocks": shares,
    }


def _second(encoder: Encoder, block: int, scores: Mapping[str, Array]) -> str | None:
    """The second FFN matrix where it was scored (selection by hidden neuron)."""
    if len(scores) <= 4 * encoder.blocks:
        return None
    return part_name(encoder, "fc2", block)


def _drawn(values: Array, count: int) -> tuple[float, float]:
    """Mean and variance of the sum of `count` of `values` drawn without replacement."""
    if values.size < 2 or not count:
        return float(values.sum()) * bool(count), 0.0
    return count * float(values.mean()), count * (1 - count / values.size) * float(values.var(ddof=1))
