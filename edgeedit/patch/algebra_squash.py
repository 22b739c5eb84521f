"""`squash`: one patch from a chain's parent to the chain's result, with the same fingerprints, so later patches fit both lineages.

Guarantees: the new tensors are computed once more by the core from the patch that was built, and must have the chain's digests;
nothing is written unless they have and the squash is smaller than the chain.  What integers alone cannot repeat, because a chain
rounds after every patch, is carried as corrections of bits.  Does not judge the edit: the weights are the chain's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edgeedit.bundle import Bundle
from edgeedit.codec.apply import apply_delta
from edgeedit.delta import TensorDelta
from edgeedit.digest import digest_array, digest_bytes
from edgeedit.errors import InputError, IntegrityError
from edgeedit.files import replace_file
from edgeedit.patch.algebra_chain import check_fits, follow
from edgeedit.patch.algebra_fit import Fit, fit_change
from edgeedit.patch.manifest import Manifest, stated_flips
from edgeedit.patch.read import Patch
from edgeedit.patch.write import PatchContent, build_patch

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Squashed:
    """A squash: bytes of the patch file, its SHA-256, parent and result, bytes of the chain, elements that carry a step, elements
    whose bits are corrected."""

    data: bytes
    digest: str
    parent: str
    result: str
    chain_bytes: int
    changed: int
    corrected: int

    def to_json(self) -> dict[str, Any]:
        """Plain JSON object without the bytes."""
        return {
            "digest": self.digest,
            "parent": self.parent,
            "result": self.result,
            "bytes": len(self.data),
            "chain_bytes": self.chain_bytes,
            "changed": self.changed,
            "corrected": self.corrected,
        }


def squash(bundle: Bundle, earlier: Sequence[Patch], chain: Sequence[Patch], keys: Sequence[Ed25519PrivateKey]) -> Squashed:
    """One patch that does what `chain` does; `earlier` patches lead from the Bundle to the chain's parent.

    Raises InputError (2) for a chain of one, of no effect, or when the squash is not smaller;
    MismatchError (4) when patches and Bundle do not follow each other; IntegrityError (5) when a digest differs."""
    if len(chain) < 2:
        raise InputError(f"nothing to squash: expected at least 2 patches, got {len(chain)}")
    check_fits(bundle, [*earlier, *chain])
    table = bundle.tensor_map.by_name()
    weights = bundle.weights()
    before: dict[str, str] = {}
    after: dict[str, str] = {}
    deltas: list[TensorDelta] = []
    for name in sorted({row.name for patch in chain for row in patch.manifest.tensors}):
        old, before[name] = follow(name, weights.__getitem__, table[name].sha256, earlier)
        new, after[name] = follow(name, {name: old}.__getitem__, before[name], chain)
        fit = fit_change(old, new, _parts(name, chain))
        if fit is not None:
            deltas.append(_checked(name, old, fit, after[name]))
    if not deltas:
        raise InputError("chain changes nothing: expected another result than its parent", hint="roll back to the parent instead")
    return _build(chain, keys, deltas, before, after, {delta.name: table[delta.name].dtype for delta in deltas})


def write_squash(path: Path, made: Squashed) -> None:
    """Write the patch file durably; raises RefusedError (exit 6) when the disk refuses."""
    replace_file(path, made.data)


def _parts(name: str, chain: Sequence[Patch]) -> list[TensorDelta]:
    return [patch.tensor_delta(name) for patch in chain if any(row.name == name for row in patch.manifest.tensors)]


def _checked(name: str, old: Array, fit: Fit, digest: str) -> TensorDelta:
    delta = TensorDelta(name, tuple(old.shape), fit.sparse, fit.low_rank, fit.exact)
    got = digest_array(apply_delta(old, delta))
    if got != digest:
        raise IntegrityError(f"squash of {name} came out wrong: expected digest {digest[:12]}, got {got[:12]}", hint="report this")
    return delta


def _size(chain: Sequence[Patch]) -> int:
    return sum(len(patch.data) for patch in chain)


def _flips(chain: Sequence[Manifest]) -> float | None:
    """What the chain may change in all; nothing is stated where no patch of it did."""
    if all(stated_flips(manifest.extra) is None for manifest in chain):
        return None
    return min(1.0, round(sum(manifest.max_flips for manifest in chain), 6))


def _build(
    chain: Sequence[Patch],
    keys: Sequence[Ed25519PrivateKey],
    deltas: Sequence[TensorDelta],
    before: Mapping[str, str],
    after: Mapping[str, str],
    dtypes: Mapping[str, str],
) -> Squashed:
    first, last = chain[0].manifest, chain[-1].manifest
    content = PatchContent(
        parent=first.parent,
        result=last.result,
        precision=first.precision,
        recipe=first.recipe,
        deltas=deltas,
        before=before,
        after=after,
        dtypes=dtypes,
        # The result is the last patch's result, so what its probes expect and what was measured on it hold here too.
        expected=chain[-1].expected(),
        tolerance=last.probe.tolerance,
        provenance={**last.provenance, "squash_of": [patch.digest for patch in chain]},
        max_flips=_flips([patch.manifest for patch in chain]),
    )
    data = build_patch(content, keys)
    changed = sum(delta.sparse.index.size for delta in deltas if delta.sparse is not None)
    corrected = sum(delta.exact.index.size for delta in deltas if delta.exact is not None)
    if len(data) >= _size(chain):
        raise InputError(
            f"squash would not be smaller: expected less than the chain's {_size(chain)} bytes, got {len(data)} "
            f"({changed} steps, {corrected} corrections)",
            hint=f"send the chain of {len(chain)} patches as it is",
        )
    return Squashed(data, digest_bytes(data), first.parent, last.result, _size(chain), changed, corrected)
