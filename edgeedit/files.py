"""Durable file replacement: temp file, fsync, rename, fsync of the directory.

Guarantees: after `replace_file` returns, the path holds the whole new content also after a power cut; if it raises,
the path holds what it held before and no temp file is left.  Does not lock.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from edgeedit.errors import InputError, IntegrityError, RefusedError

BLOCK = 256 * 1024  # bytes read or written at once


class Octets(Protocol):
    """Bytes in memory, or a file that is read where it is asked: both have a length and give slices (step 1) as bytes."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> bytes: ...


class FileOctets:
    """A file as `Octets`: no more of it is in memory than was asked for last.  A context manager.

    Not mapped into memory: a medium that fails would end the process, and pages that were read would count as its own.  Raises
    RefusedError (exit 6) when the file cannot be opened or read, IntegrityError (exit 5) when it became shorter."""

    def __init__(self, path: Path) -> None:
        self._path, self._handle = path, -1
        try:
            self._handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            self._size = os.fstat(self._handle).st_size
        except OSError as error:
            self.close()
            raise self._refused(error) from error

    def __enter__(self) -> FileOctets:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give up the handle; twice is harmless."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, part: slice, /) -> bytes:
        start, stop, _ = part.indices(self._size)
        found: list[bytes] = []
        try:
            while start < stop and (block := os.pread(self._handle, stop - start, start)):
                found.append(block)
                start += len(block)
        except OSError as error:
            raise self._refused(error) from error
        if start < stop:
            raise IntegrityError(f"{self._path} became shorter while it was read: expected {self._size} bytes", hint="get the file again")
        return found[0] if len(found) == 1 else b"".join(found)

    def _refused(self, error: OSError) -> RefusedError:
        return RefusedError(f"cannot read {self._path}: {error.strerror or error}", hint="check the disk")


def blocks(data: Octets, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
    """The bytes from `start` to `stop` (the end without it), in pieces of at most BLOCK bytes."""
    end = len(data) if stop is None else stop
    for at in range(start, end, BLOCK):
        yield data[at : min(at + BLOCK, end)]


def fsync_dir(path: Path) -> None:
    """Flush a directory entry to disk."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A handle for the new content of `path`: written beside it, synced and renamed into place when the body ends.

    When the body raises, `path` holds what it held before; an OSError becomes a RefusedError (exit 6)."""
    temp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temp.open("wb") as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        temp.replace(path)
        fsync_dir(path.parent)
    except OSError as error:
        raise RefusedError(f"cannot write {path}: {error.strerror or error}", hint="free disk space or choose another place") from error
    finally:
        # Gone after the rename; whatever else happened, nothing is left beside the path.
        with contextlib.suppress(OSError):
            temp.unlink()


def replace_file(path: Path, data: bytes | memoryview) -> None:
    """Make `data` the content of `path`, durably; raises RefusedError (exit 6) when the disk refuses."""
    with replacing(path) as handle:
        handle.write(data)


def copy_file(source: Path, target: Path) -> None:
    """Copy a file durably; raises RefusedError (exit 6) when the source cannot be opened or the disk refuses."""
    try:
        reader = source.open("rb")
    except OSError as error:
        raise RefusedError(f"cannot copy {source} to {target}: {error.strerror or error}", hint="check the source") from error
    with reader, replacing(target) as writer:
        shutil.copyfileobj(reader, writer, 1 << 20)


def write_json(path: Path, value: Any) -> None:
    """Write JSON with sorted keys durably."""
    replace_file(path, (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode())


def read_json(path: Path, max_bytes: int) -> Any:
    """Read a JSON file of at most `max_bytes`; raises InputError when it is missing, too large or not JSON."""
    try:
        size = path.stat().st_size
        if size > max_bytes:
            raise InputError(f"cannot read {path}: expected at most {max_bytes} bytes, got {size}", hint="is this the right file?")
        return json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}", hint="check the path") from error
    except ValueError as error:
        raise InputError(f"cannot read {path}: expected JSON, got {error}", hint="is this the right file?") from error
