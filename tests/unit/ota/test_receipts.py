"""Receipts: signed by the device they name, carried by HTTP, MQTT and stick, forgotten only when they arrived."""

from __future__ import annotations

import contextlib
import http.server
import json
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from securesystemslib.signer import CryptoSigner, Key
from update_repository import NOW

from edgeedit.errors import InputError, IntegrityError, RefusedError, UnreachableError
from edgeedit.ota.client.carriers import deliver, open_carrier, post
from edgeedit.ota.client.link import Link, RejectedError
from edgeedit.ota.client.receipts import Receipt, encode_receipt, load_device_key, parse_receipt, sign_receipt, verify_receipt

KEY, OTHER = CryptoSigner.generate_ed25519(), CryptoSigner.generate_ed25519()
RECEIPT = Receipt("cam-1", "r1", 7, "reverted", "d" * 64, 3, "probe 2 differs by 0.4", NOW)
LINK = Link(timeout=2, patience=2)


def key_of(device: str) -> Key | None:
    return {"cam-1": KEY.public_key, "cam-2": OTHER.public_key}.get(device)


class Queue:
    def __init__(self, count: int) -> None:
        self.rows = {number: sign_receipt(replace(RECEIPT, sequence=number + 1), KEY) for number in range(count)}

    def put(self, data: bytes) -> None:
        self.rows[len(self.rows)] = data

    def pending(self, limit: int) -> list[tuple[int, bytes]]:
        return sorted(self.rows.items())[:limit]

    def done(self, ids: Sequence[int]) -> None:
        for number in ids:
            self.rows.pop(number, None)


def test_a_receipt_is_its_devices_word() -> None:
    data = sign_receipt(RECEIPT, KEY)
    assert b"\n" not in data and verify_receipt(data, key_of) == RECEIPT
    assert parse_receipt(encode_receipt(RECEIPT)) == RECEIPT


@pytest.mark.parametrize(
    "change",
    [
        {"device": "a/b"},
        {"state": "happy"},
        {"sequence": 0},
        {"patch": "x"},
        {"generation": -1},
        {"reason": "a\x00"},
        {"time": -5},
        {"reason": "x" * 2000},
    ],
)
def test_a_receipt_that_breaks_a_rule_cannot_be_made(change: dict[str, object]) -> None:
    with pytest.raises(IntegrityError):
        replace(RECEIPT, **change)  # type: ignore[arg-type]


def test_a_device_key_is_read_from_its_file(tmp_path: Path) -> None:
    from edgeedit.patch.keys import new_key

    new_key(tmp_path / "device.key", tmp_path / "device.pub")
    signer = load_device_key(tmp_path / "device.key")
    assert verify_receipt(sign_receipt(RECEIPT, signer), lambda _: signer.public_key) == RECEIPT
    for bad in (tmp_path / "device.pub", tmp_path / "none"):
        with pytest.raises(InputError):
            load_device_key(bad)


class _Receiver(http.server.BaseHTTPRequestHandler):
    answers: list[object]
    got: list[bytes]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        lines = body.split(b"\n")
        answer = self.answers.pop(0) if self.answers else None
        self.got.extend(lines if answer is None else [])
        if answer is None:
            answer = {"accepted": len(lines), "known": 0, "refused": 0}
        status, text = (answer, b"") if isinstance(answer, int) else (200, json.dumps(answer).encode())
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def receiver() -> Iterator[tuple[str, type[_Receiver]]]:
    kind = type("Receiver", (_Receiver,), {"answers": [], "got": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), kind)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/", kind
    server.shutdown()
    server.server_close()


def test_http_takes_all_in_batches_and_forgets_only_what_arrived(receiver: tuple[str, type[_Receiver]]) -> None:
    url, kind = receiver
    queue = Queue(300)
    carrier = open_carrier(url, LINK, site="s", device="cam-1")
    kind.answers[:] = [503]
    with pytest.raises(UnreachableError, match="503"):
        deliver(queue, carrier)
    assert len(queue.rows) == 300
    assert deliver(queue, carrier) == 300 and not queue.rows
    assert [verify_receipt(line, key_of).sequence for line in kind.got] == list(range(1, 301))


@pytest.mark.parametrize("answer", ["<html>please log in</html>", {"accepted": 1, "known": 0, "refused": 0}, {}, [1]])
def test_a_portal_that_answers_200_is_not_believed(receiver: tuple[str, type[_Receiver]], answer: object) -> None:
    url, kind = receiver
    queue = Queue(2)
    kind.answers[:] = [answer]
    with pytest.raises(IntegrityError) as caught:
        deliver(queue, open_carrier(url, LINK, site="s", device="cam-1"))
    assert caught.value.exit_code == 5 and len(queue.rows) == 2


@pytest.mark.parametrize("status", [400, 413, 422])
def test_what_is_rejected_is_told_apart_from_what_is_away(receiver: tuple[str, type[_Receiver]], status: int) -> None:
    url, kind = receiver
    queue, carrier = Queue(2), open_carrier(url, LINK, site="s", device="cam-1")
    kind.answers[:] = [status, 401, 403, 404, 408, 429, 500]
    with pytest.raises(RejectedError, match=f"rejects 2 receipts: got HTTP {status}") as caught:
        deliver(queue, carrier)
    assert caught.value.exit_code == 6
    while kind.answers:  # an address or a moment that is wrong may be right later
        with pytest.raises(UnreachableError):
            deliver(queue, carrier)
    assert deliver(queue, carrier) == 2


@pytest.mark.parametrize("slow", ["body", "answer"])
def test_a_receiver_that_is_slow_without_end(slow: str) -> None:
    """It reads, or answers, a byte at a time: no silence is long, and the minimum speed ends it."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    ended = threading.Event()

    def serve() -> None:
        peer, _ = listener.accept()
        with peer, contextlib.suppress(OSError):
            if slow == "answer":
                while not peer.recv(65536).endswith(b"end"):
                    pass
                peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 60000\r\n\r\n")
            while not ended.wait(0.2):
                _ = peer.sendall(b" ") if slow == "answer" else peer.recv(16)

    threading.Thread(target=serve, daemon=True).start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    size = 10 if slow == "answer" else 8_000_000
    began = time.monotonic()
    try:
        with pytest.raises(UnreachableError) as caught:
            post(url, [b"x" * size, b"end"], link=Link(timeout=3, patience=1, min_speed=64))
    finally:
        ended.set()
        listener.close()
    assert time.monotonic() - began < 15 and caught.value.exit_code == 8


def test_nobody_listening_or_no_such_way(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for place in (f"http://127.0.0.1:{port}", f"mqtt://127.0.0.1:{port}", str(tmp_path / "no-stick")):
        queue = Queue(1)
        with pytest.raises(UnreachableError):
            deliver(queue, open_carrier(place, LINK, site="s", device="cam-1"))
        assert len(queue.rows) == 1
    with pytest.raises(InputError, match="ftp"):
        open_carrier("ftp://x", LINK, site="s", device="cam-1")


def test_the_stick_takes_files_once_and_no_link_leads_off_it(tmp_path: Path) -> None:
    stick = tmp_path / "stick"
    stick.mkdir()
    carrier = open_carrier(str(stick), LINK, site="s", device="cam-1")
    first = Queue(3)
    rows = dict(first.rows)
    assert deliver(first, carrier) == 3
    again = Queue(0)
    again.rows = rows
    deliver(again, carrier)
    files = sorted((stick / "receipts" / "cam-1").glob("*.receipt"))
    assert len(files) == 3
    assert {verify_receipt(path.read_bytes().strip(), key_of).sequence for path in files} == {1, 2, 3}
    bad = tmp_path / "bad"
    (bad / "receipts").mkdir(parents=True)
    outside = tmp_path / "outside"
    outside.mkdir()
    (bad / "receipts" / "cam-1").symlink_to(outside)
    queue = Queue(1)
    with pytest.raises(IntegrityError, match="link"):
        deliver(queue, open_carrier(str(bad), LINK, site="s", device="cam-1"))
    assert not list(outside.iterdir()) and len(queue.rows) == 1
    (stick / "receipts" / "cam-2").write_text("a file where a folder should be")
    with pytest.raises(RefusedError):
        deliver(queue, open_carrier(str(stick), LINK, site="s", device="cam-2"))


@pytest.mark.sysdeps
def test_mqtt_brings_every_receipt_to_a_real_broker(tmp_path: Path) -> None:
    broker = shutil.which("mosquitto") or "/usr/sbin/mosquitto"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (tmp_path / "m.conf").write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\n")
    server = subprocess.Popen([broker, "-c", str(tmp_path / "m.conf")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        got: list[bytes] = []
        ready, all_here = threading.Event(), threading.Event()
        threading.Thread(target=_listen, args=(port, got, ready, all_here, 20), daemon=True).start()
        assert ready.wait(10)
        queue = Queue(20)
        assert deliver(queue, open_carrier(f"mqtt://127.0.0.1:{port}", LINK, site="plant-a", device="cam-1")) == 20
        assert all_here.wait(10)
        assert {verify_receipt(data, key_of).sequence for data in got} == set(range(1, 21))
    finally:
        server.terminate()
        server.wait(5)


def _listen(port: int, got: list[bytes], ready: threading.Event, all_here: threading.Event, count: int) -> None:
    import asyncio

    import aiomqtt

    async def run() -> None:
        async with aiomqtt.Client("127.0.0.1", port) as client:
            await client.subscribe("edgeedit/plant-a/receipts/+", qos=1)
            ready.set()
            async for message in client.messages:
                got.append(message.payload)  # type: ignore[arg-type]
                if len(got) == count:
                    all_here.set()
                    return

    asyncio.run(run())
