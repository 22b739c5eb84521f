"""HTTP and HTTPS sources by urllib3: ranges, mutual TLS, proxy, speed limits, and an end to every wait.

Guarantees: `read` asks for gzip and never expands more than it may; a range that the server did not honour is never joined to
what is there already; headers and bodies that come too slowly end.
"""

from __future__ import annotations

import functools
import http.client
import io
import re
import socket
import ssl
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

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
            response = self._pool.request("GET", f"{self._base}/{path}", headers={"User-Agent": _AGENT, **headers}, preload_content=False)
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
    }
    if link.ca or link.certificate:
        settings["ssl_context"] = _tls(link)  # now, so that a file that cannot be used is told before anything is sent
    pool = _Proxied(link.proxy, **settings) if link.proxy else _LateTls(**settings)  # type: ignore[arg-type]
    pool.pool_classes_by_scheme = _pools(link.timeout + link.patience)
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


class _LateTls(urllib3.PoolManager):
    """Reads the system's authorities when the first https pool is made: that costs 20 to 30 ms, which a source over plain http, a poll
    on a stick's folder or an agent without a receiver need not pay."""

    def _new_pool(self, scheme: str, host: str, port: int, request_context: dict[str, Any] | None = None) -> urllib3.HTTPConnectionPool:
        context = dict(self.connection_pool_kw if request_context is None else request_context)
        if scheme == "https" and context.get("ssl_context") is None:
            context["ssl_context"] = _tls(Link())
        return super()._new_pool(scheme, host, port, context)


class _Proxied(_LateTls, urllib3.ProxyManager):
    pass


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


class _Headers(io.RawIOBase):
    """What a socket says, watched until its headers have ended: they must come within `seconds`, whole.

    A socket's own timeout is for one silence only, which a server that sends one byte at a time never meets; and http.client takes the
    end of a cut connection for the end of the headers."""

    def __init__(self, raw: io.RawIOBase, sock: socket.socket, seconds: float) -> None:
        self._raw, self._sock, self._usual = raw, sock, sock.gettimeout()
        self._end: float | None = time.monotonic() + seconds

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        if self._end is None:
            return self._raw.readinto(buffer)
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError("its headers never end")
        self._sock.settimeout(left if self._usual is None else min(left, self._usual))
        count = self._raw.readinto(buffer)
        if count == 0:
            raise ConnectionResetError("it was cut before its headers ended")
        return count

    def ended(self) -> None:
        """The body follows, with the socket's own timeout."""
        self._end = None
        self._sock.settimeout(self._usual)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Answer(http.client.HTTPResponse):
    patience = 0.0  # seconds; see `_pools`

    def __init__(self, sock: socket.socket, *arguments: Any, **named: Any) -> None:
        super().__init__(sock, *arguments, **named)
        self._headers_of = _Headers(self.fp.detach(), sock, self.patience)
        self.fp = io.BufferedReader(self._headers_of)

    def begin(self) -> None:
        super().begin()
        if not self._headers_of.closed:
            self._headers_of.ended()


@functools.lru_cache(maxsize=8)
def _pools(seconds: float) -> dict[str, type[urllib3.HTTPConnectionPool]]:
    """Connection pools in which every wait for headers ends after so many seconds."""
    answer = type("Answer", (_Answer,), {"patience": seconds})
    plain = type("Connection", (HTTPConnection,), {"response_class": answer})
    secure = type("TlsConnection", (HTTPSConnection,), {"response_class": answer})
    return {
        "http": type("Pool", (urllib3.HTTPConnectionPool,), {"ConnectionCls": plain}),
        "https": type("TlsPool", (urllib3.HTTPSConnectionPool,), {"ConnectionCls": secure}),
    }
