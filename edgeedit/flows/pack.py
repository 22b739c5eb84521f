"""From a Delta to a signed patch: lower onto the Bundle, compute probe expectations, refuse what cannot be proven, sign.

Guarantees: nothing is written unless the gate verdict is `pass` (or the user accepted an undecided one with a recorded
reason), the delta fits the Bundle, and at least one probe tells the new weights from the old ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edgeedit.bundle import Bundle
from edgeedit.delta import Delta
from edgeedit.deploy.codes import Survival
from edgeedit.deploy.lower import lower
from edgeedit.deploy.proving import prove
from edgeedit.edit.statistics import wilson
from edgeedit.encoder.encoder import Encoder
from edgeedit.encoder.values import parameter_values
from edgeedit.errors import GateError
from edgeedit.flows.server import encoder_of
from edgeedit.patch.manifest import USUAL_FLIPS
from edgeedit.patch.write import PatchContent, write_patch

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Packed:
    """A written patch: its file, size in bytes, SHA-256, parent and result fingerprints, new deployed tensors and their digests,
    what of the change survives in each int8 tensor (empty where the Bundle has none), and what a monitored camera makes of its flips."""

    path: Path
    size: int
    digest: str
    parent: str
    result: str
    new: Mapping[str, Array]
    after: Mapping[str, str]
    survival: Mapping[str, Survival] = field(default_factory=dict)
    warning: str = ""


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


def _flips(metrics: Mapping[str, Any], name: str) -> tuple[int, int]:
    """(flips between right and wrong, images) of a held-out set of a Delta's `metrics`; with many classes there may be more flips."""
    row = metrics.get(name)
    return (int(row["fixed"]) + int(row["broken"]), int(row["n"])) if row else (0, 0)


def usual_flips(metrics: Mapping[str, Any]) -> float | None:
    """What a patch states of which nobody said how much it may change: the gate accepted what it did to control images, so a monitor
    lets it change as many verdicts (upper end of the Wilson 95 % interval).  None where that is no more than `USUAL_FLIPS`, or
    where nothing flipped."""
    flips, images = _flips(metrics, "control")
    high = math.ceil(1000 * wilson(flips, images).high) / 1000 if images else 0.0
    return min(1.0, high) if high > USUAL_FLIPS and flips else None


def flips_warning(metrics: Mapping[str, Any], allowed: float) -> str:
    """What to know before a monitored camera sees the patch: "" where even frames like the target's alone change no more than `allowed`
    of the verdicts."""
    counts = {name: _flips(metrics, name) for name in ("target", "control")}
    shares = {name: flips / images for name, (flips, images) in counts.items() if images}
    target, control = shares.get("target", 0.0), shares.get("control", 0.0)
    if max(target, control) <= allowed:
        return ""
    told = " and ".join(f"{share:.1%} of the {name}'s" for name, share in shares.items())
    from_share = max(0.0, (allowed - control) / (target - control)) if target > control else 0.0
    where = f"from about {from_share:.0%} frames like the target's on" if control <= allowed else "on control images already"
    return (
        f"{told} held-out verdicts change, and a monitored camera takes a patch back that changes more than {allowed:.0%} of those it gave "
        f"on clean days ({where}); state what is meant with --max-flips"
    )


def pack(
    delta: Delta,
    bundle: Bundle,
    keys: Sequence[Ed25519PrivateKey],
    out: Path,
    *,
    encoder: Encoder | None = None,
    accept_undecided: str | None = None,
    max_flips: float | None = None,
) -> Packed:
    """Lower, probe, sign and write `out`; raises GateError, MismatchError or InputError and then writes nothing.  `max_flips` is the
    share of a camera's usual verdicts that the patch may change (FORMAT 4), `usual_flips` where it is not given.

    Where the Bundle holds int8 codes they are rounded from the encoder's changed float32 weights, the probes are expected to give
    what the encoder gives with the weights that the codes stand for, and the provenance says under `survival` what they keep."""
    gate = check_gate(delta, accept_undecided)
    metrics = delta.info.get("metrics", {})
    max_flips = usual_flips(metrics) if max_flips is None else max_flips
    base = bundle.weights()
    coded = any(tensor.dtype == "int8" for tensor in bundle.tensor_map.tensors)
    if coded:
        encoder = encoder or encoder_of(bundle)
    lowered = lower(delta, bundle, base, parameter_values(encoder, "float32") if encoder is not None and coded else None)
    encoder = encoder or encoder_of(bundle)  # loaded late where it can be: a delta that does not fit is refused without it
    proof = prove(encoder, delta, bundle, {**base, **lowered.new})
    provenance = {**{k: v for k, v in delta.info.items() if k not in ("verdicts", "locality", "shift")}, "gate": gate}
    if lowered.survival:
        provenance["survival"] = {name: found.to_json() for name, found in lowered.survival.items()}
    content = PatchContent(
        parent=lowered.parent,
        result=lowered.result,
        precision=bundle.precision,
        recipe=bundle.recipe,
        deltas=lowered.deltas,
        before=lowered.before,
        after=lowered.after,
        dtypes=lowered.dtypes,
        expected=proof.expected,
        tolerance=proof.tolerance,
        provenance=provenance,
        max_flips=max_flips,
    )
    digest = write_patch(out, content, keys)
    warning = flips_warning(metrics, USUAL_FLIPS if max_flips is None else max_flips)
    return Packed(out, out.stat().st_size, digest, lowered.parent, lowered.result, lowered.new, lowered.after, lowered.survival, warning)
