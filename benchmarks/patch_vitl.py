"""A ViT-L/14-shaped encoder and a `lorsu` edit of it, for sizes and speed.  SYNTHETIC, and stated as such wherever it is reported.

Weights are random normal float16 (304 M parameters, 608 MB).  The edit is resampled from the REAL edit of the ViT-S/14
(`patch_edits.py`), not drawn from any density model: each first-FFN matrix is tiled with matrices q of randomly chosen real blocks, whose
rows and columns are ranked by their counts and then put to positions that all tiles of a band share.  So rows, columns, local
interactions and steps are measured ones; what is invented is that a rank keeps its density across a larger matrix.
Low-rank factors are the real int8 factors of two heads, side by side.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeedit.bundle import (
    BUNDLE_FILE,
    MODEL_FILE,
    PROBES_FILE,
    WEIGHTS_FILE,
    Bundle,
    MappedTensor,
    Preprocess,
    TensorMap,
    load_bundle,
    save_bundle,
)
from edgeedit.delta import LowRankPart, SparsePart, TensorDelta
from edgeedit.digest import digest_file, fingerprint
from edgeedit.limits import MAX_STEP

Array = np.ndarray[Any, Any]
BLOCKS, WIDTH, HIDDEN, HEAD_ROWS = 24, 1024, 4096, 128  # two heads of 64 rows
EMBEDDING = (WIDTH, 3 * 14 * 14 + 257 + 768)  # patch and position embedding and projection, as one matrix
ALIGNMENT = 4096


def _shapes(blocks: int, width: int, hidden: int, embedding: tuple[int, int]) -> list[tuple[str, tuple[int, int]]]:
    rows: list[tuple[str, tuple[int, int]]] = []
    for block in range(blocks):
        rows += [(f"{block:02}.{part}", (width, width)) for part in ("q", "k", "v", "out")]
        rows += [(f"{block:02}.fc1", (hidden, width)), (f"{block:02}.fc2", (width, hidden))]
    return [*rows, ("embedding", embedding)]


def make_bundle(
    folder: Path, *, blocks: int = BLOCKS, width: int = WIDTH, hidden: int = HIDDEN, embedding: tuple[int, int] = EMBEDDING
) -> Bundle:
    """The Bundle folder, written once; the graph is an empty stand-in that nothing here runs."""
    if (folder / BUNDLE_FILE).exists():
        return load_bundle(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(14)
    rows, end = [], 0
    with (folder / WEIGHTS_FILE).open("wb") as handle:
        for name, shape in _shapes(blocks, width, hidden, embedding):
            data = (rng.standard_normal(shape, dtype=np.float32) * np.float32(0.02)).astype(np.float16).tobytes()
            handle.seek(end)
            handle.write(data)
            digest = hashlib.sha256(data).hexdigest()
            rows.append(MappedTensor(name, name, False, "float16", shape, end, len(data), digest, name != "embedding"))
            end = -(-(end + len(data)) // ALIGNMENT) * ALIGNMENT
    (folder / MODEL_FILE).write_bytes(b"stand-in")
    np.save(folder / PROBES_FILE, np.zeros((16, 3, 1, 1), np.float32))
    bundle = Bundle(
        folder, "vit-l-shaped", "0" * 64, "float16", "linux-cpu-fp16", "pixels", (3, 1, 1), "features", 768,
        Preprocess(1, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)), 1e-3, digest_file(folder / MODEL_FILE), digest_file(folder / PROBES_FILE),
        fingerprint(row.digest() for row in rows), TensorMap(tuple(rows)),
    )  # fmt: skip
    save_bundle(bundle)
    return bundle


def resample(real: Sequence[Array], shape: tuple[int, int], rng: np.random.Generator) -> Array:
    """One matrix q (int16) of `shape`, tiled from `real` matrices with shared ranks per band (see above)."""
    height, width = real[0].shape
    made = np.zeros(shape, dtype=np.int16)
    col_ranks = [rng.permutation(width) for _ in range(-(-shape[1] // width))]
    for top in range(0, shape[0], height):
        row_ranks = rng.permutation(height)
        for band, left in enumerate(range(0, shape[1], width)):
            source = real[int(rng.integers(len(real)))]
            ranked = source[np.argsort((source != 0).sum(1), kind="stable")][:, np.argsort((source != 0).sum(0), kind="stable")]
            tile = ranked[row_ranks][:, col_ranks[band]]
            made[top : top + height, left : left + width] = tile[: shape[0] - top, : shape[1] - left]
    return made


def make_deltas(bundle: Bundle, real: Sequence[TensorDelta], seed: int = 0) -> tuple[TensorDelta, ...]:
    """The `lorsu` edit of `bundle` from the tensors of a real one."""
    rng = np.random.default_rng(seed)
    dense, lows, step = [], [], 0.0
    for delta in real:
        if delta.sparse is not None:
            q = np.zeros(int(np.prod(delta.shape)), np.int16)
            q[delta.sparse.index] = delta.sparse.q
            dense.append(q.reshape(delta.shape))
            step = max(step, delta.sparse.step)
        if delta.low_rank is not None:
            lows.append(delta.low_rank)
    made = []
    for tensor in bundle.tensor_map.tensors:
        part = tensor.name.partition(".")[2]
        if part == "fc1":
            flat = np.clip(resample(dense, (tensor.shape[0], tensor.shape[1]), rng), -MAX_STEP, MAX_STEP).reshape(-1)
            index = np.flatnonzero(flat).astype(np.int64)
            made.append(TensorDelta(tensor.name, tensor.shape, SparsePart(index, flat[index], step)))
        elif part in ("q", "k", "v") and lows:
            made.append(TensorDelta(tensor.name, tensor.shape, low_rank=_low_rank(lows, tensor.shape, rng)))
    return tuple(made)


def _low_rank(lows: Sequence[LowRankPart], shape: tuple[int, ...], rng: np.random.Generator) -> LowRankPart:
    rank = min(part.a.shape[1] for part in lows)
    count = min(HEAD_ROWS, shape[0] // 2)
    chosen = lows[int(rng.integers(len(lows)))]
    a = np.resize(chosen.a[:, :rank], (count, rank))
    pieces = [lows[int(i)].b[:rank] for i in rng.integers(len(lows), size=-(-shape[1] // chosen.b.shape[1]))]
    b = np.concatenate(pieces, axis=1)[:, : shape[1]]
    rows = np.arange(count, dtype=np.int64) + (shape[0] - count) // 2
    return LowRankPart(rows, np.arange(shape[1], dtype=np.int64), np.ascontiguousarray(a), np.ascontiguousarray(b), chosen.scale)
