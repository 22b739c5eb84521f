"""`Store`: a device's folder, with one SQLite database as the only truth that must last.

    base/           the copied Bundle, never changed
    objects/        patch files by SHA-256, written once
    trust/          public keys that may sign patches
    state.sqlite    generations, trials, history (WAL, synchronous=FULL on every connection)

Guarantees: a refused patch changes no byte of the store; a generation's number never comes back; there is exactly one head
and at most one trial; an attempt is durable before any weight is loaded.  Holds no model.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from edgeedit.bundle import Bundle, load_bundle, verify_bundle
from edgeedit.errors import InputError, IntegrityError, MismatchError, RefusedError
from edgeedit.files import copy_file, fsync_dir, replace_file
from edgeedit.limits import MAX_CHAIN, MAX_TRIAL_ATTEMPTS
from edgeedit.patch.keys import PublicKey, load_trust
from edgeedit.patch.read import Patch, read_unverified

DATABASE, BASE, OBJECTS, TRUST = "state.sqlite", "base", "objects", "trust"
CLAIM_SECONDS = 30.0  # a claimed trial without a sign of life for so long may be taken over
_SCHEMA = """
CREATE TABLE generation (
  id INTEGER PRIMARY KEY, parent INTEGER, patch TEXT NOT NULL, result TEXT NOT NULL, state TEXT NOT NULL,
  attempts INTEGER NOT NULL DEFAULT 0, reason TEXT NOT NULL DEFAULT '', owner TEXT NOT NULL DEFAULT '',
  claimed REAL NOT NULL DEFAULT 0);
CREATE TABLE head (one INTEGER PRIMARY KEY CHECK (one = 1), generation INTEGER NOT NULL);
CREATE TABLE history (number INTEGER PRIMARY KEY AUTOINCREMENT, time TEXT NOT NULL, generation INTEGER NOT NULL,
  event TEXT NOT NULL, reason TEXT NOT NULL);
"""


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


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


class Store:
    """An open store; use it as a context manager.  Thread-safe by one connection per call."""

    def __init__(self, path: Path, bundle: Bundle, trust: tuple[PublicKey, ...]) -> None:
        self.path, self.bundle, self.trust = path, bundle, trust

    @classmethod
    def create(cls, path: Path, bundle: Path, trust: Sequence[Path]) -> Store:
        """Provision: verify and copy the Bundle and the keys; raises InputError when the store exists or no key is given."""
        if path.exists():
            raise InputError(f"store exists already: expected a new folder, got {path}", hint="choose another folder")
        if not trust:
            raise InputError("no trusted key: expected at least one, got none", hint="without a key every patch is refused")
        load_trust(list(trust))
        source = load_bundle(bundle)
        verify_bundle(source)
        temp = path.with_name(f".{path.name}.{os.getpid()}.new")
        try:
            _fill(temp, source, trust)
            temp.rename(path)
            fsync_dir(path.parent)
        except OSError as error:
            raise RefusedError(
                f"cannot provision {path}: {error.strerror or error}", hint="free disk space or choose another place"
            ) from error
        finally:
            shutil.rmtree(temp, ignore_errors=True)
        return cls.open(path)

    @classmethod
    def open(cls, path: Path) -> Store:
        """Open a provisioned store; raises InputError when there is none."""
        if not (path / DATABASE).is_file():
            raise InputError(f"no store at {path}: expected a provisioned folder", hint="run `edgeedit provision` first")
        return cls(path, load_bundle(path / BASE), load_trust([path / TRUST]))

    def __enter__(self) -> Store:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Nothing is kept open between calls; here for symmetry."""

    @contextmanager
    def _connect(self, *, write: bool) -> Iterator[sqlite3.Connection]:
        connection = connect(self.path / DATABASE)
        try:
            connection.execute("BEGIN IMMEDIATE" if write else "BEGIN")
            yield connection
            connection.execute("COMMIT")
        except sqlite3.OperationalError as error:
            raise RefusedError(f"store cannot be used: {error}", hint="check disk space and permissions") from error
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            connection.close()

    def generation(self, number: int) -> Generation:
        """One generation; raises InputError when there is none."""
        with self._connect(write=False) as db:
            return _get(db, number)

    def head(self) -> Generation:
        """The generation that is proven and to be run."""
        with self._connect(write=False) as db:
            return _head(db)

    def trial(self) -> Generation | None:
        """The staged or trying generation, if any."""
        with self._connect(write=False) as db:
            return _trial(db)

    def chain(self, number: int) -> tuple[Generation, ...]:
        """The generations from the first patch to `number`; empty for the base."""
        found: list[Generation] = []
        with self._connect(write=False) as db:
            current = _get(db, number)
            while current.parent is not None:
                found.append(current)
                current = _get(db, current.parent)
        return tuple(reversed(found))

    def history(self) -> list[dict[str, Any]]:
        """All events, oldest first: time (UTC), generation, event, reason."""
        with self._connect(write=False) as db:
            rows = db.execute("SELECT time, generation, event, reason FROM history ORDER BY number").fetchall()
        return [dict(zip(("time", "generation", "event", "reason"), row, strict=True)) for row in rows]

    def patch(self, digest: str) -> Patch:
        """A stored patch, read and verified again; raises IntegrityError when the object was changed."""
        try:
            data = (self.path / OBJECTS / f"{digest}.eep").read_bytes()
        except OSError as error:
            raise IntegrityError(
                f"patch object {digest[:12]} cannot be read: {error.strerror}", hint="roll back, or stage the patch again"
            ) from error
        return read_unverified(data).verify(self.trust)

    def stage(self, data: bytes) -> Generation:
        """Verify a patch file's bytes against trust, base, head and chain, and keep it as the trial.

        A patch that is the head or the trial already is returned unchanged.  Raises IntegrityError (5), MismatchError (4) or
        RefusedError (6); the store is then unchanged."""
        patch = read_unverified(data).verify(self.trust)
        head, trial = self.head(), self.trial()
        for known in (head, trial):
            if known is not None and known.patch == patch.digest:
                return known
        self._check(patch, head, trial)
        target = self.path / OBJECTS / f"{patch.digest}.eep"
        replace_file(target, data)
        try:
            with self._connect(write=True) as db:
                if _head(db) != head or _trial(db) is not None:
                    raise RefusedError("store changed while the patch was checked", hint="stage it again")
                number = int(db.execute("SELECT COALESCE(MAX(id), 0) + 1 FROM generation").fetchone()[0])
                row = (number, head.id, patch.digest, patch.manifest.result, "staged")
                db.execute("INSERT INTO generation (id, parent, patch, result, state) VALUES (?, ?, ?, ?, ?)", row)
                _event(db, number, "staged", "")
        except RefusedError:
            if not self._known(patch.digest):
                target.unlink(missing_ok=True)
            raise
        return self.generation(number)

    def _known(self, digest: str) -> bool:
        try:
            with self._connect(write=False) as db:
                return db.execute("SELECT 1 FROM generation WHERE patch = ?", (digest,)).fetchone() is not None
        except RefusedError:
            return True  # cannot tell: keep the object, it is harmless

    def _check(self, patch: Patch, head: Generation, trial: Generation | None) -> None:
        manifest = patch.manifest
        if manifest.recipe != self.bundle.recipe or manifest.precision != self.bundle.precision:
            raise MismatchError(
                f"patch is for another model: expected {self.bundle.recipe} {self.bundle.precision}, "
                f"got {manifest.recipe} {manifest.precision}",
                hint="pack it for this bundle",
            )
        if manifest.parent != head.result:
            raise MismatchError(
                f"patch does not fit: expected parent {head.result[:12]}, got {manifest.parent[:12]}",
                hint="apply the patches in their order, or pack it on this generation",
            )
        if trial is not None:
            raise RefusedError(
                f"another patch is on trial: generation {trial.id} is {trial.state}", hint="wait until it is confirmed or reverted"
            )
        if len(self.chain(head.id)) >= MAX_CHAIN:
            raise RefusedError(f"chain is full: expected at most {MAX_CHAIN} patches", hint="squash the chain on the server")
        known = self.bundle.tensor_map.by_name()
        for row in manifest.tensors:
            tensor = known.get(row.name)
            if tensor is None or not tensor.editable or tensor.shape != row.shape or tensor.dtype != row.dtype:
                raise MismatchError(f"patch touches a tensor that this base does not offer: got {row.name} {row.dtype} {row.shape}")

    def claim(self, number: int, owner: str) -> bool:
        """Take the trial for `owner` and count an attempt, durably, before weights load; False when another has it.

        At the limit of attempts the generation is reverted instead and False is returned."""
        with self._connect(write=True) as db:
            row = db.execute("SELECT state, attempts, owner, claimed FROM generation WHERE id = ?", (number,)).fetchone()
            state, attempts, holder, claimed = row
            if state not in ("staged", "trying") or (
                holder not in ("", owner) and _alive(holder) and time.time() - claimed < CLAIM_SECONDS
            ):
                return False
            if attempts >= MAX_TRIAL_ATTEMPTS:
                _set(db, number, "reverted", f"{attempts} attempts without an end")
                return False
            change = "UPDATE generation SET state = 'trying', attempts = attempts + 1, owner = ?, claimed = ? WHERE id = ?"
            db.execute(change, (owner, time.time(), number))
            _event(db, number, "trying", f"attempt {attempts + 1}")
            return True

    def confirm(self, number: int) -> None:
        """The trial is proven: it becomes the head."""
        with self._connect(write=True) as db:
            if _get(db, number).state == "trying":
                _set(db, number, "confirmed", "")
                db.execute("UPDATE head SET generation = ?", (number,))

    def revert(self, number: int, reason: str) -> None:
        """The trial failed; the head stays.  A confirmed head that fails elsewhere goes back to its parent."""
        with self._connect(write=True) as db:
            row = _get(db, number)
            if row.state in ("staged", "trying", "confirmed"):
                _set(db, number, "reverted", reason)
                if _head(db).id == number:
                    db.execute("UPDATE head SET generation = ?", (row.parent,))

    def rollback(self) -> Generation:
        """Point the head to the former generation; raises MismatchError when the base is running already."""
        with self._connect(write=True) as db:
            head = _head(db)
            if head.parent is None:
                raise MismatchError("nothing to roll back: expected a patched generation, got the base")
            db.execute("UPDATE head SET generation = ?", (head.parent,))
            _event(db, head.parent, "rolled back", f"from generation {head.id}")
            trial = _trial(db)
            if trial is not None:
                _set(db, trial.id, "reverted", "its parent was rolled back")
            return _get(db, head.parent)


def connect(path: Path) -> sqlite3.Connection:
    """A connection with the durability that every use needs: WAL and synchronous=FULL."""
    connection = sqlite3.connect(path, timeout=10.0, isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    return connection


def _fill(folder: Path, source: Bundle, trust: Sequence[Path]) -> None:
    for name in (BASE, OBJECTS, TRUST):
        (folder / name).mkdir(parents=True)
    for name in ("model.onnx", "weights.bin", "probes.npy", "bundle.json"):
        copy_file(source.path / name, folder / BASE / name)
    for number, key in enumerate(p for t in trust for p in (sorted(t.glob("*.pub")) if t.is_dir() else [t])):
        copy_file(key, folder / TRUST / f"{number}-{key.stem}.pub")
    db = connect(folder / DATABASE)
    db.executescript(_SCHEMA)
    db.execute("INSERT INTO generation (id, parent, patch, result, state) VALUES (0, NULL, '', ?, 'base')", (source.fingerprint,))
    db.execute("INSERT INTO head VALUES (1, 0)")
    _event(db, 0, "provisioned", "")
    db.close()
    for name in (BASE, OBJECTS, TRUST, "."):
        fsync_dir(folder / name)


_FIELDS = "id, parent, patch, result, state, attempts, reason"


def _get(db: sqlite3.Connection, number: int) -> Generation:
    row = db.execute(f"SELECT {_FIELDS} FROM generation WHERE id = ?", (number,)).fetchone()  # noqa: S608 - constant column names
    if row is None:
        raise InputError(f"no such generation: got {number}")
    return Generation(*row)


def _head(db: sqlite3.Connection) -> Generation:
    return _get(db, int(db.execute("SELECT generation FROM head").fetchone()[0]))


def _trial(db: sqlite3.Connection) -> Generation | None:
    row = db.execute(f"SELECT {_FIELDS} FROM generation WHERE state IN ('staged', 'trying') ORDER BY id LIMIT 1").fetchone()  # noqa: S608 - constant column names
    return None if row is None else Generation(*row)


def _set(db: sqlite3.Connection, number: int, state: str, reason: str) -> None:
    db.execute("UPDATE generation SET state = ?, reason = ?, owner = '' WHERE id = ?", (state, reason, number))
    _event(db, number, state, reason)


def _event(db: sqlite3.Connection, number: int, event: str, reason: str) -> None:
    db.execute("INSERT INTO history (time, generation, event, reason) VALUES (?, ?, ?, ?)", (_now(), number, event, reason))


def _alive(owner: str) -> bool:
    try:
        os.kill(int(owner.partition("-")[0]), 0)
    except ProcessLookupError:
        return False
    except (PermissionError, ValueError):
        return True
    return True
