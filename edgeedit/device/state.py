"""The store's database: connections and the rows that a `Store` reads and writes.

Guarantees: every connection is WAL with synchronous=FULL; a transaction is whole or absent; whatever SQLite says becomes a
RefusedError (disk, permissions, lock) or an IntegrityError (the file is damaged).  Decides nothing about patches.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edgeedit.device.schema import SCHEMA_VERSION, bring_up_to_date, version_of
from edgeedit.errors import InputError, IntegrityError, RefusedError
from edgeedit.limits import MAX_RECEIPTS

_BUSY_SECONDS = 10.0
LEFT = "the generation it was made for was left"  # why a trial ended without being at fault
_FIELDS = "id, parent, patch, result, state, attempts, reason, release, sequence"


@dataclass(frozen=True)
class Generation:
    """Base + ordered patches.  `state` is base, staged, trying, confirmed, reverted or withdrawn; `result` its fingerprint;
    `release` and `sequence` say by which order it came over the air, "" and 0 when it was given by hand."""

    id: int
    parent: int | None
    patch: str
    result: str
    state: str
    attempts: int
    reason: str
    release: str = ""
    sequence: int = 0


def connect(path: Path) -> sqlite3.Connection:
    """A connection with the durability that every use needs; raises what `transaction` raises.  May be closed by another thread."""
    with _translated():
        connection = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
        except sqlite3.Error:
            connection.close()
            raise
    return connection


@contextmanager
def transaction(path: Path, *, write: bool) -> Iterator[sqlite3.Connection]:
    """One transaction on a connection of its own; rolled back when the body raises.  Raises RefusedError or IntegrityError."""
    connection = connect(path)
    try:
        with _translated():
            connection.execute("BEGIN IMMEDIATE" if write else "BEGIN")
            yield connection
            connection.execute("COMMIT")
    finally:
        # Closing drops an open transaction; a rollback of its own could hide the first error.
        connection.close()


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        raise RefusedError(f"store cannot be used: {error}", hint="check disk space and permissions") from error
    except sqlite3.DatabaseError as error:
        raise IntegrityError(f"store is damaged: {error}", hint="provision the device again") from error


def create_database(path: Path, fingerprint: str, device: str = "") -> None:
    """A new database whose head is generation 0, the base of `fingerprint`; `device` "" draws a name."""
    connection = connect(path)
    try:
        with _translated():
            bring_up_to_date(connection, device)
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("INSERT INTO generation (id, parent, patch, result, state) VALUES (0, NULL, '', ?, 'base')", (fingerprint,))
            connection.execute("INSERT INTO head VALUES (1, 0)")
            record_event(connection, 0, "provisioned", "")
            connection.execute("COMMIT")
    finally:
        connection.close()


def check_schema(path: Path) -> None:
    """Bring an older database up to date; raise MismatchError (exit 4) when a later edgeedit made it."""
    with transaction(path, write=False) as db:
        version = version_of(db)
    if version == SCHEMA_VERSION:
        return
    connection = connect(path)
    try:
        with _translated():
            bring_up_to_date(connection)
    finally:
        connection.close()


def read_generation(db: sqlite3.Connection, number: int) -> Generation:
    """One generation; raises InputError when there is none."""
    row = db.execute(f"SELECT {_FIELDS} FROM generation WHERE id = ?", (number,)).fetchone()  # noqa: S608 - constant column names
    if row is None:
        raise InputError(f"no such generation: got {number}", hint="see `edgeedit status`")
    return Generation(*row)


def read_head(db: sqlite3.Connection) -> Generation:
    """The generation that is proven and to be run."""
    return read_generation(db, int(db.execute("SELECT generation FROM head").fetchone()[0]))


def read_trial(db: sqlite3.Connection) -> Generation | None:
    """The staged or trying generation, if any."""
    row = db.execute(f"SELECT {_FIELDS} FROM generation WHERE state IN ('staged', 'trying')").fetchone()  # noqa: S608 - constant column names
    return None if row is None else Generation(*row)


def read_chain(db: sqlite3.Connection, number: int) -> tuple[Generation, ...]:
    """The generations from the first patch to `number`; empty for the base."""
    found: list[Generation] = []
    current = read_generation(db, number)
    while current.parent is not None:
        found.append(current)
        current = read_generation(db, current.parent)
    return tuple(reversed(found))


def add_trial(db: sqlite3.Connection, parent: Generation, patch: str, result: str, order: tuple[str, int] = ("", 0)) -> Generation:
    """A new staged generation on `parent`; its number was never used before.  `order` is release and sequence."""
    number = int(db.execute("SELECT MAX(id) + 1 FROM generation").fetchone()[0])
    row = (number, parent.id, patch, result, *order)
    db.execute("INSERT INTO generation (id, parent, patch, result, state, release, sequence) VALUES (?, ?, ?, ?, 'staged', ?, ?)", row)
    record_event(db, number, "staged", "")
    add_receipt(db, number, "staged", "")
    return read_generation(db, number)


def set_state(db: sqlite3.Connection, number: int, state: str, reason: str) -> None:
    """Change a generation's state and record it, with its receipt; nobody holds it afterwards."""
    db.execute("UPDATE generation SET state = ?, reason = ?, owner = '' WHERE id = ?", (state, reason, number))
    record_event(db, number, state, reason)
    add_receipt(db, number, state, reason)


def move_head(db: sqlite3.Connection, number: int) -> None:
    """Point the head elsewhere and remember what ran; a trial that was made for the former head ends, as it fits no longer."""
    db.execute("INSERT INTO former (generation) SELECT generation FROM head")
    db.execute("UPDATE head SET generation = ?", (number,))
    trial = read_trial(db)
    if trial is not None and trial.parent != number:
        set_state(db, trial.id, "reverted", LEFT)


def add_receipt(db: sqlite3.Connection, number: int, state: str, reason: str) -> None:
    """Queue the receipt of a transition in the transaction that makes it; what was given by hand has no receipt."""
    row = read_generation(db, number)
    if row.release:
        queue_receipt(db, row.release, state, row.patch, number, reason)


def queue_receipt(db: sqlite3.Connection, release: str, state: str, patch: str, number: int, reason: str) -> None:
    """Queue one receipt; its number is the device's receipt sequence and never comes back.  The oldest go above MAX_RECEIPTS."""
    row = (release, state, patch, number, reason, max(0, int(time.time())))
    db.execute("INSERT INTO receipt (release, state, patch, generation, reason, time) VALUES (?, ?, ?, ?, ?, ?)", row)
    db.execute("DELETE FROM receipt WHERE id <= (SELECT MAX(id) FROM receipt) - ?", (MAX_RECEIPTS,))


def read_device(db: sqlite3.Connection) -> str:
    """The device's name in rollouts and receipts."""
    return str(db.execute("SELECT name FROM device").fetchone()[0])


def record_event(db: sqlite3.Connection, number: int, event: str, reason: str) -> None:
    """Append to the history; times are UTC."""
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    db.execute("INSERT INTO history (time, generation, event, reason) VALUES (?, ?, ?, ?)", (now, number, event, reason))
