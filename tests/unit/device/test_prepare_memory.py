"""What preparing a patch takes beside its result: at most twice the largest tensor and the patch, however many tensors it changes."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeedit.delta import LowRankPart, SparsePart, TensorDelta
from edgeedit.device.prepare import prepare
from edgeedit.digest import digest_array, fingerprint, tensor_digest
from edgeedit.patch.keys import load_private_key, load_trust, new_key
from edgeedit.patch.read import Patch, read_unverified
from edgeedit.patch.write import PatchContent, build_patch
from edgeedit.rounding import apply_delta

Array = np.ndarray[Any, Any]
SHAPE = (1024, 256)  # 1 MiB
COUNT = 8


def _delta(rng: np.random.Generator, name: str) -> TensorDelta:
    index = np.flatnonzero(rng.random(SHAPE[0] * SHAPE[1]) < 0.1).astype(np.int64)
    sparse = SparsePart(index, rng.choice(np.array([-3, -1, 1, 2], np.int16), index.size), 2.0**-12)
    rows, cols = np.arange(64, 192, dtype=np.int64), np.arange(SHAPE[1], dtype=np.int64)
    a, b = rng.integers(-90, 90, (rows.size, 4)).astype(np.int8), rng.integers(-90, 90, (4, cols.size)).astype(np.int8)
    return TensorDelta(name, SHAPE, sparse, LowRankPart(rows, cols, a, b, 2.0**-20) if name.endswith("0") else None)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Patch, dict[str, Array], list[TensorDelta]]:
    """A verified patch of eight tensors, the weights it is for, and what it says."""
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("keys")
    weights = {f"t{n}": rng.normal(0, 0.05, SHAPE).astype(np.float32) for n in range(COUNT)}
    deltas = [_delta(rng, name) for name in weights]
    new = {delta.name: apply_delta(weights[delta.name], delta) for delta in deltas}
    before, after = ({name: digest_array(array) for name, array in state.items()} for state in (weights, new))
    parent, result = (fingerprint(tensor_digest(name, array) for name, array in state.items()) for state in (weights, new))
    kinds = dict.fromkeys(weights, "float32")
    content = PatchContent(parent, result, "float32", "tiny", deltas, before, after, kinds, np.zeros((1, 2), np.float32), 1e-3, {})
    new_key(folder / "k.key", folder / "k.pub")
    data = build_patch(content, [load_private_key(folder / "k.key")])
    return read_unverified(data).verify(load_trust([folder / "k.pub"])), weights, deltas


def _beside_the_result(make: Callable[[], dict[str, Array]]) -> int:
    tracemalloc.start()
    try:
        made = make()
        return tracemalloc.get_traced_memory()[1] - sum(array.nbytes for array in made.values())
    finally:
        tracemalloc.stop()


def test_prepare_takes_two_tensors_and_the_patch_beside_its_result(
    world: tuple[Patch, dict[str, Array], list[TensorDelta]], tmp_path: Path
) -> None:
    patch, weights, deltas = world
    digests = {name: tensor_digest(name, array) for name, array in weights.items()}
    limit = 2 * SHAPE[0] * SHAPE[1] * 4 + len(patch.data)

    def lists_first() -> dict[str, Array]:
        lists = [patch.tensor_delta(delta.name) for delta in deltas]
        return {delta.name: apply_delta(weights[delta.name], delta) for delta in lists}

    prepare(patch, weights, digests)  # what is loaded at the first call is not the patch's
    assert 0 < _beside_the_result(lambda: dict(prepare(patch, weights, digests).new)) <= limit
    assert _beside_the_result(lists_first) > limit, "the measure sees lists of every tensor"
