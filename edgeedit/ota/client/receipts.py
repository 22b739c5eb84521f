"""`Receipt`: what a device says about one transition of a release, signed with the device's own key as a DSSE envelope.

A receipt is a claim, not a proof: a device that was taken over signs what its owner wants.  What the signature proves is
which device said it, and that nobody on the way changed it.  `sequence` counts the receipts of one device from 1, so that a
gap shows a loss and (device, sequence) makes delivery idempotent.

Guarantees: `verify_receipt` returns a Receipt only for an envelope that the key of the device it names has signed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from edgeedit.errors import InputError, IntegrityError
from edgeedit.limits import MAX_RECEIPT_BYTES
from edgeedit.ota.client.fields import HINT, digest, fields, integer, name, text, word, wrong
from edgeedit.strict_json import encode, parse

if TYPE_CHECKING:  # the store names receipts on devices without the `ota` extra
    from securesystemslib.signer import CryptoSigner, Key

SCHEMA_VERSION = 1
PAYLOAD_TYPE = "application/vnd.edgeedit.receipt+json"
STATES = ("offered", "verified", "staged", "confirmed", "reverted", "withdrawn")


@dataclass(frozen=True)
class Receipt:
    """One transition: `sequence` counts this device's receipts from 1, `patch` is the SHA-256 of the file, `generation` the device's
    own number (0 is the base), `reason` says why where there is a why, `time` is Unix seconds by the device's clock."""

    device: str
    release: str
    sequence: int
    state: str
    patch: str
    generation: int
    reason: str
    time: int

    def __post_init__(self) -> None:
        name(self.device, "device of the receipt")
        name(self.release, "release of the receipt")
        integer(self.sequence, "sequence of the receipt", 1)
        word(self.state, "state of the receipt", STATES)
        digest(self.patch, "patch of the receipt")
        integer(self.generation, "generation of the receipt", 0)
        text(self.reason, "reason of the receipt")
        integer(self.time, "time of the receipt", 0)


class ReceiptQueue(Protocol):
    """Receipts that nobody has acknowledged yet, oldest first, durable."""

    def put(self, data: bytes) -> None:
        """Keep one signed receipt; durable when it returns."""

    def pending(self, limit: int) -> list[tuple[int, bytes]]:
        """The oldest `limit` receipts, each with the queue's own id."""

    def done(self, ids: Sequence[int]) -> None:
        """Forget these; unknown ids change nothing."""


def encode_receipt(receipt: Receipt) -> bytes:
    """Canonical bytes of the payload."""
    return encode({"schema_version": SCHEMA_VERSION, **asdict(receipt)})


def parse_receipt(payload: bytes) -> Receipt:
    """The receipt of a verified payload; raises IntegrityError (exit 5) when a rule is broken."""
    row = fields(parse(payload, "receipt"), "receipt", frozenset(Receipt.__dataclass_fields__) | {"schema_version"})
    if row.pop("schema_version") != SCHEMA_VERSION:
        raise IntegrityError(f"receipt has another version: expected {SCHEMA_VERSION}", hint=HINT)
    return Receipt(**row)


def load_device_key(path: Path) -> CryptoSigner:
    """The device's signing key of an unencrypted PKCS8 PEM file; raises InputError (exit 2) when it is none."""
    from cryptography.hazmat.primitives.serialization import load_pem_private_key
    from securesystemslib.signer import CryptoSigner

    try:
        return CryptoSigner(load_pem_private_key(path.read_bytes(), None))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"cannot read device key {path}: expected a private key, got {error}", hint="make it again") from error


def sign_receipt(receipt: Receipt, key: CryptoSigner) -> bytes:
    """One line of JSON: the DSSE envelope of the receipt under the device's key."""
    from securesystemslib.dsse import Envelope

    envelope = Envelope(encode_receipt(receipt), PAYLOAD_TYPE, {})
    envelope.sign(key)
    return json.dumps(envelope.to_dict(), sort_keys=True, separators=(",", ":")).encode()


def verify_receipt(data: bytes, key_of: Callable[[str], Key | None]) -> Receipt:
    """The receipt of an envelope; `key_of` gives the key of a device id, or None.

    Raises IntegrityError (exit 5): damaged, not a receipt, an unknown device, or not signed with that device's key."""
    from securesystemslib.exceptions import VerificationError

    envelope = _envelope(data)
    if envelope.payload_type != PAYLOAD_TYPE:
        raise wrong("type of the envelope", PAYLOAD_TYPE, envelope.payload_type)
    receipt = parse_receipt(envelope.payload)
    key = key_of(receipt.device)
    if key is None:
        raise IntegrityError(f"receipt is of an unknown device: got {receipt.device}", hint="enrol the device with its public key")
    try:
        envelope.verify([key], 1)
    except VerificationError as error:
        raise IntegrityError(
            f"receipt is not signed by device {receipt.device}", hint="it was changed, or another key signed it"
        ) from error
    return receipt


def _envelope(data: bytes) -> Any:
    from securesystemslib.dsse import Envelope
    from securesystemslib.exceptions import FormatError

    if len(data) > MAX_RECEIPT_BYTES:
        raise wrong("receipt", f"at most {MAX_RECEIPT_BYTES} bytes", len(data))
    try:
        return Envelope.from_dict(parse(data, "receipt"))
    except (KeyError, ValueError, TypeError, AttributeError, FormatError) as error:
        raise IntegrityError(f"receipt is no envelope: {type(error).__name__} {error}", hint=HINT) from error
