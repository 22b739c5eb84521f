"""Receipts on their way home: over HTTP, over MQTT (extra `ota-mqtt`), or as files on a stick.

A carrier takes a batch and returns when the other end has it; only then does `deliver` forget it.  Delivery is at least once: the
ledger knows a receipt by (device, sequence).  Nothing here blocks an update: a carrier that fails leaves the queue as it was.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import urllib3

from edgeedit.digest import digest_bytes
from edgeedit.errors import InputError, IntegrityError, RefusedError, UnreachableError
from edgeedit.files import replace_file
from edgeedit.ota.client.link import Link, Pace, RejectedError
from edgeedit.ota.client.receipts import ReceiptQueue
from edgeedit.ota.client.web import make_pool

Carrier = Callable[[Sequence[bytes]], None]
BATCH = 256  # receipts in one delivery
TOPIC = "edgeedit/{site}/receipts/{device}"
SUFFIX = ".receipt"
_MQTT_PORT, _MQTTS_PORT = 1883, 8883
_MAX_ANSWER = 64 * 1024  # bytes
_PIECE = 1024  # bytes of a body between two looks at the speed
_NEVER = (400, 413, 414, 415, 422, 431)  # what is sent is at fault, not the moment or the address
_HINT = "the receipts stay queued; try again later"


def deliver(queue: ReceiptQueue, carrier: Carrier) -> int:
    """Send everything that is pending, oldest first; the number of receipts that arrived.

    Raises what the carrier raises; what arrived before is forgotten, the rest stays queued."""
    count = 0
    while rows := queue.pending(BATCH):
        carrier([data for _, data in rows])
        queue.done([number for number, _ in rows])
        count += len(rows)
    return count


def open_carrier(place: str, link: Link, *, site: str, device: str) -> Carrier:
    """The carrier of `http(s)://host/base`, `mqtt(s)://host[:port]` or a folder; raises InputError (exit 2) for anything else."""
    scheme = urlsplit(place).scheme
    if scheme in ("http", "https"):
        return partial(post, place, link=link)
    if scheme in ("mqtt", "mqtts"):
        return partial(publish, place, TOPIC.format(site=site, device=device), link=link)
    if "://" in place:
        raise InputError(f"cannot send receipts: expected http(s)://, mqtt(s):// or a folder, got {place}", hint="check the address")
    return partial(put_files, Path(place), device=device)


def post(base: str, batch: Sequence[bytes], *, link: Link, pool: urllib3.PoolManager | None = None) -> None:
    """POST one envelope a line to `base/receipts`, over `pool` (which stays open) where there is one.  The answer must account for every
    receipt, so that a captive portal that answers 200 to everything is not taken for the receiver.  Both ways keep to the link's speeds.

    Raises UnreachableError (exit 8), IntegrityError (exit 5), or RejectedError (exit 6) when the receiver will never take this batch."""
    kept, pool = pool is not None, pool or make_pool(link)
    url, data = f"{base.rstrip('/')}/receipts", b"\n".join(batch)
    try:
        headers = {"Content-Type": "application/x-ndjson", "Content-Length": str(len(data))}
        answer = pool.request("POST", url, body=_paced(data, link), headers=headers, preload_content=False, redirect=False)
        body = _read(answer, link)
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise UnreachableError(f"cannot send receipts to {url}: {type(error).__name__}", hint=_HINT) from error
    finally:
        if not kept:
            pool.clear()
    if answer.status in _NEVER:
        raise RejectedError(f"receiver rejects {len(batch)} receipts: got HTTP {answer.status}", hint="send fewer, or look at its log")
    if answer.status != 200:
        raise UnreachableError(f"cannot send receipts to {url}: got HTTP {answer.status}", hint=_HINT)
    try:
        counts = json.loads(body)
        settled = sum(int(counts[key]) for key in ("accepted", "known", "refused"))
    except (ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"{url} is no receiver of receipts: expected its counts, got something else", hint=_HINT) from error
    if settled != len(batch):
        raise IntegrityError(f"receiver lost receipts: expected an answer for {len(batch)}, got {settled}", hint=_HINT)


def _paced(data: bytes, link: Link) -> Iterator[bytes]:
    """The body in pieces, so that a slow link has its timeout for each piece and a dead slow one ends."""
    pace = Pace(link)
    for at in range(0, len(data), _PIECE):
        yield data[at : at + _PIECE]
        pace.took(min(_PIECE, len(data) - at))


def _read(answer: urllib3.BaseHTTPResponse, link: Link) -> bytes:
    """The answer's body, at most _MAX_ANSWER bytes of it; the connection is kept where nothing is left on it."""
    pace, body = Pace(link), b""
    while len(body) < _MAX_ANSWER and (part := answer.read1(_PIECE)):
        body += part
        pace.took(len(part))
    if answer.closed or not answer.connection:
        answer.release_conn()
    else:
        answer.close()
    return body


def publish(address: str, topic: str, batch: Sequence[bytes], *, link: Link) -> None:
    """Publish each receipt with QoS 1; returns when the broker has acknowledged all.  Raises UnreachableError (exit 8)."""
    try:
        import aiomqtt
    except ImportError as error:
        raise InputError("cannot send receipts: expected aiomqtt, got none", hint="pip install 'edgeedit[ota-mqtt]'") from error
    parts = urlsplit(address)
    secure = parts.scheme == "mqtts"
    tls = None
    if secure:
        tls = aiomqtt.TLSParameters(ca_certs=_text(link.ca), certfile=_text(link.certificate), keyfile=_text(link.key))

    async def send() -> None:
        client = aiomqtt.Client(
            parts.hostname or "",
            parts.port or (_MQTTS_PORT if secure else _MQTT_PORT),
            username=parts.username,
            password=parts.password,
            timeout=link.timeout,
            tls_params=tls,
        )
        async with client:
            for data in batch:
                await client.publish(topic, data, qos=1, timeout=link.timeout)

    try:
        asyncio.run(send())
    except (aiomqtt.MqttError, OSError) as error:
        raise UnreachableError(f"cannot send receipts to {parts.hostname}: {error}", hint=_HINT) from error


def put_files(folder: Path, batch: Sequence[bytes], *, device: str) -> None:
    """Write each receipt as `receipts/<device>/<digest>.receipt` on the stick, durably; twice is once.  Raises RefusedError (exit 6)."""
    place = folder / "receipts" / device
    try:
        if not folder.is_dir():
            raise UnreachableError(f"no stick at {folder}: expected a folder", hint="mount the stick")
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RefusedError(f"cannot write {place}: {error.strerror}", hint="is the stick full or write-protected?") from error
    if any(part.is_symlink() for part in (folder / "receipts", place)):
        raise IntegrityError(f"{place} is a link: expected a folder on the stick", hint="the stick is not honest")
    for data in batch:
        replace_file(place / f"{digest_bytes(data)}{SUFFIX}", data + b"\n")


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)
