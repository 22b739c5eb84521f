"""A whole update repository in memory, for tests: every key at hand, every file replaceable, so that attacks can be played by name.

Independent of `edgeedit.ota.server`: python-tuf's metadata API only.  `files` maps relative paths to bytes; `write` puts them into a
folder, `Server` serves them over HTTP and counts requests and bytes.
"""

from __future__ import annotations

import hashlib
import http.server
import socketserver
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    SuccinctRoles,
    TargetFile,
    Targets,
    Timestamp,
)
from tuf.api.serialization.json import JSONSerializer

from edgeedit.ota.client.rollout import EVERY_RANK, Conditions, Device, PatchTarget, Rollout, Stage, WithdrawTo, encode_rollout, patch_path
from edgeedit.ota.client.session import Config

NOW = 1_795_608_000  # 2026-11-25 12:00 UTC
DAY = 86_400
SITE, PROFILE = "plant-a", "linux-cpu"
BASE, NEXT = "a" * 64, "b" * 64
COMPACT = JSONSerializer(compact=True)
LIFE = {"root": 365, "timestamp": 2, "snapshot": 90, "targets": 365}  # days


def at(moment: float) -> datetime:
    return datetime.fromtimestamp(moment, timezone.utc)


class Repository:
    """Roles root (2 of 3), timestamp, snapshot, targets, `patches-<profile>` (ML key), `rollouts-<site>` (release key)."""

    def __init__(self, *, now: int = NOW, sites: tuple[str, ...] = (SITE,), profiles: tuple[str, ...] = (PROFILE,), bits: int = 0) -> None:
        self.now, self.files = now, dict[str, bytes]()
        self.roots = [CryptoSigner.generate_ed25519() for _ in range(3)]
        self.keys = {role: CryptoSigner.generate_ed25519() for role in ("timestamp", "snapshot", "targets")}
        self.ml = {f"patches-{p}": CryptoSigner.generate_ed25519() for p in profiles}
        self.release = {f"rollouts-{s}": CryptoSigner.generate_ed25519() for s in sites}
        self.root = Root(1, expires=self.expiry("root"))
        for key in self.roots:
            self.root.add_key(key.public_key, "root")
        self.root.roles["root"].threshold = 2
        for role, signer in self.keys.items():
            self.root.add_key(signer.public_key, role)
        self.targets = Targets(1, expires=self.expiry("targets"))
        self.roles: dict[str, Targets] = {}
        self.targets.delegations = Delegations({}, {})
        self.bins: dict[str, SuccinctRoles] = {}
        self.versions: dict[str, int] = {}
        for role in (*self.ml, *self.release):
            kind, _, owner = role.partition("-")
            self.targets.delegations.roles[role] = DelegatedRole(role, [], 1, True, paths=[f"{kind}/{owner}/*"])
            self.targets.add_key(self.signer(role).public_key, role)
            self.roles[role] = Targets(1, expires=self.expiry("targets"))
            if bits and role in self.ml:
                self._add_bins(role, bits)
        self.snapshot, self.timestamp = Snapshot(1, expires=self.expiry("snapshot")), Timestamp(1, expires=self.expiry("timestamp"))
        self.publish_root()
        self.publish(*self.roles)

    def _add_bins(self, role: str, bits: int) -> None:
        bins = SuccinctRoles([], 1, bits, f"{role}-bin")
        signer = self.signer(role)
        bins.keyids.append(signer.public_key.keyid)
        self.roles[role].delegations = Delegations({signer.public_key.keyid: signer.public_key}, succinct_roles=bins)
        self.bins[role] = bins
        for name in bins.get_roles():
            self.roles[name] = Targets(1, expires=self.expiry("targets"))

    def expiry(self, role: str) -> datetime:
        return at(self.now + LIFE.get(role, 365) * DAY)

    def signer(self, role: str) -> CryptoSigner:
        for known in (self.keys, self.ml, self.release):
            if role in known:
                return known[role]
        return self.ml[role.rpartition("-bin-")[0]]

    def put(self, name: str, signed: object, *signers: CryptoSigner) -> bytes:
        """Sign and store one metadata file under `metadata/`."""
        metadata = Metadata(signed)  # type: ignore[type-var]
        for signer in signers:
            metadata.sign(signer, append=True)
        data = metadata.to_bytes(COMPACT)
        self.files[f"metadata/{name}.json"] = data
        return data

    def publish_root(self, *signers: CryptoSigner) -> bytes:
        return self.put(f"{self.root.version}.root", self.root, *(signers or self.roots[:2]))

    def root_bytes(self) -> bytes:
        return self.files["metadata/1.root.json"]

    def rotate(self, role: str, *, root_too: bool = False) -> None:
        """A new root version with a new key for `role` (and new root keys, signed by old and new ones)."""
        old = list(self.roots)
        if role in self.keys:
            self.root.revoke_key(self.keys[role].public_key.keyid, role)
            self.keys[role] = CryptoSigner.generate_ed25519()
            self.root.add_key(self.keys[role].public_key, role)
        if root_too:
            for key in self.roots:
                self.root.revoke_key(key.public_key.keyid, "root")
            self.roots = [CryptoSigner.generate_ed25519() for _ in range(3)]
            for key in self.roots:
                self.root.add_key(key.public_key, "root")
        self.root.version += 1
        self.root.expires = self.expiry("root")
        self.publish_root(*old[:2], *(self.roots[:2] if root_too else ()))

    def publish(self, *changed: str) -> None:
        """New versions of these roles, then of snapshot and timestamp."""
        for role in changed:
            if role in self.versions:
                self.roles[role].version += 1
            self.versions[role] = self.roles[role].version
            self.roles[role].expires = self.expiry(role)
            self.put(f"{self.roles[role].version}.{role}", self.roles[role], self.signer(role))
        self.put(f"{self.targets.version}.targets", self.targets, self.keys["targets"])
        meta = {f"{role}.json": MetaFile(signed.version) for role, signed in self.roles.items()}
        self.snapshot.meta = {"targets.json": MetaFile(self.targets.version), **meta}
        self.stamp(snapshot=True)

    def stamp(self, *, snapshot: bool = False) -> None:
        """A new timestamp, with a new snapshot before it on request."""
        if snapshot:
            if "metadata/timestamp.json" in self.files:
                self.snapshot.version += 1
            self.snapshot.expires = self.expiry("snapshot")
            self.put(f"{self.snapshot.version}.snapshot", self.snapshot, self.keys["snapshot"])
        if "metadata/timestamp.json" in self.files:
            self.timestamp.version += 1
        self.timestamp.snapshot_meta = MetaFile(self.snapshot.version)
        self.timestamp.expires = self.expiry("timestamp")
        self.put("timestamp", self.timestamp, self.keys["timestamp"])

    def holder(self, role: str, path: str) -> str:
        """The role that names a path: itself, or one of its bins."""
        return self.bins[role].get_role_for_target(path) if role in self.bins else role

    def add_target(self, role: str, path: str, data: bytes, custom: Mapping[str, object] | None = None) -> str:
        digest = hashlib.sha256(data).hexdigest()
        fields = {"custom": dict(custom)} if custom else {}
        holder = self.holder(role, path)
        self.roles[holder].targets[path] = TargetFile(len(data), {"sha256": digest}, path, fields)
        folder, _, name = path.rpartition("/")
        self.files[f"targets/{folder}/{digest}.{name}"] = data
        return holder

    def add_patch(self, data: bytes, profile: str = PROFILE) -> PatchTarget:
        """The ML side: the role `patches-<profile>` names the patch."""
        digest = hashlib.sha256(data).hexdigest()
        path = patch_path(profile, digest)
        holder = self.add_target(f"patches-{profile}", path, data)
        self.publish(holder)
        return PatchTarget(path, digest, len(data))

    def add_rollout(self, rollout: Rollout) -> None:
        """The release side: the role `rollouts-<site>` names the document."""
        role = f"rollouts-{rollout.site}"
        self.add_target(role, f"rollouts/{rollout.site}/{rollout.release}.json", encode_rollout(rollout), {"profile": rollout.profile})
        self.publish(role)

    def ship(self, data: bytes = b"patch" * 4000, **changes: object) -> Rollout:
        """A patch and a running rollout that takes everybody."""
        rollout = make_rollout(self.add_patch(data), **changes)
        self.add_rollout(rollout)
        return rollout

    def write(self, folder: Path) -> Path:
        for name, data in self.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return folder


def make_rollout(patch: PatchTarget, **changes: object) -> Rollout:
    plain = Rollout(
        release="r1",
        site=SITE,
        profile=PROFILE,
        sequence=1,
        issued=NOW - 60,
        state="running",
        patch=patch,
        parent=BASE,
        result=NEXT,
        seed="seed-1",
        stages=(Stage("all", 1, EVERY_RANK),),
        opened=1,
        conditions=Conditions(1, 900, 1, 100, 200),
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


def withdrawn(rollout: Rollout, **changes: object) -> Rollout:
    """The same release, withdrawn to the generation before it."""
    back = WithdrawTo(rollout.parent, "")
    return replace(rollout, state="withdrawn", withdraw_to=back, sequence=rollout.sequence + 1, **changes)  # type: ignore[arg-type]


@dataclass
class MemoryFloors:
    """Floors of a test: counts how often it was asked to write."""

    values: dict[str, int] = field(default_factory=dict)
    writes: int = 0

    def floor(self, name: str) -> int:
        return self.values.get(name, 0)

    def raise_floors(self, values: Mapping[str, int]) -> None:
        self.writes += 1
        for name, value in values.items():
            self.values[name] = max(value, self.floor(name))


def make_config(source: object, folder: Path, repository: Repository, **changes: object) -> Config:
    plain = Config(str(source), folder, repository.root_bytes(), SITE, Device("cam-1", PROFILE), BASE)
    return replace(plain, **changes)  # type: ignore[arg-type]


class Server:
    """Serves `files` (live) over HTTP/1.1 on loopback; `log` has (path, status, body bytes sent).  `answer` may take over a request."""

    def __init__(self, files: Mapping[str, bytes], answer: Callable[[http.server.BaseHTTPRequestHandler, str], bool] | None = None) -> None:
        self.log: list[tuple[str, int, int]] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version, wbufsize, disable_nagle_algorithm = "HTTP/1.1", 64 * 1024, True

            def do_GET(self) -> None:
                path = self.path.lstrip("/")
                if answer is not None and answer(self, path):
                    return
                data = files.get(path)
                status, body = (200, data) if data is not None else (404, b"")
                outer.log.append((path, status, len(body)))
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        class Threaded(socketserver.ThreadingMixIn, http.server.HTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:
                pass  # clients that hang up are what these tests are about

        self._server = Threaded(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def bytes_of(self, prefix: str = "") -> int:
        return sum(size for path, _, size in self.log if path.startswith(prefix))
