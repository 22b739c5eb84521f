"""Ways through a plant's network, with real servers: mutual TLS, a proxy, a rate; and MQTT over TLS with a device's certificate."""

from __future__ import annotations

import asyncio
import http.server
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from securesystemslib.signer import CryptoSigner
from tls_files import TlsFiles, make_tls
from update_repository import NOW

from edgeedit.digest import digest_bytes
from edgeedit.errors import InputError, UnreachableError
from edgeedit.ota.client.carriers import open_carrier
from edgeedit.ota.client.download import fetch_file
from edgeedit.ota.client.link import Link
from edgeedit.ota.client.receipts import Receipt, sign_receipt
from edgeedit.ota.client.transport import open_transport

pytestmark = pytest.mark.sysdeps
DATA = bytes(range(251)) * 800  # 200 kB
KEY = CryptoSigner.generate_ed25519()
LINES = [sign_receipt(Receipt("cam-1", "r1", number, "offered", "d" * 64, 0, "", NOW), KEY) for number in (1, 2, 3)]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 30
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.05)


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> TlsFiles:
    return make_tls(tmp_path_factory.mktemp("ours"))


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> TlsFiles:
    return make_tls(tmp_path_factory.mktemp("theirs"))


def link_of(tls: TlsFiles) -> Link:
    return Link(timeout=5, patience=5, ca=tls.ca, certificate=tls.device, key=TlsFiles.key(tls.device))


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory, tls: TlsFiles) -> Iterator[tuple[str, str]]:
    """nginx: one address that asks for a certificate of our authority, and a plain one."""
    program = shutil.which("nginx") or "/usr/sbin/nginx"
    at = tmp_path_factory.mktemp("nginx")
    (at / "file").write_bytes(DATA)
    secure, plain = free_port(), free_port()
    user = "user root;" if os.getuid() == 0 else ""
    temporary = "".join(f"{kind}_temp_path {at}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    key = TlsFiles.key(tls.server)
    asks = f"ssl_certificate {tls.server}; ssl_certificate_key {key}; ssl_client_certificate {tls.ca}; ssl_verify_client on;"
    (at / "conf").write_text(
        f"{user} daemon off; pid {at}/pid; error_log {at}/error; worker_processes 1; events {{}}\n"
        f"http {{ access_log off; {temporary} root {at};\n"
        f"server {{ listen 127.0.0.1:{secure} ssl; {asks} }}\nserver {{ listen 127.0.0.1:{plain}; }} }}\n"
    )
    process = subprocess.Popen([program, "-p", str(at), "-c", str(at / "conf"), "-e", str(at / "error")])
    try:
        wait_for(plain, process)
        yield f"https://127.0.0.1:{secure}", f"http://127.0.0.1:{plain}"
    finally:
        process.terminate()
        process.wait(20)


def get(url: str, link: Link) -> bytes:
    transport = open_transport(url, link)
    try:
        return transport.read("file", len(DATA))
    finally:
        transport.close()


def test_mutual_tls_and_whoever_lacks_a_certificate(web: tuple[str, str], tls: TlsFiles, stranger: TlsFiles, tmp_path: Path) -> None:
    url, ours = web[0], link_of(tls)
    assert get(url, ours) == DATA
    theirs = link_of(stranger)
    for link in (
        replace(ours, certificate=None, key=None),  # none
        replace(theirs, ca=tls.ca),  # of another authority
        replace(ours, ca=stranger.ca),  # the server is another's
        Link(timeout=5),  # the system's authorities know nothing of it
    ):
        with pytest.raises(UnreachableError) as caught:
            get(url, link)
        assert caught.value.exit_code == 8
    with pytest.raises(InputError, match="certificates"):
        get(url, replace(ours, certificate=tmp_path / "none.pem"))


class _Proxy(http.server.BaseHTTPRequestHandler):
    """A forward proxy for plain http; what it was asked for."""

    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        with urllib.request.urlopen(self.path, timeout=10) as answer:
            body = answer.read()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def test_a_proxy_is_used_and_one_that_is_away_is_exit_8(web: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    kind = type("Proxy", (_Proxy,), {"asked": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), kind)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        assert get(web[1], Link(timeout=5, proxy=f"http://127.0.0.1:{server.server_port}")) == DATA
        assert kind.asked == [f"{web[1]}/file"]
    finally:
        server.shutdown()
        server.server_close()
    with pytest.raises(UnreachableError):
        get(web[1], Link(timeout=2, proxy="http://127.0.0.1:9"))


def test_a_rate_is_kept(web: tuple[str, str], tmp_path: Path) -> None:
    """200 kB at 100 kB/s take two seconds, where nothing holds them a tenth of it."""
    transport = open_transport(web[1], Link(timeout=5, rate=100_000))
    began = time.monotonic()
    try:
        path = fetch_file(transport, "file", digest_bytes(DATA), len(DATA), tmp_path / "x.eep")
    finally:
        transport.close()
    took = time.monotonic() - began
    assert path.read_bytes() == DATA and took > 0.85 * len(DATA) / 100_000, took
    with pytest.raises(InputError, match="contradict"):
        Link(rate=100, min_speed=128)


def test_the_receiver_asks_devices_for_their_certificate(tls: TlsFiles, stranger: TlsFiles, tmp_path: Path) -> None:
    """`edgeedit fleet serve --tls-*`: ours may deliver (to be refused by content, as nobody is enrolled), others may not even connect."""
    port = free_port()
    given = ["--tls-cert", tls.server, "--tls-key", TlsFiles.key(tls.server), "--tls-client-ca", tls.ca]
    words = [sys.executable, "-m", "edgeedit.cli.main", "fleet", "serve", "--ledger", tmp_path / "ledger.db", "--port", port, *given]
    process = subprocess.Popen(list(map(str, words)), stdin=subprocess.DEVNULL)
    try:
        wait_for(port, process)
        url = f"https://127.0.0.1:{port}"
        open_carrier(url, link_of(tls), site="s", device="cam-1")(LINES)
        for link in (replace(link_of(tls), certificate=None, key=None), replace(link_of(stranger), ca=tls.ca)):
            with pytest.raises(UnreachableError):
                open_carrier(url, link, site="s", device="cam-1")(LINES)
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture
def broker(tls: TlsFiles, tmp_path: Path) -> Iterator[int]:
    """mosquitto that lets in whoever has a certificate of our authority."""
    program, port = shutil.which("mosquitto") or "/usr/sbin/mosquitto", free_port()
    files = f"cafile {tls.ca}\ncertfile {tls.server}\nkeyfile {TlsFiles.key(tls.server)}\nrequire_certificate true\n"
    user = "user root\n" if os.getuid() == 0 else ""
    (tmp_path / "m.conf").write_text(f"{user}listener {port} 127.0.0.1\n{files}allow_anonymous true\n")
    process = subprocess.Popen([program, "-c", str(tmp_path / "m.conf")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(port, process)
        yield port
    finally:
        process.terminate()
        process.wait(20)


def _parameters(tls: TlsFiles) -> object:
    import aiomqtt

    return aiomqtt.TLSParameters(ca_certs=str(tls.ca), certfile=str(tls.device), keyfile=str(TlsFiles.key(tls.device)))


def test_receipts_by_mqtt_over_tls(broker: int, tls: TlsFiles, stranger: TlsFiles) -> None:
    import aiomqtt

    got: list[bytes] = []

    async def listen(ready: asyncio.Event) -> None:
        async with aiomqtt.Client("127.0.0.1", broker, tls_params=_parameters(tls)) as client:  # type: ignore[arg-type]
            await client.subscribe("edgeedit/s/receipts/+", qos=1)
            ready.set()
            async for message in client.messages:
                got.append(bytes(message.payload))  # type: ignore[arg-type]
                if len(got) == len(LINES):
                    return

    async def both() -> None:
        ready = asyncio.Event()
        task = asyncio.create_task(listen(ready))
        await asyncio.wait_for(ready.wait(), 20)
        await asyncio.to_thread(open_carrier(f"mqtts://127.0.0.1:{broker}", link_of(tls), site="s", device="cam-1"), LINES)
        await asyncio.wait_for(task, 20)

    asyncio.run(both())
    assert sorted(got) == sorted(LINES)
    for link in (replace(link_of(tls), certificate=None, key=None), replace(link_of(stranger), ca=tls.ca), link_of(stranger)):
        with pytest.raises(UnreachableError):
            open_carrier(f"mqtts://127.0.0.1:{broker}", link, site="s", device="cam-1")(LINES)


def test_a_monitors_events_and_its_last_will_over_tls(broker: int, tls: TlsFiles, tmp_path: Path) -> None:
    """An event arrives; when the connection is cut without a goodbye, the broker says that the device is gone."""
    import json

    import aiomqtt

    from edgeedit.device.monitor.mqtt import MqttOutlet
    from edgeedit.device.monitor.outlets import Event

    files = {"ca": tls.ca, "certificate": tls.device, "key": TlsFiles.key(tls.device)}

    def speak_and_die() -> MqttOutlet:
        outlet = MqttOutlet(f"mqtts://127.0.0.1:{broker}", site="s", device="cam-1", spool=tmp_path / "spool.json", **files)
        outlet.event(Event("drift_warn", 1, "psi rose", 1.0))
        end = time.monotonic() + 20
        while outlet.waiting:
            assert time.monotonic() < end, "the broker never had the event"
            time.sleep(0.05)
        outlet._client.reconnect_delay_set(60, 60)
        sock = outlet._client.socket()
        assert sock is not None
        sock.shutdown(socket.SHUT_RDWR)
        return outlet

    async def both() -> tuple[list[object], MqttOutlet]:
        said: list[object] = []
        async with aiomqtt.Client("127.0.0.1", broker, tls_params=_parameters(tls)) as client:  # type: ignore[arg-type]
            await client.subscribe("edgeedit/s/#", qos=1)
            outlet = await asyncio.to_thread(speak_and_die)
            async for message in client.messages:
                value = json.loads(message.payload)  # type: ignore[arg-type]
                said.append(value.get("online", value.get("kind")))
                if said[-1] is False:
                    return said, outlet
        raise AssertionError

    said, outlet = asyncio.run(asyncio.wait_for(both(), 60))
    outlet._online = True  # as it still is when the outlet's thread has not seen the cut
    outlet.close()
    assert said == [True, "drift_warn", False]
