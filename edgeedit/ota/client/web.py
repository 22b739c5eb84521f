"""HTTP and HTTPS sources by urllib3: ranges, mutual TLS, proxy, speed limits, and an end to every wait.

Guarantees: `read` asks for gzip and never expands more than it may; a range that the server did not honour is never joined to
what is there already; a server that dribbles headers is dropped like one that is silent.
"""

from __future__ import annotations

import re
import socket
import ssl
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection

from edgeedit.errors import InputError, IntegrityError, UnreachableError
from edgeedit.ota.client.link import Link, Pace
from edgeedit.ota.client.transport import CHUNK, MissingError, Stream, join, too_long

_CONTENT_RANGE = re.compile(r"bytes (\d{1,15})-(\d{1,15})/(\d{1,15})")
_MISSING = (403, 404, 410)
_GZIP = 16 + zlib.MAX_WBITS
_AGENT = "edgeedit"
_HINT = "try again later"


class WebTransport:
    """One base URL.  Uses one connection at a time."""

    def __init__(self, base: str, link: Link) -> None:
        self._base, self._link = base.rstrip("/"), link
        self._pool = make_pool(link)

    def read(self, path: str, max_bytes: int) -> bytes:
        """See `Transport`."""
        with self._get(path, {"Accept-Encoding": "gzip"}) as response:
            if response.status != 200:
                raise _unexpected(path, response.status)
            zipped = response.headers.get("Content-Encoding", "") == "gzip"
            data = join(self._chunks(response, path), path, max_bytes)
            if _promised(response) not in (None, len(data)):
                raise UnreachableError(f"{path} was cut: expected {_promised(response)} bytes, got {len(data)}", hint=_HINT)
        return _expand(data, path, max_bytes) if zipped else data

    @contextmanager
    def stream(self, path: str, start: int, validator: str) -> Iterator[Stream]:
        """See `Transport`.  A weak or missing ETag cannot vouch for a range, so without one no condition is sent: what is
        fetched has its name from its digest, and the digest of the whole decides in the end."""
        headers = {"Accept-Encoding": "identity"}
        if start:
            headers["Range"] = f"bytes={start}-"
            if validator:
                headers["If-Range"] = validator
        with self._get(path, headers) as response:
            begin, total = _position(response, path)
            etag = response.headers.get("ETag", "")
            yield Stream(begin, total, "" if etag.startswith("W/") else etag, self._chunks(response, path))

    def close(self) -> None:
        """Close the connections."""
        self._pool.clear()

    @contextmanager
    def _get(self, path: str, headers: dict[str, str]) -> Iterator[urllib3.BaseHTTPResponse]:
        try:
            with _watchdog(self._link) as late:
                response = self._pool.request(
                    "GET", f"{self._base}/{path}", headers={"User-Agent": _AGENT, **headers}, preload_content=False
                )
            if late.is_set():
                # http.client takes headers that were shut off for headers that have ended.
                response.close()
                raise UnreachableError(f"cannot reach {self._base}: its headers never end", hint=_HINT)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise UnreachableError(f"cannot reach {self._base}: {_cause(error)}", hint=_HINT) from error
        try:
            if response.status in _MISSING:
                # Read a short body away, so that the connection can be used again.
                response.read(CHUNK)
                raise MissingError(f"source has no {path}: got HTTP {response.status}", hint="check the address; publish again")
            yield response
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise UnreachableError(f"connection to {self._base} broke: {_cause(error)}", hint=_HINT) from error
        finally:
            # A response that was not read to its end would block the connection for the next request.
            if response.closed or not response.connection:
                response.release_conn()
            else:
                response.close()

    def _chunks(self, response: urllib3.BaseHTTPResponse, path: str) -> Iterator[bytes]:
        pace = Pace(self._link)
        try:
            while chunk := response.read1(CHUNK, decode_content=False):
                yield chunk
                pace.took(len(chunk))
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise UnreachableError(f"{path} was cut: {_cause(error)}", hint=_HINT) from error


def make_pool(link: Link) -> urllib3.PoolManager:
    """The connection pool of a link; raises InputError (exit 2) when its certificate files cannot be used."""
    settings = {
        "timeout": urllib3.Timeout(connect=link.timeout, read=link.timeout),
        "retries": urllib3.Retry(total=0, connect=0, read=0, redirect=3, status=0, raise_on_redirect=True, raise_on_status=False),
        "ssl_context": _tls(link),
    }
    pool = urllib3.ProxyManager(link.proxy, **settings) if link.proxy else urllib3.PoolManager(**settings)  # type: ignore[arg-type]
    pool.pool_classes_by_scheme = {"http": _Pool, "https": _TlsPool}
    return pool


def _tls(link: Link) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=str(link.ca) if link.ca else None)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if link.certificate:
            context.load_cert_chain(link.certificate, link.key)
    except OSError as error:  # also ssl.SSLError
        raise InputError(f"cannot use the certificates: {error}", hint="give PEM files: CA, certificate, private key") from error
    return context


def _position(response: urllib3.BaseHTTPResponse, path: str) -> tuple[int, int | None]:
    """First byte and total length of a response; first byte -1 for a range that says nothing usable about itself."""
    if response.status == 200:
        return 0, _promised(response)
    if response.status not in (206, 416):
        raise _unexpected(path, response.status)
    found = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
    if found is None or not int(found[1]) <= int(found[2]) < int(found[3]):
        return -1, None
    return int(found[1]), int(found[3])


def _promised(response: urllib3.BaseHTTPResponse) -> int | None:
    text = response.headers.get("Content-Length", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 16 else None


def _expand(data: bytes, path: str, max_bytes: int) -> bytes:
    stream = zlib.decompressobj(_GZIP)
    try:
        out = stream.decompress(data, max_bytes + 1)
    except zlib.error as error:
        raise IntegrityError(f"{path} is damaged: expected gzip, got {error}", hint=_HINT) from error
    if len(out) > max_bytes or stream.unconsumed_tail:
        raise too_long(path, max_bytes)
    if not stream.eof:
        raise UnreachableError(f"{path} was cut: expected the end of a gzip stream", hint=_HINT)
    return out


def _unexpected(path: str, status: int) -> UnreachableError:
    return UnreachableError(f"source refuses {path}: got HTTP {status}", hint=_HINT)


def _cause(error: Exception) -> str:
    """The innermost reason, without the library's object representations."""
    reason = getattr(error, "reason", error)
    return f"{type(reason).__name__} {str(reason).rpartition('>: ')[2]}"[:200]


_waiting = threading.local()  # the socket on which this thread waits for headers


@contextmanager
def _watchdog(link: Link) -> Iterator[threading.Event]:
    """End the wait for headers after `patience` and `timeout` seconds together, and say so by the event.  A socket's own timeout is for
    one silence only: a server that sends one byte at a time never meets it."""
    holder: list[socket.socket] = []
    late = threading.Event()
    _waiting.sockets = holder
    timer = threading.Timer(link.timeout + link.patience, _shut, [holder, late])
    timer.daemon = True
    timer.start()
    try:
        yield late
    finally:
        timer.cancel()
        _waiting.sockets = None


def _shut(sockets: list[socket.socket], late: threading.Event) -> None:
    late.set()
    for one in sockets:
        with suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)


def _note(one: socket.socket | None) -> None:
    sockets = getattr(_waiting, "sockets", None)
    if sockets is not None and one is not None:
        sockets.append(one)


class _Connection(HTTPConnection):
    def getresponse(self) -> urllib3.HTTPResponse:  # type: ignore[override]
        _note(self.sock)
        return super().getresponse()


class _TlsConnection(HTTPSConnection):
    def getresponse(self) -> urllib3.HTTPResponse:  # type: ignore[override]
        _note(self.sock)
        return super().getresponse()


class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Connection


class _TlsPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _TlsConnection
