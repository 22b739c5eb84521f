"""A hawkBit for tests: one device, its actions and their states, under the rules of the DDI documentation.

It answers on loopback and refuses what the real server refuses: another token (401), an action that is not in the state that a call
is about (404), feedback for a closed action (410), a body without the required fields or with another word (400).
"""

from __future__ import annotations

import http.server
import json
import re
import socketserver
import threading
from dataclasses import dataclass, field
from typing import Any

EXECUTIONS = {"closed", "proceeding", "canceled", "scheduled", "rejected", "resumed", "downloaded", "download"}
FINISHED = {"success", "failure", "none"}
TENANT = "PLANT"
_PATH = re.compile(rf"/{TENANT}/controller/v1/(?P<device>[^/]+)(?:/(?P<kind>\w+)(?:/(?P<action>\d+))?(?P<feedback>/feedback)?)?")


@dataclass
class Action:
    """`state` is waiting (for consent), running, canceling or closed; `result` what it was closed with; `said` all details."""

    deployment: dict[str, Any]
    state: str = "running"
    result: str = ""
    said: list[str] = field(default_factory=list)
    words: list[str] = field(default_factory=list)


def deployment(name: str, hashes: dict[str, str], size: int, **changes: Any) -> dict[str, Any]:
    """What `deploymentBase` says of one artifact."""
    artifact = {"filename": name, "hashes": hashes, "size": size, "_links": {"download": {"href": "https://cdn.example/x"}}}
    chunk = {"part": "bApp", "version": "1", "name": "patch", "artifacts": [artifact], **changes.pop("chunk", {})}
    return {"download": "forced", "update": "forced", "chunks": [chunk], **changes}


class Hawkbit:
    """The server; `actions` by number, `attributes` what the device told of itself, `log` (method, path)."""

    def __init__(self, *, token: str = "TargetToken secret", sleep: str = "00:05:00") -> None:
        self.actions: dict[int, Action] = {}
        self.attributes: dict[str, str] = {}
        self.log: list[tuple[str, str]] = []
        self.token, self.sleep, self.device = token, sleep, ""
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version, disable_nagle_algorithm, wbufsize = "HTTP/1.1", True, 65536

            def do_GET(self) -> None:
                self.answer("GET")

            def do_POST(self) -> None:
                self.answer("POST")

            def do_PUT(self) -> None:
                self.answer("PUT")

            def answer(self, method: str) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
                outer.log.append((method, self.path))
                status, value = outer.handle(method, self.path, self.headers.get("Authorization", ""), body)
                data = b"" if value is None else json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/hal+json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        class Threaded(socketserver.ThreadingMixIn, http.server.HTTPServer):
            daemon_threads = True

        self._server = Threaded(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/{TENANT}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def __enter__(self) -> Hawkbit:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def handle(self, method: str, path: str, token: str, body: bytes) -> tuple[int, Any]:
        found = _PATH.fullmatch(path.partition("?")[0])
        if token != self.token:
            return 401, None
        if found is None:
            return 404, None
        self.device, kind, number = found["device"], found["kind"], found["action"]
        if kind is None:
            return 200, self._poll()
        if kind == "configData":
            self.attributes |= json.loads(body)["data"]
            return 200, None
        action = self.actions.get(int(number or -1))
        if action is None:
            return 404, None
        return self._say(action, kind, json.loads(body)) if found["feedback"] else self._show(action, kind, number)

    def _poll(self) -> dict[str, Any]:
        base, links = f"https://elsewhere.example/{TENANT}/controller/v1/{self.device}", {}
        kinds = {"waiting": "confirmationBase", "running": "deploymentBase", "canceling": "cancelAction"}
        # The oldest open action first, as the real one does.
        for number, action in sorted(self.actions.items()):
            if action.state in kinds:
                links[kinds[action.state]] = {"href": f"{base}/{kinds[action.state]}/{number}?c=-17"}
                break
        if not self.attributes:
            links["configData"] = {"href": f"{base}/configData"}
        return {"config": {"polling": {"sleep": self.sleep}}, "_links": links}

    @staticmethod
    def _show(action: Action, kind: str, number: str) -> tuple[int, Any]:
        if kind == "deploymentBase" and action.state in ("running", "closed"):
            return 200, {"id": number, "deployment": action.deployment}
        if kind == "confirmationBase" and action.state == "waiting":
            return 200, {"id": number, "confirmation": action.deployment}
        if kind == "cancelAction" and action.state == "canceling":
            return 200, {"id": number, "cancelAction": {"stopId": number}}
        return 404, None

    def _say(self, action: Action, kind: str, said: dict[str, Any]) -> tuple[int, Any]:
        if action.state == "closed":
            return 410, None
        if kind == "confirmationBase":
            if said.get("confirmation") not in ("confirmed", "denied"):
                return 400, None
            action.said += said.get("details", [])
            action.words.append(said["confirmation"])
            if said["confirmation"] == "confirmed":
                action.state = "running"
            return 200, None
        status = said.get("status", {})
        execution, finished = status.get("execution"), status.get("result", {}).get("finished")
        if execution not in EXECUTIONS or finished not in FINISHED or not isinstance(said.get("timestamp", 0), int):
            return 400, None
        action.said += status.get("details", [])
        action.words.append(execution)
        if kind == "cancelAction":
            # `canceled` is an error in this channel; `rejected` lets the action run on.
            action.state, action.result = {"closed": ("closed", "cancelled"), "rejected": ("running", "")}.get(execution, ("canceling", ""))
        elif execution == "closed":
            action.state, action.result = "closed", "failure" if finished == "failure" else "success"
        return 200, None
