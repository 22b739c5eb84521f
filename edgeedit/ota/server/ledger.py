"""The ledger: enrolled devices, their receipts, when stages were opened, and an audit log in which every row seals the ones before.

Guarantees: a receipt counts once however often it arrives, and only when the key of the device that it names signed it; a changed,
removed or inserted row of the audit log, and a changed receipt, is found by `verify_history`.  SQLite (WAL, synced) or PostgreSQL.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from securesystemslib.signer import SSlibKey

from edgeedit.errors import EdgeEditError, InputError, IntegrityError, RefusedError, UnreachableError
from edgeedit.ota.client.receipts import Receipt, verify_receipt
from edgeedit.ota.client.rollout import Device
from edgeedit.ota.server import history
from edgeedit.ota.server.tables import CONTENT, FIRST_HASH, audit, batch_digest, devices, openings, read_key, receipts, seal
from edgeedit.ota.server.tree import Clock, utc_now

FINAL = ("confirmed", "reverted", "withdrawn")
MAX_TOGETHER = 512  # receipts in one transaction
_Id = tuple[str, int]  # device, sequence
_LOCK = 0x65646765  # PostgreSQL advisory lock of whoever appends to the audit log


@dataclass(frozen=True)
class Enrolled:
    """A device of a site, with the key that signs its receipts."""

    device: Device
    site: str
    key: SSlibKey


@dataclass
class Ingested:
    """What became of a batch: new receipts, known ones, and why the others were refused."""

    accepted: int = 0
    known: int = 0
    refused: list[str] = field(default_factory=list)


class Ledger:
    """One database.  Opening it brings its schema up to date; safe for several processes."""

    def __init__(self, url: str, clock: Clock = utc_now) -> None:
        """`sqlite:///FILE` (or a plain file name) or `postgresql://...`; raises RefusedError or UnreachableError."""
        self.url = url if "://" in url else f"sqlite:///{url}"
        if self.url.startswith("postgresql://"):
            self.url = self.url.replace("postgresql://", "postgresql+psycopg://", 1)
        self.clock = clock
        try:
            self.engine = sa.create_engine(self.url)
        except (sa.exc.ArgumentError, sa.exc.NoSuchModuleError) as error:
            raise InputError(f"not a ledger address: got {url}", hint="give a file or postgresql://user@host/database") from error
        if self.engine.dialect.name == "sqlite":
            sa.event.listen(self.engine, "connect", _durable)
        self._migrate()

    def _migrate(self) -> None:
        from alembic import command
        from alembic.config import Config

        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
        with self.transaction() as db:
            config.attributes["connection"] = db
            command.upgrade(config, "head")

    def close(self) -> None:
        """Give up the connections."""
        self.engine.dispose()

    def now(self) -> int:
        """Unix seconds by the ledger's clock."""
        return int(self.clock().timestamp())

    @contextmanager
    def transaction(self) -> Iterator[sa.Connection]:
        """One writing transaction, alone; rolled back when the body raises.  Raises RefusedError or UnreachableError."""
        try:
            with self.engine.begin() as db:
                if self.engine.dialect.name == "sqlite":
                    db.exec_driver_sql("BEGIN IMMEDIATE")
                else:
                    db.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
                yield db
        except sa.exc.OperationalError as error:
            kind = RefusedError if self.engine.dialect.name == "sqlite" else UnreachableError
            raise kind(f"ledger cannot be used: {error.orig}", hint="check its address, disk space and permissions") from error
        except sa.exc.DBAPIError as error:
            raise IntegrityError(f"ledger refuses: {error.orig}", hint="`edgeedit history --verify`") from error

    def record(self, event: str, subject: str, data: Mapping[str, Any]) -> None:
        """Append one row to the audit log, in a transaction of its own."""
        with self.transaction() as db:
            self.append(db, event, subject, data)

    def append(self, db: sa.Connection, event: str, subject: str, data: Mapping[str, Any]) -> int:
        """Append one row to the audit log; returns its number."""
        last = db.execute(sa.select(audit.c.number, audit.c.hash).order_by(audit.c.number.desc()).limit(1)).first()
        number, previous = (1, FIRST_HASH) if last is None else (last.number + 1, last.hash)
        body = json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        row = {"number": number, "time": self.now(), "event": event, "subject": subject, "data": body}
        db.execute(audit.insert().values(**row, previous=previous, hash=seal(previous, row)))
        return number

    def enrol(self, rows: Iterable[Enrolled]) -> None:
        """Add devices, or change what is known of them; recorded with their key ids."""
        with self.transaction() as db:
            for row in rows:
                device = row.device
                values = {
                    "site": row.site,
                    "profile": device.profile,
                    "line": device.line,
                    "labels": json.dumps(sorted(device.labels)),
                    "key": json.dumps({"keyid": row.key.keyid, **row.key.to_dict()}, sort_keys=True),
                }
                if db.execute(devices.update().where(devices.c.id == device.id).values(**values)).rowcount == 0:
                    db.execute(devices.insert().values(id=device.id, **values))
                self.append(db, "device enrolled", device.id, {k: values[k] for k in ("site", "profile", "line", "labels", "key")})

    def fleet(self, site: str | None = None, profile: str | None = None) -> list[Enrolled]:
        """Enrolled devices in the order of their ids."""
        with self.engine.connect() as db:
            return [_enrolled(row) for row in db.execute(_of(site, profile))]

    def devices(self, site: str | None = None, profile: str | None = None) -> list[Device]:
        """The same without their sites and keys, which cost more to read than all the rest."""
        with self.engine.connect() as db:
            return [_device(row) for row in db.execute(_of(site, profile))]

    def ingest(self, envelopes: Iterable[bytes]) -> Ingested:
        """Take receipts in, up to MAX_TOGETHER in one transaction; each is verified first, and one that is refused does not hold up the
        others.  What it returns for is durable; raises what `transaction` raises, and then earlier transactions stay."""
        done, rest = Ingested(), iter(envelopes)
        while part := list(itertools.islice(rest, MAX_TOGETHER)):
            self._ingest(part, done)
        return done

    def _ingest(self, envelopes: list[bytes], done: Ingested) -> None:
        refused: list[str] = []
        with self.transaction() as db:
            key_of, verified = _Keys(db), []
            for envelope in envelopes:
                try:
                    verified.append((verify_receipt(envelope, key_of), envelope))
                except EdgeEditError as error:
                    refused.append(error.message)
            fresh, known = self._sort(_held(db, [receipt for receipt, _ in verified]), verified, refused)
            if fresh:
                number = self.append(db, "receipts", f"{len(fresh)} receipts", {"count": len(fresh), "digest": batch_digest(fresh)})
                db.execute(receipts.insert(), [{**row, "batch": number} for row in fresh])
            if refused:
                self.append(db, "receipts refused", f"{len(refused)} receipts", {"reasons": sorted(set(refused))[:20]})
        done.accepted += len(fresh)
        done.known += known
        done.refused += refused

    def _sort(
        self, held: Mapping[_Id, Mapping[str, Any]], verified: list[tuple[Receipt, bytes]], refused: list[str]
    ) -> tuple[list[dict[str, Any]], int]:
        """The new rows in the order of device and number, and how many receipts are known; one that contradicts a known one is refused."""
        fresh: dict[_Id, dict[str, Any]] = {}
        known = 0
        for receipt, envelope in verified:
            key = (receipt.device, receipt.sequence)
            content = {name: getattr(receipt, name) for name in CONTENT}
            row = fresh.get(key) or held.get(key)
            if row is None:
                digest = hashlib.sha256(envelope).hexdigest()
                named = {"device": key[0], "sequence": key[1], "received": self.now(), "digest": digest, "envelope": envelope}
                fresh[key] = {**named, **content}
            elif all(row[name] == value for name, value in content.items()):
                known += 1
            else:
                refused.append(f"device {receipt.device} signed two receipts of number {receipt.sequence}: was its store copied?")
        return [fresh[key] for key in sorted(fresh)], known

    def outcomes(self, release: str) -> dict[str, tuple[str, str, int]]:
        """Of each device that spoke of a release: its latest state, reason, and when that was received (Unix seconds)."""
        told = (receipts.c.device, receipts.c.state, receipts.c.reason, receipts.c.received)  # the envelopes stay on the disk
        query = sa.select(*told).where(receipts.c.release == release).order_by(receipts.c.device, receipts.c.sequence)
        with self.engine.connect() as db:
            return {row.device: (row.state, row.reason, row.received) for row in db.execute(query)}

    def latest(self) -> dict[str, Receipt]:
        """The last receipt of every device that ever spoke."""
        newest = sa.select(receipts.c.device, sa.func.max(receipts.c.sequence).label("sequence")).group_by(receipts.c.device).subquery()
        same = sa.and_(receipts.c.device == newest.c.device, receipts.c.sequence == newest.c.sequence)
        query = sa.select(*(receipts.c[name] for name in ("device", "sequence", *CONTENT))).join(newest, same)
        with self.engine.connect() as db:
            return {row["device"]: Receipt(**row) for row in db.execute(query).mappings()}

    def opened(self, site: str, release: str) -> dict[str, int]:
        """When each stage of a release was opened, in Unix seconds."""
        query = sa.select(openings).where(openings.c.site == site, openings.c.release == release)
        with self.engine.connect() as db:
            return {row.stage: row.opened for row in db.execute(query)}

    def open_stage(self, site: str, release: str, stage: str, data: Mapping[str, Any]) -> None:
        """Note that a stage was opened now."""
        with self.transaction() as db:
            where = (openings.c.site == site, openings.c.release == release, openings.c.stage == stage)
            if db.execute(openings.update().where(*where).values(opened=self.now())).rowcount == 0:
                db.execute(openings.insert().values(site=site, release=release, stage=stage, opened=self.now()))
            self.append(db, "stage opened", f"{site}/{release}/{stage}", data)

    def history(self) -> list[dict[str, Any]]:
        """The audit log, oldest first."""
        with self.engine.connect() as db:
            return [dict(row) for row in db.execute(sa.select(audit).order_by(audit.c.number)).mappings()]

    def verify_history(self) -> tuple[int, str]:
        """Number of rows and the last hash; raises IntegrityError (exit 5) that names the first row that does not hold.

        A cut-off end is seen only against a hash that somebody noted elsewhere: print it, sign it, keep it.
        """
        return history.verify(self.engine)


class _Keys(dict[str, "SSlibKey | None"]):
    """The keys of devices by id, each asked for once."""

    def __init__(self, db: sa.Connection) -> None:
        super().__init__()
        self._db = db

    def __missing__(self, device: str) -> SSlibKey | None:
        found = self._db.execute(sa.select(devices.c.key).where(devices.c.id == device)).scalar_one_or_none()
        self[device] = None if found is None else read_key(found)
        return self[device]

    def __call__(self, device: str) -> SSlibKey | None:
        return self[device]


def _held(db: sa.Connection, wanted: list[Receipt]) -> dict[_Id, Mapping[str, Any]]:
    """What the ledger has of these receipts already, in one question."""
    if not wanted:
        return {}
    columns = [receipts.c[name] for name in ("device", "sequence", *CONTENT)]
    ids = {(receipt.device, receipt.sequence) for receipt in wanted}
    query = sa.select(*columns).where(sa.tuple_(receipts.c.device, receipts.c.sequence).in_(sorted(ids)))
    return {(row["device"], row["sequence"]): {**row} for row in db.execute(query).mappings()}


def _of(site: str | None, profile: str | None) -> sa.Select[Any]:
    query = sa.select(devices).order_by(devices.c.id)
    if site is not None:
        query = query.where(devices.c.site == site)
    return query if profile is None else query.where(devices.c.profile == profile)


def _device(row: Any) -> Device:
    return Device(row.id, row.profile, row.line, frozenset(json.loads(row.labels)))


def _enrolled(row: Any) -> Enrolled:
    return Enrolled(_device(row), row.site, read_key(row.key))


def _durable(connection: Any, _: Any) -> None:
    """Each SQLite connection: our own BEGIN, write-ahead log, synced commits, patience with other writers."""
    connection.isolation_level = None
    for pragma in ("busy_timeout=10000", "journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def as_time(seconds: int) -> str:
    """Unix seconds as UTC text."""
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
