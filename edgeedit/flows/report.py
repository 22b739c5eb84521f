"""The report of an edit from its files: delta, patch, Bundle, explanation, what `apply` said, the user's settings.

Guarantees: a patch is shown only when a trusted key signed it and it was packed from this very delta; nothing is written before
everything was read.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeedit.bundle import Bundle, load_bundle
from edgeedit.delta import Delta, load_delta
from edgeedit.deploy.lower import check_encoder
from edgeedit.errors import InputError, MismatchError, RefusedError
from edgeedit.patch.keys import load_trust
from edgeedit.patch.manifest import PatchTensor
from edgeedit.patch.read import Patch, load_patch
from edgeedit.report.html import save_report
from edgeedit.report.settings import load_settings
from edgeedit.strict_json import without_floats

_SWAP = ("prepare_ms", "swap_ms", "probe_ms")
_JSON_BYTES = 64 << 20


@dataclass(frozen=True)
class ReportRequest:
    """What `edgeedit report` was asked: files, and the language of page one."""

    delta: Path
    patch: Path | None = None
    trust: tuple[Path, ...] = ()
    bundle: Path | None = None
    explain: Path | None = None
    device: Path | None = None
    settings: Path | None = None
    language: str = "en"


def report_files(request: ReportRequest, out: Path) -> None:
    """Write the page to `out` and report.json beside it.

    Raises InputError for a file that cannot be used, MismatchError where patch, Bundle and delta do not belong together, and what reading a
    patch raises."""
    delta = load_delta(request.delta)
    bundle = load_bundle(request.bundle) if request.bundle else None
    cost: dict[str, Any] = {}
    if bundle is not None:
        cost |= bundle_facts(delta, bundle)
    if request.patch is not None:
        if not request.trust:
            raise InputError("patch cannot be shown: expected --trust with the public key that signed it, got none")
        cost |= patch_facts(delta, load_patch(request.patch, load_trust(request.trust)), bundle)
    save_report(
        delta,
        out,
        cost=cost,
        device=device_facts(_object(request.device)) if request.device else None,
        explanation=_object(request.explain) if request.explain else None,
        settings=load_settings(request.settings) if request.settings else None,
        language=request.language,
    )


def _object(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _JSON_BYTES:
            raise InputError(f"cannot read {path}: expected at most {_JSON_BYTES} bytes, got {path.stat().st_size}")
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: expected a JSON object, got {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"cannot read {path}: expected a JSON object, got {type(value).__name__}")
    return value


def bundle_facts(delta: Delta, bundle: Bundle) -> dict[str, Any]:
    """Bytes of the encoder's weights; torch against the Bundle's graph, and that against the engine of its profile, on its probes.

    An engine that does not start on this machine is left out.  Raises MismatchError when the delta was made for another encoder."""
    from edgeedit.flows.comparing import compare_bundle

    check_encoder(delta, bundle)
    weights = (bundle.path / "weights.bin").stat().st_size
    found = {"encoder_bytes": weights, "compare": compare_bundle(bundle.path)}
    with contextlib.suppress(RefusedError):
        found["engine"] = compare_bundle(bundle.path, engine=True)
    return found


def _bytes(tensor: PatchTensor) -> int:
    parts = (tensor.sparse, tensor.dense, tensor.low_rank, tensor.exact)
    return sum(part.length for part in parts if part is not None)


def patch_facts(delta: Delta, patch: Patch, bundle: Bundle | None) -> dict[str, Any]:
    """What a verified patch says: digest, fingerprints, signers, sizes, tolerance.  Raises MismatchError when it was packed from another
    delta."""
    manifest = patch.manifest
    for key in ("shots", "encoder", "method", "seed"):
        if manifest.provenance.get(key) != without_floats(delta.info.get(key)):
            raise MismatchError(
                f"patch was packed from another delta: expected its {key} to be {delta.info.get(key)}, got {manifest.provenance.get(key)}",
                hint="give the delta that was packed",
            )
    names = {t.name: t.parameter for t in bundle.tensor_map.tensors} if bundle is not None else {}
    return {
        "patch_bytes": len(patch.data),
        "patch_digest": patch.digest,
        "parent": manifest.parent,
        "result": manifest.result,
        "signers": list(patch.signers),
        "probe_tolerance": manifest.probe.tolerance,
        "tensor_bytes": {names.get(tensor.name, tensor.name): _bytes(tensor) for tensor in manifest.tensors},
    }


def device_facts(value: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of `edgeedit apply --json`, or of a demo's run."""
    swap = value.get("swap")
    source = swap if isinstance(swap, Mapping) else value
    return {key: source[key] for key in _SWAP if key in source} | {key: value[key] for key in value if key not in ("swap", *_SWAP)}
