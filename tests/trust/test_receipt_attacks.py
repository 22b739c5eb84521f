"""Attacks on receipts, by name: a ledger takes only what the device that it names has signed, once."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from securesystemslib.dsse import Envelope
from securesystemslib.signer import CryptoSigner, Key
from update_repository import NOW, PROFILE, SITE, make_rollout
from update_victim import PATCH

from edgeedit.errors import EdgeEditError, IntegrityError
from edgeedit.ota.client.receipts import PAYLOAD_TYPE, Receipt, encode_receipt, sign_receipt, verify_receipt
from edgeedit.ota.client.rollout import Device, PatchTarget, encode_rollout, patch_path
from edgeedit.ota.server.ledger import Enrolled, Ledger

KEY, OTHER, STRANGER = (CryptoSigner.generate_ed25519() for _ in range(3))
RECEIPT = Receipt("cam-1", "r1", 1, "reverted", "d" * 64, 1, "probe 2 differs", NOW)


def key_of(device: str) -> Key | None:
    return {"cam-1": KEY.public_key, "cam-2": OTHER.public_key}.get(device)


def envelope(payload: bytes, key: CryptoSigner = KEY, kind: str = PAYLOAD_TYPE) -> bytes:
    made = Envelope(payload, kind, {})
    made.sign(key)
    return json.dumps(made.to_dict()).encode()


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    made = Ledger(str(tmp_path / "ledger.db"))
    made.enrol([Enrolled(Device(name, PROFILE), SITE, key.public_key) for name, key in (("cam-1", KEY), ("cam-2", OTHER))])
    yield made
    made.close()


def _edited(change: Callable[[dict[str, object]], None]) -> bytes:
    """A signed receipt whose payload was changed afterwards."""
    body = json.loads(sign_receipt(RECEIPT, KEY))
    payload = json.loads(base64.b64decode(body["payload"]))
    change(payload)
    body["payload"] = base64.b64encode(json.dumps(payload, sort_keys=True, separators=(",", ":")).encode()).decode()
    return json.dumps(body).encode()


def _without_signature() -> bytes:
    return json.dumps({**json.loads(sign_receipt(RECEIPT, KEY)), "signatures": []}).encode()


def _rollout() -> bytes:
    return encode_rollout(make_rollout(PatchTarget(patch_path(PROFILE, "d" * 64), "d" * 64, len(PATCH))))


PLAIN = encode_receipt(RECEIPT)
ATTACKS = {
    "forged-by-another-device": (lambda: sign_receipt(RECEIPT, OTHER), "not signed by device cam-1"),
    "forged-by-a-stranger": (lambda: sign_receipt(RECEIPT, STRANGER), "not signed by device cam-1"),
    "of-an-unknown-device": (lambda: sign_receipt(replace(RECEIPT, device="cam-9"), STRANGER), "unknown device"),
    "failure-turned-into-success": (lambda: _edited(lambda row: row.update(state="confirmed")), "not signed by device"),
    "signed-as-another-device": (lambda: _edited(lambda row: row.update(device="cam-2")), "not signed by device cam-2"),
    "unsigned": (_without_signature, "not signed by device"),
    "another-type-of-payload": (lambda: envelope(PLAIN, kind="application/json"), "type of the envelope"),
    "a-rollout-signed-as-a-receipt": (lambda: envelope(_rollout()), "receipt is wrong"),
    "duplicate-key-in-the-payload": (lambda: envelope(PLAIN[:-1] + b',"state":"confirmed"}'), "duplicate key"),
    "duplicate-key-in-the-envelope": (lambda: sign_receipt(RECEIPT, KEY)[:-1] + b',"payload":""}', "duplicate key"),
    "deep-payload": (lambda: envelope(b'{"a":' * 400 + b"1" + b"}" * 400), "nests too deep"),
    "deep-envelope": (lambda: b'{"a":' * 1000 + b"1" + b"}" * 1000, "nests too deep"),
    "oversize": (lambda: sign_receipt(RECEIPT, KEY) + b" " * 8192, "at most 8192 bytes"),
    "truncated": (lambda: sign_receipt(RECEIPT, KEY)[:-9], "not JSON"),
    "unknown-field": (lambda: envelope(PLAIN[:-1] + b',"trust":1}'), "receipt is wrong"),
    "another-version": (lambda: envelope(PLAIN.replace(b'"schema_version":1', b'"schema_version":2')), "another version"),
    "huge-number": (lambda: envelope(PLAIN.replace(b'"generation":1', b'"generation":9' + b"9" * 30)), "64 bits"),
    "device-name-with-a-path": (lambda: envelope(PLAIN.replace(b"cam-1", b"../etc")), "device of the receipt"),
}


@pytest.mark.parametrize("attack", sorted(ATTACKS))
def test_a_receipt(ledger: Ledger, attack: str) -> None:
    """Refused with exit 5, kept nowhere, and told in the sealed history; an honest receipt beside it is taken."""
    make, match = ATTACKS[attack]
    data = make()
    with pytest.raises(EdgeEditError, match=match) as caught:
        verify_receipt(data, key_of)
    assert type(caught.value) is IntegrityError and caught.value.exit_code == 5
    honest = sign_receipt(replace(RECEIPT, device="cam-2"), OTHER)
    done = ledger.ingest([data, honest])
    assert (done.accepted, done.known, len(done.refused)) == (1, 0, 1)
    assert list(ledger.latest()) == ["cam-2"]
    assert ledger.history()[-1]["event"] == "receipts refused"
    ledger.verify_history()


def test_a_receipt_replayed(ledger: Ledger) -> None:
    """In one batch, in a later one, and after a newer receipt: it counts once and changes nothing."""
    data = sign_receipt(RECEIPT, KEY)
    done = ledger.ingest([data, data])
    assert (done.accepted, done.known) == (1, 1)
    ledger.ingest([sign_receipt(replace(RECEIPT, sequence=2, state="confirmed"), KEY)])
    rows = len(ledger.history())
    done = ledger.ingest([data])
    assert (done.accepted, done.known, done.refused) == (0, 1, [])
    assert ledger.outcomes("r1")["cam-1"][0] == "confirmed" and len(ledger.history()) == rows


def test_a_second_receipt_of_one_number(ledger: Ledger) -> None:
    """A copied store, or a thief of the device's key who rewrites what was told."""
    ledger.ingest([sign_receipt(RECEIPT, KEY)])
    done = ledger.ingest([sign_receipt(replace(RECEIPT, state="confirmed", reason=""), KEY)])
    assert done.accepted == 0 and "two receipts of number 1" in done.refused[0]
    assert ledger.outcomes("r1")["cam-1"][0] == "reverted"
    ledger.verify_history()
