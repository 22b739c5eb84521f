"""Lays out and writes `weights.bin`, and turns a patched generation into a folder that plain ONNX Runtime can load.

Guarantees: tensors start at multiples of 4096 bytes, little-endian, C order; a file is written beside its place, flushed
and renamed, so a live session on the former file is never disturbed.  Needs ground and numpy only; does not sign,
verify or load a session.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeedit.bundle import DTYPES, MODEL_FILE, WEIGHTS_FILE, Bundle
from edgeedit.errors import MismatchError, RefusedError
from edgeedit.files import copy_file, replacing

Array = np.ndarray[Any, Any]
ALIGNMENT = 4096  # bytes; one page, so that a mapped tensor can be aliased and written without touching its neighbour


def layout(lengths: Sequence[int]) -> tuple[int, ...]:
    """Offsets (bytes, multiples of 4096) for tensors of the given `lengths` (bytes), in the given order."""
    offsets, end = [], 0
    for length in lengths:
        start = -(-end // ALIGNMENT) * ALIGNMENT
        offsets.append(start)
        end = start + length
    return tuple(offsets)


def write_tensors(path: Path, rows: Iterable[tuple[int, Array]]) -> None:
    """Write (offset, array) rows, ascending offsets, gaps zero; durable.  Raises RefusedError when the disk refuses."""
    with replacing(path) as handle:
        for offset, array in rows:
            little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
            handle.write(bytes(offset - handle.tell()))
            handle.write(little.reshape(-1).view(np.uint8).data)


def check_weights(bundle: Bundle, weights: Mapping[str, Array]) -> None:
    """Raise MismatchError unless `weights` holds every deployed tensor of the bundle, and no other, in its dtype and shape."""
    table = bundle.tensor_map.by_name()
    if strange := sorted(set(table) ^ set(weights)):
        raise MismatchError(f"weights do not fit the bundle: expected its {len(table)} tensors, got a difference at {strange[0]}")
    for name, tensor in table.items():
        got = weights[name]
        if got.dtype != DTYPES[tensor.dtype] or got.shape != tensor.shape:
            raise MismatchError(
                f"weights do not fit the bundle: expected {name} {tensor.dtype} {tensor.shape}, got {got.dtype} {got.shape}"
            )


def write_weights(bundle: Bundle, weights: Mapping[str, Array], out: Path) -> Path:
    """Write `weights` (deployed name -> array, all tensors of the bundle) and the graph into folder `out`.

    Returns the path of the graph, from which a plain ONNX Runtime session can be created.  `out` is made if missing and
    must not be the bundle's own folder.  Raises MismatchError when the weights do not fit, RefusedError on a full disk.
    """
    check_weights(bundle, weights)
    if out.resolve() == bundle.path.resolve():
        raise RefusedError(f"cannot write weights to {out}: expected another folder, got the bundle's own", hint="a bundle is immutable")
    out.mkdir(parents=True, exist_ok=True)
    rows = sorted(bundle.tensor_map.tensors, key=lambda tensor: tensor.offset)
    write_tensors(out / WEIGHTS_FILE, ((tensor.offset, weights[tensor.name]) for tensor in rows))
    copy_file(bundle.path / MODEL_FILE, out / MODEL_FILE)
    return out / MODEL_FILE
