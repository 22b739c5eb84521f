"""Where bytes come from: a `Transport` reads files of a source by relative path and is trusted with nothing.

    folder or file://   `FolderTransport`, also a stick: never leaves its folder, follows no symbolic link
    http:// https://    `edgeedit.ota.client.web`
    s3://bucket/prefix  `edgeedit.ota.client.s3` (extra `ota-s3`)

Guarantees: `read` never returns more than asked; every failure is MissingError or UnreachableError (8, try again) or IntegrityError
(5, what came is not what was asked for).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

from edgeedit.errors import InputError, IntegrityError, UnreachableError
from edgeedit.ota.client.link import Link, Pace

CHUNK = 16 * 1024  # bytes; what a cut may cost


class MissingError(UnreachableError):
    """The source answers and has no such file."""


@dataclass(frozen=True)
class Stream:
    """A file from byte `start` on (-1: a range that cannot be used); `total` is its length in bytes as the source says (None when it
    does not); `validator` names this version of it (empty when the source has no such thing)."""

    start: int
    total: int | None
    validator: str
    chunks: Iterator[bytes]


class Transport(Protocol):
    """Reads from one source."""

    def read(self, path: str, max_bytes: int) -> bytes:
        """A whole small file; IntegrityError when it is longer than `max_bytes`."""

    def stream(self, path: str, start: int, validator: str) -> AbstractContextManager[Stream]:
        """A file from `start` on if it is still the version of `validator`, else from 0."""

    def close(self) -> None:
        """Close connections."""


def open_transport(source: str, link: Link) -> Transport:
    """The transport of a source; raises InputError (exit 2) when nothing reads such a source."""
    scheme = urlsplit(source).scheme
    if scheme in ("http", "https"):
        from edgeedit.ota.client.web import WebTransport

        return WebTransport(source, link)
    if scheme == "s3":
        from edgeedit.ota.client.s3 import S3Transport

        return S3Transport(source, link)
    if scheme == "file":
        return FolderTransport(Path(unquote(urlsplit(source).path)), link)
    if scheme and "://" in source:
        raise InputError(f"source is wrong: expected a folder, http(s)://, file:// or s3://, got {source}", hint="check the address")
    return FolderTransport(Path(source), link)


def too_long(path: str, limit: int) -> IntegrityError:
    """The error for a file that does not end where it should."""
    return IntegrityError(f"{path} is too long: expected at most {limit} bytes", hint="the source, or something on the way, is not honest")


def join(chunks: Iterator[bytes], path: str, max_bytes: int) -> bytes:
    """All chunks; raises IntegrityError as soon as they are longer than `max_bytes`."""
    data = bytearray()
    for chunk in chunks:
        data += chunk
        if len(data) > max_bytes:
            raise too_long(path, max_bytes)
    return bytes(data)


def parts_of(path: str) -> list[str]:
    """The names of a relative path; raises IntegrityError for one that could leave its folder."""
    parts = path.split("/")
    if any(part in ("", ".", "..") or "\0" in part or "\\" in part for part in parts):
        raise IntegrityError(f"path leaves its folder: expected plain names, got {path!a}", hint="the source is not honest")
    return parts


class FolderTransport:
    """A folder or a mounted stick.  Every component is opened without following links; only regular files are read."""

    def __init__(self, root: Path, link: Link) -> None:
        self._root, self._link = root, link

    def read(self, path: str, max_bytes: int) -> bytes:
        """See `Transport`."""
        with self.stream(path, 0, "") as stream:
            return join(stream.chunks, path, max_bytes)

    @contextmanager
    def stream(self, path: str, start: int, validator: str) -> Iterator[Stream]:
        """See `Transport`."""
        try:
            handle = self._open(path)
        except (FileNotFoundError, NotADirectoryError) as error:
            # A source that is not mounted answers nothing; one that is has no such file.
            kind = MissingError if self._root.is_dir() else UnreachableError
            raise kind(f"source has no {path}: {error.strerror}", hint="check the folder, or mount the stick") from error
        except OSError as error:
            if error.errno == 40:  # ELOOP: a symbolic link where none may be
                raise IntegrityError(f"{path} is a link: expected a file on the source", hint="the source is not honest") from error
            raise UnreachableError(f"cannot read {path}: {error.strerror}", hint="check the folder or the stick") from error
        info = os.fstat(handle)
        if not stat.S_ISREG(info.st_mode):
            os.close(handle)
            raise IntegrityError(f"{path} is no file: expected a regular file on the source", hint="the source is not honest")
        with os.fdopen(handle, "rb", buffering=0) as file:
            mark = f"{info.st_size}-{info.st_mtime_ns}"
            begin = start if validator in ("", mark) and start < info.st_size else 0
            file.seek(begin)
            yield Stream(begin, info.st_size, mark, self._chunks(file, path))

    def close(self) -> None:
        """Nothing is kept open."""

    def _open(self, path: str) -> int:
        *folders, last = parts_of(path)
        at = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for folder in folders:
                below = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
                os.close(at)
                at = below
            return os.open(last, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=at)
        finally:
            os.close(at)

    def _chunks(self, file: object, path: str) -> Iterator[bytes]:
        pace = Pace(self._link)
        try:
            while chunk := file.read(CHUNK):  # type: ignore[attr-defined]
                yield chunk
                pace.took(len(chunk))
        except OSError as error:
            raise UnreachableError(f"cannot read {path}: {error.strerror}", hint="check the stick") from error
