"""A bucket as a place to publish to and a source to read from, against a real S3 stand-in on loopback (moto's server)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from edgeedit.errors import RefusedError
from edgeedit.ota.client import s3
from edgeedit.ota.client.link import Link
from edgeedit.ota.client.s3 import S3Transport
from edgeedit.ota.client.session import Config, fetch, poll
from edgeedit.ota.client.transport import MissingError
from edgeedit.ota.server import release
from edgeedit.ota.server.places import S3Place
from tests.support.update_repository import MemoryFloors
from tests.unit.ota_server.test_rollout import A, Site


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    made = boto3.client(
        "s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1", aws_access_key_id="k", aws_secret_access_key="s"
    )
    made.create_bucket(Bucket="fleet")
    yield made
    made.close()
    server.stop()


def test_two_desks_cannot_both_move_the_timestamp(client: Any) -> None:
    ours, theirs = (S3Place("fleet", "desk", client) for _ in range(2))
    assert ours.read("metadata/timestamp.json") is None
    assert ours.create("metadata/timestamp.json", b"one") and not theirs.create("metadata/timestamp.json", b"other")
    assert ours.read("metadata/timestamp.json") == theirs.read("metadata/timestamp.json") == b"one"
    assert ours.swap("metadata/timestamp.json", b"two", b"one")
    assert not theirs.swap("metadata/timestamp.json", b"three", b"one"), "the second desk overwrote the first one's release"
    assert theirs.read("metadata/timestamp.json") == b"two"
    assert theirs.swap("metadata/timestamp.json", b"three", b"two") and ours.read("metadata/timestamp.json") == b"three"


def test_names_come_in_whole_and_what_is_deleted_is_gone(client: Any) -> None:
    place = S3Place("fleet", "many", client)
    names = [f"targets/{number:04}.bin" for number in range(1005)]  # a listing holds at most 1,000
    for name in names:
        client.put_object(Bucket="fleet", Key=f"many/{name}", Body=b"")
    assert place.names("targets/") == names
    place.delete(names[0])
    assert place.names("targets/") == names[1:] and place.read(names[0]) is None


def test_a_bucket_that_is_not_there_is_refused(client: Any) -> None:
    with pytest.raises(RefusedError):
        S3Place("nobodys", "desk", client).create("metadata/timestamp.json", b"one")


def test_a_download_resumes_and_a_changed_object_starts_again(client: Any) -> None:
    data = bytes(range(256)) * 40
    client.put_object(Bucket="fleet", Key="tree/patch.eep", Body=data)
    source = S3Transport("s3://fleet/tree", Link(), client)
    with source.stream("patch.eep", 0, "") as whole:
        validator = whole.validator
        assert (whole.start, whole.total, b"".join(whole.chunks)) == (0, len(data), data)
    with source.stream("patch.eep", 1000, validator) as rest:
        assert (rest.start, rest.total, b"".join(rest.chunks)) == (1000, len(data), data[1000:])
    client.put_object(Bucket="fleet", Key="tree/patch.eep", Body=data[::-1])
    with source.stream("patch.eep", 1000, validator) as again:
        assert (again.start, b"".join(again.chunks)) == (0, data[::-1]), "bytes of two versions were joined"
    with pytest.raises(MissingError):
        source.read("nothing.eep", 100)


def test_a_canary_takes_what_lies_in_the_bucket(client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = Site(tmp_path, 20)
    made = release.start(site.tree(), site.plan("canary=3", "all=100%"), site.ring, site.ledger)
    bucket = S3Place("fleet", "repo", client)
    for name, data in site.place.files.items():
        assert bucket.create(name, data)
    monkeypatch.setattr(s3, "_client", lambda link: client)
    monkeypatch.setattr(client, "close", lambda: None)  # one client serves every camera here
    found = {}
    for device in site.devices:
        root = site.place.files["metadata/1.root.json"]
        config = Config("s3://fleet/repo", tmp_path / device.id, root, "plant", device, A)
        found[device.id] = poll(config, MemoryFloors(), site.now.timestamp())
    taking = {device.id for device in site.takers(made)}
    assert {name for name, offer in found.items() if offer is not None} == taking and len(taking) == 3
    offer = found[min(taking)]
    assert offer is not None and fetch(offer, tmp_path / min(taking)).read_bytes() == b"patch"
