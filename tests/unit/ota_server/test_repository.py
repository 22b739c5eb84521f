"""Repository: what an independent TUF client accepts of it, and what it costs in bytes, after each verb."""

from __future__ import annotations

import hashlib
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from securesystemslib.signer import CryptoSigner
from tuf.api.exceptions import ExpiredMetadataError, RepositoryError

from edgeedit.errors import InputError, IntegrityError, MismatchError, UnreachableError
from edgeedit.ota.server import carry, repository, rotate
from edgeedit.ota.server.places import FolderPlace, Place
from edgeedit.ota.server.signers import as_repository_key
from edgeedit.ota.server.tree import Tree
from tests.support.tuf_reader import Camera, MemoryPlace

NAMES = ("root-1", "root-2", "root-3", "targets", "online", "export", "ml", "ml2", "release", "online2", "root-4")


class Desk:
    """Keys, a clock that stands still until it is moved, and a repository in a folder."""

    def __init__(self, folder: Path, place: Place | None = None) -> None:
        self.now = datetime.now(timezone.utc).replace(microsecond=0)
        self.private = {name: Ed25519PrivateKey.generate() for name in NAMES}
        self.public = {name: as_repository_key(key.public_key()) for name, key in self.private.items()}
        self.place = place or FolderPlace(folder / "repo")
        self.folder = folder
        keys = repository.RootKeys(
            tuple(self.public[f"root-{n}"] for n in (1, 2, 3)),
            (self.public["targets"],),
            (self.public["online"],),
            (self.public["export"],),
        )
        roles = {"patches-linux-cpu": [self.public["ml"]], "rollouts-plant": [self.public["release"]]}
        repository.init(self.place, keys, roles, self.ring("root-1", "root-2", "targets", "online", "ml", "release"), self.clock)

    def clock(self) -> datetime:
        return self.now

    def ring(self, *names: str) -> dict[str, CryptoSigner]:
        return {self.public[n].keyid: CryptoSigner(self.private[n], self.public[n]) for n in names}

    def tree(self) -> Tree:
        return Tree(self.place, self.clock)

    def add(self, *contents: bytes) -> list[str]:
        return repository.add_patches(self.tree(), "linux-cpu", contents, self.ring("ml", "online"))


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def _patches(count: int, start: int = 0) -> list[bytes]:
    return [b"patch %d" % n for n in range(start, start + count)]


def test_a_client_finds_what_was_added_and_nothing_else(desk: Desk, tmp_path: Path) -> None:
    camera = Camera(desk.place, tmp_path / "cache")
    assert camera.find("patches/linux-cpu/x.eep") == [None]
    path = desk.add(b"one")[0]
    assert path == f"patches/linux-cpu/{hashlib.sha256(b'one').hexdigest()}.eep"
    assert camera.find(path) == [hashlib.sha256(b"one").hexdigest()]
    assert repository.target_bytes(desk.tree(), path) == b"one"
    document = repository.publish_rollout(desk.tree(), "plant", "r1", b"{}", {}, desk.ring("release", "online"))
    assert camera.find(document, path) == [hashlib.sha256(b"{}").hexdigest(), hashlib.sha256(b"one").hexdigest()]


def test_polls_cost_what_was_promised(tmp_path: Path) -> None:
    desk = Desk(tmp_path, MemoryPlace())
    # 10,000 live patches in one profile: the worst case, as a camera reads no other profile's role.
    desk.add(*_patches(10_000))
    desk.add(b"known")
    rollout = repository.publish_rollout(desk.tree(), "plant", "r1", b"{}", {}, desk.ring("release", "online"))
    camera = Camera(desk.place, tmp_path / "cache")
    assert None not in camera.find(rollout)
    assert camera.fetcher.bytes <= 25_000
    camera.find(rollout)
    assert camera.fetcher.requests <= 2 and camera.fetcher.bytes <= 600
    path = desk.add(b"new")[0]
    repository.publish_rollout(desk.tree(), "plant", "r1", b'{"n":2}', {}, desk.ring("release", "online"))
    assert None not in camera.find(rollout, path)
    # Metadata requests, then one for each of the two targets.
    assert camera.fetcher.requests + 2 <= 7 and camera.fetcher.bytes <= 15_000
    # An old patch is still found, in its bin.
    old = repository.patch_path("linux-cpu", hashlib.sha256(b"patch 7").hexdigest())
    assert camera.find(old) == [hashlib.sha256(b"patch 7").hexdigest()]
    assert len(repository.live_patches(desk.tree(), "linux-cpu")) == 10_002


def test_bins_grow_a_tier_and_lose_nothing(tmp_path: Path) -> None:
    desk = Desk(tmp_path, MemoryPlace())
    camera = Camera(desk.place, tmp_path / "cache")
    paths = []
    for start, count in ((0, 60), (60, 100), (160, 2000), (2160, 1)):
        paths += desk.add(*_patches(count, start))
        some = paths[:: max(1, len(paths) // 20)]
        assert None not in camera.find(*some)
    assert len(repository.live_patches(desk.tree(), "linux-cpu")) == len(paths) == 2161
    gone = repository.prune(desk.tree(), "linux-cpu", {p[-68:-4] for p in paths[-5:]}, desk.ring("ml", "online"))
    assert len(gone) == 2156
    assert camera.find(paths[0], paths[-1]) == [None, paths[-1][-68:-4]]


def test_only_the_right_key_may_add(desk: Desk) -> None:
    before = desk.place.read("metadata/timestamp.json")
    with pytest.raises(InputError, match="cannot sign patches-linux-cpu: expected 1 of its keys, got 0"):
        repository.add_patches(desk.tree(), "linux-cpu", [b"x"], desk.ring("release", "online"))
    with pytest.raises(InputError, match="cannot sign rollouts-plant"):
        repository.publish_rollout(desk.tree(), "plant", "r1", b"{}", {}, desk.ring("ml", "online"))
    with pytest.raises(InputError, match="no such role"):
        repository.add_patches(desk.tree(), "other", [b"x"], desk.ring("ml", "online"))
    assert desk.place.read("metadata/timestamp.json") == before
    assert not [n for n in desk.place.names("metadata/") if n.startswith("metadata/2.")]


def test_the_slower_of_two_publishers_changes_nothing(desk: Desk, tmp_path: Path) -> None:
    first, second = desk.tree(), desk.tree()
    won = repository.add_patches(first, "linux-cpu", [b"first"], desk.ring("ml", "online"))[0]
    names = desk.place.names("metadata/")
    with pytest.raises(UnreachableError, match="another publisher"):
        repository.add_patches(second, "linux-cpu", [b"second"], desk.ring("ml", "online"))
    assert desk.place.names("metadata/") == names
    assert None not in Camera(desk.place, tmp_path / "cache").find(won)


def test_a_role_signed_offline_is_taken_in_by_the_online_key(desk: Desk, tmp_path: Path) -> None:
    path = repository.add_patches(desk.tree(), "linux-cpu", [b"x"], desk.ring("ml"), online=False)[0]
    camera = Camera(desk.place, tmp_path / "cache")
    assert camera.find(path) == [None]
    assert "patches-linux-cpu" in repository.resign(desk.tree(), desk.ring("online"), adopt=True)
    assert camera.find(path) == [hashlib.sha256(b"x").hexdigest()]


def test_what_was_changed_in_place_is_not_signed_again(desk: Desk) -> None:
    for name in ("1.patches-linux-cpu.json", "1.snapshot.json", "timestamp.json"):
        data = desk.place.read(f"metadata/{name}") or b""
        (desk.place.root / "metadata" / name).write_bytes(data.replace(b'"version":1', b'"version":7', 1))
        with pytest.raises(IntegrityError):
            repository.resign(Tree(desk.place, desk.clock), desk.ring("online", "ml"), adopt=True)
        (desk.place.root / "metadata" / name).write_bytes(data)
    repository.resign(desk.tree(), desk.ring("online"))


def test_resigning_keeps_a_year_of_days_fresh(desk: Desk, tmp_path: Path) -> None:
    camera = Camera(desk.place, tmp_path / "cache")
    path = desk.add(b"x")[0]
    for _ in range(52):
        desk.now += timedelta(days=7)
        repository.resign(desk.tree(), desk.ring("online", "targets", "ml", "release"))
    assert None not in camera.find(path, now=desk.now)
    left = {row.name: row.days_left for row in repository.status(desk.tree())}
    assert left["timestamp"] == 3 and left["snapshot"] >= 15 and left["patches-linux-cpu"] > 180
    with pytest.raises(ExpiredMetadataError):
        camera.find(path, now=desk.now + timedelta(days=4))


def test_a_device_follows_ten_root_rotations_after_90_days(desk: Desk, tmp_path: Path) -> None:
    camera = Camera(desk.place, tmp_path / "cache")
    camera.find("x")
    held = ["root-1", "root-2"]
    for number in range(10):
        new = Ed25519PrivateKey.generate()
        desk.private[f"new-{number}"], desk.public[f"new-{number}"] = new, as_repository_key(new.public_key())
        root = [desk.public[held[-1]], desk.public[f"new-{number}"], desk.public["root-3"]]
        rotate.rotate(desk.place, desk.ring(*held, f"new-{number}", "online"), root=root, clock=desk.clock)
        held = [held[-1], f"new-{number}"]
    desk.now += timedelta(days=90)
    repository.resign(desk.tree(), desk.ring("online"))
    path = desk.add(b"late")[0]
    assert camera.find(path, now=desk.now) == [hashlib.sha256(b"late").hexdigest()]
    with pytest.raises(InputError, match="cannot sign root: expected 2"):
        rotate.rotate(desk.place, desk.ring("root-1", "online"), clock=desk.clock)


def test_recover_after_a_fast_forward(desk: Desk, tmp_path: Path) -> None:
    path = desk.add(b"x")[0]
    hit, spared = Camera(desk.place, tmp_path / "hit"), Camera(desk.place, tmp_path / "spared")
    spared.find(path)
    thief = desk.tree()
    thief.timestamp.signed.version = 2_000_000_000
    thief.snapshot.signed.version = 2_000_000_000
    thief.snapshot.signed.meta["patches-linux-cpu.json"].version += 0
    thief.touch("patches-linux-cpu")
    thief._dirty.clear()
    thief.commit(desk.ring("online"))
    hit.find(path)
    desk.place.delete("metadata/2000000001.snapshot.json")
    with pytest.raises(InputError, match="may be stolen"):
        rotate.recover(desk.place, [desk.public["online"]], desk.ring("root-1", "root-2", "online"), desk.clock)
    rotate.recover(desk.place, [desk.public["online2"]], desk.ring("root-1", "root-2", "online2"), desk.clock)
    assert desk.tree().timestamp.signed.version < 100
    late = repository.add_patches(desk.tree(), "linux-cpu", [b"late"], desk.ring("ml", "online2"))[0]
    assert None not in hit.find(path, late) and None not in spared.find(path, late)


def test_a_stick_is_good_for_60_days_and_the_online_side_goes_on(desk: Desk, tmp_path: Path) -> None:
    path = desk.add(b"x")[0]
    camera = Camera(desk.place, tmp_path / "cache")
    camera.find(path)
    stick = FolderPlace(tmp_path / "stick")
    with pytest.raises(InputError, match="expected the export key"):
        carry.export(desk.tree(), stick, desk.ring("online"), days=60)
    with pytest.raises(InputError, match="expected 1 to 90 days"):
        carry.export(desk.tree(), stick, desk.ring("online", "export"), days=400)
    assert stick.names("") == []
    done = carry.export(desk.tree(), stick, desk.ring("online", "export"), days=60)
    assert done.files == len(stick.names(""))
    on_stick = Camera(stick, tmp_path / "cache", camera.root)
    assert None not in on_stick.find(path, now=desk.now + timedelta(days=59))
    with pytest.raises(ExpiredMetadataError):
        on_stick.find(path, now=desk.now + timedelta(days=61))
    assert None not in camera.find(path)
    with pytest.raises(RepositoryError):
        on_stick.find(path)  # older than what it has seen online since


def test_import_trusts_the_root_only(desk: Desk, tmp_path: Path) -> None:
    path = desk.add(b"x", b"y")[0]
    stick, mirror = FolderPlace(tmp_path / "stick"), FolderPlace(tmp_path / "mirror")
    root = desk.place.read("metadata/1.root.json")
    carry.export(desk.tree(), stick, desk.ring("online", "export"), days=30)
    with pytest.raises(InputError, match="whom to trust"):
        carry.import_from(stick, mirror, clock=desk.clock)
    other = Desk(tmp_path / "other")
    with pytest.raises(IntegrityError, match="another repository"):
        carry.import_from(stick, mirror, trusted_root=other.place.read("metadata/1.root.json"), clock=desk.clock)
    victim = next((stick.root / "targets").rglob("*.eep"))
    good = victim.read_bytes()
    victim.write_bytes(b"changed")
    with pytest.raises(IntegrityError, match="changed file"):
        carry.import_from(stick, mirror, trusted_root=root, clock=desk.clock)
    assert mirror.names("") == []
    victim.write_bytes(good)
    carry.import_from(stick, mirror, trusted_root=root, clock=desk.clock)
    assert None not in Camera(mirror, tmp_path / "cache", root).find(path)
    desk.add(b"z")
    newer = FolderPlace(tmp_path / "newer")
    carry.export(desk.tree(), newer, desk.ring("online", "export"), days=30)
    carry.import_from(newer, mirror, clock=desk.clock)
    with pytest.raises(MismatchError, match="older"):
        carry.import_from(stick, mirror, clock=desk.clock)
    desk.now += timedelta(days=31)
    with pytest.raises(IntegrityError, match="expired"):
        carry.import_from(newer, mirror, clock=desk.clock)


def test_other_keys_for_a_role_with_bins(desk: Desk, tmp_path: Path) -> None:
    paths = desk.add(*_patches(100))
    repository.grant(desk.tree(), "patches-linux-cpu", [desk.public["ml2"]], desk.ring("targets", "online", "ml2"))
    camera = Camera(desk.place, tmp_path / "cache")
    assert None not in camera.find(*paths)
    with pytest.raises(InputError, match="cannot sign patches-linux-cpu"):
        desk.add(b"by the old key")
    repository.grant(desk.tree(), "patches-rtx", [desk.public["ml"]], desk.ring("targets", "online", "ml"))
    assert None not in camera.find(repository.add_patches(desk.tree(), "rtx", [b"q"], desk.ring("ml", "online"))[0])


@pytest.mark.parametrize("name", ["../x", "a//b", "/etc/passwd", "a/../b", "", "a/.", "a\nb"])
def test_no_name_leaves_the_place(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="name is not usable"):
        FolderPlace(tmp_path).read(name)
