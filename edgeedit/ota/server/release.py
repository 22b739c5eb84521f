"""Rollouts: planned with exact counts, started, advanced while the conditions hold, halted at the threshold, withdrawn by order.

Guarantees: nothing here decides for a device; every verb publishes one new signed document whose sequence is above all others of its
site.  `judge` reads receipts only and has no effect; `advance` opens at most one stage.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from edgeedit.errors import GateError, InputError, MismatchError
from edgeedit.ota.client.rollout import (
    EVERY_RANK,
    Approval,
    Device,
    Rollout,
    Stage,
    Window,
    WithdrawTo,
    encode_rollout,
    parse_rollout,
    rank,
    selects,
)
from edgeedit.ota.server.ledger import Ledger
from edgeedit.ota.server.repository import live_patches, publish_rollout, target_bytes
from edgeedit.ota.server.signers import Keyring
from edgeedit.ota.server.tree import Tree

Verdict = Literal["go", "wait", "halt", "done"]


@dataclass(frozen=True)
class Wanted:
    """A stage as a person asks for it: `permille` of the known devices or a `count` of them, or named `devices` or `labels`."""

    name: str
    permille: int | None = None
    count: int | None = None
    devices: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    soak: int = 0
    approval: bool = False


def parse_wanted(text: str) -> Wanted:
    """`canary=3`, `early=5%,soak=3600`, `lab=id:cam-1+cam-2`, `pilot=label:pilot,approval`; raises InputError (exit 2)."""
    hint = "examples: canary=3  early=5%,soak=3600  lab=id:cam-1+cam-2  all=100%,approval"
    name, equals, rest = text.partition("=")
    what, *options = rest.split(",")
    soak, approval = 0, False
    try:
        for option in options:
            if option == "approval":
                approval = True
            else:
                key, _, value = option.partition("=")
                soak = int(value) if key == "soak" else int("not a known option")
        if not equals or soak < 0:
            raise ValueError
        if what.startswith("id:"):
            return Wanted(name, devices=tuple(what[3:].split("+")), soak=soak, approval=approval)
        if what.startswith("label:"):
            return Wanted(name, labels=tuple(what[6:].split("+")), soak=soak, approval=approval)
        if what.endswith("%"):
            permille = round(float(what[:-1]) * 10)
            if not 1 <= permille <= 1000:
                raise ValueError
            return Wanted(name, permille=permille, soak=soak, approval=approval)
        if int(what) < 1:
            raise ValueError
        return Wanted(name, count=int(what), soak=soak, approval=approval)
    except ValueError as error:
        raise InputError(f"stage cannot be read: got {text!r}", hint=hint) from error


def parse_window(text: str) -> Window:
    """`mon,tue@22:00+120`: days, opening time in UTC, minutes; raises InputError (exit 2)."""
    names = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
    try:
        days, _, rest = text.partition("@")
        start, _, minutes = rest.partition("+")
        hour, _, minute = start.partition(":")
        return Window(tuple(names.index(day) for day in days.split(",")), int(hour) * 60 + int(minute), int(minutes))
    except ValueError as error:
        raise InputError(f"window cannot be read: got {text!r}", hint="example: mon,tue@22:00+120 (UTC, minutes)") from error


def quota(want: Wanted, known: int) -> int:
    """How many of `known` devices a stage takes: ceil(share x known) or the count asked for, at least 1, at most all."""
    asked = want.count if want.permille is None else -(-known * want.permille // 1000)
    return min(max(1, asked or 1), known)


def plan_stages(wanted: Sequence[Wanted], fleet: Sequence[Device], seed: str) -> tuple[Stage, ...]:
    """Stages with exact counts: ceil(share of n) devices of the lowest rank, at least one of every production line, never none.

    A later stage holds the earlier ones.  `fleet` is the known devices of one profile at one site; raises InputError when it is empty.
    """
    if not fleet:
        raise InputError("no device is known for this profile and site", hint="enrol them with `edgeedit fleet enrol`")
    return plan_ranked(wanted, sorted(((rank(seed, device.id), device) for device in fleet), key=lambda pair: pair[0]))


def plan_ranked(wanted: Sequence[Wanted], order: Sequence[tuple[str, Device]]) -> tuple[Stage, ...]:
    """The same for devices with their ranks, in the order of these."""
    firsts = list({device.line: (place, device) for place, device in reversed(order)}.values())
    stages: list[Stage] = []
    chosen: set[str] = set()
    cutoff = ""
    for want in wanted:
        named: tuple[str, ...] = want.devices
        if want.devices or want.labels:
            chosen |= {device.id for _, device in order if device.id in want.devices or not device.labels.isdisjoint(want.labels)}
        else:
            asked = quota(want, len(order))
            chosen |= {device.id for _, device in firsts}
            for place, device in order:
                if len(chosen) >= asked:
                    break
                if place > cutoff:
                    chosen.add(device.id)
                    cutoff = place
            cutoff = EVERY_RANK if want.permille == 1000 else cutoff
            named = tuple(sorted(device.id for place, device in firsts if place > cutoff))
        stages.append(Stage(want.name, max(1, len(chosen)), cutoff, named, want.labels, want.soak, want.approval))
    return tuple(stages)


def new_seed() -> str:
    """A fresh canary seed, so that no two releases try the same cameras first."""
    return secrets.token_hex(8)


def read_rollouts(tree: Tree, site: str) -> dict[str, Rollout]:
    """Every published document of a site by release name."""
    found = {}
    for path in sorted(tree.role(f"rollouts-{site}").signed.targets):
        data = target_bytes(tree, path)
        if data is not None:
            document = parse_rollout(data)
            found[document.release] = document
    return found


def read_rollout(tree: Tree, site: str, release: str) -> Rollout:
    """One published document; raises InputError (exit 2) when there is none."""
    documents = read_rollouts(tree, site)
    if release not in documents:
        raise InputError(f"no such release at {site}: expected one of {', '.join(documents) or 'none'}, got {release}")
    return documents[release]


def publish(tree: Tree, document: Rollout, keyring: Keyring, ledger: Ledger, event: str, by: str = "") -> Rollout:
    """Publish the next version of a document (with the site's next sequence) and record it."""
    documents = read_rollouts(tree, document.site)
    number = 1 + max((held.sequence for held in documents.values()), default=0)
    made = replace(document, sequence=number, issued=ledger.now())
    publish_rollout(tree, made.site, made.release, encode_rollout(made), {"sequence": number}, keyring)
    data = {"sequence": number, "state": made.state, "opened": made.opened, "patch": made.patch.sha256, "by": by}
    ledger.record(event, f"{made.site}/{made.release}", data)
    return made


def start(tree: Tree, document: Rollout, keyring: Keyring, ledger: Ledger, by: str = "") -> Rollout:
    """Publish a planned release with its first stage open; raises MismatchError when it is there already or its patch is not."""
    if document.release in read_rollouts(tree, document.site):
        raise MismatchError(f"release {document.release} was started already", hint="choose another name, or `rollout advance`")
    if document.patch.path not in live_patches(tree, document.profile):
        raise MismatchError(f"repository does not name the patch: expected {document.patch.path}", hint="`edgeedit repo add` first")
    made = publish(tree, _open_next(document, ledger, by), keyring, ledger, "release started", by)
    ledger.open_stage(made.site, made.release, made.stages[0].name, {"by": by})
    return made


def _open_next(document: Rollout, ledger: Ledger, by: str) -> Rollout:
    stage = document.stages[document.opened]
    approvals = document.approvals
    if stage.approval:
        if not by:
            raise GateError(f"stage {stage.name} needs an approval: expected a name, got none", hint="give --approve NAME")
        approvals = (*approvals, Approval(stage.name, by, ledger.now()))
    return replace(document, opened=document.opened + 1, approvals=approvals, state="running")


@dataclass(frozen=True)
class Standing:
    """How the open stages of a release stand: devices taken, confirmed, reverted, silent; what that means and why."""

    release: str
    stage: str
    devices: int
    confirmed: int
    reverted: int
    silent: int
    verdict: Verdict
    reasons: tuple[str, ...]


def judge(document: Rollout, ledger: Ledger) -> Standing:
    """Whether the next stage may open: `halt` at the exact threshold, `wait` with every reason, `go`, or `done` after the last stage."""
    rules, stage = document.conditions, document.stages[max(0, document.opened - 1)]
    members = {
        device.id
        for device in ledger.devices(document.site, document.profile)
        if any(selects(s, document.seed, device) for s in document.stages[: document.opened])
    }
    outcomes = {device: row for device, row in ledger.outcomes(document.release).items() if device in members}
    confirmed = sum(row[0] == "confirmed" for row in outcomes.values())
    bad = [row for row in outcomes.values() if row[0] == "reverted"]
    reports, silent = confirmed + len(bad), len(members) - confirmed - len(bad)
    figures = (document.release, stage.name, len(members), confirmed, len(bad), silent)
    if len(bad) >= rules.error_count:
        return Standing(*figures, "halt", (f"{len(bad)} devices reverted: the limit is {rules.error_count}",))
    if bad and reports >= rules.min_reports and len(bad) * 1000 >= rules.error_permille * reports:
        return Standing(*figures, "halt", (f"{len(bad)} of {reports} reports reverted: the limit is {rules.error_permille} per mille",))
    reasons = []
    if document.state != "running":
        reasons.append(f"the release is {document.state}")
    if reports < min(rules.min_reports, len(members)):
        reasons.append(f"{reports} reports: expected at least {rules.min_reports}")
    if confirmed * 1000 < rules.success_permille * reports or not reports:
        reasons.append(f"{confirmed} of {reports} reports confirmed: expected {rules.success_permille} per mille")
    if silent * 1000 > rules.unknown_permille * len(members):
        reasons.append(f"{silent} of {len(members)} devices are silent: expected at most {rules.unknown_permille} per mille")
    quiet_since = max([ledger.opened(document.site, document.release).get(stage.name, 0), *(row[2] for row in bad)])
    if ledger.now() - quiet_since < stage.soak:
        reasons.append(f"{ledger.now() - quiet_since} s without an error: expected {stage.soak} s")
    done = document.opened >= len(document.stages)
    return Standing(*figures, "wait" if reasons else "done" if done else "go", tuple(reasons))


def advance(tree: Tree, site: str, release: str, keyring: Keyring, ledger: Ledger, by: str = "") -> tuple[Rollout, Standing]:
    """Open the next stage.  Publishes `halted` and raises GateError (exit 3) when an error condition trips; raises GateError when the
    conditions do not hold yet or the approval is lacking, and MismatchError (exit 4) when the release is not running."""
    document = read_rollout(tree, site, release)
    if document.state != "running":
        raise MismatchError(
            f"release {release} cannot advance: expected running, got {document.state}", hint="`rollout halt --state running`"
        )
    standing = judge(document, ledger)
    if standing.verdict == "halt":
        publish(tree, replace(document, state="halted"), keyring, ledger, "release halted", "; ".join(standing.reasons))
        raise GateError(f"release {release} was halted: {'; '.join(standing.reasons)}", hint="withdraw it, or look at the devices' reasons")
    if standing.verdict == "wait":
        raise GateError(f"stage {standing.stage} does not allow the next one: {'; '.join(standing.reasons)}", hint="wait, then try again")
    if standing.verdict == "done":
        return document, standing
    made = publish(tree, _open_next(document, ledger, by), keyring, ledger, "release advanced", by)
    ledger.open_stage(site, release, made.stages[made.opened - 1].name, {"by": by})
    return made, standing


def halt(tree: Tree, site: str, release: str, keyring: Keyring, ledger: Ledger, *, state: str = "halted", by: str = "") -> Rollout:
    """Stop (`halted`), hold (`paused`) or go on (`running`): seen by every device at its next poll."""
    document = read_rollout(tree, site, release)
    if document.state == "withdrawn":
        raise MismatchError(f"release {release} was withdrawn: nothing to change", hint="start a new release")
    return publish(tree, replace(document, state=state), keyring, ledger, f"release {state}", by)


def withdraw(
    tree: Tree, site: str, release: str, keyring: Keyring, ledger: Ledger, *, generation: str = "", patch: str = "", by: str = ""
) -> Rollout:
    """Order devices back to an earlier generation: by default the one that the release was made on."""
    document = read_rollout(tree, site, release)
    back = WithdrawTo(generation or document.parent, patch or _patch_before(tree, document))
    return publish(tree, replace(document, state="withdrawn", withdraw_to=back), keyring, ledger, "release withdrawn", by)


def _patch_before(tree: Tree, document: Rollout) -> str:
    """The digest of the patch whose result is the release's parent; empty when that is the base."""
    same = (held for held in read_rollouts(tree, document.site).values() if held.profile == document.profile)
    return next((held.patch.sha256 for held in same if held.result == document.parent), "")


def needed_patches(tree: Tree, profile: str, newest: int) -> set[str]:
    """Digests of a profile's newest patches and of all that a published rollout names."""
    ages = {t.hashes["sha256"]: int((t.custom or {}).get("added", 0)) for t in live_patches(tree, profile).values()}
    kept = set(sorted(ages, key=lambda digest: -ages[digest])[:newest])
    for role in tree.role_names():
        if role.startswith("rollouts-"):
            for document in read_rollouts(tree, role.partition("-")[2]).values():
                kept |= {document.patch.sha256, document.withdraw_to.patch if document.withdraw_to else ""}
    return kept
