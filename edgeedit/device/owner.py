"""Who tries a generation: an owner's name, and whether that owner can still be at work.

Guarantees: a process of an earlier boot, or one whose number was given to another process since, counts as gone at once; a
living owner counts as gone only after `CLAIM_SECONDS` without progress.  Uses the time since boot, so a clock that is set
does not matter.  Processes in another pid namespace (a container) are judged by their progress alone.
"""

from __future__ import annotations

import os
import time
import uuid
from pathlib import Path

CLAIM_SECONDS = 60.0  # without progress for so long, a trial may be taken over
BEAT_SECONDS = 5.0  # a trial notes its progress at most this often; each note is a durable write


def new_owner() -> str:
    """A name for one Runtime: boot / pid namespace / pid / start time of the process / random."""
    pid = os.getpid()
    return "/".join((_boot(), _namespace(), str(pid), _started(pid), uuid.uuid4().hex[:8]))


def uptime() -> float:
    """Seconds since boot, sleep included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def is_gone(owner: str, last_progress: float) -> bool:
    """Whether the trial of `owner`, who noted progress at `last_progress` (seconds since boot), may be taken over."""
    parts = owner.split("/")
    if len(parts) != 5:
        return True
    boot, namespace, pid, started, _ = parts
    if boot != _boot():
        return True
    if namespace == _namespace() and not _runs(int(pid), started):
        return True
    return uptime() - last_progress >= CLAIM_SECONDS


def _boot() -> str:
    return _first_line(Path("/proc/sys/kernel/random/boot_id"))


def _namespace() -> str:
    try:
        return str(Path("/proc/self/ns/pid").stat().st_ino)
    except OSError:
        return ""


def _started(pid: int) -> str:
    # The name in parentheses may hold blanks; field 22 of the line is the start time in ticks since boot.
    fields = _first_line(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()
    return fields[19] if len(fields) > 19 else ""


def _runs(pid: int, started: str) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it runs under another user
    now = _started(pid)
    return now in ("", started)


def _first_line(path: Path) -> str:
    try:
        return path.read_text("ascii", "replace").partition("\n")[0]
    except OSError:
        return ""
