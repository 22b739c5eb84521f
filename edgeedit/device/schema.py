"""The tables of a store's database, made and brought up to date by the same steps.

Guarantees: a database is of one version or of the next, never between (each step is one transaction); a store that a later
release made is refused (exit 4) and not touched.  Raises what SQLite raises; `state` translates it.
"""

from __future__ import annotations

import sqlite3
import uuid

from edgeedit.errors import MismatchError

_FIRST = (
    "CREATE TABLE generation (id INTEGER PRIMARY KEY, parent INTEGER, patch TEXT NOT NULL, result TEXT NOT NULL, state TEXT NOT NULL, "
    "attempts INTEGER NOT NULL DEFAULT 0, reason TEXT NOT NULL DEFAULT '', owner TEXT NOT NULL DEFAULT '', "
    "claimed REAL NOT NULL DEFAULT 0)",
    "CREATE TABLE head (one INTEGER PRIMARY KEY CHECK (one = 1), generation INTEGER NOT NULL)",
    "CREATE TABLE history (number INTEGER PRIMARY KEY AUTOINCREMENT, time TEXT NOT NULL, generation INTEGER NOT NULL, "
    "event TEXT NOT NULL, reason TEXT NOT NULL)",
)
# Over the air: which release a generation came by, floors, receipts, what was withdrawn, what ran before, the device's name.
_SECOND = (
    "ALTER TABLE generation ADD COLUMN release TEXT NOT NULL DEFAULT ''",
    "ALTER TABLE generation ADD COLUMN sequence INTEGER NOT NULL DEFAULT 0",
    "CREATE TABLE floor (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID",
    "CREATE TABLE receipt (id INTEGER PRIMARY KEY AUTOINCREMENT, release TEXT NOT NULL, state TEXT NOT NULL, patch TEXT NOT NULL, "
    "generation INTEGER NOT NULL, reason TEXT NOT NULL, time INTEGER NOT NULL, sent INTEGER NOT NULL DEFAULT 0)",
    "CREATE TABLE withdrawn (patch TEXT PRIMARY KEY, sequence INTEGER NOT NULL) WITHOUT ROWID",
    "CREATE TABLE former (number INTEGER PRIMARY KEY AUTOINCREMENT, generation INTEGER NOT NULL)",
    "CREATE TABLE device (one INTEGER PRIMARY KEY CHECK (one = 1), name TEXT NOT NULL)",
)
_STEPS = (_FIRST, _SECOND)
SCHEMA_VERSION = len(_STEPS)  # PRAGMA user_version of a store that this code understands


def version_of(db: sqlite3.Connection) -> int:
    """The version of an open database; 0 for an empty one."""
    return int(db.execute("PRAGMA user_version").fetchone()[0])


def bring_up_to_date(db: sqlite3.Connection, device: str = "") -> None:
    """Run the steps that are missing, each whole or not at all; `device` names a new device, "" draws a name.

    Raises MismatchError when the database is of a later version."""
    if version_of(db) > SCHEMA_VERSION:
        raise MismatchError(
            f"store is of another version: expected {SCHEMA_VERSION}, got {version_of(db)}", hint="upgrade edgeedit on this device"
        )
    while version_of(db) < SCHEMA_VERSION:
        db.execute("BEGIN IMMEDIATE")
        version = version_of(db)  # another process may have made the step meanwhile
        if version < SCHEMA_VERSION:
            for statement in _STEPS[version]:
                db.execute(statement)
            if version == 1:
                db.execute("INSERT INTO device VALUES (1, ?)", (device or f"camera-{uuid.uuid4().hex[:12]}",))
            db.execute(f"PRAGMA user_version = {version + 1}")
        db.execute("COMMIT")
