"""Attacks on the way of an update, by name: the stick, the mirror, the line; endless, slow, swapped, truncated and deep data.

See `test_update_attacks` for what must hold afterwards.
"""

from __future__ import annotations

import gzip
import http.server
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from update_repository import Server
from update_victim import ML, PATCH, RELEASE, Victim

from edgeedit.errors import IntegrityError, UnreachableError
from edgeedit.limits import MAX_ROOT_BYTES, MAX_SNAPSHOT_BYTES, MAX_TARGETS_BYTES, MAX_TIMESTAMP_BYTES
from edgeedit.ota.client.link import Link

QUICK = Link(min_speed=128, patience=0.4, timeout=0.4)
Handler = http.server.BaseHTTPRequestHandler


@pytest.fixture
def victim(tmp_path: Path) -> Victim:
    return Victim(tmp_path)


def patch_file(victim: Victim, source: Path) -> Path:
    patch = victim.rollout.patch
    return source / "targets" / patch.path.replace(patch.sha256, f"{patch.sha256}.{patch.sha256}", 1)


# The stick


def _linked(path: Path, outside: Path) -> None:
    """The same content, reached by a link."""
    outside.parent.mkdir(exist_ok=True)
    path.rename(outside)
    path.symlink_to(outside)


@pytest.mark.parametrize("name", ["metadata", "metadata/timestamp.json"], ids=["folder", "file"])
def test_metadata_behind_a_link_on_the_stick(victim: Victim, name: str) -> None:
    victim.repository.stamp(snapshot=True)
    source = victim.publish()
    _linked(source / name, victim.folder / "outside" / "there")
    victim.refuses((IntegrityError if "/" in name else UnreachableError), "link|no metadata", source)


@pytest.mark.parametrize("depth", [0, 1, 2, 3], ids=["file", "profile", "patches", "targets"])
def test_a_patch_behind_a_link_on_the_stick(victim: Victim, depth: int) -> None:
    source = victim.publish()
    path = patch_file(victim, source)
    _linked(path if depth == 0 else path.parents[depth - 1], victim.folder / "outside" / "there")
    offer = victim.poll(source)
    assert offer is not None
    victim.fetch_refuses((IntegrityError if depth == 0 else UnreachableError), "link|source has no", offer)


@pytest.mark.parametrize("kind", ["fifo", "folder", "device"])
def test_a_timestamp_that_is_a(victim: Victim, kind: str) -> None:
    source = victim.publish()
    path = source / "metadata/timestamp.json"
    path.unlink()
    {"fifo": os.mkfifo, "folder": os.mkdir, "device": lambda p: os.symlink("/dev/zero", p)}[kind](path)
    victim.refuses(IntegrityError, "is no file|is a link", source)


def test_a_stick_that_is_pulled_out(victim: Victim) -> None:
    offer = victim.poll(source := victim.publish())
    assert offer is not None
    shutil.rmtree(source)
    victim.fetch_refuses(UnreachableError, "mount|source has no", offer)
    victim.refuses(UnreachableError, "source has no|cannot be fetched", source)


def test_a_stick_without_the_timestamp(victim: Victim) -> None:
    del victim.repository.files["metadata/timestamp.json"]
    source = victim.publish()
    victim.refuses(UnreachableError, "timestamp", source)


# Bytes of a wrong number or shape


@pytest.mark.parametrize(
    ("role", "limit"),
    [("root", MAX_ROOT_BYTES), ("timestamp", MAX_TIMESTAMP_BYTES), ("snapshot", MAX_SNAPSHOT_BYTES), (ML, MAX_TARGETS_BYTES)],
    ids=["root", "timestamp", "snapshot", "patches"],
)
def test_endless_metadata(victim: Victim, role: str, limit: int) -> None:
    """White space without end after what would be right; the camera reads no further than its limit."""
    victim.repository.publish(ML)
    version = {"root": "2.", "timestamp": "", "snapshot": f"{victim.repository.snapshot.version}."}.get(role)
    path = f"metadata/{f'{victim.repository.versions[ML]}.' if version is None else version}{role}.json"
    head = victim.repository.files.get(path, b" ")
    sent = 0

    def endless(handler: Handler, asked: str) -> bool:
        nonlocal sent
        if asked != path:
            return False
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(head)
        handler.wfile.flush()
        handler.close_connection = True
        while sent < 8 * limit:
            sent += handler.connection.send(b" " * 16384)
        return True

    takes = {"snapshot": ("timestamp.json",), ML: ("timestamp.json", "snapshot.json")}.get(role, ())
    with Server(victim.repository.files, endless) as server:
        victim.refuses(IntegrityError, "too long", server.url, takes=takes, again=not takes)
    assert sent < 8 * limit + 2**20


SHAPES: dict[str, Callable[[bytes], bytes]] = {
    "deep": lambda data: b'{"a":' * 2500 + b"1" + b"}" * 2500,
    "truncated": lambda data: data[:-30],
    "empty": lambda data: b"",
    "zeroed": lambda data: bytes(len(data)),
    "a-captive-portal": lambda data: b"<html><body>Please log in</body></html>",
    "no-object": lambda data: b"[]",
    "another-type": lambda data: data.replace(b'"_type":"timestamp"', b'"_type":"snapshot"'),
}


@pytest.mark.parametrize("shape", sorted(SHAPES))
def test_a_timestamp_that_is(victim: Victim, shape: str) -> None:
    victim.repository.stamp()
    data = victim.repository.files["metadata/timestamp.json"]
    victim.repository.files["metadata/timestamp.json"] = SHAPES[shape](data)
    victim.refuses(IntegrityError, "metadata is refused")


def test_a_timestamp_that_unpacks_without_end(victim: Victim) -> None:
    """A gzip bomb: small on the line, 8 MiB beyond it."""
    bomb = gzip.compress(bytes(MAX_TIMESTAMP_BYTES * 512), 9)
    assert len(bomb) < MAX_TIMESTAMP_BYTES  # what comes over the line is within the limit

    def zipped(handler: Handler, asked: str) -> bool:
        if not asked.endswith("timestamp.json"):
            return False
        handler.send_response(200)
        handler.send_header("Content-Encoding", "gzip")
        handler.send_header("Content-Length", str(len(bomb)))
        handler.end_headers()
        handler.wfile.write(bomb)
        return True

    with Server(victim.repository.files, zipped) as server:
        victim.refuses(IntegrityError, "too long", server.url)


# The patch itself


CONTENT: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "swapped": (lambda data: bytes(len(data)), "not what was signed"),
    "with-one-bit-changed": (lambda data: data[:500] + bytes([data[500] ^ 1]) + data[501:], "not what was signed"),
    "too-long": (lambda data: data + b"x", "another length"),
    "truncated": (lambda data: data[:-1], "another length"),
    "empty": (lambda data: b"", "another length"),
}


@pytest.mark.parametrize("attack", sorted(CONTENT))
@pytest.mark.parametrize("way", ["stick", "http"])
def test_a_patch(victim: Victim, way: str, attack: str) -> None:
    change, match = CONTENT[attack]
    source = victim.publish()
    path = patch_file(victim, source)
    name = str(path.relative_to(source))
    assert victim.repository.files[name] == PATCH
    files = {**victim.repository.files, name: change(PATCH)}
    path.write_bytes(files[name])
    with Server(files) as server:
        offer = victim.poll(server.url if way == "http" else source)
        assert offer is not None
        victim.fetch_refuses(IntegrityError, match, offer)


def test_an_endless_patch(victim: Victim) -> None:
    """No length is said, so that only counting helps."""

    def endless(handler: Handler, asked: str) -> bool:
        if not asked.endswith(".eep"):
            return False
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.flush()
        handler.close_connection = True
        for _ in range(10_000):
            handler.connection.sendall(PATCH)
        return True

    with Server(victim.repository.files, endless) as server:
        offer = victim.poll(server.url)
        assert offer is not None
        victim.fetch_refuses(IntegrityError, "too long", offer)


# Slow retrieval


def _drip(handler: Handler, data: bytes, seconds: float = 4.0) -> None:
    """A byte now and then, so that no silence is ever long."""
    end = time.monotonic() + seconds
    for byte in data:
        if time.monotonic() > end:
            return
        handler.connection.sendall(bytes([byte]))
        time.sleep(0.05)


@pytest.mark.parametrize("what", ["root", "timestamp", "rollout"])
def test_slow_retrieval_of_the(victim: Victim, what: str) -> None:
    victim.lose_cache()
    ends = {"root": "2.root.json", "timestamp": "timestamp.json", "rollout": ".r1.json"}[what]

    def slow(handler: Handler, asked: str) -> bool:
        if not asked.endswith(ends):
            return False
        handler.send_response(200)
        handler.send_header("Content-Length", "9000")
        handler.end_headers()
        handler.wfile.flush()
        handler.close_connection = True
        _drip(handler, b" " * 9000)
        return True

    began = time.monotonic()
    with Server(victim.repository.files, slow) as server:
        victim.refuses(UnreachableError, "too slow", server.url, link=QUICK)
    assert time.monotonic() - began < 4.0


def test_slow_retrieval_of_the_headers(victim: Victim) -> None:
    def slow(handler: Handler, asked: str) -> bool:
        handler.close_connection = True
        _drip(handler, b"HTTP/1.1 200 OK\r\nX: " + b"x" * 500)
        return True

    began = time.monotonic()
    with Server(victim.repository.files, slow) as server:
        victim.refuses(UnreachableError, "cannot", server.url, link=QUICK)
    assert time.monotonic() - began < 4.0


def test_a_silent_server(victim: Victim) -> None:
    def silent(handler: Handler, asked: str) -> bool:
        handler.close_connection = True
        time.sleep(1.5)
        return True

    with Server(victim.repository.files, silent) as server:
        victim.refuses(UnreachableError, "cannot", server.url, link=QUICK)


def test_slow_retrieval_of_the_patch(victim: Victim) -> None:
    def slow(handler: Handler, asked: str) -> bool:
        if not asked.endswith(".eep"):
            return False
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(PATCH)))
        handler.end_headers()
        handler.wfile.flush()
        handler.close_connection = True
        _drip(handler, PATCH)
        return True

    with Server(victim.repository.files, slow) as server:
        offer = victim.poll(server.url, link=QUICK)
        assert offer is not None
        victim.fetch_refuses(UnreachableError, "too slow", offer, kept=True)


@pytest.mark.parametrize("status", [500, 503, 401, 302])
def test_a_mirror_that_answers(victim: Victim, status: int) -> None:
    def broken(handler: Handler, asked: str) -> bool:
        handler.send_response(status)
        handler.send_header("Location", "/again")
        handler.send_header("Content-Length", "0")
        handler.end_headers()
        return True

    with Server(victim.repository.files, broken) as server:
        victim.refuses(UnreachableError, "cannot|refuses", server.url, link=QUICK)


def test_a_mirror_that_hides_the_rollouts_role(victim: Victim) -> None:
    victim.lose_cache()
    del victim.repository.files[f"metadata/{victim.repository.versions[RELEASE]}.{RELEASE}.json"]
    victim.refuses(UnreachableError, RELEASE)
