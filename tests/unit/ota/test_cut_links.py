"""Links that break: transfers cut at 200 random bytes, servers that lie about ranges, files that change midway, one byte a second.

The honest side is a real nginx on loopback; what nginx would never do is a server of our own.
"""

from __future__ import annotations

import hashlib
import http.server
import os
import random
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from update_repository import Server

from edgeedit.errors import IntegrityError, UnreachableError
from edgeedit.ota.client.download import fetch_file
from edgeedit.ota.client.link import Link
from edgeedit.ota.client.transport import open_transport

DATA = random.Random(6).randbytes(1_500_000)
DIGEST = hashlib.sha256(DATA).hexdigest()
QUICK = Link(min_speed=128, patience=0.4, timeout=1.0)
RESENT = 64 * 1024  # bytes that one cut may cost
Handler = http.server.BaseHTTPRequestHandler


def download(url: str, folder: Path, link: Link = QUICK) -> Path:
    transport = open_transport(url, link)
    try:
        return fetch_file(transport, "file", DIGEST, len(DATA), folder / "file.eep")
    finally:
        transport.close()


@pytest.fixture(scope="module")
def nginx(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A web server's address and its document folder."""
    program = shutil.which("nginx") or "/usr/sbin/nginx"
    folder = tmp_path_factory.mktemp("nginx")
    (folder / "www").mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    user = "user root;" if os.getuid() == 0 else ""
    temporary = "".join(f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    (folder / "conf").write_text(
        f"{user} daemon off; pid {folder}/pid; error_log {folder}/error; worker_processes 1; events {{}}\n"
        f"http {{ access_log off; {temporary} server {{ listen 127.0.0.1:{port}; root {folder}/www; }} }}\n"
    )
    process = subprocess.Popen([program, "-p", str(folder), "-c", str(folder / "conf"), "-e", str(folder / "error")])
    for _ in range(200):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        assert process.poll() is None, (folder / "error").read_text()
        time.sleep(0.02)
    yield f"http://127.0.0.1:{port}", folder / "www"
    process.terminate()
    process.wait(10)


class Cutter:
    """A relay before a server that closes each connection after a given number of body bytes, and counts what it passed on."""

    def __init__(self, url: str, cuts: list[int]) -> None:
        self._port, self._cuts = int(url.rpartition(":")[2]), cuts
        self.sent: list[int] = []  # body bytes of each answer
        self.starts: list[int] = []  # first byte that each request asked for
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            # Errors are the other side of a cut.
            with suppress(OSError), client, socket.create_connection(("127.0.0.1", self._port)) as server:
                self._relay(client, server)

    def _relay(self, client: socket.socket, server: socket.socket) -> None:
        request = b""
        while b"\r\n\r\n" not in request:
            request += client.recv(65536)
        server.sendall(request)
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += server.recv(65536)
        head, _, body = answer.partition(b"\r\n\r\n")
        length = int(re.search(rb"Content-Length: (\d+)", head)[1])  # type: ignore[index]
        allowed = min(length, self._cuts.pop(0)) if self._cuts else length
        while len(body) < allowed:
            body += server.recv(65536)
        self.sent.append(allowed)
        asked = re.search(rb"Range: bytes=(\d+)-", request)
        self.starts.append(int(asked[1]) if asked else 0)
        client.sendall(head + b"\r\n\r\n" + body[:allowed])


def test_a_transfer_cut_at_200_random_bytes_sends_little_again(tmp_path: Path, nginx: tuple[str, Path]) -> None:
    """Each cut, at a byte of the file drawn with a fixed seed, costs at most 64 kB."""
    url, folder = nginx
    (folder / "file").write_bytes(DATA)
    marks = sorted(random.Random(200).sample(range(1, len(DATA)), 200))
    cuts = [after - before for before, after in zip([0, *marks], marks, strict=False)]
    cutter = Cutter(url, cuts)
    calls = 0
    while calls < 300:
        calls += 1
        try:
            path = download(cutter.url, tmp_path)
            break
        except UnreachableError:
            assert calls < 100
    cutter.close()
    assert path.read_bytes() == DATA and [p.name for p in tmp_path.iterdir()] == ["file.eep"]
    assert len(cutter.sent) == 201
    ends = [start + sent for start, sent in zip(cutter.starts, cutter.sent, strict=True)]
    again = [end - start for end, start in zip(ends, cutter.starts[1:], strict=False)]
    assert len(again) == 200 and max(again) <= RESENT, max(again)


def test_every_single_cut_is_taken_up_by_the_next_start(tmp_path: Path, nginx: tuple[str, Path]) -> None:
    """The line goes down at a random byte and stays down; a new process later sends no more than 64 kB twice."""
    url, folder = nginx
    (folder / "file").write_bytes(DATA)
    for number, cut in enumerate(random.Random(7).sample(range(len(DATA)), 12)):
        cutter = Cutter(url, [cut, 0, 0, 0, 0, 0, 0])
        with pytest.raises(UnreachableError):
            download(cutter.url, tmp_path / str(number))
        cutter.close()
        again = Cutter(url, [])
        assert download(again.url, tmp_path / str(number)).read_bytes() == DATA
        again.close()
        assert sum(again.sent) <= len(DATA) - cut + RESENT, cut


def test_a_file_that_changes_midway_is_not_joined(tmp_path: Path, nginx: tuple[str, Path]) -> None:
    """nginx gives the changed file another ETag, so If-Range brings it whole; then the right one is back."""
    url, folder = nginx
    (folder / "file").write_bytes(DATA)
    cutter = Cutter(url, [700_000, 0, 0, 0, 0, 0, 0])
    with pytest.raises(UnreachableError):
        download(cutter.url, tmp_path)
    cutter.close()
    (folder / "file").write_bytes(bytes(len(DATA)))
    os.utime(folder / "file", (1, 1))
    with pytest.raises(IntegrityError, match="not what was signed"):
        download(url, tmp_path)
    assert list(tmp_path.iterdir()) == []
    (folder / "file").write_bytes(DATA)
    assert download(url, tmp_path).read_bytes() == DATA


def test_the_same_file_with_a_new_etag_midway_is_sent_whole_once(tmp_path: Path, nginx: tuple[str, Path]) -> None:
    url, folder = nginx
    (folder / "file").write_bytes(DATA)
    cutter = Cutter(url, [700_000, 0, 0, 0, 0, 0, 0])
    with pytest.raises(UnreachableError):
        download(cutter.url, tmp_path)
    cutter.close()
    os.utime(folder / "file", (1, 1))
    again = Cutter(url, [])
    assert download(again.url, tmp_path).read_bytes() == DATA
    again.close()
    assert again.sent == [len(DATA)]


# Servers that lie

Answer = tuple[int, dict[str, str], bytes]


def _answer(handler: Handler, answer: Answer) -> bool:
    status, headers, body = answer
    handler.send_response(status)
    for name, value in {"Content-Length": str(len(body)), **headers}.items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(body)
    return True


def _range(begin: int, end: int, total: int = len(DATA)) -> dict[str, str]:
    return {"Content-Range": f"bytes {begin}-{end - 1}/{total}"}


ALL = len(DATA)
LIES: dict[str, Callable[[int], Answer]] = {
    "other-bytes-than-it-says": lambda at: (206, _range(at, ALL), DATA[: ALL - at]),
    "another-place-than-asked": lambda at: (206, _range(at + 5, ALL), DATA[at + 5 :]),
    "an-earlier-place-than-asked": lambda at: (206, _range(at - 5, ALL), DATA[at - 5 :]),
    "no-content-range": lambda at: (206, {}, DATA[at:]),
    "nonsense-in-content-range": lambda at: (206, {"Content-Range": "bytes 9-1/0"}, DATA[at:]),
    "ranges-not-honoured": lambda at: (200, {}, DATA),
    "range-not-satisfiable": lambda at: (416, {"Content-Range": f"bytes */{ALL}"}, b""),
}


@pytest.mark.parametrize("lie", sorted(LIES))
def test_a_server_that_lies_about_ranges(tmp_path: Path, lie: str) -> None:
    """Whatever it says of a range, the camera ends with the right file: at worst it takes it once more, whole."""
    part = tmp_path / "file.eep.part"
    part.write_bytes(DATA[:900_000])

    def lying(handler: Handler, _: str) -> bool:
        found = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", ""))
        answer = LIES[lie](int(found[1])) if found else (200, {}, DATA)
        asked.append(int(found[1]) if found else 0)
        return _answer(handler, answer)

    asked: list[int] = []
    with Server({}, lying) as server:
        assert download(server.url, tmp_path).read_bytes() == DATA
    assert asked[0] == 900_000 and len(asked) <= 7
    assert [p.name for p in tmp_path.iterdir()] == ["file.eep"]


def test_a_server_that_says_another_total_midway(tmp_path: Path) -> None:
    (tmp_path / "file.eep.part").write_bytes(DATA[:900_000])
    lie = (206, _range(900_000, ALL, ALL + 1), DATA[900_000:])
    with Server({}, lambda handler, _: _answer(handler, lie)) as server, pytest.raises(IntegrityError, match="another length"):
        download(server.url, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_part_that_a_power_cut_damaged(tmp_path: Path) -> None:
    (tmp_path / "file.eep.part").write_bytes(bytes(900_000))
    with Server({"file": DATA}) as server:
        assert download(server.url, tmp_path).read_bytes() == DATA


def test_one_byte_a_second(tmp_path: Path) -> None:
    """Ended by the minimum speed although no silence is long; what came before is kept."""
    (tmp_path / "file.eep.part").write_bytes(DATA[:50_000])

    def slow(handler: Handler, _: str) -> bool:
        begin = int(handler.headers["Range"][len("bytes=") : -1])
        handler.send_response(206)
        handler.send_header("Content-Range", _range(begin, ALL)["Content-Range"])
        handler.send_header("Content-Length", str(ALL - begin))
        handler.end_headers()
        handler.wfile.flush()
        handler.close_connection = True
        for byte in DATA[begin : begin + 8]:
            handler.connection.sendall(bytes([byte]))
            time.sleep(1.0)
        return True

    began = time.monotonic()
    with Server({}, slow) as server, pytest.raises(UnreachableError, match="too slow"):
        download(server.url, tmp_path, Link(min_speed=128, patience=0.5, timeout=1.5))
    assert time.monotonic() - began < 20
    part = (tmp_path / "file.eep.part").read_bytes()
    assert len(part) > 50_000 and part == DATA[: len(part)]


@pytest.mark.parametrize("kept", ["HTTP/1.1 2", "HTTP/1.1 200 OK\r\n", "HTTP/1.1 200 OK\r\nContent-Le", "HTTP/1.1 200 OK\r\nServer: x\r\n"])
def test_a_connection_cut_inside_the_headers_is_a_cut_and_no_empty_file(kept: str) -> None:
    """Else the empty body is judged as what the publisher signed: exit 5, where trying again (8) is all that is needed."""

    def cut(handler: Handler, _: str) -> bool:
        handler.wfile.write(kept.encode())
        handler.close_connection = True
        return True

    with Server({}, cut) as server:
        transport = open_transport(server.url, QUICK)
        with pytest.raises(UnreachableError):
            transport.read("file", 100)
        with pytest.raises(UnreachableError), transport.stream("file", 0, "") as stream:
            list(stream.chunks)
        transport.close()


def test_plain_http_does_not_read_the_systems_authorities(monkeypatch: pytest.MonkeyPatch) -> None:
    """They cost ten times what a poll without news costs; https still has them."""
    read: list[object] = []
    monkeypatch.setattr("ssl.SSLContext.load_default_certs", lambda *given: read.append(given))
    with Server({"file": b"x"}) as server:
        transport = open_transport(server.url, QUICK)
        assert transport.read("file", 1) == b"x" and read == []
        transport.close()
        secure = open_transport(server.url.replace("http:", "https:"), QUICK)
        with pytest.raises(UnreachableError):
            secure.read("file", 1)
        assert len(read) == 1
        secure.close()
