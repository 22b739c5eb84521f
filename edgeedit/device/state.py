"""The store's database: schema, connections and the rows that a `Store` reads and writes.

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

from edgeedit.errors import InputError, IntegrityError, MismatchError, RefusedError

SCHEMA_VERSION = 1  # PRAGMA user_version of a store that this code understands
_BUSY_SECONDS = 10.0
_SCHEMA = f"""
CREATE TABLE generation (
  id INTEGER PRIMARY KEY, parent INTEGER, patch TEXT NOT NULL, result TEXT NOT NULL, state TEXT NOT NULL,
  attempts INTEGER NOT NULL DEFAULT 0, reason TEXT NOT NULL DEFAULT '', owner TEXT NOT NULL DEFAULT '',
  claimed REAL NOT NULL DEFAULT 0);
CREATE TABLE head (one INTEGER PRIMARY KEY CHECK (one = 1), generation INTEGER NOT NULL);
CREATE TABLE history (number INTEGER PRIMARY KEY AUTOINCREMENT, time TEXT NOT NULL, generation INTEGER NOT NULL,
  event TEXT NOT NULL, reason TEXT NOT NULL);
PRAGMA user_version = {SCHEMA_VERSION};
"""
_FIELDS = "id, parent, patch, result, state, attempts, reason"


@dataclass(frozen=True)
class Generation:
    """Base + ordered patches.  `state` is base, staged, trying, confirmed or reverted; `result` its fingerprint."""

    id: int
    parent: int | None
    patch: str
    result: str
    state: str
    attempts: int
    reason: str


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


def create_database(path: Path, fingerprint: str) -> None:
    """A new database whose head is generation 0, the base of `fingerprint`."""
    connection = connect(path)
    try:
        with _translated():
            connection.executescript(_SCHEMA)
            connection.execute("INSERT INTO generation (id, parent, patch, result, state) VALUES (0, NULL, '', ?, 'base')", (fingerprint,))
            connection.execute("INSERT INTO head VALUES (1, 0)")
            record_event(connection, 0, "provisioned", "")
    finally:
        connection.close()


def check_schema(path: Path) -> None:
    """Raise MismatchError (exit 4) when another version of edgeedit made the database."""
    with transaction(path, write=False) as db:
        version = int(db.execute("PRAGMA user_version").fetchone()[0])
    if version != SCHEMA_VERSION:
        raise MismatchError(f"store is of another version: expected {SCHEMA_VERSION}, got {version}", hint="upgrade edgeedit here")


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


def add_trial(db: sqlite3.Connection, parent: Generation, patch: str, result: str) -> Generation:
    """A new staged generation on `parent`; its number was never used before."""
    number = int(db.execute("SELECT MAX(id) + 1 FROM generation").fetchone()[0])
    row = (number, parent.id, patch, result)
    db.execute("INSERT INTO generation (id, parent, patch, result, state) VALUES (?, ?, ?, ?, 'staged')", row)
    record_event(db, number, "staged", "")
    return read_generation(db, number)


def set_state(db: sqlite3.Connection, number: int, state: str, reason: str) -> None:
    """Change a generation's state and record it; nobody holds it afterwards."""
    db.execute("UPDATE generation SET state = ?, reason = ?, owner = '' WHERE id = ?", (state, reason, number))
    record_event(db, number, state, reason)


def move_head(db: sqlite3.Connection, number: int) -> None:
    """Point the head elsewhere; a trial that was made for the former head ends, as it fits no longer."""
    db.execute("UPDATE head SET generation = ?", (number,))
    trial = read_trial(db)
    if trial is not None and trial.parent != number:
        set_state(db, trial.id, "reverted", "the generation it was made for was left")


def record_event(db: sqlite3.Connection, number: int, event: str, reason: str) -> None:
    """Append to the history; times are UTC."""
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    db.execute("INSERT INTO history (time, generation, event, reason) VALUES (?, ?, ?, ?)", (now, number, event, reason))
