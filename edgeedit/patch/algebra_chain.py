"""A chain: verified patches in the order in which they were made, on one Bundle.  Shared by `squash` and `materialize`.

Guarantees: all signatures verify before any payload is decoded; each patch was made on the result of the one before; a tensor
is handed on only when its digest is the one its patch promises.  Holds one tensor at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeedit.bundle import Bundle
from edgeedit.digest import digest_array
from edgeedit.errors import InputError, IntegrityError, MismatchError
from edgeedit.limits import MAX_CHAIN
from edgeedit.patch.keys import PublicKey
from edgeedit.patch.read import Patch, load_patch

Array = np.ndarray[Any, Any]


def load_chain(paths: Sequence[Path], trusted: Sequence[PublicKey], *, allow_test_keys: bool = False) -> tuple[Patch, ...]:
    """Read and verify every file, then check that they follow each other; raises InputError (2), MismatchError (4) or
    IntegrityError (5).  `allow_test_keys` is for tests only."""
    patches = tuple(load_patch(path, trusted, allow_test_keys=allow_test_keys) for path in paths)
    if not 1 <= len(patches) <= MAX_CHAIN:
        raise InputError(f"chain has a wrong length: expected 1..{MAX_CHAIN} patches, got {len(patches)}")
    for number in range(1, len(patches)):
        before, after = patches[number - 1].manifest, patches[number].manifest
        if after.parent != before.result:
            raise MismatchError(
                f"patches do not follow each other: expected {paths[number]} on {before.result[:12]}, got {after.parent[:12]}",
                hint="give them in the order in which they were made",
            )
    return patches


def check_fits(bundle: Bundle, patches: Sequence[Patch]) -> None:
    """Raise MismatchError (exit 4) unless the chain starts at the Bundle and touches only tensors that the Bundle offers."""
    first = patches[0].manifest
    if first.parent != bundle.fingerprint:
        raise MismatchError(
            f"chain does not start at the bundle: expected parent {bundle.fingerprint[:12]}, got {first.parent[:12]}",
            hint="give the earlier patches too, or another bundle",
        )
    known = bundle.tensor_map.by_name()
    for patch in patches:
        manifest = patch.manifest
        if manifest.recipe != bundle.recipe or manifest.precision != bundle.precision:
            raise MismatchError(
                f"patch is for another model: expected {bundle.recipe} {bundle.precision}, got {manifest.recipe} {manifest.precision}"
            )
        for row in manifest.tensors:
            tensor = known.get(row.name)
            if tensor is None or not tensor.editable or tensor.shape != row.shape or tensor.dtype != row.dtype:
                raise MismatchError(f"patch touches a tensor that the bundle does not offer: got {row.name} {row.dtype} {row.shape}")


def follow(name: str, load: Callable[[str], Array], digest: str, patches: Sequence[Patch]) -> tuple[Array, str]:
    """Tensor `name` after the patches, and its digest; `load(name)` gives the tensor before them (and holds no second reference
    to it, so that at most two live at a time), `digest` is what that must hash to.  Raises MismatchError when a patch was
    made for another tensor, IntegrityError when one comes out wrong or `load` gives something else."""
    old = load(name)
    if digest_array(old) != digest:
        raise IntegrityError(f"bundle weights were changed: digest of {name} differs", hint="copy the bundle again")
    for patch in patches:
        row = next((row for row in patch.manifest.tensors if row.name == name), None)
        if row is None:
            continue
        if row.before != digest:
            raise MismatchError(f"tensor {name} is not the one the patch was made for: expected {row.before[:12]}, got {digest[:12]}")
        old = patch.apply(name, old)
        digest = digest_array(old)
        if digest != row.after:
            raise IntegrityError(f"tensor {name} came out wrong: expected digest {row.after[:12]}, got {digest[:12]}")
    return old, digest
