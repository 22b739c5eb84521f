"""The proof of a generation: the Bundle's probes through a model, compared with what the patch says they must give."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgeedit.patch.read import Patch

Array = np.ndarray[Any, Any]
PROBE_BATCH = 1  # frames per probe run, so that a waiting frame waits for one of them at most


@dataclass(frozen=True)
class Expected:
    """Probe outputs float32 (n, width) and the absolute difference allowed."""

    outputs: Array
    tolerance: float

    @staticmethod
    def of(patch: Patch) -> Expected:
        """What the patch says."""
        return Expected(patch.expected(), patch.manifest.probe.tolerance)


def probe(run: Callable[[Array], Array], inputs: Array, expected: Expected, going: Callable[[], str], *, count: int = 0) -> str:
    """Run the first `count` probes (0: all) through `run`; the reason of a failure, "" when all passed.

    `going` is asked after each and may say why to stop."""
    for number in range(0, count or len(inputs), PROBE_BATCH):
        got = run(np.array(inputs[number : number + PROBE_BATCH]))
        wanted = expected.outputs[number : number + PROBE_BATCH]
        if got.shape != wanted.shape:
            return f"probe {number} gave another shape: expected {wanted.shape}, got {got.shape}"
        worst = float(np.abs(got - wanted).max())
        # Not `worst > tolerance`: a NaN fails too.
        if not worst <= expected.tolerance:
            return f"probe {number} is off by {worst:.3g}: the tolerance is {expected.tolerance:.3g}"
        if stop := going():
            return stop
    return ""
