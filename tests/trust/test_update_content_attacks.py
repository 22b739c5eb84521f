"""Attacks on what an update names, by name: stolen keys of one side, wrong base, roles outside their paths, hostile documents.

See `test_update_attacks` for what must hold afterwards.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tuf.api.metadata import TargetFile
from update_repository import NEXT, NOW, PROFILE, SITE, Repository, make_rollout
from update_victim import ML, PATCH, RELEASE, Victim

from edgeedit.errors import EdgeEditError, IntegrityError, MismatchError
from edgeedit.limits import MAX_ROLLOUT_BYTES, MAX_ROLLOUTS
from edgeedit.ota.client.rollout import PatchTarget, encode_rollout, parse_rollout, patch_path
from edgeedit.ota.client.session import fetch

EVIL = b"evil" * 2560
STAMPED = ("timestamp.json", "snapshot.json")


@pytest.fixture
def victim(tmp_path: Path) -> Victim:
    return Victim(tmp_path)


def target(data: bytes) -> PatchTarget:
    digest = hashlib.sha256(data).hexdigest()
    return PatchTarget(patch_path(PROFILE, digest), digest, len(data))


def released(victim: Victim, data: bytes, path: str = f"rollouts/{SITE}/r1.json") -> None:
    """Bytes as a rollout document, signed for by the release role."""
    victim.repository.add_target(RELEASE, path, data)
    victim.repository.publish(RELEASE)


def refuses_document(victim: Victim, match: str) -> None:
    """The poll after a release that only its content gives away; the rightly signed metadata is kept."""
    victim.refuses(IntegrityError, match, takes=(*STAMPED, f"{RELEASE}.json", f"{ML}.json"), again=False)


# One side's key alone


def test_stolen_ml_key_alone_offers_nothing_new(victim: Victim) -> None:
    victim.repository.add_patch(EVIL)
    offer = victim.poll()
    assert offer is not None and offer.rollout == victim.rollout  # still the released one


def test_stolen_ml_key_alone_under_the_released_name(victim: Victim) -> None:
    """The released path now names other bytes."""
    path = victim.rollout.patch.path
    victim.repository.add_target(ML, path, EVIL)
    victim.repository.publish(ML)
    refuses_document(victim, "released but not signed for")


def test_stolen_release_key_alone(victim: Victim) -> None:
    evil = target(EVIL)
    victim.repository.files[f"targets/patches/{PROFILE}/{evil.sha256}.{evil.sha256}.eep"] = EVIL
    released(victim, encode_rollout(make_rollout(evil, sequence=9)))
    refuses_document(victim, "released but not signed for: .* got none")


def test_stolen_release_key_names_the_patch_itself(victim: Victim) -> None:
    """The release role also lists the patch under its own name; it has no say there."""
    evil = target(EVIL)
    victim.repository.add_target(RELEASE, evil.path, EVIL)
    released(victim, encode_rollout(make_rollout(evil, sequence=9)))
    refuses_document(victim, "released but not signed for: .* got none")


def test_stolen_release_key_with_another_length(victim: Victim) -> None:
    patch = replace(victim.rollout.patch, length=victim.rollout.patch.length + 1)
    released(victim, encode_rollout(replace(victim.rollout, patch=patch, sequence=2)))
    refuses_document(victim, "released but not signed for")


def test_one_key_for_both_roles(tmp_path: Path) -> None:
    repository = Repository()
    shared = repository.release[RELEASE]
    repository.targets.revoke_key(repository.ml[ML].public_key.keyid, ML)
    repository.targets.add_key(shared.public_key, ML)
    repository.ml[ML] = shared
    with pytest.raises(IntegrityError, match="one key signs both") as caught:
        Victim(tmp_path, repository)
    assert caught.value.exit_code == 5


def test_a_revoked_patch(victim: Victim) -> None:
    """The ML side takes its word back; the release still names it."""
    victim.repository.roles[ML].targets.clear()
    victim.repository.publish(ML)
    refuses_document(victim, "released but not signed for: .* got none")


# Wrong base, profile, site


def test_a_patch_for_another_base(victim: Victim) -> None:
    victim.ignores(running="c" * 64)


def test_a_release_moved_to_another_base(victim: Victim) -> None:
    victim.repository.add_rollout(replace(victim.rollout, parent="e" * 64, sequence=2))
    victim.ignores()


def test_a_patch_that_failed_here_comes_again_under_another_release(victim: Victim) -> None:
    victim.repository.add_rollout(replace(victim.rollout, release="r2", sequence=2))
    offer = victim.poll(refused=frozenset({victim.rollout.patch.sha256}))
    assert offer is not None and (offer.action, offer.rollout.release) == ("decline", "r2")
    with pytest.raises(MismatchError, match="nothing to fetch"):
        fetch(offer, victim.new)
    assert not victim.new.exists()


def test_a_release_whose_patch_is_of_another_profile(victim: Victim) -> None:
    data = encode_rollout(replace(victim.rollout, sequence=2)).replace(f"patches/{PROFILE}/".encode(), b"patches/jetson-orin/")
    released(victim, data)
    refuses_document(victim, "path of the patch is wrong")


def test_a_release_of_another_site_in_this_sites_place(victim: Victim) -> None:
    released(victim, encode_rollout(replace(victim.rollout, site="plant-b", sequence=2)))
    refuses_document(victim, "rollout is not the one named")


def test_a_release_under_anothers_name(victim: Victim) -> None:
    """So that one could fill in for another, and start its sequence again."""
    released(victim, encode_rollout(replace(victim.rollout, release="r0")))
    refuses_document(victim, "rollout is not the one named")


# Roles outside their paths


def _only_outside(victim: Victim, role: str, path: str, data: bytes) -> None:
    victim.repository.roles[role].targets.clear()
    victim.repository.add_target(role, path, data)
    victim.repository.publish(role)


def test_the_release_role_of_a_site_speaks_for_another(tmp_path: Path) -> None:
    victim = Victim(tmp_path, Repository(sites=(SITE, "plant-b")))
    victim.repository.roles[RELEASE].targets.clear()
    victim.repository.publish(RELEASE)
    document = encode_rollout(replace(victim.rollout, sequence=2))
    victim.repository.add_target("rollouts-plant-b", f"rollouts/{SITE}/r1.json", document)
    victim.repository.publish("rollouts-plant-b")
    victim.ignores()


def test_the_release_role_names_a_document_below_its_folder(victim: Victim) -> None:
    _only_outside(victim, RELEASE, f"rollouts/{SITE}/deep/r1.json", encode_rollout(victim.rollout))
    victim.ignores()


def test_the_ml_role_of_another_profile_signs_for_the_patch(tmp_path: Path) -> None:
    victim = Victim(tmp_path, Repository(profiles=(PROFILE, "other")))
    _only_outside(victim, "patches-other", victim.rollout.patch.path, PATCH)
    victim.repository.roles[ML].targets.clear()
    victim.repository.publish(ML)
    refuses_document(victim, "released but not signed for: .* got none")


def test_a_role_whose_delegation_gives_it_no_paths(victim: Victim) -> None:
    repository = victim.repository
    assert repository.targets.delegations is not None and repository.targets.delegations.roles is not None
    repository.targets.delegations.roles[ML].paths = ["nothing/*"]
    repository.targets.version += 1
    repository.publish()
    takes = (*STAMPED, "targets.json")
    victim.refuses(IntegrityError, "released but not signed for: .* got none", takes=takes, again=False)


@pytest.mark.parametrize("name", ["..", ".", "", "a\\b", "a\0b"], ids=["dotdot", "dot", "empty", "backslash", "nul"])
def test_a_document_path_with(victim: Victim, name: str) -> None:
    victim.repository.roles[RELEASE].targets[f"rollouts/{SITE}/{name}"] = TargetFile(10, {"sha256": "a" * 64}, "x")
    victim.repository.publish(RELEASE)
    refuses_document(victim, "path leaves its folder")


# Hostile documents, signed


def _document(victim: Victim, change: Callable[[bytes], bytes]) -> bytes:
    return change(encode_rollout(replace(victim.rollout, sequence=2)))


HOSTILE = {
    "deep": (lambda data: b'{"a":' * 5000 + b"1" + b"}" * 5000, "nests too deep"),
    "duplicate-key": (lambda data: data[:-1] + b',"state":"halted"}', "duplicate key"),
    "float": (lambda data: data.replace(b'"opened":1', b'"opened":1.0'), "float"),
    "huge-integer": (lambda data: data.replace(b'"opened":1', b'"opened":1' + b"0" * 30), "64 bits"),
    "negative-sequence": (lambda data: data.replace(b'"sequence":2', b'"sequence":-2'), "sequence is wrong"),
    "more-stages-opened-than-there-are": (lambda data: data.replace(b'"opened":1', b'"opened":2'), "opened is wrong"),
    "withdrawn-to-nowhere": (lambda data: data.replace(b'"running"', b'"withdrawn"'), "withdraw_to is wrong"),
    "unknown-field": (lambda data: data[:-1] + b',"zz":1}', "rollout is wrong"),
    "unknown-state": (lambda data: data.replace(b'"running"', b'"hurry"'), "state is wrong"),
    "another-version": (lambda data: data.replace(b'"schema_version":1', b'"schema_version":2'), "another version"),
    "release-name-with-a-path": (lambda data: data.replace(b'"release":"r1"', b'"release":"../r1"'), "release of the rollout is wrong"),
    "truncated": (lambda data: data[:-20], "not JSON"),
    "no-object": (lambda data: b"[]", "expected an object"),
    "not-utf-8": (lambda data: data.replace(b"seed-1", b"seed\xff1"), "not JSON"),
    "lone-surrogate": (lambda data: data.replace(b"seed-1", rb"\ud800"), "not JSON"),
}


@pytest.mark.parametrize("attack", sorted(HOSTILE))
def test_a_signed_rollout_that_is(victim: Victim, attack: str) -> None:
    """Refused by the poll and by the reader alone, with exit 5."""
    change, match = HOSTILE[attack]
    data = _document(victim, change)
    with pytest.raises(EdgeEditError, match=match) as caught:
        parse_rollout(data)
    assert type(caught.value) is IntegrityError
    released(victim, data)
    refuses_document(victim, match)


def test_an_oversize_rollout(victim: Victim) -> None:
    data = _document(victim, lambda data: data + b" " * MAX_ROLLOUT_BYTES)
    with pytest.raises(IntegrityError, match="at most"):
        parse_rollout(data)
    released(victim, data)
    refuses_document(victim, "is named wrongly")


def test_more_rollouts_than_a_camera_reads(victim: Victim) -> None:
    for number in range(MAX_ROLLOUTS + 1):
        path = f"rollouts/{SITE}/x{number}.json"
        victim.repository.roles[RELEASE].targets[path] = TargetFile(10, {"sha256": "a" * 64}, path)
    victim.repository.publish(RELEASE)
    refuses_document(victim, "too many rollouts")


def test_a_rollout_named_without_sha_256(victim: Victim) -> None:
    path = f"rollouts/{SITE}/r1.json"
    victim.repository.roles[RELEASE].targets[path] = TargetFile(10, {"md5": "a" * 32}, path)
    victim.repository.publish(RELEASE)
    refuses_document(victim, "is named wrongly")


def test_a_swapped_rollout(victim: Victim) -> None:
    """The mirror answers with another signed document of the same length."""
    victim.repository.add_rollout(replace(victim.rollout, sequence=2, result="1" * 64))
    paths = [path for path in victim.repository.files if path.startswith("targets/rollouts/")]
    first, second = sorted(paths, key=lambda path: path not in victim.honest)
    victim.repository.files[second] = victim.repository.files[first]
    refuses_document(victim, "is not what was signed")


def test_a_paused_release_opened_by_its_mirror(victim: Victim) -> None:
    """The cached document of a running release does not answer for the halted one."""
    victim.repository.add_rollout(replace(victim.rollout, state="halted", sequence=2))
    victim.ignores()
    victim.ignores(running=NEXT)
    assert victim.floors.values["clock"] == NOW
