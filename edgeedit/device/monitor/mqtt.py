"""Events and figures as JSON over MQTT (extra `mqtt`): store-and-forward with a cap, and a last will.

    edgeedit/SITE/status/DEVICE    retained {"online": true}; the broker says false when the device is gone (last will)
    edgeedit/SITE/events/DEVICE    QoS 1, kept in `spool` until the broker has them; at least once: `sequence` tells twins apart
    edgeedit/SITE/figures/DEVICE   QoS 0, the latest after each window; not kept

Guarantees: at most MAX_SPOOLED_EVENTS wait, the oldest go first; a restart forgets none that wait; nothing here blocks the monitor for
longer than a write to disk.
"""

from __future__ import annotations

import json
import threading
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from edgeedit.device.monitor.metrics import Figures
from edgeedit.device.monitor.outlets import Event
from edgeedit.errors import InputError
from edgeedit.files import read_json, write_json
from edgeedit.limits import MAX_SPOOL_BYTES, MAX_SPOOLED_EVENTS

if TYPE_CHECKING:
    from paho.mqtt.client import Client

_PORTS = {"mqtt": 1883, "mqtts": 8883}
_SLOWEST = 300  # seconds between attempts to reach the broker
_KEEPALIVE = 60  # seconds of silence after which the broker looks for the device
SCHEMA_VERSION = 1


class MqttOutlet:
    """`address` is mqtt(s)://[user:password@]host[:port]; `spool` the file in which events wait; `ca`, `certificate` and `key` are
    PEM files for mqtts.  Raises InputError (exit 2) for a wrong address or spool, or without the library."""

    def __init__(
        self,
        address: str,
        *,
        site: str,
        device: str,
        spool: Path,
        ca: Path | None = None,
        certificate: Path | None = None,
        key: Path | None = None,
        keepalive: int = _KEEPALIVE,
    ) -> None:
        parts = urlsplit(address)
        if parts.scheme not in _PORTS or not parts.hostname:
            raise InputError(f"cannot reach a broker: expected mqtt(s)://host[:port], got {address}", hint="check the address")
        for name, value in (("site", site), ("device", device)):
            if not value or set(value) & set("+#/\0"):
                raise InputError(f"no part of a topic: expected a {name} without + # /, got {value!r}")
        self._topics = {word: f"edgeedit/{site}/{word}/{device}" for word in ("status", "events", "figures")}
        self._spool = spool
        # The library calls `_arrived` with its own lock held and takes that lock to publish: whoever publishes must not hold `_lock`.
        # `_order` keeps events in their order on the wire; `_arrived` and `_gone` never take it.
        self._order, self._lock = threading.Lock(), threading.Lock()
        self._next, self._waiting = _read_spool(spool)
        self._sent: dict[int, int] = {}  # the library's message number -> sequence
        # Message numbers that arrived before `publish` had returned them; None while no event is being sent.
        self._early: set[int] | None = None
        self._online = False
        self._client = _client(f"edgeedit-{site}-{device}")
        if parts.username:
            self._client.username_pw_set(unquote(parts.username), unquote(parts.password or ""))
        if parts.scheme == "mqtts":
            files = [None if path is None else str(path) for path in (ca, certificate, key)]
            self._client.tls_set(ca_certs=files[0], certfile=files[1], keyfile=files[2])
        self._client.will_set(self._topics["status"], _json({"online": False}), qos=1, retain=True)
        self._client.on_connect, self._client.on_disconnect, self._client.on_publish = self._connected, self._gone, self._arrived
        self._client.reconnect_delay_set(1, _SLOWEST)
        self._client.connect_async(parts.hostname, parts.port or _PORTS[parts.scheme], keepalive)
        self._client.loop_start()

    @property
    def waiting(self) -> int:
        """Events that the broker does not have yet."""
        return len(self._waiting)

    def event(self, event: Event) -> None:
        """Keep it, and send it when the broker is there; raises RefusedError when the disk refuses."""
        with self._order:
            with self._lock:
                sequence, self._next = self._next, self._next + 1
                self._waiting[sequence] = asdict(event)
                while len(self._waiting) > MAX_SPOOLED_EVENTS:
                    del self._waiting[min(self._waiting)]
                self._keep()
                online = self._online
            if online:
                self._send(sequence, asdict(event))

    def figures(self, figures: Figures) -> None:
        """The latest, if the broker is there."""
        if self._online:
            value = {"figures": dict(figures.plain), "families": {name: dict(values) for name, (_, values) in figures.families.items()}}
            value["facts"] = {name: dict(labels) for name, labels in figures.facts.items()}
            self._client.publish(self._topics["figures"], _json(value))

    def close(self) -> None:
        """Say that the device goes, and end; what waits is in the spool."""
        if self._online:
            # A clean goodbye cancels the will, so it is said here; a link that went meanwhile leaves it to the will.
            with suppress(RuntimeError):
                self._client.publish(self._topics["status"], _json({"online": False}), qos=1, retain=True).wait_for_publish(2.0)
        self._client.disconnect()
        self._client.loop_stop()
        with self._lock:
            self._keep()

    def _send(self, sequence: int, value: dict[str, Any]) -> None:
        with self._lock:
            self._early = set()
        number = self._client.publish(self._topics["events"], _json({"sequence": sequence, **value}), qos=1).mid
        with self._lock:
            early, self._early = self._early, None
            self._sent[number] = sequence
            if number in early:
                self._done(number)

    def _keep(self) -> None:
        write_json(self._spool, {"schema_version": SCHEMA_VERSION, "next": self._next, "events": self._waiting})

    # The library's own thread.
    def _connected(self, client: Client, _data: Any, _flags: Any, code: Any, _properties: Any) -> None:
        if code.is_failure:
            return
        client.publish(self._topics["status"], _json({"online": True}), qos=1, retain=True)
        with self._order:
            with self._lock:
                self._online, self._sent = True, {}
                waiting = sorted(self._waiting.items())
            for sequence, value in waiting:
                self._send(sequence, value)

    def _gone(self, *_: Any) -> None:
        with self._lock:
            self._online = False

    def _arrived(self, _client: Client, _data: Any, number: int, *_: Any) -> None:
        with self._lock:
            if number in self._sent:
                self._done(number)
            elif self._early is not None:
                self._early.add(number)

    def _done(self, number: int) -> None:
        if self._waiting.pop(self._sent.pop(number), None) is not None and not self._sent:
            self._keep()


def _client(name: str) -> Client:
    try:
        from paho.mqtt.client import Client
        from paho.mqtt.enums import CallbackAPIVersion
    except ImportError as error:
        raise InputError("cannot send events: expected paho-mqtt, got none", hint="pip install 'edgeedit[mqtt]'") from error
    return Client(CallbackAPIVersion.VERSION2, client_id=name)


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps({"schema_version": SCHEMA_VERSION, **value}, sort_keys=True, ensure_ascii=False).encode()


def _read_spool(path: Path) -> tuple[int, dict[int, dict[str, Any]]]:
    """(next sequence, sequence -> event) of a file, or of none."""
    if not path.exists():
        return 1, {}
    value = read_json(path, MAX_SPOOL_BYTES)
    try:
        events = {int(number): dict(event) for number, event in value["events"].items()}
        return max(int(value["next"]), max(events, default=0) + 1), dict(sorted(events.items())[-MAX_SPOOLED_EVENTS:])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"cannot read {path}: expected waiting events, got {error!r}", hint="remove it; events in it are lost") from error
