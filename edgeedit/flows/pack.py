"""From a Delta to a signed patch: lower onto the Bundle, compute probe expectations, refuse what cannot be proven, sign.

Guarantees: nothing is written unless the gate verdict is `pass` (or the user accepted an undecided one with a recorded
reason), the delta fits the Bundle, and at least one probe tells the new weights from the old ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edgeedit.bundle import Bundle
from edgeedit.delta import Delta
from edgeedit.deploy.lower import lower
from edgeedit.deploy.probes import check_probes, expectations
from edgeedit.encoder.encoder import Encoder
from edgeedit.errors import GateError
from edgeedit.flows.server import encoder_of
from edgeedit.patch.write import PatchContent, write_patch

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Packed:
    """A written patch: its file, size in bytes, SHA-256, parent and result fingerprints, new deployed tensors and their digests."""

    path: Path
    size: int
    digest: str
    parent: str
    result: str
    new: Mapping[str, Array]
    after: Mapping[str, str]


def check_gate(delta: Delta, accept_undecided: str | None) -> dict[str, str]:
    """Provenance entry of the gate; raises GateError (exit 3) unless the delta may be shipped."""
    gate = delta.info.get("metrics", {}).get("gate") or {"verdict": "missing", "reasons": []}
    verdict = gate["verdict"]
    if verdict == "pass":
        return {"verdict": verdict}
    if verdict == "undecided" and accept_undecided:
        return {"verdict": verdict, "accepted_because": accept_undecided}
    hint = (
        "give --accept-undecided REASON, or more held-out images"
        if verdict == "undecided"
        else "change the shots, the share or the learning rate"
    )
    raise GateError(f"delta may not be packed: expected gate verdict pass, got {verdict} ({'; '.join(gate['reasons'])})", hint=hint)


def pack(
    delta: Delta,
    bundle: Bundle,
    keys: Sequence[Ed25519PrivateKey],
    out: Path,
    *,
    encoder: Encoder | None = None,
    accept_undecided: str | None = None,
) -> Packed:
    """Lower, probe, sign and write `out`; raises GateError, MismatchError or InputError and then writes nothing."""
    gate = check_gate(delta, accept_undecided)
    base = bundle.weights()
    lowered = lower(delta, bundle, base)
    encoder = encoder or encoder_of(bundle)
    expected = expectations(encoder, delta, bundle)
    check_probes(expectations(encoder, None, bundle), expected, bundle.tolerance)
    provenance = {**{k: v for k, v in delta.info.items() if k not in ("verdicts", "locality")}, "gate": gate}
    content = PatchContent(
        parent=lowered.parent,
        result=lowered.result,
        precision=bundle.precision,
        recipe=bundle.recipe,
        deltas=lowered.deltas,
        before=lowered.before,
        after=lowered.after,
        dtypes=lowered.dtypes,
        expected=expected,
        tolerance=bundle.tolerance,
        provenance=provenance,
    )
    digest = write_patch(out, content, keys)
    return Packed(out, out.stat().st_size, digest, lowered.parent, lowered.result, lowered.new, lowered.after)
