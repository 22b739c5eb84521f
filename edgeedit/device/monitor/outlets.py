"""Where a Monitor's figures and events go: the form of an outlet, and the one that answers Prometheus at /metrics.

Guarantees: /metrics is bound to the loopback address and to nothing else; whatever an outlet does, no frame waits for it.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Protocol

from edgeedit.device.monitor.metrics import Figures, exposition
from edgeedit.errors import RefusedError

LOOPBACK = "127.0.0.1"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True)
class Event:
    """`kind` is applied, reverted, probe_fail, signature_refused, drift_warn, drift_alarm, cause (what an alarm was put down to),
    weights_changed (the live weights are not those of the generation), not_finite or learnt; Unix `time`."""

    kind: str
    generation: int
    reason: str
    time: float


class Outlet(Protocol):
    """Takes events as they happen and figures after each window; called by the monitor, which counts what it raises."""

    def event(self, event: Event) -> None:
        """One event."""

    def figures(self, figures: Figures) -> None:
        """The figures of now."""

    def close(self) -> None:
        """End; what was not delivered is kept where the outlet keeps things."""


class MetricsServer:
    """GET /metrics on 127.0.0.1; `port` 0 takes a free one, see `port`.  Raises RefusedError (exit 6) when the port is taken."""

    def __init__(self, port: int = 9464) -> None:
        self._text = b""

        def text() -> bytes:
            return self._text

        class Handler(BaseHTTPRequestHandler):
            timeout = 5.0

            def do_GET(self) -> None:
                found = self.path.split("?")[0] == "/metrics"
                body = text() if found else b"only /metrics\n"
                self.send_response(200 if found else 404)
                self.send_header("Content-Type", CONTENT_TYPE if found else "text/plain")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Scrapes are no news."""

        try:
            self._server = ThreadingHTTPServer((LOOPBACK, port), Handler)
        except OSError as error:
            raise RefusedError(f"cannot serve /metrics at {LOOPBACK}:{port}: {error.strerror}", hint="choose another port") from error
        self._server.daemon_threads = True
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, name="edgeedit-metrics", daemon=True)
        self._thread.start()

    def event(self, event: Event) -> None:
        """Events are counted in the figures."""

    def figures(self, figures: Figures) -> None:
        """What the next scrape gets."""
        self._text = exposition(figures).encode()

    def close(self) -> None:
        """Free the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
