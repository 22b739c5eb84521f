"""One poll: refresh, read the site's rollouts, decide, and check that the role of the patch names what the rollout names.

Guarantees: an `Offer` to install exists only when the release role and the role of the patch name the same path, digest and length,
the patch is for this device's profile and running generation, and nothing on the way was expired, older than a floor, or dated before
the clock's floor.  A poll that raises leaves the floors as they were.  A poll without news sends two requests and writes nothing.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tuf.api.metadata import TargetFile

from edgeedit.digest import digest_bytes
from edgeedit.errors import IntegrityError, MismatchError, RefusedError, UnreachableError
from edgeedit.files import replace_file
from edgeedit.limits import MAX_ROLLOUT_BYTES, MAX_ROLLOUTS
from edgeedit.ota.client.download import fetch_file
from edgeedit.ota.client.floors import Floors
from edgeedit.ota.client.link import Link
from edgeedit.ota.client.metadata import Metadata, epoch, refreshed, sync
from edgeedit.ota.client.rollout import Device, Rollout, decide, parse_rollout, supersedes_withdrawal, target_path
from edgeedit.ota.client.transport import Transport, open_transport, parts_of

EARLIEST = 1_793_491_200  # 2026-11-01 UTC in Unix seconds: no honest clock was before this code
CLOCK_SLACK = 300  # seconds by which an honest clock may be behind the floor
CLOCK_STEP = 3600  # seconds; the floor of the clock is raised in such steps, to spare the flash
DOCUMENTS, LOCK = "rollouts", ".lock"


@dataclass(frozen=True)
class Config:
    """Everything a poll depends on beside floors and time.

    `source` holds `metadata/` and `targets/`: a folder, `file://`, `http(s)://` or `s3://bucket/prefix`.  `folder` is a cache that may
    vanish.  `root` is the provisioned root metadata, the one anchor of trust.  `running` is the fingerprint of the proven generation,
    `trial` that of the one on trial, if any; `refused` are digests of patches that failed here and are not offered again.  A clock that
    is behind its floor refuses to poll, unless `step_clock` says that this device has no clock: time then stands at the floor.  `wanted`
    is the digest that another scheduler asks for ("" for none now): an offer to install is of that patch or there is none, under the same
    rules, so a scheduler can delay and choose but never allow.  None leaves it to the documents alone."""

    source: str
    folder: Path
    root: bytes = field(repr=False)
    site: str
    device: Device
    running: str
    trial: str = ""
    refused: frozenset[str] = frozenset()
    step_clock: bool = False
    link: Link = field(default_factory=Link)
    wanted: str | None = None


class DisagreementError(IntegrityError):
    """The two roles do not both name the patch that this device was asked to take."""


class UnfitError(MismatchError):
    """What another scheduler asks for was made for something else than what runs here."""


@dataclass(frozen=True)
class Offer:
    """`install`: fetch the patch of `rollout` and stage it.  `return`: go back to the generation that `rollout.withdraw_to` names.
    `decline`: the rollout takes this device, but its patch failed here before: nothing to do but to say so."""

    action: Literal["install", "return", "decline"]
    rollout: Rollout
    config: Config = field(repr=False)


def poll(config: Config, floors: Floors, now: float, by: Transport | None = None) -> Offer | None:
    """What the source has for this device at `now` (Unix seconds by the device's clock), or None.  Reads `by` a transport, which stays
    open, or by one of its own.

    Raises UnreachableError (8: no network, too slow, another poll is running), IntegrityError (5: expired, rolled back, forged, or, as
    DisagreementError, the two roles do not name the patch), MismatchError (4: site or profile unknown, or, as UnfitError, what is `wanted`
    does not fit what runs here), RefusedError (6: wrong clock, disk)."""
    moment = trusted_time(now, floors, step=config.step_clock)
    with _locked(config.folder), _source(config, by) as transport:
        began = time.time()
        metadata = refreshed(config.folder, transport, config.root, moment)
        metadata.check_floors(floors)
        rollouts, sequences = _read_rollouts(config, metadata, transport, floors)
        offer = _choose(config, rollouts, moment)
        if offer is not None and offer.action == "install":
            _check_agreement(offer, metadata)
        news = {**metadata.check_floors(floors), **sequences}
        issued = max((rollout.issued for rollout in rollouts), default=0)
        clock = min(max(moment, issued), metadata.expires() - 1)
        if clock >= floors.floor("clock") + CLOCK_STEP:
            news["clock"] = clock
        _sync(config.folder, began)
        if news:
            floors.raise_floors(news)
        return offer


def fetch(offer: Offer, folder: Path, by: Transport | None = None) -> Path:
    """The patch of an `install` offer as `folder/<digest>.eep`, verified against both roles' digest and synced; `by` as for `poll`.

    Raises UnreachableError (8; what arrived is kept and taken up next time), IntegrityError (5; nothing is kept), RefusedError (6)."""
    patch = offer.rollout.patch
    if offer.action != "install":
        raise MismatchError("nothing to fetch: expected an offer to install, got one to return", hint="roll back to the named generation")
    with _source(offer.config, by) as transport:
        path = f"targets/{_hashed(patch.path, patch.sha256)}"
        return fetch_file(transport, path, patch.sha256, patch.length, folder / f"{patch.sha256}.eep")


def trusted_time(now: float, floors: Floors, *, step: bool) -> int:
    """The time to judge expiry by, in Unix seconds; never before the clock's floor.  Raises RefusedError (exit 6) when the clock is
    behind the floor and may not be stepped: a wrong clock would hide that metadata is expired."""
    floor = max(EARLIEST, floors.floor("clock"))
    if now < floor - CLOCK_SLACK and not step:
        shown = [time.strftime("%Y-%m-%dT%H:%MZ", time.gmtime(max(0, value))) for value in (floor, now)]
        raise RefusedError(f"clock is wrong: expected {shown[0]} or later, got {shown[1]}", hint="set the clock, for example by NTP")
    return max(int(now), floor)


@contextmanager
def _source(config: Config, given: Transport | None) -> Iterator[Transport]:
    transport = given or open_transport(config.source, config.link)
    try:
        yield transport
    finally:
        if given is None:
            transport.close()


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One poll at a time for each folder."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise RefusedError(f"cannot write {folder}: {error.strerror}", hint="check disk and permissions") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise UnreachableError(f"another poll uses {folder}", hint="wait until it has ended") from error
    try:
        yield
    finally:
        os.close(handle)


def _read_rollouts(config: Config, metadata: Metadata, transport: Transport, floors: Floors) -> tuple[list[Rollout], dict[str, int]]:
    """The site's documents for this profile, and the news about their sequences."""
    role = f"rollouts-{config.site}"
    delegation, targets = metadata.delegation(role), metadata.role(role)
    paths = [path for path in targets.targets if path.startswith(f"rollouts/{config.site}/") and delegation.is_delegated_path(path)]
    if len(paths) > MAX_ROLLOUTS:
        raise IntegrityError(f"site {config.site} has too many rollouts: expected at most {MAX_ROLLOUTS}, got {len(paths)}")
    found, news, keep = [], {}, set()
    for path in sorted(paths):
        info = targets.targets[path]
        # The publisher may say for which profile a document is, so that others need not fetch it.
        if (info.custom or {}).get("profile", config.device.profile) != config.device.profile:
            continue
        rollout = parse_rollout(_document(config.folder, transport, path, info))
        keep.add(info.hashes["sha256"])
        if path != target_path(rollout.site, rollout.release):
            raise IntegrityError(f"rollout is not the one named: expected {path}, got {target_path(rollout.site, rollout.release)}")
        floor_name = f"patch-sequence/{rollout.release}@{epoch(delegation)}"
        floor = floors.floor(floor_name)
        if rollout.sequence < floor:
            raise IntegrityError(
                f"rollout {rollout.release} is old: expected sequence {floor} or later, got {rollout.sequence}",
                hint="the source was rolled back",
            )
        if rollout.sequence > floor:
            news[floor_name] = rollout.sequence
        found.append(rollout)
    _forget_documents(config.folder, keep)
    return found, news


def _document(folder: Path, transport: Transport, path: str, info: TargetFile) -> bytes:
    """One document from the cache, else from the source; verified against the role either way."""
    digest = info.hashes.get("sha256", "")
    if len(digest) != 64 or not 0 < info.length <= MAX_ROLLOUT_BYTES:
        raise IntegrityError(f"{path} is named wrongly: expected a SHA-256 and at most {MAX_ROLLOUT_BYTES} bytes, got {info.length}")
    parts_of(path)
    cached = folder / DOCUMENTS / f"{digest}.json"
    try:
        data = cached.read_bytes()
        if digest_bytes(data) == digest:
            return data
    except OSError:
        pass  # the cache may vanish
    data = transport.read(f"targets/{_hashed(path, digest)}", info.length)
    if digest_bytes(data) != digest:
        raise IntegrityError(f"{path} is not what was signed: its digest differs", hint="the source, or something on the way, changed it")
    cached.parent.mkdir(exist_ok=True)
    replace_file(cached, data)
    return data


def _forget_documents(folder: Path, keep: set[str]) -> None:
    place = folder / DOCUMENTS
    for path in place.iterdir() if place.is_dir() else ():
        if path.stem not in keep:
            path.unlink(missing_ok=True)


def _choose(config: Config, rollouts: list[Rollout], now: int) -> Offer | None:
    """Withdrawals first, unless the same patch was released to this device again later; else the newest document that takes this device
    and fits what runs here; where its patch failed before, and no other is left, an offer to decline."""
    for rollout in sorted(rollouts, key=lambda one: -one.sequence):
        action = decide(rollout, config.device, now).action
        again = any(supersedes_withdrawal(later, rollout, config.device) for later in rollouts)
        if action == "return" and rollout.result in (config.running, config.trial) and not again:
            return Offer("return", rollout, config)
    if config.wanted is not None:
        rollouts = _wanted(config, config.wanted, rollouts)
    newest = sorted(rollouts, key=lambda one: -one.sequence)
    takes = [one for one in newest if one.parent == config.running and decide(one, config.device, now).action == "take"]
    for rollout in takes:
        if rollout.patch.sha256 not in config.refused:
            return Offer("install", rollout, config)
    return Offer("decline", takes[0], config) if takes and config.wanted is None else None


def _wanted(config: Config, digest: str, rollouts: list[Rollout]) -> list[Rollout]:
    """The documents that name the wanted patch; raises when none does, or none of them fits what runs here."""
    if not digest:
        return []
    named = [rollout for rollout in rollouts if rollout.patch.sha256 == digest and rollout.state != "withdrawn"]
    if not named:
        raise DisagreementError(
            f"patch is scheduled but not released: expected rollouts-{config.site} to name {digest[:12]}, got none",
            hint="publish the release first; a scheduler cannot allow what the roles do not sign",
        )
    if all(rollout.parent != config.running for rollout in named):
        raise UnfitError(
            f"scheduled patch does not fit: expected parent {config.running[:12]}, got {named[0].parent[:12]}",
            hint="schedule the patches in their order",
        )
    return named


def _check_agreement(offer: Offer, metadata: Metadata) -> None:
    """Raise IntegrityError unless the role of the patch names what the rollout names, with keys of its own."""
    patch, role = offer.rollout.patch, f"patches-{offer.rollout.profile}"
    release_keys = metadata.delegation(f"rollouts-{offer.config.site}").keyids
    if not set(release_keys).isdisjoint(metadata.delegation(role).keyids):
        raise IntegrityError(
            f"one key signs both patches and rollouts of {offer.config.site}: expected two", hint="give the roles their own keys"
        )
    info = metadata.target(role, patch.path)
    if info is None or info.hashes.get("sha256") != patch.sha256 or info.length != patch.length:
        got = "none" if info is None else f"{info.hashes.get('sha256', '')[:12]} of {info.length} bytes"
        raise DisagreementError(
            f"patch is released but not signed for: expected {role} to name {patch.sha256[:12]} of {patch.length} bytes, got {got}",
            hint="ask the publisher: release and patch must come from two people",
        )


def _hashed(path: str, digest: str) -> str:
    """Where a target lies in a repository with consistent snapshots."""
    folder, _, name = path.rpartition("/")
    return f"{folder}/{digest}.{name}"


def _sync(folder: Path, since: float) -> None:
    try:
        sync(folder, since - 2.0)  # the clock of a file system may be coarse
    except OSError as error:
        raise RefusedError(f"cannot write {folder}: {error.strerror}", hint="check disk and permissions") from error
