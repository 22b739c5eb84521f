"""The store: hostile and misplaced patches are refused with the right code and change no byte; states survive restarts."""

from __future__ import annotations

import errno
import os
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edgeedit.delta import SparsePart, TensorDelta
from edgeedit.device import state
from edgeedit.device.apply import apply_patch
from edgeedit.device.owner import new_owner
from edgeedit.device.store import Store
from edgeedit.errors import EdgeEditError, InputError, IntegrityError, MismatchError, RefusedError, RevertedError
from edgeedit.limits import MAX_CHAIN, MAX_TRIAL_ATTEMPTS


@pytest.fixture
def store(world: Any, tmp_path: Path) -> Path:
    """A provisioned store."""
    Store.create(tmp_path / "store", world.bundle.path, [world.public]).close()
    return tmp_path / "store"


def _refused(store: Path, data: bytes, kind: type[EdgeEditError], tree: Any) -> EdgeEditError:
    before = tree(store)
    with Store.open(store) as opened, pytest.raises(kind) as caught:
        opened.stage(data)
    assert tree(store) == before
    return caught.value


def test_truncated_patch_is_refused(world: Any, store: Path, tree: Any) -> None:
    data = world.patch(1)
    for length in (0, 7, 100, 500, len(data) - 1):
        assert _refused(store, data[:length], IntegrityError, tree).exit_code == 5


def test_bit_flips_are_refused(world: Any, store: Path, tree: Any) -> None:
    data = world.patch(1)
    for position in range(0, len(data), max(1, len(data) // 60)):
        flipped = bytearray(data)
        flipped[position] ^= 0x10
        assert _refused(store, bytes(flipped), IntegrityError, tree).exit_code == 5


def test_wrong_signer_is_refused(world: Any, store: Path, tree: Any) -> None:
    assert _refused(store, world.patch(1, key=Ed25519PrivateKey.generate()), IntegrityError, tree).exit_code == 5


def test_wrong_parent_and_wrong_order_are_refused(world: Any, store: Path, tree: Any) -> None:
    first, second = world.patch(1), world.patch(2)
    assert _refused(store, second, MismatchError, tree).exit_code == 4
    path = store.parent / "first.eep"
    path.write_bytes(first)
    assert apply_patch(store, path).state == "confirmed"
    third_without_second = world.patch(3)
    assert _refused(store, third_without_second, MismatchError, tree).exit_code == 4


def test_full_disk_is_refused_and_nothing_is_lost(world: Any, store: Path, tree: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        assert _refused(store, world.patch(1), RefusedError, tree).exit_code == 6


def test_store_without_keys_is_refused(world: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no trusted key"):
        Store.create(tmp_path / "s", world.bundle.path, [])
    assert not (tmp_path / "s").exists()


def test_empty_trust_folder_is_no_key(world: Any, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no trusted key"):
        Store.create(tmp_path / "s", world.bundle.path, [tmp_path / "empty"])
    assert not (tmp_path / "s").exists()


def test_database_that_fills_up_is_refused(world: Any, store: Path, tree: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The object is on disk already when SQLite finds no room: it goes away again."""
    add = state.add_trial

    def crowded(db: sqlite3.Connection, parent: state.Generation, patch: str, result: str, order: tuple[str, int]) -> state.Generation:
        assert list((store / "objects").iterdir())
        db.execute("PRAGMA max_page_count = 1")  # SQLite takes the present size: not one page more
        state.record_event(db, 0, "padding", "x" * 20_000)
        return add(db, parent, patch, result, order)

    monkeypatch.setattr(state, "add_trial", crowded)
    error = _refused(store, world.patch(1), RefusedError, tree)
    assert "full" in error.message and error.exit_code == 6


def test_patch_for_another_model_is_refused(world: Any, store: Path, tree: Any) -> None:
    base = dict(world.weights)
    wide, many = np.zeros((4, 9), np.float32), np.zeros((5, 8), np.float32)
    cases = ({"recipe": "other"}, {"precision": "float16"}, {"parent": "1" * 64}, {"expected": wide}, {"expected": many})
    for changes in cases:
        world.weights = dict(base)
        assert _refused(store, world.patch(1, **changes), MismatchError, tree).exit_code == 4


def test_tensor_that_may_not_be_edited_is_refused(world: Any, store: Path, tree: Any) -> None:
    delta = TensorDelta("bias", (32,), sparse=SparsePart(np.array([3], np.int64), np.array([1], np.int16), 2.0**-6))
    digests = {"before": {"bias": "1" * 64}, "after": {"bias": "2" * 64}, "dtypes": {"bias": "float32"}}
    assert _refused(store, world.patch(1, deltas=[delta], **digests), MismatchError, tree).exit_code == 4


def test_second_trial_is_refused(world: Any, store: Path, tree: Any) -> None:
    base = dict(world.weights)
    first = world.patch(1)
    world.weights = base
    with Store.open(store) as opened:
        number = opened.stage(first).id
        assert opened.stage(first).id == number
    assert _refused(store, world.patch(2), RefusedError, tree).exit_code == 6


def test_patch_deeper_in_the_chain_is_applied_already(world: Any, store: Path, tree: Any) -> None:
    first = _confirmed(store, world.patch(1))
    _confirmed(store, world.patch(2))
    before = tree(store)
    with Store.open(store) as opened:
        assert opened.stage((store / "objects" / f"{first.patch}.eep").read_bytes()) == opened.generation(first.id)
    assert tree(store) == before


def test_full_chain_is_refused(world: Any, store: Path, tree: Any) -> None:
    for seed in range(MAX_CHAIN):
        _confirmed(store, world.patch(seed))
    assert "chain is full" in _refused(store, world.patch(99), RefusedError, tree).message


def test_object_that_is_another_signed_patch_is_found(world: Any, store: Path) -> None:
    first = _confirmed(store, world.patch(1))
    (store / "objects" / f"{first.patch}.eep").write_bytes(world.patch(2))
    with Store.open(store) as opened, pytest.raises(IntegrityError, match="another patch"):
        opened.patch(first.patch)


def test_revert_of_the_head_ends_the_trial_made_for_it(world: Any, store: Path) -> None:
    first = _confirmed(store, world.patch(1))
    with Store.open(store) as opened:
        second = opened.stage(world.patch(2))
        assert opened.revert(first.id, "failed elsewhere")
        assert (opened.head().id, opened.trial(), opened.generation(second.id).state) == (0, None, "reverted")


def test_revert_spares_what_others_were_built_on(world: Any, store: Path) -> None:
    first = _confirmed(store, world.patch(1))
    second = _confirmed(store, world.patch(2))
    with Store.open(store) as opened:
        assert not opened.revert(first.id, "late news")
        assert opened.head().id == second.id and opened.generation(first.id).state == "confirmed"


def test_damaged_or_foreign_database_is_named(store: Path) -> None:
    connection = state.connect(store / "state.sqlite")
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(MismatchError, match="another version"):
        Store.open(store)
    (store / "state.sqlite").write_bytes(b"x" * 8192)
    with pytest.raises(IntegrityError, match="damaged"):
        Store.open(store)


def test_refused_rollback_changes_nothing(store: Path, tree: Any) -> None:
    before = tree(store)
    with Store.open(store) as opened, pytest.raises(MismatchError):
        opened.rollback()
    assert tree(store) == before


def _confirmed(store: Path, data: bytes) -> state.Generation:
    with Store.open(store) as opened:
        number, owner = opened.stage(data).id, new_owner()
        assert opened.claim(number, owner) and opened.confirm(number, owner)
        return opened.generation(number)


def test_keys_removed_later_refuse_every_patch(world: Any, store: Path, tree: Any) -> None:
    for key in (store / "trust").iterdir():
        key.unlink()
    assert _refused(store, world.patch(1), IntegrityError, tree).exit_code == 5


def test_changed_bundle_is_not_provisioned(world: Any, tmp_path: Path) -> None:
    path = world.bundle.path / "weights.bin"
    data = bytearray(path.read_bytes())
    data[5] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(IntegrityError, match="bias"):
        Store.create(tmp_path / "s", world.bundle.path, [world.public])
    assert not (tmp_path / "s").exists()


def test_applying_twice_is_no_new_generation(world: Any, store: Path, tmp_path: Path) -> None:
    path = tmp_path / "p.eep"
    path.write_bytes(world.patch(1))
    assert apply_patch(store, path).state == "confirmed"
    again = apply_patch(store, path)
    assert (again.generation, again.state) == (1, "already applied")


def test_rollback_and_forward_again(world: Any, store: Path, tmp_path: Path) -> None:
    path = tmp_path / "p.eep"
    path.write_bytes(world.patch(1))
    apply_patch(store, path)
    with Store.open(store) as opened:
        assert opened.rollback().id == 0
        with pytest.raises(MismatchError):
            opened.rollback()
    assert apply_patch(store, path).state == "confirmed"
    with Store.open(store) as opened:
        assert opened.head().id == 2
        assert [e["event"] for e in opened.history()].count("rolled back") == 1


def test_failed_probe_is_exit_7_and_the_head_stays(world: Any, store: Path, tmp_path: Path) -> None:
    path = tmp_path / "p.eep"
    path.write_bytes(world.patch(1, wrong_probe=True))
    with pytest.raises(RevertedError, match="probe 0") as caught:
        apply_patch(store, path)
    assert caught.value.exit_code == 7
    with Store.open(store) as opened:
        assert opened.head().id == 0
        assert opened.trial() is None


def test_attempts_are_counted_before_weights_load_and_end_in_revert(world: Any, store: Path) -> None:
    with Store.open(store) as opened:
        number = opened.stage(world.patch(1)).id
        for attempt in range(MAX_TRIAL_ATTEMPTS):
            assert opened.claim(number, "999999999-dead")
            assert opened.generation(number).attempts == attempt + 1
        assert not opened.claim(number, "999999999-dead")
        assert opened.generation(number).state == "reverted"
        assert opened.head().id == 0
