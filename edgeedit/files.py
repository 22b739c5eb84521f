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
from typing import Any, BinaryIO

from edgeedit.errors import InputError, RefusedError


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
