"""Durable file replacement: temp file, fsync, rename, fsync of the directory.

Guarantees: after `replace_file` returns, the path holds the whole new content also after a power cut; if it raises,
the path holds what it held before and no temp file is left.  Does not lock.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from edgeedit.errors import InputError, RefusedError


def fsync_dir(path: Path) -> None:
    """Flush a directory entry to disk."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def replace_file(path: Path, data: bytes | memoryview) -> None:
    """Write `data` beside `path` and rename it into place durably; raises RefusedError (exit 6) when the disk refuses."""
    temp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temp.open("wb") as handle:
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
        temp.replace(path)
        fsync_dir(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temp.unlink()
        raise RefusedError(f"cannot write {path}: {error.strerror or error}", hint="free disk space or choose another place") from error


def copy_file(source: Path, target: Path) -> None:
    """Copy a file durably (temp, fsync, rename, fsync of the directory)."""
    temp = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with source.open("rb") as reader, temp.open("wb") as writer:
            shutil.copyfileobj(reader, writer, 1 << 20)
            writer.flush()
            os.fsync(writer.fileno())
        temp.replace(target)
        fsync_dir(target.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temp.unlink()
        raise RefusedError(
            f"cannot copy {source} to {target}: {error.strerror or error}", hint="free disk space or check the source"
        ) from error


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
