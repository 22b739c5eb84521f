"""`Link`: how a device reaches its source."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Link:
    """Settings of the connection.  `ca`, `certificate` and `key` are PEM files (mutual TLS needs the last two); `proxy` is a URL;
    `rate` caps bytes per second (0: no cap); a transfer slower than `min_speed` bytes per second over `patience` seconds ends;
    `timeout` is the seconds for a connection and for any silence."""

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    proxy: str = ""
    rate: int = 0
    min_speed: int = 128
    patience: float = 30.0
    timeout: float = 20.0
