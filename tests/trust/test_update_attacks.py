"""Attacks on the metadata of an update, by name: rollback, freeze, mix-and-match, fast-forward, forged and revoked keys.

Each is refused with its exit code; floors, trusted metadata and patches stay as they were (see `Victim.refuses`).
Attacks on content: `test_update_content_attacks`; on the way: `test_update_way_attacks`; on receipts: `test_receipt_attacks`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, MetaFile
from update_repository import DAY, NOW, Repository, at, withdrawn
from update_victim import ML, RELEASE, Victim, resigned

from edgeedit.errors import IntegrityError, RefusedError


@pytest.fixture
def victim(tmp_path: Path) -> Victim:
    return Victim(tmp_path)


def test_without_an_attack_the_patch_is_offered(victim: Victim) -> None:
    victim.move_on()
    assert victim.poll() is not None
    victim.lose_cache()
    assert victim.poll() is not None


# Rollback


def test_rollback_of_the_timestamp(victim: Victim) -> None:
    old = victim.move_on()
    victim.repository.files["metadata/timestamp.json"] = old["metadata/timestamp.json"]
    victim.refuses(IntegrityError, "metadata is refused")


def test_rollback_of_the_timestamp_after_the_cache_was_lost(victim: Victim) -> None:
    old = victim.move_on()
    victim.repository.files["metadata/timestamp.json"] = old["metadata/timestamp.json"]
    victim.lose_cache()
    victim.refuses(IntegrityError, "timestamp metadata is old", again=False)


def test_rollback_of_the_whole_repository(victim: Victim) -> None:
    victim.repository.files = victim.move_on()
    victim.refuses(IntegrityError, "metadata is refused")


def test_rollback_of_the_whole_repository_after_the_cache_was_zeroed(victim: Victim) -> None:
    victim.repository.files = victim.move_on()
    files = [path for path in victim.cache.rglob("*.json") if path.is_file() and not path.is_symlink()]
    for path in files:
        path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(IntegrityError, match="timestamp metadata is old"):
        victim.poll()
    victim.repository.files = dict(victim.honest)
    assert victim.poll() is not None


def _under_new_stamp(victim: Victim, role: str, version: int) -> None:
    """With stolen online keys: a new snapshot (or timestamp) that names another version of a role."""
    repository = victim.repository
    if role == "snapshot":
        repository.timestamp.version += 1
        repository.timestamp.snapshot_meta = MetaFile(version)
        repository.put("timestamp", repository.timestamp, repository.keys["timestamp"])
    else:
        repository.snapshot.meta[f"{role}.json"] = MetaFile(version)
        repository.stamp(snapshot=True)


@pytest.mark.parametrize("role", ["snapshot", "targets", ML, RELEASE])
def test_rollback_under_a_new_timestamp_with_stolen_online_keys(victim: Victim, role: str) -> None:
    victim.move_on()
    known = victim.repository.snapshot.version if role == "snapshot" else victim.repository.snapshot.meta[f"{role}.json"].version
    _under_new_stamp(victim, role, known - 1)
    takes = () if role == "snapshot" else ("timestamp.json",)
    victim.refuses(IntegrityError, "metadata is refused", takes=takes, again=role == "snapshot")


@pytest.mark.parametrize("role", ["snapshot", "targets", ML, RELEASE])
def test_rollback_under_a_new_timestamp_after_the_cache_was_lost(victim: Victim, role: str) -> None:
    victim.move_on()
    known = victim.repository.snapshot.version if role == "snapshot" else victim.repository.snapshot.meta[f"{role}.json"].version
    _under_new_stamp(victim, role, known - 1)
    victim.lose_cache()
    victim.refuses(IntegrityError, f"{role} metadata is old", again=False)


def test_rollback_to_before_a_key_was_replaced(victim: Victim) -> None:
    """Every number below is of other keys, so that the floor of the root alone defends."""
    for _ in range(2):
        old = dict(victim.repository.files)
        for role in ("timestamp", "snapshot", "targets"):
            victim.repository.rotate(role)
        victim.repository.publish(ML, RELEASE)
    victim.trust()
    victim.repository.files = old
    victim.lose_cache()
    victim.refuses(IntegrityError, "root metadata is old", again=False)


def test_a_next_root_that_is_the_present_one(victim: Victim) -> None:
    victim.repository.files["metadata/2.root.json"] = victim.repository.root_bytes()
    victim.refuses(IntegrityError, "metadata is refused")


def test_a_snapshot_that_drops_a_role(victim: Victim) -> None:
    del victim.repository.snapshot.meta[f"{ML}.json"]
    victim.repository.stamp(snapshot=True)
    victim.refuses(IntegrityError, "metadata is refused", takes=("timestamp.json",), again=False)


def test_rollback_of_a_rollouts_sequence(victim: Victim) -> None:
    victim.repository.add_rollout(replace(victim.rollout, sequence=5))
    victim.trust()
    victim.repository.add_rollout(replace(victim.rollout, sequence=4))
    takes = ("timestamp.json", "snapshot.json", f"{RELEASE}.json")
    documents = [f"../rollouts/{path.name}" for path in (victim.cache / "rollouts").iterdir()]
    assert len(documents) == 1
    with pytest.raises(IntegrityError, match="expected sequence 5 or later, got 4"):
        victim.poll()
    victim.lose_cache()
    victim.refuses(IntegrityError, "expected sequence 5 or later, got 4", takes=takes, again=False)


def test_a_withdraw_order_replayed_after_the_release_was_resumed(victim: Victim) -> None:
    victim.repository.add_rollout(withdrawn(victim.rollout))
    order = dict(victim.repository.files)
    running = {"running": victim.rollout.result}
    back = victim.poll(**running)
    assert back is not None and back.action == "return"
    victim.repository.add_rollout(replace(victim.rollout, sequence=3))
    victim.trust()
    victim.repository.files = order
    victim.refuses(IntegrityError, "metadata is refused", **running)


def test_a_withdraw_order_signed_again_by_mistake(victim: Victim) -> None:
    victim.repository.add_rollout(replace(victim.rollout, sequence=3))
    victim.trust()
    victim.repository.add_rollout(withdrawn(victim.rollout))
    victim.lose_cache()
    victim.refuses(IntegrityError, "expected sequence 3 or later, got 2", again=False, running=victim.rollout.result)


# Freeze


@pytest.mark.parametrize("role", ["root", "timestamp", "snapshot", "targets", ML, RELEASE])
def test_freeze_by_an_expired(victim: Victim, role: str) -> None:
    """Everything else is fresh, as with the keys of the other roles stolen."""
    repository = victim.repository
    repository.now = victim.now = NOW + 2 * 365 * DAY
    life = {name: repository.expiry(name) for name in ("root", "timestamp", "snapshot", "targets")}
    repository.root.version += 1
    repository.root.expires = life["root"] if role != "root" else at(victim.now - 1)
    repository.publish_root()
    repository.targets.version += 1
    repository.targets.expires = life["targets"]
    repository.publish(ML, RELEASE)
    if role != "root":
        name = "timestamp" if role == "timestamp" else f"{repository.snapshot.version}.snapshot"
        version = {"targets": repository.targets.version}.get(role, repository.versions.get(role, 0))
        name = name if role in ("timestamp", "snapshot") else f"{version}.{role}"
        path = f"metadata/{name}.json"
        repository.files[path] = resigned(repository, role, repository.files[path], expires=at(victim.now - 1))
    takes = {"root_history/2.root.json", "root.json", "timestamp.json", "snapshot.json", "targets.json", f"{RELEASE}.json", f"{ML}.json"}
    takes -= {f"{role}.json"} if role not in ("root", "timestamp", "snapshot") else set()
    victim.refuses(IntegrityError, "metadata is expired", takes=takes, again=False)


@pytest.mark.parametrize("clock", [0, 946_684_800, NOW - 301], ids=["1970", "2000", "six-minutes-behind"])
def test_freeze_hidden_by_a_clock_of(victim: Victim, clock: int) -> None:
    victim.now = clock
    victim.refuses(RefusedError, "clock is wrong", again=False)


def test_freeze_hidden_by_an_old_clock_and_a_lost_cache(victim: Victim) -> None:
    victim.now = 946_684_800
    victim.lose_cache()
    victim.refuses(RefusedError, "clock is wrong", again=False)


def test_freeze_on_a_camera_without_a_clock(victim: Victim) -> None:
    """Time then stands at its floor, which a later poll had raised beyond the end of what is replayed."""
    frozen = dict(victim.repository.files)
    victim.repository.now = victim.now = NOW + 3 * DAY
    victim.repository.stamp()
    victim.trust()
    victim.repository.files, victim.now = frozen, 0
    victim.lose_cache()
    victim.refuses(IntegrityError, "metadata is expired", again=False, step_clock=True)


# Mix and match


@pytest.mark.parametrize("role", ["snapshot", "targets", ML, RELEASE])
def test_mix_and_match_of_two_moments(victim: Victim, role: str) -> None:
    repository = victim.repository
    older = {"snapshot": repository.snapshot.version, "targets": 1}.get(role, repository.versions.get(role, 0))
    before = repository.files[f"metadata/{older}.{role}.json"]
    repository.targets.version += 1
    repository.publish(ML, RELEASE)
    newer = {"snapshot": repository.snapshot.version, "targets": 2}.get(role, repository.versions.get(role, 0))
    assert newer > older
    repository.files[f"metadata/{newer}.{role}.json"] = before
    takes = {"timestamp.json", "snapshot.json", "targets.json", f"{RELEASE}.json"} - {f"{role}.json"}
    victim.refuses(IntegrityError, "metadata is refused", takes=takes, again=False)


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets", ML, RELEASE])
def test_metadata_of_another_repository(victim: Victim, role: str) -> None:
    """Same names and versions, another publisher's keys."""
    victim.move_on()
    other = Repository()
    other.ship()
    victim.repository.stamp(snapshot=True)
    name = "timestamp" if role == "timestamp" else f"{_version(victim, role)}.{role}"
    path = f"metadata/{name}.json"
    thief = other.signer(role)
    victim.repository.files[path] = resigned(victim.repository, role, victim.repository.files[path], thief)
    if role != "timestamp":
        victim.lose_cache()  # so that it is fetched
    victim.refuses(IntegrityError, "metadata is refused", again=role == "timestamp")


def _version(victim: Victim, role: str) -> int:
    repository = victim.repository
    return {"snapshot": repository.snapshot.version, "targets": repository.targets.version}.get(role, repository.versions.get(role, 0))


# Fast-forward


def _far_timestamp(victim: Victim) -> None:
    victim.repository.timestamp.version = 2**31
    victim.repository.stamp()


def _far_snapshot(victim: Victim) -> None:
    victim.repository.snapshot.version = 2**31
    victim.repository.stamp(snapshot=True)


@pytest.mark.parametrize(
    ("attack", "stolen"), [(_far_timestamp, ("timestamp",)), (_far_snapshot, ("timestamp", "snapshot"))], ids=["timestamp", "snapshot"]
)
def test_fast_forward_ends_with_the_stolen_key(victim: Victim, attack: Callable[[Victim], None], stolen: tuple[str, ...]) -> None:
    """A thief's version is as valid as his key; new keys in the root make honest small versions good again, and his bad."""
    repository = victim.repository
    attack(victim)
    assert victim.poll() is not None
    thief = dict(repository.files)
    repository.files = dict(victim.honest)
    repository.timestamp.version, repository.snapshot.version = 10, 10
    repository.stamp(snapshot=True)
    victim.refuses(IntegrityError, "metadata is refused", again=False)
    for role in stolen:
        repository.rotate(role)
    repository.timestamp.version, repository.snapshot.version = 20, 20
    repository.stamp(snapshot=True)
    victim.trust()
    repository.files["metadata/timestamp.json"] = thief["metadata/timestamp.json"]
    victim.refuses(IntegrityError, "metadata is refused")


# Keys


@pytest.mark.parametrize("count", [0, 1], ids=["unsigned", "one-of-two"])
def test_a_next_root_that_is(victim: Victim, count: int) -> None:
    repository = victim.repository
    repository.root.version = 2
    repository.put("2.root", repository.root, *repository.roots[:count])
    victim.refuses(IntegrityError, "metadata is refused")


def test_a_next_root_signed_only_by_its_own_new_keys(victim: Victim) -> None:
    repository, old = victim.repository, list(victim.repository.roots)
    repository.rotate("root", root_too=True)
    assert not {key.public_key.keyid for key in old} & {key.public_key.keyid for key in repository.roots}
    repository.publish_root(*repository.roots[:2])
    victim.refuses(IntegrityError, "metadata is refused")


def test_a_next_root_signed_only_by_the_old_keys(victim: Victim) -> None:
    repository, old = victim.repository, list(victim.repository.roots)
    repository.rotate("root", root_too=True)
    repository.publish_root(*old[:2])
    victim.refuses(IntegrityError, "metadata is refused")


def test_a_next_root_on_which_one_key_signs_twice(victim: Victim) -> None:
    """The same signature a second time under the id of another root key."""
    repository = victim.repository
    repository.root.version = 2
    metadata = Metadata.from_bytes(repository.publish_root(repository.roots[0]))
    first, second = (key.public_key.keyid for key in repository.roots[:2])
    metadata.signatures[second] = type(metadata.signatures[first])(second, metadata.signatures[first].signature)
    repository.files["metadata/2.root.json"] = metadata.to_bytes()
    victim.refuses(IntegrityError, "metadata is refused")


def test_a_timestamp_by_a_revoked_key(victim: Victim) -> None:
    repository = victim.repository
    revoked = repository.keys["timestamp"]
    repository.rotate("timestamp")
    repository.stamp()
    victim.trust()
    repository.timestamp.version += 1
    repository.put("timestamp", repository.timestamp, revoked)
    victim.refuses(IntegrityError, "metadata is refused")


@pytest.mark.parametrize("role", [ML, RELEASE])
def test_a_role_by_its_revoked_key(victim: Victim, role: str) -> None:
    repository = victim.repository
    revoked = repository.signer(role)
    keys = repository.ml if role in repository.ml else repository.release
    keys[role] = CryptoSigner.generate_ed25519()
    repository.targets.revoke_key(revoked.public_key.keyid, role)
    repository.targets.add_key(keys[role].public_key, role)
    repository.targets.version += 1
    repository.publish(ML, RELEASE)
    victim.trust()
    keys[role] = revoked
    repository.publish(role)
    victim.refuses(IntegrityError, "metadata is refused", takes=("timestamp.json", "snapshot.json"), again=False)


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets", ML, RELEASE])
def test_a_signed_field_changed_in(victim: Victim, role: str) -> None:
    """One year more to live, under the old signature."""
    victim.repository.stamp(snapshot=True)
    name = "timestamp" if role == "timestamp" else f"{_version(victim, role)}.{role}"
    path = f"metadata/{name}.json"
    data = victim.repository.files[path]
    victim.repository.files[path] = data.replace(b'"expires":"202', b'"expires":"212')
    assert victim.repository.files[path] != data
    if role != "timestamp":
        victim.lose_cache()
    victim.refuses(IntegrityError, "metadata is refused", again=role == "timestamp")
