"""Rollout documents and the decision: strict reading, exact counts, windows."""

from __future__ import annotations

import json
from dataclasses import replace
from math import ceil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from update_repository import NOW, PROFILE, make_rollout, withdrawn

from edgeedit.errors import IntegrityError
from edgeedit.ota.client.rollout import (
    Approval,
    Device,
    PatchTarget,
    Stage,
    Window,
    decide,
    encode_rollout,
    in_window,
    parse_rollout,
    patch_path,
    rank,
    stage_of,
)

DIGEST = "d" * 64
PATCH = PatchTarget(patch_path(PROFILE, DIGEST), DIGEST, 1000)
ROLLOUT = make_rollout(
    PATCH,
    stages=(Stage("canary", 3, "1" * 64, ("cam-9",), ("lab",), soak=3600), Stage("all", 50, "f" * 64, approval=True)),
    approvals=(Approval("all", "Jo Ann", NOW),),
    windows=(Window((0, 6), 1380, 120),),
    supersedes="r0",
)


def test_documents_survive_the_way_through_bytes() -> None:
    for rollout in (ROLLOUT, withdrawn(ROLLOUT)):
        data = encode_rollout(rollout)
        assert parse_rollout(data) == rollout and encode_rollout(parse_rollout(data)) == data


def _changed(path: str, value: object) -> bytes:
    document = json.loads(encode_rollout(ROLLOUT))
    *folders, last = path.split("/")
    at = document
    for key in folders:
        at = at[int(key)] if isinstance(at, list) else at[key]
    if value is KeyError:
        del at[last]
    else:
        at[last] = value
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("release", "../../etc"),
        ("release", ""),
        ("site", 5),
        ("state", "resumed"),
        ("state", "withdrawn"),
        ("sequence", 0),
        ("sequence", True),
        ("sequence", 2**60),
        ("issued", -1),
        ("patch/sha256", "D" * 64),
        ("patch/path", "patches/other/x.eep"),
        ("patch/length", 2**40),
        ("patch/url", "http://elsewhere/"),
        ("parent", ""),
        ("result", "zz"),
        ("opened", 3),
        ("stages", []),
        ("stages/0/count", 0),
        ("stages/0/devices", ["a/b"]),
        ("stages/0/devices", "cam-1"),
        ("stages/1/name", "canary"),
        ("stages/1/cutoff", "0" * 64),
        ("stages/1/approval", 1),
        ("conditions/error_count", 0),
        ("conditions/success_permille", 1001),
        ("conditions/min_reports", KeyError),
        ("approvals/0/stage", "nobody"),
        ("approvals/0/by", "a\nb"),
        ("windows/0/days", [7]),
        ("windows/0/minutes", 0),
        ("withdraw_to", {"generation": "a" * 64, "patch": ""}),
        ("schema_version", 2),
        ("extra", 1),
        ("seed", KeyError),
    ],
)
def test_a_document_that_breaks_a_rule_is_refused(path: str, value: object) -> None:
    with pytest.raises(IntegrityError):
        parse_rollout(_changed(path, value))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 400), st.integers(1, 100), st.text("abcdef0123456789", min_size=1, max_size=8))
def test_a_cut_off_takes_exactly_as_many_as_were_meant(count: int, percent: int, seed: str) -> None:
    fleet = [Device(f"cam-{number}", PROFILE) for number in range(count)]
    wanted = ceil(count * percent / 100)
    cutoff = sorted(rank(seed, device.id) for device in fleet)[wanted - 1]
    rollout = make_rollout(PATCH, seed=seed, stages=(Stage("some", wanted, cutoff), Stage("all", count, "f" * 64)), opened=1)
    assert sum(decide(rollout, device, NOW).action == "take" for device in fleet) == wanted
    everybody = replace(rollout, opened=2)
    assert all(decide(everybody, device, NOW).action == "take" for device in fleet)


def test_named_devices_labels_approval_state_and_profile_decide() -> None:
    rollout = make_rollout(
        PATCH, stages=(Stage("canary", 2, "", ("cam-9",), ("lab",)), Stage("all", 50, "f" * 64, approval=True)), opened=1
    )
    named, labelled, other = Device("cam-9", PROFILE), Device("x", PROFILE, labels=frozenset({"lab"})), Device("y", PROFILE)

    def actions(one: object) -> list[str]:
        return [decide(one, device, NOW).action for device in (named, labelled, other)]  # type: ignore[arg-type]

    assert actions(rollout) == ["take", "take", "wait"]
    assert actions(replace(rollout, opened=0)) == ["wait"] * 3
    opened = replace(rollout, opened=2)
    assert actions(opened) == ["take", "take", "wait"] and "approval" in decide(opened, other, NOW).reason
    assert actions(replace(opened, approvals=(Approval("all", "Jo", NOW),))) == ["take"] * 3
    for state in ("paused", "halted"):
        assert actions(replace(opened, state=state)) == ["wait"] * 3
    assert actions(withdrawn(opened)) == ["return"] * 3
    assert decide(opened, Device("cam-9", "other"), NOW).action == "leave"
    assert stage_of(opened, other) == opened.stages[1] and stage_of(opened, Device("cam-9", "other")) is None


@pytest.mark.parametrize(
    ("hour", "inside"),
    [(-1, False), (22.9, False), (23, True), (24, True), (24.99, True), (25, False), (47.5, False), (71.5, False)],
)
def test_a_window_may_pass_midnight(hour: float, inside: bool) -> None:
    sunday = NOW - 12 * 3600 - 3 * 86_400  # Wednesday noon back to Sunday 00:00 UTC
    assert in_window((Window((6,), 1380, 120),), int(sunday + hour * 3600)) is inside
    assert in_window((), NOW)
