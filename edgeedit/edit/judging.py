"""Judging a change that no method here made: an imported Delta meets the same held-out images and the same gate as an edit.

Guarantees: the weights that are judged are those a device will compute, at the deployed precision.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from edgeedit.delta import TensorDelta
from edgeedit.edit.evaluate import features, judge, reader_labels
from edgeedit.edit.gate import decide
from edgeedit.edit.readers import Reader
from edgeedit.edit.shots import Shots, load_pixels
from edgeedit.encoder.encoder import Encoder
from edgeedit.encoder.values import parameter_values, with_values
from edgeedit.errors import InputError
from edgeedit.metrics import EditMetrics, SetResult
from edgeedit.rounding import apply_delta, changed_elements

Array = np.ndarray[Any, Any]
# float32 parameters by name, and a change of them -> the weights (float32) that a device computes with after it.
Deployed = Callable[[Mapping[str, Array], Sequence[TensorDelta]], dict[str, Array]]


def judge_tensors(
    encoder: Encoder,
    tensors: Sequence[TensorDelta],
    reader: Reader,
    target: Shots,
    control: Shots | None,
    *,
    precision: str,
    limit: float,
    deployed: Deployed | None = None,
) -> EditMetrics:
    """Metrics of `tensors` on labelled held-out `target` and `control` (unlabelled: agreement with the base).

    `limit` is the allowed rise of an error (0..1); `deployed` as in `edit`.  Raises InputError when the target has no labels."""
    if (target.labels < 0).any():
        raise InputError("held-out target has no labels: expected a label for every image")
    values = parameter_values(encoder, precision if deployed is None else "float32")
    if deployed is None:
        new = {**values, **{t.name: apply_delta(values[t.name], t) for t in tensors}}
    else:
        values, new = deployed(values, ()), deployed(values, tensors)
    base, edited = with_values(encoder, values), with_values(encoder, new)
    results: dict[str, SetResult] = {}
    for name, shots in (("target", target), ("control", control)):
        if shots is None:
            continue
        pixels = load_pixels(shots, encoder.preprocess)
        logits = reader.logits_numpy(features(base, pixels)), reader.logits_numpy(features(edited, pixels))
        labels = reader_labels(shots, reader)
        logits = reader.verdict_logits(logits[0], labels), reader.verdict_logits(logits[1], labels)
        labels = labels if shots.classes else logits[0].argmax(1)
        results[name] = judge(name, shots, labels, reader, *logits)
    changed = sum(int((values[t.name] != new[t.name]).sum()) for t in tensors)
    outside = sum(int(((values[t.name] != new[t.name]) & ~changed_elements(t)).sum()) for t in tensors)
    total = sum(math.prod(a.shape) for a in values.values())
    gate = decide(results["target"], results.get("control"), None, limit)
    return EditMetrics(results["target"], results.get("control"), None, gate, 0.0, changed, changed / total, outside, total)
