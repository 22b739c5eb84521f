"""The release desk and the device's own client together: what one publishes the other takes, by web address and by stick."""

from __future__ import annotations

import functools
import hashlib
import http.server
import threading
from pathlib import Path

import pytest

from edgeedit.ota.client.session import Config, fetch, poll
from edgeedit.ota.server import carry, release, repository
from edgeedit.ota.server.places import FolderPlace
from tests.support.update_repository import MemoryFloors
from tests.unit.ota_server.test_repository import Desk
from tests.unit.ota_server.test_rollout import A, Site


class _Quiet(http.server.SimpleHTTPRequestHandler):
    wbufsize = -1
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path, 20)


def _publish(site: Site, folder: Path) -> None:
    for name, data in site.place.files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


@pytest.mark.parametrize("by", ["web", "folder"])
def test_canary_takes_it_others_wait_and_a_withdrawal_is_obeyed(site: Site, tmp_path: Path, by: str) -> None:
    made = release.start(site.tree(), site.plan("canary=3", "all=100%"), site.ring, site.ledger)
    taking = {device.id for device in site.takers(made)}
    folder = tmp_path / "www"
    _publish(site, folder)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    source = f"http://127.0.0.1:{server.server_port}" if by == "web" else str(folder)
    root = site.place.files["metadata/1.root.json"]
    floors = {device.id: MemoryFloors() for device in site.devices}

    def ask(index: int, running: str = A) -> object:
        device = site.devices[index]
        config = Config(source, tmp_path / device.id, root, "plant", device, running)
        return poll(config, floors[device.id], site.now.timestamp())

    try:
        offers = {device.id: ask(n) for n, device in enumerate(site.devices)}
        assert {name for name, offer in offers.items() if offer is not None} == taking and len(taking) == 3
        offer = offers[min(taking)]
        assert fetch(offer, tmp_path / min(taking)).read_bytes() == b"patch"  # type: ignore[arg-type]
        release.withdraw(site.tree(), "plant", "r1", site.ring, site.ledger)
        _publish(site, folder)
        index = next(n for n, device in enumerate(site.devices) if device.id in taking)
        order = ask(index, running="b" * 64)
        assert order is not None and order.action == "return"  # type: ignore[attr-defined]
    finally:
        server.shutdown()
        server.server_close()


def test_a_stick_is_polled_with_no_network(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    path = desk.add(b"patch")[0]
    assert path.endswith(hashlib.sha256(b"patch").hexdigest() + ".eep")
    stick = FolderPlace(tmp_path / "stick")
    carry.export(desk.tree(), stick, desk.ring("online", "export"), days=30)
    device = Site(tmp_path, 1).devices[0]
    config = Config(str(stick.root), tmp_path / "cache", stick.read("metadata/1.root.json") or b"", "plant", device, A)
    assert poll(config, MemoryFloors(), desk.now.timestamp()) is None
    assert repository.find_target(desk.tree(), path) is not None
