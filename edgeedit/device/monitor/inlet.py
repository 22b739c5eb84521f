"""`OverrideInlet`: what operators decide elsewhere (an HMI, a PLC gateway, a C or C++ program) reaches the monitor.

    with Runtime(store, monitor=monitor) as runtime, OverrideInlet(Path("/run/camera/override.sock"), runtime.override):
        ...

A Unix datagram socket of this device.  One datagram is one override, a JSON object of UTF-8:

    {"verdict": "intact", "group": "module-17", "frame": "412"}

All fields are optional text: the right class, the part, and the application's own name of the frame.  `frames` turns that name into
the pixels (1, 3, s, s) that were given to `Runtime.run`, or None where the application no longer has them; then the override counts and
no picture is kept.  `edgeedit/native/examples/override.c` sends one.
Guarantees: a sender never waits for more than the socket's queue; a datagram that is no override is counted and dropped; only who may
write to the socket's file (mode 0660) can send.
"""

from __future__ import annotations

import json
import logging
import socket
import stat
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from edgeedit.errors import RefusedError
from edgeedit.limits import MAX_OVERRIDE_BYTES

Array = np.ndarray[Any, Any]
FIELDS = frozenset({"verdict", "group", "frame"})


class OverrideInlet:
    """Listens at `path` until `close`; `override` is that of a Runtime.  Raises RefusedError (exit 6) when the socket cannot be made."""

    def __init__(
        self,
        path: Path,
        override: Callable[[Array | None, str, str], None],
        frames: Callable[[str], Array | None] | None = None,
    ) -> None:
        self._path, self._override, self._frames = path, override, frames
        self.counts: Counter[str] = Counter()  # taken, wrong; failed: `frames` raised
        self._closing = threading.Event()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            # A socket of an application that was killed is still there, and nothing listens to it.
            if path.exists() and stat.S_ISSOCK(path.stat().st_mode):
                path.unlink()
            self._socket.bind(str(path))
            path.chmod(0o660)
        except OSError as error:
            self._socket.close()
            raise RefusedError(f"cannot listen at {path}: {error.strerror or error}", hint="choose another place") from error
        self._socket.settimeout(0.5)
        self._thread = threading.Thread(target=self._follow, name="edgeedit-override", daemon=True)
        self._thread.start()

    def __enter__(self) -> OverrideInlet:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the thread and remove the socket."""
        self._closing.set()
        self._thread.join()
        self._socket.close()
        self._path.unlink(missing_ok=True)

    def _follow(self) -> None:
        while not self._closing.is_set():
            try:
                data = self._socket.recv(MAX_OVERRIDE_BYTES + 1)
            except TimeoutError:
                continue
            self.counts["taken" if self._take(data) else "wrong"] += 1

    def _take(self, data: bytes) -> bool:
        try:
            value = json.loads(data.decode("utf-8")) if len(data) <= MAX_OVERRIDE_BYTES else None
        except (ValueError, RecursionError):
            return False
        if not isinstance(value, dict) or not set(value) <= FIELDS or not all(isinstance(text, str) for text in value.values()):
            return False
        pixels, name = None, value.get("frame", "")
        if self._frames is not None and name:
            try:
                pixels = self._frames(name)
            except Exception:
                # The application's own function: the override counts all the same.
                logging.getLogger(__name__).exception("the application could not find frame %r", name)
                self.counts["failed"] += 1
        self._override(pixels, value.get("verdict", ""), value.get("group", ""))
        return True
