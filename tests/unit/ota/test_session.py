"""A poll and a fetch against a whole repository: what is offered, what it costs on the wire, what it leaves on the disk."""

from __future__ import annotations

import dataclasses
import shutil
import threading
from pathlib import Path

import pytest
from update_repository import (
    BASE,
    DAY,
    NEXT,
    NOW,
    PROFILE,
    SITE,
    MemoryFloors,
    Repository,
    Server,
    make_config,
    make_rollout,
    withdrawn,
)

from edgeedit.errors import InputError, MismatchError, RefusedError, UnreachableError
from edgeedit.ota.client.rollout import Device, Stage, rank
from edgeedit.ota.client.session import fetch, poll

PATCH = bytes(range(256)) * 300


def test_a_released_patch_is_offered_and_fetched(tmp_path: Path) -> None:
    repository = Repository()
    rollout = repository.ship(PATCH)
    floors = MemoryFloors()
    with Server(repository.files) as server:
        offer = poll(make_config(server.url, tmp_path / "cache", repository), floors, NOW)
        assert offer is not None and offer.action == "install" and offer.rollout == rollout
        path = fetch(offer, tmp_path / "new")
    assert path.read_bytes() == PATCH and path.name == f"{rollout.patch.sha256}.eep"
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    names = {name.partition("@")[0] for name in floors.values}
    assert names == {
        "tuf:root",
        "tuf:timestamp",
        "tuf:snapshot",
        "tuf:targets",
        f"tuf:rollouts-{SITE}",
        f"tuf:patches-{PROFILE}",
        "patch-sequence/r1",
        "clock",
    }
    assert floors.values["clock"] == NOW


def test_the_same_from_a_stick(tmp_path: Path) -> None:
    repository = Repository()
    repository.ship(PATCH)
    stick = repository.write(tmp_path / "stick")
    for number, source in enumerate((stick, f"file://{stick}")):
        offer = poll(make_config(source, tmp_path / f"cache{number}", repository), MemoryFloors(), NOW)
        assert offer is not None
        assert fetch(offer, tmp_path / f"new{number}").read_bytes() == PATCH


def test_no_news_costs_two_requests_under_600_bytes_and_writes_nothing(tmp_path: Path) -> None:
    repository = Repository()
    rollout = repository.ship(PATCH)
    floors, cache = MemoryFloors(), tmp_path / "cache"
    with Server(repository.files) as server:
        config = make_config(server.url, cache, repository)
        poll(config, floors, NOW)
        server.log.clear()
        writes = floors.writes
        before = {p: (p.lstat().st_ino, p.lstat().st_mtime_ns) for p in cache.rglob("*")}
        # Offered again as long as the old generation runs; then nothing is left to do.
        assert poll(config, floors, NOW + 60) is not None
        assert poll(dataclasses.replace(config, running=rollout.result), floors, NOW + 60) is None
    first, second = server.log[:2], server.log[2:]
    assert [(path, status) for path, status, _ in first] == [("metadata/2.root.json", 404), ("metadata/timestamp.json", 200)]
    assert first == second and sum(size for *_, size in first) <= 600
    assert {p: (p.lstat().st_ino, p.lstat().st_mtime_ns) for p in cache.rglob("*")} == before
    assert floors.writes == writes


def test_one_new_patch_among_ten_thousand_and_a_cold_device(tmp_path: Path) -> None:
    """One profile, 10,000 live patches: 256 hashed bins, and gzip on the way as every web server offers it."""
    import gzip
    import http.server

    repository = Repository(bits=8)
    role = repository.bins[f"patches-{PROFILE}"]
    for number in range(10_000):
        digest = rank("live", str(number))
        path = f"patches/{PROFILE}/{digest}.eep"
        repository.roles[role.get_role_for_target(path)].targets[path] = make_target(path, digest)
    first = repository.ship(PATCH)
    repository.publish(*role.get_roles())

    def zipped(handler: http.server.BaseHTTPRequestHandler, path: str) -> bool:
        data = repository.files.get(path)
        if data is None or not path.endswith(".json") or "gzip" not in handler.headers.get("Accept-Encoding", ""):
            return False
        body = gzip.compress(data, 6)
        server.log.append((path, 200, len(body)))
        handler.send_response(200)
        handler.send_header("Content-Encoding", "gzip")
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)
        return True

    with Server(repository.files, zipped) as server:
        config = make_config(server.url, tmp_path / "cache", repository)
        floors = MemoryFloors()
        assert poll(config, floors, NOW) is not None
        assert server.bytes_of("metadata/") + server.bytes_of("targets/rollouts/") <= 25_000, "cold device"
        second = repository.add_patch(b"second" * 1000)
        repository.add_rollout(make_rollout(second, release="r2", sequence=5, parent=first.result, result="c" * 64))
        server.log.clear()
        offer = poll(dataclasses.replace(config, running=first.result), floors, NOW + 60)
        assert offer is not None
        fetch(offer, tmp_path / "new")
    assert len(server.log) <= 7, server.log
    assert server.bytes_of("metadata/") <= 15_000
    assert server.bytes_of("targets/rollouts/") <= 2_000


def make_target(path: str, digest: str):  # noqa: ANN201
    from tuf.api.metadata import TargetFile

    return TargetFile(123_456, {"sha256": digest}, path)


def test_a_device_off_for_90_days_updates_at_its_first_poll_across_ten_root_rotations(tmp_path: Path) -> None:
    repository = Repository()
    floors, cache = MemoryFloors(), tmp_path / "cache"
    with Server(repository.files) as server:
        config = make_config(server.url, cache, repository)
        assert poll(config, floors, NOW) is None
        for turn in range(10):
            repository.now = NOW + (turn + 1) * 9 * DAY
            repository.rotate(("timestamp", "snapshot", "targets")[turn % 3], root_too=turn % 2 == 0)
        repository.publish(*repository.roles)
        repository.ship(PATCH)
        offer = poll(config, floors, NOW + 90 * DAY)
        assert offer is not None and fetch(offer, tmp_path / "new").read_bytes() == PATCH
        # And a device that was never on before, with the same embedded root.
        assert poll(dataclasses.replace(config, folder=tmp_path / "cold"), MemoryFloors(), NOW + 90 * DAY) is not None


def test_lost_and_damaged_caches_cost_only_requests(tmp_path: Path) -> None:
    repository = Repository()
    repository.ship(PATCH)
    floors, cache = MemoryFloors(), tmp_path / "cache"
    stick = repository.write(tmp_path / "stick")
    config = make_config(stick, cache, repository)
    assert poll(config, floors, NOW) is not None
    files = sorted(p for p in cache.rglob("*") if p.is_file() and not p.is_symlink() and p.name != ".lock")
    assert len(files) >= 6
    for path in files:
        kept = path.read_bytes()
        for bad in (b"", bytes(len(kept)), kept[: len(kept) // 2], b"[" * 5000):
            path.write_bytes(bad)
            assert poll(config, floors, NOW) is not None, (path, bad[:4])
        path.unlink()
        assert poll(config, floors, NOW) is not None, path
    shutil.rmtree(cache)
    assert poll(config, floors, NOW) is not None


def test_only_the_chosen_stage_the_right_parent_and_what_did_not_fail_here(tmp_path: Path) -> None:
    repository = Repository()
    patch = repository.add_patch(PATCH)
    first, second = sorted(("cam-1", "cam-2"), key=lambda one: rank("s", one))
    stages = (Stage("canary", 1, rank("s", first)), Stage("all", 2, "f" * 64))
    repository.add_rollout(make_rollout(patch, seed="s", stages=stages))
    stick = repository.write(tmp_path / "stick")

    def offered(device: str, **changes: object) -> bool:
        config = make_config(stick, tmp_path / "cache", repository, device=Device(device, PROFILE), **changes)
        offer = poll(config, MemoryFloors(), NOW)
        return offer is not None and offer.action == "install"

    assert offered(first) and not offered(second)
    assert not offered(first, running=NEXT) and not offered(first, refused=frozenset({patch.sha256}))
    with pytest.raises(MismatchError, match="rollouts-elsewhere"):
        offered(first, site="elsewhere")
    with pytest.raises(InputError, match="ftp"):
        poll(make_config("ftp://x/y", tmp_path / "cache", repository), MemoryFloors(), NOW)


def test_halted_is_seen_at_the_next_poll_and_withdrawn_sends_back(tmp_path: Path) -> None:
    repository = Repository()
    rollout = repository.ship(PATCH)
    floors = MemoryFloors()
    with Server(repository.files) as server:
        config = make_config(server.url, tmp_path / "cache", repository)
        assert poll(config, floors, NOW) is not None
        repository.add_rollout(dataclasses.replace(rollout, state="halted", sequence=2))
        assert poll(config, floors, NOW) is None
        repository.add_rollout(withdrawn(dataclasses.replace(rollout, sequence=2)))
        assert poll(config, floors, NOW) is None  # it never took the patch
        for changes in ({"running": NEXT}, {"trial": NEXT}):
            offer = poll(dataclasses.replace(config, **changes), floors, NOW)
            assert offer is not None and offer.action == "return" and offer.rollout.withdraw_to is not None
            assert offer.rollout.withdraw_to.generation == BASE
        with pytest.raises(MismatchError, match="offer to install"):
            fetch(offer, tmp_path / "new")


def test_a_patch_that_is_released_again_after_its_withdrawal_stays(tmp_path: Path) -> None:
    """The later signed order counts, but only for devices that it takes."""
    repository = Repository()
    first = repository.ship(PATCH)
    order = withdrawn(dataclasses.replace(first, sequence=2))
    again = dataclasses.replace(first, release="r2", sequence=4)
    nobody = (dataclasses.replace(again.stages[0], cutoff="", devices=("another",)),)
    cases = {
        "takes it": (again, None),
        "is halted": (dataclasses.replace(again, sequence=5, state="halted"), None),
        "takes others": (dataclasses.replace(again, sequence=6, stages=nobody), "return"),
        "is withdrawn": (withdrawn(dataclasses.replace(again, sequence=6)), "return"),
        "is another patch": (dataclasses.replace(repository.ship(PATCH[1:], release="r2"), sequence=8), "return"),
    }
    repository.add_rollout(order)
    floors = MemoryFloors()
    with Server(repository.files) as server:
        config = make_config(server.url, tmp_path / "cache", repository)
        for case, (document, expected) in cases.items():
            repository.add_rollout(document)
            offer = poll(dataclasses.replace(config, running=first.result), floors, NOW)
            assert (offer and offer.action) == expected, case
        # An order given after the new release takes the patch away again.
        repository.add_rollout(dataclasses.replace(again, sequence=9))
        assert poll(dataclasses.replace(config, running=first.result), floors, NOW) is None
        repository.add_rollout(dataclasses.replace(order, sequence=10))
        last = poll(dataclasses.replace(config, running=first.result), floors, NOW)
        assert last is not None and last.action == "return"


def test_a_wrong_clock_refuses_or_stands_at_the_floor(tmp_path: Path) -> None:
    repository = Repository()
    repository.ship(PATCH)
    stick = repository.write(tmp_path / "stick")
    floors = MemoryFloors({"clock": NOW})
    config = make_config(stick, tmp_path / "cache", repository)
    for clock in (0, 946_684_800, NOW - 301):  # 1970, 2000, just behind
        with pytest.raises(RefusedError, match="clock is wrong"):
            poll(config, floors, clock)
    assert poll(config, floors, NOW - 299) is not None
    assert poll(dataclasses.replace(config, step_clock=True), floors, 0) is not None
    assert floors.values["clock"] == NOW


def test_two_polls_of_one_folder_do_not_meet(tmp_path: Path) -> None:
    repository = Repository()
    inside, go = threading.Event(), threading.Event()

    def slow(_: object, __: str) -> bool:
        inside.set()
        go.wait(10)
        return False

    with Server(repository.files, slow) as server:
        config = make_config(server.url, tmp_path / "cache", repository)
        thread = threading.Thread(target=poll, args=(config, MemoryFloors(), NOW))
        thread.start()
        assert inside.wait(10)
        with pytest.raises(UnreachableError, match="another poll"):
            poll(config, MemoryFloors(), NOW)
        go.set()
        thread.join(10)
