"""The receiver: a small ASGI application that takes receipts over HTTP, and the same over MQTT and from files.

Guarantees: never trusted for content: it holds no key, and what it stores is what devices signed.  Bodies and batches are bounded.
mTLS is the server's in front of it (`edgeedit fleet serve --tls-*` or a proxy); the signature on each receipt holds without it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from edgeedit.errors import EdgeEditError, InputError, UnreachableError
from edgeedit.limits import MAX_RECEIPT_BYTES
from edgeedit.ota.server.ledger import Ingested, Ledger

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

MAX_BATCH = 512  # receipts in one request
TOPIC = "edgeedit/{site}/receipts/{device}"


def split_lines(body: bytes) -> list[bytes]:
    """The receipts of a body, one on a line; raises InputError (exit 2) when there are too many."""
    lines = [line for line in body.split(b"\n") if line.strip()]
    if len(lines) > MAX_BATCH:
        raise InputError(f"too many receipts at once: expected at most {MAX_BATCH}, got {len(lines)}")
    return lines


def make_app(ledger: Ledger) -> Starlette:
    """`POST /receipts` (one envelope on a line) answers how many were accepted, known and refused; `GET /healthz` says that it lives.

    A refused receipt is answered with 200: sending it again would not help, and the device may forget it.
    """
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.responses import JSONResponse, PlainTextResponse
    from starlette.routing import Route

    async def take(request: Request) -> Response:
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > MAX_BATCH * MAX_RECEIPT_BYTES:
                return JSONResponse({"error": "body is too large"}, 413)
        try:
            done = await run_in_threadpool(ledger.ingest, split_lines(body))
        except InputError as error:
            return JSONResponse({"error": error.message}, 413)
        except EdgeEditError as error:
            return JSONResponse({"error": error.message}, 503)
        return JSONResponse({"accepted": done.accepted, "known": done.known, "refused": len(done.refused)})

    async def healthy(_: Request) -> Response:
        return PlainTextResponse("ok\n")

    return Starlette(routes=[Route("/receipts", take, methods=["POST"]), Route("/healthz", healthy)])


def serve(
    ledger: Ledger, host: str, port: int, *, cert: Path | None = None, key: Path | None = None, client_ca: Path | None = None
) -> None:
    """Run the receiver until it is stopped; with `client_ca`, only devices with a certificate of that authority may connect."""
    import ssl

    import uvicorn

    if (cert is None) != (key is None) or (client_ca is not None and cert is None):
        raise InputError("TLS needs certificate and key: expected --tls-cert and --tls-key", hint="--tls-client-ca asks devices for theirs")
    uvicorn.run(
        make_app(ledger),
        host=host,
        port=port,
        log_level="warning",
        ssl_certfile=None if cert is None else str(cert),
        ssl_keyfile=None if key is None else str(key),
        ssl_ca_certs=None if client_ca is None else str(client_ca),
        ssl_cert_reqs=int(ssl.CERT_REQUIRED if client_ca is not None else ssl.CERT_NONE),
    )


def receipt_lines(paths: Iterable[Path]) -> Iterator[bytes]:
    """Receipts of files and of folders brought home (every `*.jsonl` and `*.receipt` below them), oversize lines left out."""
    for path in paths:
        found = sorted(p for kind in ("*.jsonl", "*.receipt") for p in path.rglob(kind)) if path.is_dir() else [path]
        for file in found:
            if file.is_symlink():
                continue
            try:
                with file.open("rb") as handle:
                    yield from (line.rstrip(b"\n") for line in handle if line.strip())
            except OSError as error:
                raise InputError(f"cannot read {file}: {error.strerror or error}", hint="check the path") from error


def ingest_files(ledger: Ledger, paths: Iterable[Path]) -> Ingested:
    """Take in what a stick brought home."""
    return ledger.ingest(receipt_lines(paths))


async def listen(ledger: Ledger, host: str, port: int, site: str, *, stop_after: int | None = None) -> Ingested:
    """Take receipts from an MQTT broker (QoS 1), until cancelled or `stop_after` messages; raises UnreachableError (exit 8)."""
    import aiomqtt

    total = Ingested()
    seen = 0
    try:
        async with aiomqtt.Client(host, port, identifier=f"edgeedit-ledger-{site}", clean_session=False) as client:
            await client.subscribe(TOPIC.format(site=site, device="+"), qos=1)
            async for message in client.messages:
                payload = bytes(message.payload)
                done = await asyncio.to_thread(ledger.ingest, split_lines(payload)[:MAX_BATCH])
                total.accepted += done.accepted
                total.known += done.known
                total.refused += done.refused
                seen += 1
                if stop_after is not None and seen >= stop_after:
                    break
    except aiomqtt.MqttError as error:
        raise UnreachableError(f"MQTT broker {host}:{port} cannot be reached: {error}", hint="try again later") from error
    return total


def as_text(done: Ingested) -> str:
    """One line, then each reason once."""
    lines = [f"{done.accepted} new receipts, {done.known} known, {len(done.refused)} refused"]
    return "\n".join([*lines, *(f"  refused: {reason}" for reason in sorted(set(done.refused)))])


def as_json(done: Ingested) -> dict[str, object]:
    """For `--json`."""
    value: dict[str, object] = json.loads(json.dumps(done.__dict__))
    return value
