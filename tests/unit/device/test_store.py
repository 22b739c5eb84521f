"""The store: hostile and misplaced patches are refused with the right code and change no byte; states survive restarts."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edgeedit.device.apply import apply_patch
from edgeedit.device.store import Store
from edgeedit.errors import EdgeEditError, InputError, IntegrityError, MismatchError, RefusedError, RevertedError
from edgeedit.limits import MAX_TRIAL_ATTEMPTS


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
