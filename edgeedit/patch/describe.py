"""What a verified patch is, as one JSON-able object for `edgeedit inspect`.

Guarantees: decodes every section, so a patch that is described also decodes.  Shows only signed content.
"""

from __future__ import annotations

from typing import Any

from edgeedit.patch.manifest import PatchTensor
from edgeedit.patch.read import Patch


def describe(patch: Patch) -> dict[str, Any]:
    """Parent, result, recipe, precision, signers, sizes in bytes, probes, provenance and one row per tensor; raises
    IntegrityError when a section does not decode."""
    manifest = patch.manifest
    patch.expected()
    tensors = [_tensor(patch, tensor) for tensor in manifest.tensors]
    return {
        "digest": patch.digest,
        "parent": manifest.parent,
        "result": manifest.result,
        "recipe": manifest.recipe,
        "precision": manifest.precision,
        "signers": list(patch.signers),
        "probes": manifest.probe.count,
        "probe_width": manifest.probe.width,
        "tolerance": manifest.probe.tolerance,
        "changed": sum(row.get("nnz", 0) for row in tensors),
        "bytes": _bytes(patch),
        "tensors": tensors,
        "max_flips": manifest.max_flips,
        "provenance": dict(manifest.provenance),
        "extra": dict(manifest.extra),
    }


def _bytes(patch: Patch) -> dict[str, int]:
    tensors, probe = patch.manifest.tensors, patch.manifest.probe
    payload = sum(section.length for section in patch.manifest.sections)
    return {
        "total": len(patch.data),
        "header_and_manifest": len(patch.data) - payload,
        "sparse": sum(t.sparse.length for t in tensors if t.sparse is not None),
        "dense": sum(t.dense.length for t in tensors if t.dense is not None),
        "low_rank": sum(t.low_rank.length for t in tensors if t.low_rank is not None),
        "exact": sum(t.exact.length for t in tensors if t.exact is not None),
        "probes": probe.section.length,
    }


def _tensor(patch: Patch, tensor: PatchTensor) -> dict[str, Any]:
    delta = patch.tensor_delta(tensor.name)
    row: dict[str, Any] = {"name": tensor.name, "dtype": tensor.dtype, "shape": list(tensor.shape)}
    coded = tensor.sparse or tensor.dense
    if delta.sparse is not None and coded is not None:
        kind = "sparse" if tensor.sparse is not None else "dense"
        row |= {"nnz": int(delta.sparse.index.size), "step": delta.sparse.step, f"{kind}_bytes": coded.length}
        row["bits_per_entry"] = round(8 * coded.length / int(delta.sparse.index.size), 2)
    if delta.low_rank is not None and tensor.low_rank is not None:
        part = delta.low_rank
        row |= {"rank": int(part.a.shape[1]), "rows": int(part.rows.size), "cols": int(part.cols.size)}
        row |= {"scale": part.scale, "low_rank_bytes": tensor.low_rank.length}
    if delta.exact is not None and tensor.exact is not None:
        row |= {"corrections": int(delta.exact.index.size), "exact_bytes": tensor.exact.length}
    return row | {"before": tensor.before, "after": tensor.after}
