"""`Store`: a device's folder, with one SQLite database as the only truth that must last.

    base/           the copied Bundle, never changed
    objects/        patch files by SHA-256, written once
    trust/          public keys that may sign patches
    state.sqlite    generations, trials, history, floors, receipts (WAL, synchronous=FULL on every connection)

Guarantees: a refused patch changes no byte of the store; a generation's number never comes back; there is exactly one head
and at most one trial, which is made for that head; an attempt is durable before any weight is loaded; a receipt is queued in the
transaction of what it tells.  Holds no model.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from edgeedit.bundle import (
    BUNDLE_FILE,
    GOLDEN_FILE,
    MODEL_FILE,
    PROBES_FILE,
    REFERENCE_FILE,
    WEIGHTS_FILE,
    Bundle,
    load_bundle,
    verify_bundle,
)
from edgeedit.device import state
from edgeedit.device.fit import check_fit
from edgeedit.device.floors import StoreFloors
from edgeedit.device.garbage import Collected, collect
from edgeedit.device.owner import is_gone, uptime
from edgeedit.device.receipts import StoreReceipts
from edgeedit.device.state import Generation
from edgeedit.digest import digest_blocks
from edgeedit.errors import EdgeEditError, InputError, IntegrityError, MismatchError, RefusedError
from edgeedit.files import Octets, blocks, copy_file, fsync_dir, replacing
from edgeedit.limits import MAX_CHAIN, MAX_TRIAL_ATTEMPTS
from edgeedit.patch.keys import PublicKey, load_trust
from edgeedit.patch.read import Patch, read_unverified

DATABASE, BASE, OBJECTS, TRUST = "state.sqlite", "base", "objects", "trust"
_NO_KEY = "without a key every patch is refused"
REFUSED = "signature refused"  # in the history


class Store:
    """An open store; use it as a context manager.  Thread-safe by one connection per call."""

    def __init__(self, path: Path, bundle: Bundle, trust: tuple[PublicKey, ...]) -> None:
        self.path, self.bundle, self.trust = path, bundle, trust

    @classmethod
    def create(cls, path: Path, bundle: Path, trust: Sequence[Path], *, device: str = "") -> Store:
        """Provision: copy the Bundle and the keys and verify the copy; `device` is the camera's name in the fleet, "" draws one.

        Raises InputError when the store exists or no key is given, IntegrityError when the Bundle was changed, RefusedError when
        the disk refuses; there is then no store."""
        if path.exists():
            raise InputError(f"store exists already: expected a new folder, got {path}", hint="choose another folder")
        if not load_trust(list(trust)):
            raise InputError("no trusted key: expected at least one, got none", hint=_NO_KEY)
        source = load_bundle(bundle)
        temp = path.with_name(f".{path.name}.{os.getpid()}.new")
        try:
            _fill(temp, source, trust, device)
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
        """Open a provisioned store; raises InputError when there is none, IntegrityError when it is damaged."""
        if not (path / DATABASE).is_file():
            raise InputError(f"no store at {path}: expected a provisioned folder", hint="run `edgeedit provision` first")
        state.check_schema(path / DATABASE)
        return cls(path, load_bundle(path / BASE), load_trust([path / TRUST]))

    def __enter__(self) -> Store:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Nothing is kept open between calls; here for symmetry."""

    def anchor(self) -> sqlite3.Connection:
        """An idle connection.  Whoever polls holds one, or SQLite would make and remove two files at every poll."""
        return state.connect(self.path / DATABASE)

    def _read(self) -> AbstractContextManager[sqlite3.Connection]:
        return state.transaction(self.path / DATABASE, write=False)

    def _write(self) -> AbstractContextManager[sqlite3.Connection]:
        return state.transaction(self.path / DATABASE, write=True)

    @property
    def device(self) -> str:
        """The camera's name in rollouts and receipts."""
        with self._read() as db:
            return state.read_device(db)

    @property
    def floors(self) -> StoreFloors:
        """Numbers that never fall."""
        return StoreFloors(self.path / DATABASE)

    @property
    def receipts(self) -> StoreReceipts:
        """What waits to be told to the fleet's server."""
        return StoreReceipts(self.path / DATABASE)

    def generation(self, number: int) -> Generation:
        """One generation; raises InputError when there is none."""
        with self._read() as db:
            return state.read_generation(db, number)

    def head(self) -> Generation:
        """The generation that is proven and to be run."""
        return self.current()[0]

    def trial(self) -> Generation | None:
        """The staged or trying generation, if any."""
        return self.current()[1]

    def current(self) -> tuple[Generation, Generation | None]:
        """Head and trial of one moment."""
        with self._read() as db:
            return state.read_head(db), state.read_trial(db)

    def chain(self, number: int) -> tuple[Generation, ...]:
        """The generations from the first patch to `number`; empty for the base."""
        with self._read() as db:
            return state.read_chain(db, number)

    def failed_patches(self) -> frozenset[str]:
        """Digests of patches that failed here, that the store refused, or that somebody rolled back; not those that were only left."""
        return frozenset(self.failures())

    def failures(self) -> dict[str, str]:
        """The same digests, each with the reason."""
        query = """SELECT patch, reason FROM generation WHERE state = 'reverted' AND reason <> :left
            UNION SELECT patch, reason FROM receipt WHERE state = 'reverted' AND reason <> :left"""
        with self._read() as db:
            return {str(row[0]): str(row[1]) for row in db.execute(query, {"left": state.LEFT}).fetchall()}

    def chain_bytes(self, number: int) -> int:
        """Bytes of the patch files of a generation's chain; a missing file counts nothing, as reading it will say so."""
        paths = [self._object(generation.patch) for generation in self.chain(number)]
        return sum(path.stat().st_size for path in paths if path.is_file())

    def history(self) -> list[dict[str, Any]]:
        """All events, oldest first: time (UTC), generation, event, reason."""
        with self._read() as db:
            rows = db.execute("SELECT time, generation, event, reason FROM history ORDER BY number").fetchall()
        return [dict(zip(("time", "generation", "event", "reason"), row, strict=True)) for row in rows]

    def note_refusal(self, reason: str) -> None:
        """Record that something was refused for its signature or integrity; once, however often it is tried in a row."""
        with self._write() as db:
            last = db.execute("SELECT event, reason FROM history ORDER BY number DESC LIMIT 1").fetchone()
            if last != (REFUSED, reason):
                state.record_event(db, state.read_head(db).id, REFUSED, reason)

    def refusals(self, after: int) -> list[tuple[int, str]]:
        """(number, reason) of the refusals recorded since number `after`, oldest first."""
        query = "SELECT number, reason FROM history WHERE event = ? AND number > ? ORDER BY number"
        with self._read() as db:
            return [(int(number), str(reason)) for number, reason in db.execute(query, (REFUSED, after))]

    def patch(self, digest: str) -> Patch:
        """A stored patch, read and verified again; raises IntegrityError when the object was changed."""
        try:
            data = self._object(digest).read_bytes()
        except OSError as error:
            raise IntegrityError(
                f"patch object {digest[:12]} cannot be read: {error.strerror}", hint="roll back, or stage the patch again"
            ) from error
        patch = read_unverified(data).verify(self.trust)
        if patch.digest != digest:
            raise IntegrityError(
                f"patch object is another patch: expected {digest[:12]}, got {patch.digest[:12]}",
                hint="roll back, or stage the patch again",
            )
        return patch

    def _object(self, digest: str) -> Path:
        return self.path / OBJECTS / f"{digest}.eep"

    def stage(self, data: Octets, *, release: str = "", sequence: int = 0) -> Generation:
        """Verify a patch file's bytes against trust, base, head and chain, and keep it as the trial.

        `release` and `sequence` are those of the order by which it came, if any.  A patch that is the trial or runs already is
        returned unchanged.  Raises IntegrityError (5), MismatchError (4) or RefusedError (6); the store is then unchanged."""
        patch = read_unverified(data).verify(self.trust)
        head, trial = self.current()
        chain = self.chain(head.id)
        known = _already(patch, head, trial, chain)
        if known is not None:
            return known
        check_fit(self.bundle, patch.manifest, head.result)
        self._check_withdrawn(patch.digest, sequence)
        if trial is not None:
            raise RefusedError(
                f"another patch is on trial: generation {trial.id} is {trial.state}", hint="wait until it is confirmed or reverted"
            )
        if len(chain) >= MAX_CHAIN:
            raise RefusedError(f"chain is full: expected at most {MAX_CHAIN} patches", hint="squash the chain on the server")
        return self._keep(patch, head, (release, sequence))

    def _keep(self, patch: Patch, head: Generation, order: tuple[str, int]) -> Generation:
        target = self._object(patch.digest)
        _put(target, patch)
        try:
            with self._write() as db:
                if state.read_head(db) != head or state.read_trial(db) is not None:
                    raise RefusedError("store changed while the patch was checked", hint="stage it again")
                if not target.is_file():  # a collection took it before it had a row; none can run now
                    _put(target, patch)
                return state.add_trial(db, head, patch.digest, patch.manifest.result, order)
        except (RefusedError, IntegrityError):
            # An object that nobody names is harmless and goes at the next collection; the first error is what must be told.
            with contextlib.suppress(EdgeEditError, OSError), self._write() as db:
                if db.execute("SELECT 1 FROM generation WHERE patch = ?", (patch.digest,)).fetchone() is None:
                    target.unlink(missing_ok=True)
            raise

    def collect(self) -> Collected:
        """Remove what no kept generation names; may be interrupted anywhere.  Raises RefusedError when the disk refuses."""
        return collect(self.path / DATABASE, self.path / OBJECTS)

    def _check_withdrawn(self, digest: str, sequence: int) -> None:
        with self._read() as db:
            row = db.execute("SELECT sequence FROM withdrawn WHERE patch = ?", (digest,)).fetchone()
        if row is not None and row[0] >= sequence:
            raise MismatchError(
                f"patch was withdrawn: expected an order after number {row[0]}, got {sequence}", hint="release it again, or make another"
            )

    def claim(self, number: int, owner: str) -> bool:
        """Take the trial for `owner` and count an attempt, durably, before weights load; False when another has it.

        At the limit of attempts the generation is reverted instead and False is returned."""
        with self._write() as db:
            attempts = state.read_generation(db, number).attempts
            row = db.execute("SELECT state, owner, claimed FROM generation WHERE id = ?", (number,)).fetchone()
            if row[0] not in ("staged", "trying") or (row[1] not in ("", owner) and not is_gone(row[1], row[2])):
                return False
            if attempts >= MAX_TRIAL_ATTEMPTS:
                state.set_state(db, number, "reverted", f"{attempts} attempts without an end")
                return False
            change = "UPDATE generation SET state = 'trying', attempts = attempts + 1, owner = ?, claimed = ? WHERE id = ?"
            db.execute(change, (owner, uptime(), number))
            state.record_event(db, number, "trying", f"attempt {attempts + 1}")
            return True

    def beat(self, number: int, owner: str) -> bool:
        """Note progress of `owner`'s trial; False when it is theirs no longer (withdrawn, or taken over)."""
        with self._write() as db:
            change = "UPDATE generation SET claimed = ? WHERE id = ? AND owner = ? AND state = 'trying'"
            return db.execute(change, (uptime(), number, owner)).rowcount == 1

    def confirm(self, number: int, owner: str) -> bool:
        """`owner`'s trial is proven and becomes the head; False, and no change, when the trial is theirs no longer."""
        with self._write() as db:
            if not _holds(db, number, owner):
                return False
            state.set_state(db, number, "confirmed", "")
            state.move_head(db, number)
            return True

    def revert(self, number: int, reason: str, *, owner: str | None = None) -> bool:
        """End a trial (with `owner`, only while it is theirs), or leave a head that failed elsewhere for its parent.

        False, and no change, for any other generation: what others were built on stays what it is."""
        with self._write() as db:
            row = state.read_generation(db, number)
            if row.state in ("staged", "trying"):
                if owner is not None and not _holds(db, number, owner):
                    return False
                state.set_state(db, number, "reverted", reason)
            elif row.state == "confirmed" and row.parent is not None and state.read_head(db).id == number:
                state.set_state(db, number, "reverted", reason)
                state.move_head(db, row.parent)
            else:
                return False
            return True

    def leave(self, patch: str, reason: str) -> bool:
        """Leave the patch of that digest, whether it is on trial or runs as the head; False, and no change, where it does neither."""
        for generation in reversed(self.current()):
            if generation is not None and generation.patch == patch:
                return self.revert(generation.id, reason)
        return False

    def rollback(self) -> Generation:
        """Point the head to the former generation; raises MismatchError when the base is running already."""
        with self._write() as db:
            head = state.read_head(db)
            if head.parent is None:
                raise MismatchError("nothing to roll back: expected a patched generation, got the base", hint="see `edgeedit status`")
            state.record_event(db, head.parent, "rolled back", f"from generation {head.id}")
            state.add_receipt(db, head.id, "reverted", "rolled back by hand")
            state.move_head(db, head.parent)
            return state.read_generation(db, head.parent)

    def withdraw(self, patch: str, *, to: str = "", sequence: int = 0, reason: str = "") -> Generation:
        """Leave the patch of digest `patch` by signed order: the head moves to the generation below it, or to the one of the chain
        whose result is `to`; the patch is refused from now on unless a later order names it.  Returns the head; repeating changes nothing.

        Raises MismatchError, and changes nothing, when `to` is not below the patch in the chain."""
        with self._write() as db:
            db.execute("INSERT OR IGNORE INTO withdrawn VALUES (?, ?)", (patch, sequence))
            db.execute("UPDATE withdrawn SET sequence = max(sequence, ?) WHERE patch = ?", (sequence, patch))
            head, trial = state.read_head(db), state.read_trial(db)
            chain = state.read_chain(db, head.id)
            at = next((number for number, generation in enumerate(chain) if generation.patch == patch), None)
            left = [trial] if trial is not None and trial.patch == patch else []
            if at is not None:
                below = [state.read_generation(db, 0), *chain[:at]]
                target = next((g for g in reversed(below) if not to or g.result == to), None)
                if target is None:
                    raise MismatchError(f"cannot withdraw: expected a generation {to[:12]} below the patch, got none in this store")
                left += [generation for generation in reversed(chain) if generation.id > target.id]
                state.move_head(db, target.id)
            for generation in left:
                state.set_state(db, generation.id, "withdrawn", reason)
            return state.read_head(db)


def _holds(db: sqlite3.Connection, number: int, owner: str) -> bool:
    row = db.execute("SELECT state, owner FROM generation WHERE id = ?", (number,)).fetchone()
    return bool(row == ("trying", owner))


def _put(target: Path, patch: Patch) -> None:
    with replacing(target) as handle:
        if digest_blocks(_written(handle, patch.data)) != patch.digest:
            raise IntegrityError("patch changed while it was copied: its digest differs", hint="stage it again")


def _written(handle: BinaryIO, data: Octets) -> Iterator[bytes]:
    for block in blocks(data):
        handle.write(block)
        yield block


def _already(patch: Patch, head: Generation, trial: Generation | None, chain: Sequence[Generation]) -> Generation | None:
    """The generation that this patch made already, unless it fits on the head once more (its effect was undone by a later patch)."""
    known = [generation for generation in (trial, *reversed(chain)) if generation is not None and generation.patch == patch.digest]
    if not known:
        return None
    return known[0] if known[0] in (trial, head) or patch.manifest.parent != head.result else None


def _fill(folder: Path, source: Bundle, trust: Sequence[Path], device: str) -> None:
    for name in (BASE, OBJECTS, TRUST):
        (folder / name).mkdir(parents=True)
    extra = [name for name, digest in ((GOLDEN_FILE, source.golden_digest), (REFERENCE_FILE, source.reference_digest)) if digest]
    for name in (MODEL_FILE, WEIGHTS_FILE, PROBES_FILE, *extra, BUNDLE_FILE):
        copy_file(source.path / name, folder / BASE / name)
    # The copy is what will run, so the copy is what is verified.
    verify_bundle(load_bundle(folder / BASE))
    for number, key in enumerate(p for t in trust for p in (sorted(t.glob("*.pub")) if t.is_dir() else [t])):
        copy_file(key, folder / TRUST / f"{number}-{key.stem}.pub")
    state.create_database(folder / DATABASE, source.fingerprint, device)
    for name in (BASE, OBJECTS, TRUST, "."):
        fsync_dir(folder / name)
