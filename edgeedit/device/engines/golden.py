"""What an engine that compiles must show before it may answer: the base's own features, and that new weights are in it.

Compiled engines have been seen to lose a bias (TensorRT 11.3), to overflow in float16, and to be taken from a cache that belongs to
other weights; each gives finite, plausible and wrong features.  Guarantees: RefusedError (exit 6) with the figures.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from edgeedit.bundle import Bundle
from edgeedit.device.prepare import probe_inputs
from edgeedit.errors import RefusedError

Array = np.ndarray[Any, Any]
SHARE = 0.05  # largest difference to torch, times the RMS of the features: half-precision noise is far below, a lost bias above


def check_golden(bundle: Bundle, run: Callable[[Array], Array]) -> float:
    """Largest difference to the base's golden features; `run` must hold the base's weights.  0 where the Bundle has none."""
    golden = bundle.golden()
    if golden is None:
        return 0.0
    pixels = probe_inputs(bundle)
    # The Bundle's own tolerance is wider where its precision is coarser than half.
    limit = max(SHARE * max(float(np.sqrt(np.mean(np.square(golden, dtype=np.float64)))), 1e-6), bundle.tolerance)
    worst = 0.0
    for row in range(len(golden)):
        gap = float(np.abs(run(np.array(pixels[row : row + 1])) - golden[row : row + 1]).max())
        # `not <=` also refuses a NaN.
        if not gap <= limit:
            raise RefusedError(
                f"engine does not compute the encoder: expected features within {limit:.3g} of torch, got {gap:.3g} on probe {row}",
                hint="delete the engine cache and build again; if it fails again this version or precision cannot be used",
            )
        worst = max(worst, gap)
    return worst


def check_moved(bundle: Bundle, former: Callable[[Array], Array], new: Callable[[Array], Array]) -> None:
    """Raise RefusedError when an engine made from other weights answers every probe bit for bit as the former one did."""
    pixels = probe_inputs(bundle)
    for row in range(len(pixels)):
        probe = np.array(pixels[row : row + 1])
        if former(probe).tobytes() != new(probe).tobytes():
            return
    raise RefusedError(
        "new session answers every probe as the former: a compiled engine of other weights runs", hint="delete the provider's engine cache"
    )
