"""The store's queue of receipts: what happened to each release here, kept until the fleet's server has it.

The store queues a receipt in the transaction of the transition that it tells; the agent adds what it did itself (offered,
verified).  Guarantees: a row's number grows with every receipt and never comes back, so that a gap shows a loss; capped at
MAX_RECEIPTS, the oldest go first.  Rows are plain values: signing is the sender's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeedit.device import state

_ASIDE = 2  # `sent` of a receipt that the other end rejected; 0 waits, 1 arrived


@dataclass(frozen=True)
class QueuedReceipt:
    """One row: `sequence` counts this device's receipts from 1, `time` is Unix seconds by the device's clock."""

    sequence: int
    device: str
    release: str
    state: str
    patch: str
    generation: int
    reason: str
    time: int


class StoreReceipts:
    """Receipts of the store whose database is `path`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def note(self, release: str, state_word: str, patch: str, *, generation: int = 0, reason: str = "") -> None:
        """Queue what the agent did; nothing when the release's newest receipt says the same already."""
        told = (state_word, patch, reason)
        with state.transaction(self._path, write=False) as db:
            newest = db.execute(
                "SELECT state, patch, reason FROM receipt WHERE release = ? ORDER BY id DESC LIMIT 1", (release,)
            ).fetchone()
        if newest == told:
            return
        with state.transaction(self._path, write=True) as db:
            state.queue_receipt(db, release, state_word, patch, generation, reason)

    def waiting(self, limit: int) -> list[QueuedReceipt]:
        """The oldest `limit` receipts that nobody has acknowledged."""
        with state.transaction(self._path, write=False) as db:
            device = state.read_device(db)
            columns = "id, release, state, patch, generation, reason, time"
            rows = db.execute(f"SELECT {columns} FROM receipt WHERE sent = 0 ORDER BY id LIMIT ?", (limit,)).fetchall()  # noqa: S608 - constant
        return [QueuedReceipt(row[0], device, *row[1:]) for row in rows]

    def said(self, release: str, state_word: str, patch: str) -> bool:
        """Whether the release's receipts, sent or not, say this already."""
        query = "SELECT 1 FROM receipt WHERE release = ? AND state = ? AND patch = ? LIMIT 1"
        with state.transaction(self._path, write=False) as db:
            return db.execute(query, (release, state_word, patch)).fetchone() is not None

    def set_aside(self, sequence: int) -> None:
        """Keep a receipt that the other end rejects, and do not send it for now."""
        with state.transaction(self._path, write=True) as db:
            db.execute("UPDATE receipt SET sent = ? WHERE id = ? AND sent = 0", (_ASIDE, sequence))

    def aside(self) -> int:
        """How many were set aside."""
        with state.transaction(self._path, write=False) as db:
            return int(db.execute("SELECT COUNT(*) FROM receipt WHERE sent = ?", (_ASIDE,)).fetchone()[0])

    def again(self) -> None:
        """Let those that were set aside wait to be sent once more."""
        with state.transaction(self._path, write=True) as db:
            db.execute("UPDATE receipt SET sent = 0 WHERE sent = ?", (_ASIDE,))

    def done(self, sequences: Sequence[int]) -> None:
        """Mark as acknowledged; unknown numbers change nothing."""
        if not sequences:
            return
        with state.transaction(self._path, write=True) as db:
            db.executemany("UPDATE receipt SET sent = 1 WHERE id = ?", [(number,) for number in sequences])
