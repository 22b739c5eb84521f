"""Removes from a store what no kept generation names: patch objects, files that a dead writer left, old rows.

Kept: the head's chain, the trial, and at least KEPT_FORMER other generations that ran before, each with its chain.
Guarantees: may be interrupted anywhere and run again; runs under the database's write lock, where staging writes its object
again if a collection took it before it had a row.
"""

from __future__ import annotations

import os
import re
import sqlite3
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgeedit.device import state
from edgeedit.errors import RefusedError
from edgeedit.limits import KEPT_FORMER, MAX_HISTORY

_OBJECT = re.compile(r"([0-9a-f]{64})\.eep")
_TEMP = re.compile(r"\..+\.([0-9]+)\.tmp")
_KEPT_ROWS = 1000  # newest generations whose rows stay for the record


@dataclass(frozen=True)
class Collected:
    """How many files and bytes a collection removed, and how many objects are left."""

    removed: int
    freed_bytes: int
    kept: int

    def to_json(self) -> dict[str, Any]:
        """Plain JSON object."""
        return asdict(self)


def kept_generations(db: sqlite3.Connection) -> set[int]:
    """Numbers of the generations whose patches stay."""
    head, trial = state.read_head(db), state.read_trial(db)
    wanted = [head.id, *([trial.id] if trial is not None else [])]
    former = 0
    for (number,) in db.execute("SELECT generation FROM former GROUP BY generation ORDER BY MAX(number) DESC").fetchall():
        if former == KEPT_FORMER:
            break
        if number != head.id and state.read_generation(db, number).state in ("confirmed", "base"):
            wanted.append(number)
            former += 1
    return {0, *(generation.id for number in wanted for generation in state.read_chain(db, number))}


def collect(database: Path, objects: Path) -> Collected:
    """One collection.  Raises RefusedError when the disk refuses; what was removed by then stays removed."""
    removed, freed, kept = 0, 0, 0
    with state.transaction(database, write=True) as db:
        numbers = kept_generations(db)
        digests = {state.read_generation(db, number).patch for number in numbers}
        try:
            for path in sorted(objects.iterdir()):
                if _is_wanted(path.name, digests):
                    kept += 1
                    continue
                freed += path.stat().st_size
                path.unlink()
                removed += 1
        except OSError as error:
            raise RefusedError(f"cannot clean {objects}: {error.strerror or error}", hint="check the disk") from error
        _trim(db, numbers)
    return Collected(removed, freed, kept)


def _is_wanted(name: str, digests: set[str]) -> bool:
    found = _OBJECT.fullmatch(name)
    if found:
        return found[1] in digests
    temp = _TEMP.fullmatch(name)
    # A living writer's file: should it be that of another process with the number, the next collection takes it.
    return temp is not None and _lives(int(temp[1]))


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _trim(db: sqlite3.Connection, kept: set[int]) -> None:
    db.execute("DELETE FROM history WHERE number <= (SELECT MAX(number) FROM history) - ?", (MAX_HISTORY,))
    newest = int(db.execute("SELECT MAX(id) FROM generation").fetchone()[0])
    old = [row[0] for row in db.execute("SELECT id FROM generation WHERE id <= ?", (newest - _KEPT_ROWS,)).fetchall()]
    for number in set(old) - kept:
        db.execute("DELETE FROM generation WHERE id = ?", (number,))
        db.execute("DELETE FROM former WHERE generation = ?", (number,))
    # Of what ran before, only each generation's latest time matters.
    db.execute("DELETE FROM former WHERE number NOT IN (SELECT MAX(number) FROM former GROUP BY generation)")
