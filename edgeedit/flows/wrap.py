"""A patch for another update engine: verify it, then lay it out as the engine wants it.

Guarantees: nothing is wrapped that no trusted key signed; the patch's bytes are carried unchanged.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from edgeedit.bundle import load_bundle
from edgeedit.delta import load_delta
from edgeedit.errors import InputError
from edgeedit.ota.server.engines import Payload, write_payload
from edgeedit.patch.header import MAGIC
from edgeedit.patch.keys import PublicKey, load_private_key, public_half
from edgeedit.patch.read import load_patch


@dataclass(frozen=True)
class Wrapped:
    """What was written: the payload's words, what is left to do, and what packing warned of."""

    path: Path
    payload: Payload
    next_step: str
    warning: str = ""


@dataclass(frozen=True)
class Wanted:
    """The words of a payload, see `edgeedit.ota.server.engines.Payload`."""

    engine: str
    compatible: tuple[str, ...]
    version: str
    incoming: str


def is_patch(path: Path) -> bool:
    """Whether the file begins as a patch does; raises InputError when it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}", hint="check the path") from error


def wrap_patch(patch: Path, trusted: Sequence[PublicKey], wanted: Wanted, out: Path) -> Wrapped:
    """Verify a patch file and write its payload; raises IntegrityError (5) when no trusted key signed it, or what `write_payload` does."""
    data = load_patch(patch, trusted).data
    payload = Payload(wanted.engine, data[:], wanted.compatible, wanted.version, wanted.incoming)
    return Wrapped(out, payload, write_payload(payload, out))


def pack_and_wrap(
    delta: Path,
    bundle: Path,
    keys: Sequence[Path],
    wanted: Wanted,
    out: Path,
    *,
    accept_undecided: str | None = None,
    max_flips: float | None = None,
) -> Wrapped:
    """Pack a delta and wrap the patch; raises what `edgeedit.flows.pack.pack` and `wrap_patch` raise, and then writes nothing."""
    from edgeedit.flows.pack import pack

    signers = [load_private_key(key) for key in keys]
    Payload(wanted.engine, b"", wanted.compatible, wanted.version, wanted.incoming)  # wrong words are told before the probes are run
    with tempfile.TemporaryDirectory() as temporary:
        patch = Path(temporary) / "patch.eep"
        packed = pack(load_delta(delta), load_bundle(bundle), signers, patch, accept_undecided=accept_undecided, max_flips=max_flips)
        return replace(wrap_patch(patch, [public_half(signer) for signer in signers], wanted, out), warning=packed.warning)
