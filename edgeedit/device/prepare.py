"""What happens off the frame path: the new tensors of a generation, computed, checked and ready to be copied in.

Guarantees: a tensor is changed only when its digest is the one the patch was made for, and accepted only when its new
digest and the fingerprint of the whole result are the ones the server evaluated.  Tensor by tensor; memory is checked first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgeedit.bundle import PROBES_FILE, Bundle
from edgeedit.digest import TensorDigest, digest_array, fingerprint
from edgeedit.errors import IntegrityError, MismatchError, RefusedError
from edgeedit.patch.read import Patch

Array = np.ndarray[Any, Any]
RESERVE = 32 * 1024 * 1024  # bytes of memory that stay free


@dataclass(frozen=True)
class Prepared:
    """New tensors of one patch, name -> array, and the digests of the whole result."""

    new: Mapping[str, Array]
    digests: Mapping[str, TensorDigest]


def base_digests(bundle: Bundle) -> dict[str, TensorDigest]:
    """Deployed name -> identity in the base."""
    return {t.name: t.digest() for t in bundle.tensor_map.tensors}


def available_memory() -> int | None:
    """Bytes that can be allocated (MemAvailable), None where the system does not say."""
    try:
        for line in Path("/proc/meminfo").read_text("ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        return None
    return None


def check_memory(need: int) -> None:
    """Raise RefusedError (exit 6) unless `need` bytes and a reserve are free."""
    free = available_memory()
    if free is not None and free < need + RESERVE:
        raise RefusedError(
            f"memory is short: expected {need + RESERVE} bytes free, got {free}", hint="stop other programs or use a smaller patch"
        )


def probe_inputs(bundle: Bundle) -> Array:
    """Probe inputs float32 (n, 3, size, size), read from the file only where they are used."""
    probes: Array = np.load(bundle.path / PROBES_FILE, mmap_mode="r", allow_pickle=False)
    return probes


def copies(weights: Mapping[str, Array], names: Iterable[str]) -> dict[str, Array]:
    """Copies of the named tensors, to be put back by an undo; raises RefusedError when memory is short."""
    try:
        return {name: weights[name].copy() for name in names}
    except MemoryError as error:
        raise RefusedError("memory is short: cannot keep the old weights", hint="stop other programs or use a smaller patch") from error


def prepare(
    patch: Patch, current: Mapping[str, Array], digests: Mapping[str, TensorDigest], beat: Callable[[], object] = lambda: None
) -> Prepared:
    """Compute and check the patch's tensors on `current` weights, whose identities are `digests`; `beat` is called after each.

    Raises MismatchError, IntegrityError, or RefusedError when memory is short."""
    manifest = patch.manifest
    check_memory(2 * sum(current[row.name].nbytes for row in manifest.tensors if row.name in current))
    new: dict[str, Array] = {}
    after = dict(digests)
    for row in manifest.tensors:
        if row.name not in current or digests[row.name].sha256 != row.before:
            raise MismatchError(f"tensor {row.name} is not the one the patch was made for", hint="apply the patches in their order")
        try:
            made = patch.apply(row.name, current[row.name])
        except MemoryError as error:
            raise RefusedError(f"memory is short: cannot compute {row.name}", hint="stop other programs or use a smaller patch") from error
        got = digest_array(made)
        if got != row.after:
            raise IntegrityError(f"tensor {row.name} came out wrong: expected digest {row.after[:12]}, got {got[:12]}")
        new[row.name] = made
        after[row.name] = replace(digests[row.name], sha256=row.after)
        beat()
    result = fingerprint(after.values())
    if result != manifest.result:
        raise IntegrityError(f"result came out wrong: expected fingerprint {manifest.result[:12]}, got {result[:12]}")
    return Prepared(new, after)


def replay(bundle: Bundle, patches: list[Patch]) -> tuple[dict[str, Array], dict[str, TensorDigest]]:
    """Weights and identities of base + patches in order."""
    weights, digests = dict(bundle.weights()), base_digests(bundle)
    for patch in patches:
        prepared = prepare(patch, weights, digests)
        weights.update(prepared.new)
        digests = dict(prepared.digests)
    return weights, digests
