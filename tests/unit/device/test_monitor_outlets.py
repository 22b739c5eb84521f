"""Where a monitor's events and figures go: loopback only, through a real broker, and nothing is lost while it is away."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgeedit.device.monitor import mqtt
from edgeedit.device.monitor.metrics import Figures
from edgeedit.device.monitor.monitor import Monitor
from edgeedit.device.monitor.mqtt import MqttOutlet
from edgeedit.device.monitor.outlets import Event, MetricsServer
from edgeedit.device.runtime import Runtime
from edgeedit.device.store import Store
from edgeedit.errors import InputError, RefusedError


def _until(what: Callable[[], bool], seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while not what() and time.monotonic() < end:
        time.sleep(0.02)
    return what()


def test_metrics_answer_on_loopback_only_and_as_prometheus_reads_them(world: Any, tmp_path: Path) -> None:
    from prometheus_client import parser

    server = MetricsServer(0)
    with pytest.raises(RefusedError, match="cannot serve"):
        MetricsServer(server.port)
    Store.create(tmp_path / "store", world.bundle.path, [world.public]).close()
    monitor = Monitor(every=0.0, frames=4, background=False, outlets=[server])
    with Runtime(tmp_path / "store", poll_seconds=0, monitor=monitor) as runtime:
        for _ in range(8):
            runtime.run(np.random.default_rng(0).random((1, 3, 4, 4), np.float32))
            monitor.work()
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        found = {family.name: family for family in parser.text_string_to_metric_families(text)}
        assert found["edgeedit_frames"].samples[0].value == 8 and found["edgeedit_windows"].samples[0].value == 2
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"http://127.0.0.1:{server.port}/", timeout=10)
        # Another address of this machine (all of 127/8 is its own) is not listened to.
        with socket.socket() as other:
            assert other.connect_ex(("127.0.0.2", server.port)) != 0
    assert not monitor.errors
    with socket.socket() as after:
        assert after.connect_ex(("127.0.0.1", server.port)) != 0


class Broker:
    """A real mosquitto that can go away and come back."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._config = folder / "broker.conf"
        self._config.write_text(f"listener {self.port} 127.0.0.1\nallow_anonymous true\n")
        self.got: list[tuple[str, dict[str, Any]]] = []

    def start(self) -> None:
        from paho.mqtt.client import Client
        from paho.mqtt.enums import CallbackAPIVersion

        program = shutil.which("mosquitto") or "/usr/sbin/mosquitto"
        self._server = subprocess.Popen([program, "-c", str(self._config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

        def up() -> bool:
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", self.port)) == 0

        assert _until(up)
        self._listener = Client(CallbackAPIVersion.VERSION2)
        ready = threading.Event()
        self._listener.on_subscribe = lambda *_: ready.set()
        self._listener.on_message = lambda _c, _d, message: self.got.append((message.topic, json.loads(message.payload)))
        self._listener.connect("127.0.0.1", self.port)
        self._listener.subscribe("edgeedit/#", 1)
        self._listener.loop_start()
        assert ready.wait(10)

    def stop(self) -> None:
        self._listener.loop_stop()
        self._server.terminate()
        self._server.wait(5)

    def of(self, word: str) -> list[dict[str, Any]]:
        return [value for topic, value in list(self.got) if topic == f"edgeedit/plant-a/{word}/cam-1"]


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    found = Broker(tmp_path)
    found.start()
    yield found
    found.stop()


def _outlet(broker: Broker, spool: Path, **more: Any) -> MqttOutlet:
    return MqttOutlet(f"mqtt://127.0.0.1:{broker.port}", site="plant-a", device="cam-1", spool=spool, **more)


@pytest.mark.sysdeps
def test_events_wait_for_a_broker_that_is_away_and_a_dead_device_is_told(broker: Broker, tmp_path: Path) -> None:
    spool = tmp_path / "spool.json"
    broker.stop()
    outlet = _outlet(broker, spool)
    for number in range(3):
        outlet.event(Event("drift_warn", number, "psi rose", 1.5))
    outlet.close()
    assert outlet.waiting == 3 and len(json.loads(spool.read_text("utf-8"))["events"]) == 3
    broker.start()
    again = _outlet(broker, spool)
    again.event(Event("reverted", 9, "ü", 2.0))
    assert _until(lambda: again.waiting == 0 and len(broker.of("events")) == 4)
    rows = broker.of("events")
    assert [(row["sequence"], row["generation"]) for row in rows] == [(1, 0), (2, 1), (3, 2), (4, 9)]
    assert rows[3] == {"schema_version": 1, "sequence": 4, "kind": "reverted", "generation": 9, "reason": "ü", "time": 2.0}
    again.figures(Figures({"edgeedit_frames_total": 7.0}, {"edgeedit_drift_ratio": ("signal", {"psi": 0.5})}))
    assert _until(lambda: len(broker.of("figures")) == 1)
    assert broker.of("figures")[0]["families"] == {"edgeedit_drift_ratio": {"psi": 0.5}}
    # Without a goodbye: the broker tells.
    sock = again._client.socket()
    assert sock is not None
    again._client.reconnect_delay_set(60, 60)
    sock.shutdown(socket.SHUT_RDWR)
    assert _until(lambda: broker.of("status")[-1]["online"] is False)
    again.close()
    assert json.loads(spool.read_text("utf-8"))["events"] == {} and json.loads(spool.read_text("utf-8"))["next"] == 5


def test_an_arrival_while_an_event_is_sent_blocks_neither(tmp_path: Path) -> None:
    """The library tells arrivals from its own thread, with the lock held that `publish` takes."""
    outlet = MqttOutlet("mqtt://127.0.0.1:9", site="a", device="b", spool=tmp_path / "spool.json")
    outlet._client.loop_stop()
    mutex, numbers, stuck = threading.Lock(), iter(range(1, 9)), []

    def arrives(number: int) -> None:
        with mutex:
            outlet._arrived(outlet._client, None, number)

    def publish(*_: Any, **__: Any) -> Any:
        number = next(numbers)
        # Of the message before, and of this one before its number is known.
        threads = [threading.Thread(target=arrives, args=(n,), daemon=True) for n in (number - 1, number) if n]
        for thread in threads:
            thread.start()
            thread.join(2)
        stuck.extend(thread for thread in threads if thread.is_alive())
        assert mutex.acquire(timeout=2)
        mutex.release()
        return SimpleNamespace(mid=number)

    outlet._client.publish = publish  # type: ignore[method-assign]
    outlet._online = True
    for number in range(3):
        outlet.event(Event("drift_warn", number, "", 0.0))
    assert not stuck and outlet.waiting == 0
    outlet._online = False
    outlet.close()
    assert json.loads((tmp_path / "spool.json").read_text("utf-8"))["events"] == {}


@pytest.mark.sysdeps
def test_acknowledgements_that_come_while_events_are_written_stop_nothing(
    broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow disk: the broker has an event before the next is on disk.  Each side once waited for the other's lock for ever."""
    keep = mqtt.write_json

    def slowly(*given: Any) -> None:
        keep(*given)
        time.sleep(0.02)

    monkeypatch.setattr(mqtt, "write_json", slowly)
    outlet = _outlet(broker, tmp_path / "spool.json")

    def tell(first: int) -> None:
        for number in range(first, first + 20):
            outlet.event(Event("drift_warn", number, "", 0.0))

    threads = [threading.Thread(target=tell, args=(first,), daemon=True) for first in (0, 100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not any(thread.is_alive() for thread in threads), "an event waits for ever"
    assert _until(lambda: outlet.waiting == 0 and len(broker.of("events")) >= 40)
    assert [row["sequence"] for row in sorted(broker.of("events"), key=lambda row: row["sequence"])] == list(range(1, 41))
    outlet.close()
    assert json.loads((tmp_path / "spool.json").read_text("utf-8"))["events"] == {}


def test_the_spool_is_capped_and_a_wrong_one_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mqtt, "MAX_SPOOLED_EVENTS", 5)
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        address = f"mqtt://127.0.0.1:{nobody.getsockname()[1]}"
        outlet = MqttOutlet(address, site="a", device="b", spool=tmp_path / "spool.json")
        for number in range(9):
            outlet.event(Event("drift_warn", number, "", 0.0))
        outlet.close()
    assert list(json.loads((tmp_path / "spool.json").read_text("utf-8"))["events"]) == ["5", "6", "7", "8", "9"]
    (tmp_path / "spool.json").write_text('{"events": [1]}')
    with pytest.raises(InputError, match="waiting events"):
        MqttOutlet(address, site="a", device="b", spool=tmp_path / "spool.json")
    with pytest.raises(InputError, match="without"):
        MqttOutlet(address, site="a/b", device="b", spool=tmp_path / "other.json")
    with pytest.raises(InputError, match="expected mqtt"):
        MqttOutlet("http://x", site="a", device="b", spool=tmp_path / "other.json")
