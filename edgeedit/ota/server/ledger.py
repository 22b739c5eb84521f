"""The ledger: enrolled devices, their receipts, when stages were opened, and an audit log in which every row seals the ones before.

Guarantees: a receipt counts once however often it arrives, and only when the key of the device that it names signed it; a changed,
removed or inserted row of the audit log, and a changed receipt, is found by `verify_history`.  SQLite (WAL, synced) or PostgreSQL.
"""

from __future__ import annotations

import hashlib
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
from edgeedit.ota.server.tree import Clock, utc_now

FIRST_HASH = "0" * 64
FINAL = ("confirmed", "reverted", "withdrawn")
_LOCK = 0x65646765  # PostgreSQL advisory lock of whoever appends to the audit log

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


def seal(previous: str, row: Mapping[str, Any]) -> str:
    """The hash of an audit row: SHA-256 over the former hash and the canonical JSON of number, time, event, subject and data."""
    body = json.dumps([row[key] for key in ("number", "time", "event", "subject", "data")], separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(f"{previous}\n{body}".encode()).hexdigest()


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
        query = sa.select(devices).order_by(devices.c.id)
        if site is not None:
            query = query.where(devices.c.site == site)
        if profile is not None:
            query = query.where(devices.c.profile == profile)
        with self.engine.connect() as db:
            return [_enrolled(row) for row in db.execute(query)]

    def ingest(self, envelopes: Iterable[bytes]) -> Ingested:
        """Take receipts in; each is verified first, and one that is refused does not hold up the others."""
        keys: dict[str, SSlibKey | None] = {}

        def key_of(device: str) -> SSlibKey | None:
            if device not in keys:
                row = db.execute(sa.select(devices).where(devices.c.id == device)).first()
                keys[device] = None if row is None else _enrolled(row).key
            return keys[device]

        done = Ingested()
        with self.transaction() as db:
            fresh: dict[tuple[str, int], dict[str, Any]] = {}
            for envelope in envelopes:
                try:
                    receipt = verify_receipt(envelope, key_of)
                    self._sort(db, receipt, envelope, fresh, done)
                except EdgeEditError as error:
                    done.refused.append(error.message)
            done.accepted = len(fresh)
            rows = [fresh[key] for key in sorted(fresh)]
            if rows:
                number = self.append(db, "receipts", f"{len(rows)} receipts", {"count": len(rows), "digest": _batch_digest(rows)})
                db.execute(receipts.insert(), [{**row, "batch": number} for row in rows])
            if done.refused:
                self.append(db, "receipts refused", f"{len(done.refused)} receipts", {"reasons": sorted(set(done.refused))[:20]})
        return done

    def _sort(
        self, db: sa.Connection, receipt: Receipt, envelope: bytes, fresh: dict[tuple[str, int], dict[str, Any]], done: Ingested
    ) -> None:
        """Decide whether a verified receipt is new, known, or contradicts a known one."""
        key = (receipt.device, receipt.sequence)
        query = sa.select(receipts).where(receipts.c.device == receipt.device, receipts.c.sequence == receipt.sequence)
        row = fresh.get(key) or db.execute(query).mappings().first()
        content = {name: getattr(receipt, name) for name in ("release", "state", "patch", "generation", "reason", "time")}
        if row is None:
            digest = hashlib.sha256(envelope).hexdigest()
            fresh[key] = {"device": key[0], "sequence": key[1], **content, "received": self.now(), "digest": digest, "envelope": envelope}
        elif all(row[name] == value for name, value in content.items()):
            done.known += 1
        else:
            raise IntegrityError(f"device {receipt.device} signed two receipts of number {receipt.sequence}: was its store copied?")

    def outcomes(self, release: str) -> dict[str, tuple[str, str, int]]:
        """Of each device that spoke of a release: its latest state, reason, and when that was received (Unix seconds)."""
        query = sa.select(receipts).where(receipts.c.release == release).order_by(receipts.c.device, receipts.c.sequence)
        with self.engine.connect() as db:
            return {row.device: (row.state, row.reason, row.received) for row in db.execute(query)}

    def latest(self) -> dict[str, Receipt]:
        """The last receipt of every device that ever spoke."""
        newest = sa.select(receipts.c.device, sa.func.max(receipts.c.sequence).label("sequence")).group_by(receipts.c.device).subquery()
        query = sa.select(receipts).join(newest, sa.and_(receipts.c.device == newest.c.device, receipts.c.sequence == newest.c.sequence))
        names = ("device", "release", "sequence", "state", "patch", "generation", "reason", "time")
        with self.engine.connect() as db:
            return {row["device"]: Receipt(**{n: row[n] for n in names}) for row in db.execute(query).mappings()}

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
        previous = FIRST_HASH
        rows = self.history()
        keys = {item.device.id: item.key for item in self.fleet()}  # once: a ledger has a batch for every visit of a camera
        for number, row in enumerate(rows, 1):
            if row["number"] != number or row["previous"] != previous or row["hash"] != seal(previous, row):
                raise IntegrityError(f"history was changed at row {number}", hint="compare with a copy of the ledger")
            if row["event"] == "receipts":
                self._verify_batch(row, keys)
            previous = row["hash"]
        with self.engine.connect() as db:
            known = [row["number"] for row in rows if row["event"] == "receipts"]
            stray = db.execute(sa.select(sa.func.count()).select_from(receipts).where(receipts.c.batch.not_in(known))).scalar_one()
        if stray:
            raise IntegrityError(f"{stray} receipts were added behind the history", hint="compare with a copy of the ledger")
        return len(rows), previous

    def _verify_batch(self, row: Mapping[str, Any], keys: Mapping[str, SSlibKey]) -> None:
        query = sa.select(receipts).where(receipts.c.batch == row["number"])
        with self.engine.connect() as db:
            found = [dict(item) for item in db.execute(query).mappings()]
        found.sort(key=lambda item: (item["device"], item["sequence"]))
        told = json.loads(row["data"])
        whole = len(found) == told["count"] and _batch_digest(found) == told["digest"]
        names = ("release", "state", "patch", "generation", "reason", "time")
        for item in found if whole else ():
            receipt = verify_receipt(item["envelope"], keys.get)
            whole = whole and all(getattr(receipt, name) == item[name] for name in names)
        if not whole:
            raise IntegrityError(f"receipts of row {row['number']} were changed", hint="compare with a copy of the ledger")


def _batch_digest(rows: list[dict[str, Any]]) -> str:
    """SHA-256 over the digests of a batch's envelopes, recomputed, in the order of device and sequence."""
    return hashlib.sha256("".join(hashlib.sha256(row["envelope"]).hexdigest() for row in rows).encode()).hexdigest()


def _enrolled(row: Any) -> Enrolled:
    key = json.loads(row.key)
    labels = frozenset(json.loads(row.labels))
    return Enrolled(Device(row.id, row.profile, row.line, labels), row.site, SSlibKey.from_dict(key.pop("keyid"), key))


def _durable(connection: Any, _: Any) -> None:
    """Each SQLite connection: our own BEGIN, write-ahead log, synced commits, patience with other writers."""
    connection.isolation_level = None
    for pragma in ("busy_timeout=10000", "journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def as_time(seconds: int) -> str:
    """Unix seconds as UTC text."""
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
