"""Writes `v0-small.eep` with a fixed, PUBLIC key and fixed content; run by hand when the format gets a new version.

    python tests/golden/generate.py

Golden files are append-only: a frozen file never changes, a new version adds one.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edgeedit.delta import LowRankPart, SparsePart, TensorDelta
from edgeedit.patch.write import PatchContent, build_patch

TEST_KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))


def content() -> PatchContent:
    """One sparse tensor, one low-rank one, two probes."""
    sparse = SparsePart(np.array([0, 5, 17, 29], np.int64), np.array([1, -127, 3, 64], np.int16), 2.0**-10)
    factors = np.array([[1, -2], [127, 0], [5, 5]], np.int8), np.array([[3, 0, -1, 9], [1, 1, 1, -127]], np.int8)
    low = LowRankPart(np.array([0, 2, 5], np.int64), np.arange(4, dtype=np.int64), *factors, 2.0**-12)
    deltas = [TensorDelta("blocks.0.fc1.weight::T", (3, 10), sparse), TensorDelta("blocks.0.q.weight", (6, 4), None, low)]
    before, after = ({d.name: character * 64 for d in deltas} for character in "ab")
    expected = np.array([[0.5, -1.25], [2.0, 0.0]], np.float32)
    kinds = dict.fromkeys(before, "float16")
    return PatchContent("1" * 64, "2" * 64, "float16", "dinov2", deltas, before, after, kinds, expected, 1e-3, {"seed": 0})


if __name__ == "__main__":
    (Path(__file__).parent / "v0-small.eep").write_bytes(build_patch(content(), [TEST_KEY]))
