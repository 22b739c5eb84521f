"""The tables of a ledger, and what seals their rows.  Made by the migrations; read and written by `ledger` and `history` alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from securesystemslib.signer import SSlibKey

FIRST_HASH = "0" * 64
CONTENT = ("release", "state", "patch", "generation", "reason", "time")  # what a receipt says, beside its device and number

metadata = sa.MetaData()
devices = sa.Table(
    "device",
    metadata,
    sa.Column("id", sa.String(128), primary_key=True),
    sa.Column("site", sa.String(128), nullable=False, index=True),
    sa.Column("profile", sa.String(128), nullable=False),
    sa.Column("line", sa.String(128), nullable=False),
    sa.Column("labels", sa.Text, nullable=False),
    sa.Column("key", sa.Text, nullable=False),
)
receipts = sa.Table(
    "receipt",
    metadata,
    sa.Column("device", sa.String(128), sa.ForeignKey("device.id"), primary_key=True),
    sa.Column("sequence", sa.BigInteger, primary_key=True),
    sa.Column("release", sa.String(128), nullable=False, index=True),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("patch", sa.String(64), nullable=False),
    sa.Column("generation", sa.BigInteger, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("time", sa.BigInteger, nullable=False),
    sa.Column("received", sa.BigInteger, nullable=False),
    sa.Column("digest", sa.String(64), nullable=False),
    sa.Column("envelope", sa.LargeBinary, nullable=False),
    sa.Column("batch", sa.BigInteger, nullable=False, index=True),
)
openings = sa.Table(
    "opening",
    metadata,
    sa.Column("site", sa.String(128), primary_key=True),
    sa.Column("release", sa.String(128), primary_key=True),
    sa.Column("stage", sa.String(128), primary_key=True),
    sa.Column("opened", sa.BigInteger, nullable=False),
)
audit = sa.Table(
    "audit",
    metadata,
    sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("time", sa.BigInteger, nullable=False),
    sa.Column("event", sa.String(64), nullable=False),
    sa.Column("subject", sa.String(256), nullable=False),
    sa.Column("data", sa.Text, nullable=False),
    sa.Column("previous", sa.String(64), nullable=False),
    sa.Column("hash", sa.String(64), nullable=False),
)


def seal(previous: str, row: Mapping[str, Any]) -> str:
    """The hash of an audit row: SHA-256 over the former hash and the canonical JSON of number, time, event, subject and data."""
    body = json.dumps([row[key] for key in ("number", "time", "event", "subject", "data")], separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(f"{previous}\n{body}".encode()).hexdigest()


def batch_digest(rows: Sequence[Mapping[str, Any]]) -> str:
    """SHA-256 over the digests of a batch's envelopes, recomputed, in the order of device and sequence."""
    return hashlib.sha256("".join(hashlib.sha256(row["envelope"]).hexdigest() for row in rows).encode()).hexdigest()


def read_key(text: str) -> SSlibKey:
    """The public key of a device as its row holds it."""
    key = json.loads(text)
    return SSlibKey.from_dict(key.pop("keyid"), key)
