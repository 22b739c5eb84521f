"""`Rollout`: the signed document that says which devices take which patch now, and the decision that both sides share.

A document is canonical JSON (see `strict_json`), the target `rollouts/<site>/<release>.json` of the role `rollouts-<site>`.
A device's rank is SHA-256(seed NUL device id); an open stage takes every device whose rank is at most its cut-off and
every device that it names by id or label.  The publisher sets cut-offs so that the count is exact for the fleet it knows.

Guarantees: a `Rollout` satisfies every rule of `parse_rollout`, whatever made it; `decide` reads nothing but its arguments.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any, Literal

from edgeedit.errors import IntegrityError
from edgeedit.limits import MAX_PATCH_BYTES, MAX_ROLLOUT_BYTES, MAX_STAGE_IDS, MAX_STAGES, MAX_WINDOWS
from edgeedit.ota.client.fields import HINT, digest, fields, flag, integer, name, rows, text, word, wrong
from edgeedit.strict_json import encode, parse

SCHEMA_VERSION = 1
STATES = ("running", "paused", "halted", "withdrawn")
EVERY_RANK = "f" * 64  # the cut-off of a stage that takes everybody
_DAY, _MINUTE = 86_400, 60
_EPOCH_WEEKDAY = 3  # 1970-01-01 was a Thursday; Monday is 0

Action = Literal["take", "wait", "return", "leave"]


@dataclass(frozen=True)
class Device:
    """What a decision knows of a device: `id`, `profile`, production `line` (or empty), free `labels`."""

    id: str
    profile: str
    line: str = ""
    labels: frozenset[str] = frozenset()


@dataclass(frozen=True)
class PatchTarget:
    """The patch as both roles name it: target `path`, `sha256` of the file, `length` in bytes."""

    path: str
    sha256: str
    length: int


@dataclass(frozen=True)
class Stage:
    """`count` devices of the known fleet: rank <= `cutoff` (64 hex digits; empty takes nobody), named `devices`, any of `labels`.

    `soak` seconds without an error before the next stage opens; with `approval` it opens only when a named person approved."""

    name: str
    count: int
    cutoff: str
    devices: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    soak: int = 0
    approval: bool = False


@dataclass(frozen=True)
class Conditions:
    """When a stage is done (at least `min_reports` reports, `success_permille` of them confirmed, at most `unknown_permille` of its
    devices silent) and when it halts (`error_count` reverted devices, or `error_permille` of at least `min_reports` reports)."""

    min_reports: int
    success_permille: int
    error_count: int
    error_permille: int
    unknown_permille: int


@dataclass(frozen=True)
class Approval:
    """Who approved opening a stage, and when (Unix seconds)."""

    stage: str
    by: str
    at: int


@dataclass(frozen=True)
class Window:
    """A maintenance window in UTC: opens on `days` (0 = Monday) at minute `start` of the day, for `minutes` (may pass midnight)."""

    days: tuple[int, ...]
    start: int
    minutes: int


@dataclass(frozen=True)
class WithdrawTo:
    """The earlier generation to return to: its fingerprint, and the patch that made it (empty for the base)."""

    generation: str
    patch: str


@dataclass(frozen=True)
class Rollout:
    """One release of one patch at one site.  `sequence` grows with every change of any document of the site; `opened` is the
    number of open stages; `parent` and `result` are the fingerprints before and after; `issued` is Unix seconds."""

    release: str
    site: str
    profile: str
    sequence: int
    issued: int
    state: str
    patch: PatchTarget
    parent: str
    result: str
    seed: str
    stages: tuple[Stage, ...]
    opened: int
    conditions: Conditions
    approvals: tuple[Approval, ...] = ()
    windows: tuple[Window, ...] = ()
    supersedes: str = ""
    withdraw_to: WithdrawTo | None = None

    def __post_init__(self) -> None:
        _check(self)


@dataclass(frozen=True)
class Decision:
    """`take` the patch, `wait` (paused, halted, not this device's turn, no window), `return` to the named generation, or `leave` it:
    it is for others."""

    action: Action
    reason: str


def target_path(site: str, release: str) -> str:
    """The TUF target path of a rollout document."""
    return f"rollouts/{site}/{release}.json"


def patch_path(profile: str, sha256: str) -> str:
    """The TUF target path of a patch."""
    return f"patches/{profile}/{sha256}.eep"


def rank(seed: str, device: str) -> str:
    """A device's place in the order of a release: 64 hexadecimal digits, compared as text."""
    return hashlib.sha256(f"{seed}\0{device}".encode()).hexdigest()


def selects(stage: Stage, seed: str, device: Device) -> bool:
    """Whether this stage alone takes the device."""
    return rank(seed, device.id) <= stage.cutoff or device.id in stage.devices or not device.labels.isdisjoint(stage.labels)


def stage_of(rollout: Rollout, device: Device) -> Stage | None:
    """The first stage that takes the device, open or not; None when none does or the profile differs."""
    if device.profile != rollout.profile:
        return None
    return next((stage for stage in rollout.stages if selects(stage, rollout.seed, device)), None)


def in_window(windows: tuple[Window, ...], now: int) -> bool:
    """Whether `now` (Unix seconds) lies in one of them; always, when there are none."""
    for window in windows:
        for back in (0, 1):  # a window of yesterday may pass midnight
            day = now // _DAY - back
            opens = day * _DAY + window.start * _MINUTE
            if (day + _EPOCH_WEEKDAY) % 7 in window.days and opens <= now < opens + window.minutes * _MINUTE:
                return True
    return not windows


def decide(rollout: Rollout, device: Device, now: int) -> Decision:
    """What this device does about this release at `now` (Unix seconds).  Whether the patch fits is not asked here."""
    if device.profile != rollout.profile:
        return Decision("leave", f"it is for profile {rollout.profile}")
    if rollout.state == "withdrawn":
        return Decision("return", f"release {rollout.release} is withdrawn")
    if rollout.state != "running":
        return Decision("wait", f"release {rollout.release} is {rollout.state}")
    approved = {approval.stage for approval in rollout.approvals}
    for stage in rollout.stages[: rollout.opened]:
        if stage.approval and stage.name not in approved:
            return Decision("wait", f"stage {stage.name} was opened without its approval")
        if selects(stage, rollout.seed, device):
            if not in_window(rollout.windows, now):
                return Decision("wait", "no maintenance window is open")
            return Decision("take", f"stage {stage.name} is open")
    return Decision("wait", "no open stage takes this device")


def supersedes_withdrawal(rollout: Rollout, order: Rollout, device: Device) -> bool:
    """Whether a later release of the same patch undoes the withdrawal `order` for this device: it is of a higher sequence, not withdrawn
    itself, and an open stage takes the device (a pause, a halt or a closed window stops installing, it does not take away)."""
    same = (rollout.site, rollout.profile, rollout.patch, rollout.result) == (order.site, order.profile, order.patch, order.result)
    if not same or rollout.sequence <= order.sequence or rollout.state == "withdrawn":
        return False
    return decide(replace(rollout, state="running", windows=()), device, 0).action == "take"


def parse_rollout(data: bytes) -> Rollout:
    """The document of verified bytes; raises IntegrityError (exit 5) when a rule is broken or its version is another."""
    if len(data) > MAX_ROLLOUT_BYTES:
        raise wrong("rollout", f"at most {MAX_ROLLOUT_BYTES} bytes", len(data))
    value = parse(data, "rollout")
    if value.get("schema_version") != SCHEMA_VERSION:
        raise IntegrityError(
            f"rollout has another version: expected {SCHEMA_VERSION}, got {str(value.get('schema_version'))[:20]}", hint=HINT
        )
    row = fields(value, "rollout", _ROLLOUT)
    target = fields(row["patch"], "patch of the rollout", _PATCH)
    back = row["withdraw_to"]
    return Rollout(
        **{key: row[key] for key in _PLAIN},
        patch=PatchTarget(**target),
        stages=tuple(_stage(item) for item in rows(row["stages"], "stages", MAX_STAGES)),
        conditions=Conditions(**fields(row["conditions"], "conditions", _CONDITIONS)),
        approvals=tuple(Approval(**fields(item, "approval", _APPROVAL)) for item in rows(row["approvals"], "approvals", MAX_STAGES)),
        windows=tuple(_window(item) for item in rows(row["windows"], "windows", MAX_WINDOWS)),
        withdraw_to=None if back is None else WithdrawTo(**fields(back, "withdraw_to", _WITHDRAW_TO)),
    )


def encode_rollout(rollout: Rollout) -> bytes:
    """Canonical bytes of the document."""
    return encode({"schema_version": SCHEMA_VERSION, **_plain(rollout)})


def _plain(value: Any) -> Any:
    """Dataclasses as objects, tuples as lists."""
    if hasattr(value, "__dataclass_fields__"):
        return {key: _plain(getattr(value, key)) for key in value.__dataclass_fields__}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


_PATCH, _STAGE, _CONDITIONS, _APPROVAL, _WINDOW, _WITHDRAW_TO = (
    frozenset(kind.__dataclass_fields__) for kind in (PatchTarget, Stage, Conditions, Approval, Window, WithdrawTo)
)
_ROLLOUT = frozenset(Rollout.__dataclass_fields__) | {"schema_version"}
_PLAIN = ("release", "site", "profile", "sequence", "issued", "state", "parent", "result", "seed", "opened", "supersedes")


def _stage(item: Any) -> Stage:
    row = fields(item, "stage", _STAGE)
    lists = {key: tuple(rows(row[key], f"{key} of a stage", MAX_STAGE_IDS)) for key in ("devices", "labels")}
    return Stage(**{**row, **lists})


def _window(item: Any) -> Window:
    row = fields(item, "window", _WINDOW)
    return Window(**{**row, "days": tuple(rows(row["days"], "days of a window", 7))})


def _check(rollout: Rollout) -> None:
    for key in ("release", "site", "profile", "seed"):
        name(getattr(rollout, key), f"{key} of the rollout")
    integer(rollout.sequence, "sequence", 1)
    integer(rollout.issued, "issued", 0)
    word(rollout.state, "state", STATES)
    digest(rollout.patch.sha256, "digest of the patch")
    integer(rollout.patch.length, "length of the patch", 1, MAX_PATCH_BYTES)
    path = patch_path(rollout.profile, rollout.patch.sha256)
    if rollout.patch.path != path:
        raise wrong("path of the patch", path, rollout.patch.path)
    digest(rollout.parent, "parent")
    digest(rollout.result, "result")
    if rollout.supersedes:
        name(rollout.supersedes, "supersedes")
    if (rollout.withdraw_to is not None) != (rollout.state == "withdrawn"):
        raise wrong("withdraw_to", "a generation exactly when the state is withdrawn", rollout.state)
    if rollout.withdraw_to is not None:
        digest(rollout.withdraw_to.generation, "generation of withdraw_to")
        digest(rollout.withdraw_to.patch, "patch of withdraw_to", empty=True)
    _check_stages(rollout)
    _check_conditions(rollout.conditions)
    for window in rollout.windows:
        for day in window.days:
            integer(day, "day of a window", 0, 6)
        integer(window.start, "start of a window", 0, 1439)
        integer(window.minutes, "minutes of a window", 1, 1440)


def _check_stages(rollout: Rollout) -> None:
    if not rollout.stages:
        raise wrong("stages", "at least one", "none")
    former = ""
    for stage in rollout.stages:
        name(stage.name, "name of a stage")
        integer(stage.count, f"count of stage {stage.name}", 1)
        integer(stage.soak, f"soak of stage {stage.name}", 0)
        flag(stage.approval, f"approval of stage {stage.name}")
        if digest(stage.cutoff, f"cut-off of stage {stage.name}", empty=True) < former:
            raise wrong(f"cut-off of stage {stage.name}", "at least that of the stage before", stage.cutoff)
        former = stage.cutoff
        for item in (*stage.devices, *stage.labels):
            name(item, f"device or label of stage {stage.name}")
    names = [stage.name for stage in rollout.stages]
    if len(set(names)) != len(names):
        raise wrong("stages", "unique names", names)
    integer(rollout.opened, "opened", 0, len(names))
    for approval in rollout.approvals:
        word(approval.stage, "stage of an approval", tuple(names))
        text(approval.by, "name in an approval")
        integer(approval.at, "time of an approval", 0)


def _check_conditions(conditions: Conditions) -> None:
    integer(conditions.min_reports, "min_reports", 0)
    integer(conditions.error_count, "error_count", 1)
    integer(conditions.success_permille, "success_permille", 0, 1000)
    integer(conditions.error_permille, "error_permille", 1, 1000)
    integer(conditions.unknown_permille, "unknown_permille", 0, 1000)
