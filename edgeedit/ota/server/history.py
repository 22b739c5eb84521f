"""Verify a ledger: every seal of its audit log, and that its devices and receipts are what the log says.

A device's key is the one that the log had enrolled when a receipt came, so a camera that got a new key leaves its old receipts valid.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from securesystemslib.signer import SSlibKey

from edgeedit.errors import IntegrityError
from edgeedit.ota.client.receipts import verify_receipt
from edgeedit.ota.server.tables import CONTENT, FIRST_HASH, audit, batch_digest, devices, read_key, receipts, seal

_TOGETHER = 1000  # rows in memory
_HINT = "compare with a copy of the ledger"
Row = Mapping[str, Any]
_Batches = Iterator[tuple[int, Iterator[Row]]]


def verify(engine: sa.Engine) -> tuple[int, str]:
    """Number of rows of the audit log and the last hash; raises IntegrityError (exit 5) naming the first row that does not hold."""
    previous, count = FIRST_HASH, 0
    enrolled: dict[str, Row] = {}
    keys: dict[str, SSlibKey] = {}
    with _moment(engine) as db:
        batches: _Batches = itertools.groupby(_rows(db, receipts, receipts.c.batch), lambda row: int(row["batch"]))
        batch = next(batches, None)
        for count, row in enumerate(_rows(db, audit, audit.c.number), 1):
            if row["number"] != count or row["previous"] != previous or row["hash"] != seal(previous, row):
                raise IntegrityError(f"history was changed at row {count}", hint=_HINT)
            previous = row["hash"]
            if row["event"] == "device enrolled":
                enrolled[row["subject"]] = json.loads(row["data"])
                keys[row["subject"]] = read_key(enrolled[row["subject"]]["key"])
            elif row["event"] == "receipts":
                mine = batch is not None and batch[0] == count
                _verify_batch(row, list(batch[1]) if batch is not None and mine else [], keys)
                batch = next(batches, None) if mine else batch
        if batch is not None:
            raise IntegrityError(f"receipts of row {batch[0]} were added behind the history", hint=_HINT)
        _verify_devices({str(row["id"]): row for row in _rows(db, devices, devices.c.id)}, enrolled)
    return count, previous


@contextmanager
def _moment(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A connection on which all questions see the database of one moment, while others go on writing."""
    with engine.connect() as db:
        if engine.dialect.name == "sqlite":
            db.exec_driver_sql("BEGIN")
        else:
            db.execution_options(isolation_level="REPEATABLE READ")
        yield db


def _rows(db: sa.Connection, table: sa.Table, order: sa.Column[Any]) -> Iterator[Row]:
    found = db.execute(sa.select(table).order_by(order), execution_options={"yield_per": _TOGETHER})
    return ({**row} for row in found.mappings())


def _verify_batch(row: Row, found: Sequence[Row], keys: Mapping[str, SSlibKey]) -> None:
    told = json.loads(row["data"])
    found = sorted(found, key=lambda item: (item["device"], item["sequence"]))  # by code points: databases have orders of their own
    whole = len(found) == told["count"] and batch_digest(found) == told["digest"]
    for item in found if whole else ():
        receipt = verify_receipt(item["envelope"], keys.get)
        whole = whole and all(getattr(receipt, name) == item[name] for name in ("device", "sequence", *CONTENT))
    if not whole:
        raise IntegrityError(f"receipts of row {row['number']} were changed", hint=_HINT)


def _verify_devices(held: Mapping[str, Row], enrolled: Mapping[str, Row]) -> None:
    for device in sorted({*held, *enrolled}):
        row = held.get(device)
        if row is None or any(row[name] != value for name, value in enrolled.get(device, {"id": ""}).items()):
            raise IntegrityError(f"device {device} was changed behind the history", hint=_HINT)
