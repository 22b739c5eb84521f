"""`Delta`: an integer-coded change of named parameters, and its file form (`.delta`: npz without pickle + JSON).

Guarantees: arrays are checked when a part is built (sorted unique indices, integer ranges, shapes), so code that
receives a Delta need not check again; a file is read without pickle.  Does not know what the numbers mean for a model.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgeedit.errors import InputError, IntegrityError
from edgeedit.files import replace_file
from edgeedit.limits import MAX_DIMS, MAX_RANK, MAX_SQUASH_STEP, MAX_TENSOR_ELEMENTS, MAX_TENSORS

Array = np.ndarray[Any, Any]


def _ascending(values: Array, bound: int, what: str) -> None:
    if values.ndim != 1 or values.dtype != np.int64:
        raise IntegrityError(f"{what} has the wrong form: expected 1-D int64, got {values.ndim}-D {values.dtype}")
    if values.size and (values[0] < 0 or values[-1] >= bound or (np.diff(values) <= 0).any()):
        raise IntegrityError(f"{what} is not ascending inside the tensor: expected 0..{bound - 1}")


@dataclass(frozen=True)
class SparsePart:
    """Flat C-order positions `index` (int64, ascending, unique), integers `q` (int16, same length), step `s`."""

    index: Array
    q: Array
    step: float


@dataclass(frozen=True)
class LowRankPart:
    """t * (A.B) added to the sub-matrix [rows, cols]: `a` int8 (len(rows), r), `b` int8 (r, len(cols)), `scale` t."""

    rows: Array
    cols: Array
    a: Array
    b: Array
    scale: float


@dataclass(frozen=True)
class ExactPart:
    """Corrections of stored bit patterns: what `difference` (int64, not 0) adds, modulo the width of the dtype, to the bits that the
    rounding rule gives at flat positions `index` (int64, ascending, unique)."""

    index: Array
    difference: Array


@dataclass(frozen=True)
class TensorDelta:
    """The change of one tensor of `shape`; low rank needs a matrix.  Raises IntegrityError when a part does not fit."""

    name: str
    shape: tuple[int, ...]
    sparse: SparsePart | None = None
    low_rank: LowRankPart | None = None
    exact: ExactPart | None = None

    def __post_init__(self) -> None:
        size = int(np.prod(self.shape, dtype=object)) if self.shape else 1
        if not (0 < len(self.shape) <= MAX_DIMS and 0 < size <= MAX_TENSOR_ELEMENTS):
            raise IntegrityError(f"{self.name} has an impossible shape: got {self.shape}")
        if self.sparse is None and self.low_rank is None and self.exact is None:
            raise IntegrityError(f"{self.name} has no change: expected a sparse or a low-rank part, or corrections")
        if self.sparse is not None:
            self._check_sparse(self.sparse, size)
        if self.low_rank is not None:
            self._check_low_rank(self.low_rank)
        if self.exact is not None:
            self._check_exact(self.exact, size)

    def _check_sparse(self, part: SparsePart, size: int) -> None:
        _ascending(part.index, size, f"sparse index of {self.name}")
        if part.q.dtype != np.int16 or part.q.shape != part.index.shape or part.q.size == 0:
            raise IntegrityError(f"sparse steps of {self.name} do not match the index: expected {part.index.size} int16")
        if int(np.abs(part.q).max()) > MAX_SQUASH_STEP or (part.q == 0).any():
            raise IntegrityError(f"sparse steps of {self.name} out of range: expected 1 <= |q| <= {MAX_SQUASH_STEP}")

    def _check_exact(self, part: ExactPart, size: int) -> None:
        _ascending(part.index, size, f"index of corrections of {self.name}")
        if part.difference.dtype != np.int64 or part.difference.shape != part.index.shape or part.index.size == 0:
            raise IntegrityError(f"corrections of {self.name} do not match their index: expected {part.index.size} int64, 1 at least")
        if (part.difference == 0).any() or int(np.abs(part.difference).max()) > 1 << 31:
            raise IntegrityError(f"corrections of {self.name} out of range: expected 1 <= |difference| <= 2^31")

    def _check_low_rank(self, part: LowRankPart) -> None:
        if len(self.shape) != 2:
            raise IntegrityError(f"low rank of {self.name} needs a matrix: got shape {self.shape}")
        _ascending(part.rows, self.shape[0], f"low-rank rows of {self.name}")
        _ascending(part.cols, self.shape[1], f"low-rank columns of {self.name}")
        rank = part.a.shape[1] if part.a.ndim == 2 else 0
        if not 0 < rank <= MAX_RANK or part.a.dtype != np.int8 or part.b.dtype != np.int8:
            raise IntegrityError(f"low rank of {self.name} has wrong factors: expected int8 and rank 1..{MAX_RANK}")
        if part.a.shape != (part.rows.size, rank) or part.b.shape != (rank, part.cols.size) or not part.rows.size or not part.cols.size:
            raise IntegrityError(f"low rank of {self.name} has factors of the wrong shape: got {part.a.shape} and {part.b.shape}")


@dataclass(frozen=True)
class Delta:
    """Changes of named parameters, plus `info` (JSON: locality, metrics, gate, provenance).  Corrections of stored bits belong to a
    patch's deployed tensors and are refused here."""

    tensors: tuple[TensorDelta, ...]
    info: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = [t.name for t in self.tensors]
        if len(set(names)) != len(names) or not 0 < len(names) <= MAX_TENSORS:
            raise IntegrityError(f"delta has duplicate names or a wrong number of tensors: got {len(names)}")
        if any(t.exact is not None for t in self.tensors):
            raise IntegrityError("delta has corrections: expected none, they belong to the deployed tensors of a patch")

    def save(self, path: Path) -> None:
        """Write the `.delta` file durably; the same Delta always gives the same bytes."""
        arrays: dict[str, Array] = {}
        rows: list[dict[str, Any]] = []
        for number, tensor in enumerate(self.tensors):
            row: dict[str, Any] = {"name": tensor.name, "shape": list(tensor.shape)}
            if tensor.sparse is not None:
                row["step"] = float(tensor.sparse.step).hex()
                arrays[f"{number}.index"], arrays[f"{number}.q"] = tensor.sparse.index, tensor.sparse.q
            if tensor.low_rank is not None:
                row["scale"] = float(tensor.low_rank.scale).hex()
                for key in ("rows", "cols", "a", "b"):
                    arrays[f"{number}.{key}"] = getattr(tensor.low_rank, key)
            rows.append(row)
        text = json.dumps({"schema_version": 1, "tensors": rows, "info": self.info}, sort_keys=True, ensure_ascii=False)
        replace_file(path, _pack_npz(arrays, text))


def _pack_npz(arrays: Mapping[str, Array], text: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in [("delta.json", text.encode()), *((f"{k}.npy", _npy(v)) for k, v in arrays.items())]:
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), content, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def _npy(array: Array) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def load_delta(path: Path) -> Delta:
    """Read a `.delta` file; raises InputError when it cannot be read, IntegrityError when its content is wrong."""
    try:
        with zipfile.ZipFile(path) as archive:
            head = json.loads(archive.read("delta.json"))
        with np.load(path, allow_pickle=False) as stored:
            arrays = {key: stored[key] for key in stored.files if key != "delta.json"}
        if head["schema_version"] != 1:
            raise InputError(f"cannot read {path}: expected schema_version 1, got {head['schema_version']}", hint="upgrade edgeedit")
        tensors = tuple(_read_tensor(row, number, arrays) for number, row in enumerate(head["tensors"]))
        return Delta(tensors, head["info"])
    except (OSError, KeyError, ValueError, TypeError, zipfile.BadZipFile) as error:
        raise InputError(f"cannot read {path}: expected a .delta file, got {error!r}", hint="make it with `edgeedit edit`") from error


def _read_tensor(row: Mapping[str, Any], number: int, arrays: Mapping[str, Array]) -> TensorDelta:
    sparse, low_rank = None, None
    if "step" in row:
        sparse = SparsePart(arrays[f"{number}.index"], arrays[f"{number}.q"], float.fromhex(row["step"]))
    if "scale" in row:
        rows, cols, a, b = (arrays[f"{number}.{key}"] for key in ("rows", "cols", "a", "b"))
        low_rank = LowRankPart(rows, cols, a, b, float.fromhex(row["scale"]))
    return TensorDelta(row["name"], tuple(int(n) for n in row["shape"]), sparse, low_rank)
