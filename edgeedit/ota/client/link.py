"""`Link`: how a device reaches its source, and `Pace`, which holds a transfer between its slowest and its fastest speed."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from edgeedit.errors import InputError, RefusedError, UnreachableError


class RejectedError(RefusedError):
    """The other end will never take these bytes; sending them again is of no use."""


@dataclass(frozen=True)
class Link:
    """Settings of the connection.  `ca`, `certificate` and `key` are PEM files (mutual TLS needs the last two); `proxy` is a URL;
    `rate` caps bytes per second (0: no cap); a transfer slower than `min_speed` bytes per second over `patience` seconds ends;
    `timeout` is the seconds for a connection and for any silence.  Raises InputError when the speeds contradict each other."""

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    proxy: str = ""
    rate: int = 0
    min_speed: int = 128
    patience: float = 30.0
    timeout: float = 20.0

    def __post_init__(self) -> None:
        if 0 < self.rate <= self.min_speed:
            raise InputError(
                f"speed limits contradict each other: expected a rate above {self.min_speed} B/s, got {self.rate}",
                hint="lower the minimum speed or raise the rate",
            )


class Pace:
    """The speed of one transfer: `took` sleeps to keep to the rate and raises UnreachableError (exit 8) when it is too slow."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._begin = self._window = time.monotonic()
        self._bytes = self._in_window = 0

    def took(self, count: int) -> None:
        """Account for `count` more bytes."""
        self._bytes += count
        self._in_window += count
        now = time.monotonic()
        if now - self._window >= self._link.patience:
            speed = self._in_window / (now - self._window)
            if speed < self._link.min_speed:
                raise UnreachableError(
                    f"source is too slow: expected {self._link.min_speed} B/s, got {speed:.0f} B/s", hint="try again later or elsewhere"
                )
            self._window, self._in_window = now, 0
        if self._link.rate:
            # Sleep in short steps, so that a low rate does not look like silence to whoever watches this thread.
            ahead = self._bytes / self._link.rate - (now - self._begin)
            if ahead > 0:
                time.sleep(ahead)
