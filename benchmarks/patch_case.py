"""One comparable case: base file, target file, the Delta in deployed layout and our signed patch of it, under a folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edgeedit.bundle import WEIGHTS_FILE, Bundle
from edgeedit.codec.apply import apply_delta
from edgeedit.codec.probes import round_probes
from edgeedit.delta import TensorDelta
from edgeedit.digest import digest_array, fingerprint
from edgeedit.patch.algebra_materialize import materialize_weights
from edgeedit.patch.keys import public_half
from edgeedit.patch.read import Patch, read_unverified
from edgeedit.patch.write import PatchContent, build_patch

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Case:
    """`old` and `new` are whole weight files; `patch` the verified patch whose file is `eep`."""

    name: str
    bundle: Bundle
    deltas: tuple[TensorDelta, ...]
    patch: Patch
    old: Path
    new: Path
    eep: Path


def make_case(name: str, bundle: Bundle, deltas: Sequence[TensorDelta], folder: Path) -> Case:
    """Sign the patch and write the target; the target is what `materialize` makes, with all its digests checked."""
    from dataclasses import replace

    weights = bundle.weights()
    rows = {tensor.name: tensor.digest() for tensor in bundle.tensor_map.tensors}
    after = {delta.name: digest_array(apply_delta(weights[delta.name], delta)) for delta in deltas}
    result = fingerprint({**rows, **{n: replace(rows[n], sha256=d) for n, d in after.items()}}.values())
    # The parent's outputs, where the Bundle has them, stand in for the edited encoder's, which have the same spread and as much in
    # common from probe to probe.  A made-up encoder has none and gets random ones.
    measured = bundle.golden()
    if measured is None:
        measured = np.random.default_rng(0).normal(size=(len(bundle.probes()), bundle.output_width))
    expected = round_probes(measured.astype(np.float32), bundle.tolerance)
    content = PatchContent(
        bundle.fingerprint, result, bundle.precision, bundle.recipe, list(deltas), {n: rows[n].sha256 for n in after}, after,
        {n: rows[n].dtype for n in after}, expected, bundle.tolerance, {"benchmark": name},
    )  # fmt: skip
    key = Ed25519PrivateKey.generate()
    data = build_patch(content, [key])
    folder.mkdir(parents=True, exist_ok=True)
    eep, new = folder / "fix.eep", folder / "new.bin"
    eep.write_bytes(data)
    (folder / "ml.pub").write_bytes(_pem(key))
    patch = read_unverified(data).verify([public_half(key)])
    materialize_weights(bundle, [patch], new)
    return Case(name, bundle, tuple(deltas), patch, bundle.path / WEIGHTS_FILE, new, eep)


def _pem(key: Ed25519PrivateKey) -> bytes:
    from cryptography.hazmat.primitives import serialization

    return key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def section_bytes(patch: Patch, kind: str) -> int:
    """Bytes of all `sparse` or all `low_rank` sections."""
    parts = [getattr(row, kind) for row in patch.manifest.tensors]
    return sum(part.length for part in parts if part is not None)
