"""Fetch one file of known length and digest: resume after cuts, verify, sync, rename.

Guarantees: the final name exists only with the right content, also after a power cut; whatever is cut, at most one chunk of what
was received is received again; a source that sends something else is refused (exit 5) and nothing of it is kept.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from edgeedit.digest import digest_file
from edgeedit.errors import IntegrityError, RefusedError, UnreachableError
from edgeedit.files import fsync_dir
from edgeedit.ota.client.transport import MissingError, Transport, too_long

SPARE_BYTES = 1 << 20  # left free on the disk beside the file
_TRIES = 5  # failures in a row without progress
_PROGRESS = 1024  # bytes; less is no progress


def fetch_file(transport: Transport, path: str, sha256: str, length: int, target: Path) -> Path:
    """`target`, holding the file of that digest.  The part lies beside it as `NAME.part` and is taken up by the next call.

    Raises UnreachableError (8; the part is kept), IntegrityError (5; nothing is kept), RefusedError (6; no room, or the disk refuses)."""
    part, mark = target.with_name(f"{target.name}.part"), target.with_name(f"{target.name}.etag")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_file() and target.stat().st_size == length and digest_file(target) == sha256:
            return target
        _check_room(target.parent, length - _size(part))
        if not _complete(transport, path, length, part, mark, sha256, ranges=True):
            # A power cut damaged the part, or a range was not what the server said: once more, from nothing and in one piece.
            _complete(transport, path, length, part, mark, sha256, ranges=False)
        part.replace(target)
        fsync_dir(target.parent)
    except OSError as error:
        raise RefusedError(f"cannot write {target}: {error.strerror or error}", hint="free disk space or choose another place") from error
    finally:
        if target.is_file():
            mark.unlink(missing_ok=True)
    return target


def _complete(transport: Transport, path: str, length: int, part: Path, mark: Path, sha256: str, *, ranges: bool) -> bool:
    """Fill the part and sync it; False, and no part, when its digest is wrong although it was joined from pieces."""
    try:
        joined = _fill(transport, path, length, part, mark, ranges)
    except IntegrityError:
        _drop(part, mark)
        raise
    if digest_file(part) == sha256:
        with part.open("rb") as handle:
            os.fsync(handle.fileno())
        return True
    _drop(part, mark)
    if not joined:
        raise IntegrityError(f"{path} is not what was signed: its digest differs", hint="the source, or something on the way, changed it")
    return False


def _fill(transport: Transport, path: str, length: int, part: Path, mark: Path, ranges: bool) -> bool:
    """Make the part `length` bytes long; whether it was joined from pieces."""
    failures, joined = 0, _size(part) > 0
    while (have := _size(part)) != length:
        if have > length:
            _drop(part, mark)
            continue
        start, cut = have if ranges else 0, UnreachableError(f"{path} was cut", hint="try again later")
        try:
            ranges = _receive(transport, path, length, part, mark, start) and ranges
        except MissingError:
            raise
        except UnreachableError as error:
            cut = error
        joined = joined or start > 0
        if _size(part) < length:
            failures = 0 if ranges and _size(part) - have >= _PROGRESS else failures + 1
        if failures >= _TRIES:
            raise cut
    return joined


def _receive(transport: Transport, path: str, length: int, part: Path, mark: Path, start: int) -> bool:
    """Append from byte `start`, or begin again where the source does; whether the source honoured the range."""
    with transport.stream(path, start, _validator(mark) if start else "") as stream:
        if stream.total is not None and stream.total != length:
            raise IntegrityError(
                f"{path} has another length: expected {length} bytes, got {stream.total}",
                hint="the source, or something on the way, changed it",
            )
        if stream.start not in (0, start):
            return False
        if stream.validator != _validator(mark):
            mark.write_text(stream.validator, "utf-8")
        have = stream.start
        # Unbuffered, so that a killed process loses no more than one chunk.
        with part.open("r+b" if start else "wb", buffering=0) as handle:
            handle.truncate(have)
            handle.seek(have)
            for chunk in stream.chunks:
                have += len(chunk)
                if have > length:
                    raise too_long(path, length)
                handle.write(chunk)
        return True


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed + SPARE_BYTES:
        raise RefusedError(f"no room in {folder}: expected {needed + SPARE_BYTES} free bytes, got {free}", hint="free disk space")


def _validator(mark: Path) -> str:
    try:
        return mark.read_text("utf-8")[:256]
    except (OSError, UnicodeDecodeError):
        return ""


def _drop(part: Path, mark: Path) -> None:
    part.unlink(missing_ok=True)
    mark.unlink(missing_ok=True)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
