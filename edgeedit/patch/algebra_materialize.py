"""`materialize`: base + patches -> a new weights file, for runtimes that are not ours.

Guarantees: tensor by tensor, so the peak of extra memory stays below twice the largest tensor plus the patches; every tensor of the
base is hashed on the way through, every changed one against its patch, and the whole against the chain's result; the new file
is written beside its place, flushed and renamed, so what was there before stays until the new one is whole.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import numpy as np

from edgeedit.bundle import DTYPES, MODEL_FILE, PROBES_FILE, WEIGHTS_FILE, Bundle, MappedTensor, TensorMap, save_bundle
from edgeedit.digest import digest_file, fingerprint
from edgeedit.errors import InputError, IntegrityError, RefusedError
from edgeedit.files import copy_file, fsync_dir, replacing
from edgeedit.patch.algebra_chain import check_fits, follow
from edgeedit.patch.read import Patch

Array = np.ndarray[Any, Any]
_BLOCK = 1 << 20  # bytes copied at a time


def materialize_weights(bundle: Bundle, patches: Sequence[Patch], out: Path) -> tuple[MappedTensor, ...]:
    """Write `weights.bin` of base + `patches` to file `out`, same layout as the Bundle's; returns the new table.

    Raises MismatchError (4) when chain and Bundle do not belong together, IntegrityError (5) when a digest differs, InputError
    (2) when `out` is the Bundle's own file, RefusedError (6) when the disk refuses; `out` then holds what it held before."""
    check_fits(bundle, patches)
    source = bundle.path / WEIGHTS_FILE
    if out.is_dir() or (out.exists() and out.samefile(source)):
        raise InputError(f"cannot write weights to {out}: expected a new file, got the bundle's own or a folder")
    with replacing(out) as writer, source.open("rb") as reader:
        rows = tuple(_write(reader, writer, tensor, patches) for tensor in _in_order(bundle))
        writer.truncate(source.stat().st_size)
        if fingerprint(row.digest() for row in rows) != patches[-1].manifest.result:
            raise IntegrityError(f"result came out wrong: expected fingerprint {patches[-1].manifest.result[:12]}")
    return rows


def materialize_bundle(bundle: Bundle, patches: Sequence[Patch], out: Path) -> Bundle:
    """Write a whole Bundle folder `out` that holds base + `patches` (graph, probes, new weights, new fingerprint).

    Its source digest is the result's fingerprint, so that an edit of the unpatched encoder is refused for it; the next edit starts from
    it.  Raises what `materialize_weights` raises, InputError when `out` exists; there is then no folder."""
    if out.exists():
        raise InputError(f"cannot write bundle {out}: expected a new folder, got an existing one", hint="choose another name")
    for file, digest in ((MODEL_FILE, bundle.graph_digest), (PROBES_FILE, bundle.probes_digest)):
        if digest_file(bundle.path / file) != digest:
            raise IntegrityError(f"bundle was changed: digest of {file} differs", hint="copy the bundle again")
    temp = out.with_name(f".{out.name}.{os.getpid()}.new")
    try:
        temp.mkdir(parents=True)
        table = {row.name: row for row in materialize_weights(bundle, patches, temp / WEIGHTS_FILE)}
        for file in (MODEL_FILE, PROBES_FILE):
            copy_file(bundle.path / file, temp / file)
        rows = tuple(table[tensor.name] for tensor in bundle.tensor_map.tensors)
        result = patches[-1].manifest.result
        behind = bundle.patched_from or bundle.source_digest
        made = replace(bundle, tensor_map=TensorMap(rows), fingerprint=result, source_digest=result, patched_from=behind)
        made = replace(made, golden_digest="", reference_digest="")
        save_bundle(replace(made, path=temp))
        temp.rename(out)
        fsync_dir(out.parent)
    except OSError as error:
        raise RefusedError(f"cannot write {out}: {error.strerror or error}", hint="free disk space or choose another place") from error
    finally:
        shutil.rmtree(temp, ignore_errors=True)
    return replace(made, path=out)


def _in_order(bundle: Bundle) -> list[MappedTensor]:
    return sorted(bundle.tensor_map.tensors, key=lambda tensor: tensor.offset)


def _write(reader: IO[bytes], writer: IO[bytes], tensor: MappedTensor, patches: Sequence[Patch]) -> MappedTensor:
    reader.seek(tensor.offset)
    writer.seek(tensor.offset)  # the gap in between reads as zeros
    if not any(row.name == tensor.name for patch in patches for row in patch.manifest.tensors):
        _copy(reader, writer, tensor)
        return tensor
    dtype = DTYPES[tensor.dtype]

    def load(_: str) -> Array:
        return np.fromfile(reader, dtype=dtype, count=tensor.length // dtype.itemsize).reshape(tensor.shape)

    new, digest = follow(tensor.name, load, tensor.sha256, patches)
    writer.write(np.ascontiguousarray(new, dtype=dtype).reshape(-1).view(np.uint8).data)
    return replace(tensor, sha256=digest)


def _copy(reader: IO[bytes], writer: IO[bytes], tensor: MappedTensor) -> None:
    state, left = hashlib.sha256(), tensor.length
    while left:
        block = reader.read(min(left, _BLOCK))
        if not block:
            break
        state.update(block)
        writer.write(block)
        left -= len(block)
    if state.hexdigest() != tensor.sha256:
        raise IntegrityError(f"bundle weights were changed: digest of {tensor.name} differs", hint="copy the bundle again")
