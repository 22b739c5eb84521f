"""hawkBit's Direct Device Integration API (DDI v1), as a device speaks it: poll, read an action, give feedback, cancel, confirm.

The server is a scheduler and is trusted with nothing else: it names an artifact by its digest and a time, and nothing is downloaded
from it.  Addresses in its answers are not followed, only the number of the action is taken from them, so that an answer cannot send
the device's token elsewhere.

Guarantees: an `Assignment` names one patch by SHA-256; every error is UnreachableError (8: no answer, or the token is refused) or
IntegrityError (5: the answer is not what DDI says).
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote, urlsplit

import urllib3

from edgeedit.errors import InputError, IntegrityError, UnreachableError
from edgeedit.limits import MAX_DDI_BYTES, MAX_DDI_SLEEP, MAX_OTA_TEXT_BYTES
from edgeedit.ota.client.link import Link, Pace
from edgeedit.ota.client.transport import CHUNK
from edgeedit.ota.client.web import make_pool

Execution = Literal["proceeding", "downloaded", "scheduled", "rejected", "closed"]
Finished = Literal["none", "success", "failure"]
SCHEMES = ("TargetToken", "GatewayToken")
METADATA = "edgeedit.patch"  # key of a software module's metadata that names the patch where the artifact wraps it
SUFFIX = ".eep"
_HINT = "try again later"
_NOT_DDI = "check the address: it ends with the tenant"
_SLEEP = re.compile(r"(\d{1,3}):([0-5]\d):([0-5]\d)")
_ACTION = re.compile(r"/(deploymentBase|cancelAction|confirmationBase)/(-?\d{1,18})(?:\?.*)?")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_GONE = (404, 410)  # the action was closed, cancelled or replaced meanwhile


@dataclass(frozen=True)
class Polled:
    """What a poll says: `sleep` seconds until the next one (None where the server leaves it to the device), the number of the action
    to install, to cancel or to confirm ("" for none), and whether it asks for the device's attributes."""

    sleep: float | None
    deploy: str = ""
    cancel: str = ""
    confirm: str = ""
    wants_attributes: bool = False


@dataclass(frozen=True)
class Assignment:
    """One action: its number, the SHA-256 of the patch that it names, the artifact's length in bytes where it is the patch itself
    (else 0), and whether it is to be installed now (not outside a maintenance window, nor when only a download is asked for)."""

    action: str
    digest: str
    length: int
    now: bool


class DdiError(IntegrityError):
    """An action that cannot name a patch: what it offers is wrong, not the way to it.  `action` is its number."""

    def __init__(self, action: str, message: str) -> None:
        super().__init__(message, hint="the artifact's name, its SHA-256 or the module's metadata must name one signed patch")
        self.action = action


class DdiClient:
    """One device at one server.  `base` is the address with the tenant (`https://host/TENANT`)."""

    def __init__(self, base: str, device: str, token: str, link: Link) -> None:
        if urlsplit(base).scheme not in ("http", "https") or not urlsplit(base).hostname:
            raise InputError(f"address of the scheduler is wrong: expected https://host/TENANT, got {base}", hint="check --ddi")
        self._base = f"{base.rstrip('/')}/controller/v1/{quote(device, safe='')}"
        self._headers = {"Accept": "application/hal+json, application/json", "User-Agent": "edgeedit"}
        if token:
            self._headers["Authorization"] = token
        self._link = link

    def poll(self) -> Polled:
        """What the server has for this device."""
        value = self._get("")
        links = _object(value.get("_links", {}), "_links")
        text = _object(_object(value.get("config", {}), "config").get("polling", {}), "polling").get("sleep", "")
        found = {name: _action_of(name, links) for name in ("deploymentBase", "cancelAction", "confirmationBase")}
        return Polled(
            _seconds(text),
            found["deploymentBase"],
            found["cancelAction"],
            found["confirmationBase"],
            wants_attributes="configData" in links,
        )

    def assignment(self, action: str) -> Assignment | None:
        """The action to install; None when it is there no longer.  Raises DdiError when it names no patch."""
        return self._assignment("deploymentBase", "deployment", action)

    def confirmation(self, action: str) -> Assignment | None:
        """The same of an action that waits for this device's consent."""
        return self._assignment("confirmationBase", "confirmation", action)

    def stopped(self, action: str) -> str:
        """The number of the action that a cancel action stops; "" when there is nothing to cancel any more."""
        value = self._find(f"/cancelAction/{action}")
        stop = _object(value.get("cancelAction", {}), "cancelAction").get("stopId", "") if value else ""
        if value and not isinstance(stop, (str, int)):
            raise _wrong("stopId", stop)
        return str(stop)

    def feedback(self, action: str, execution: Execution, finished: Finished, details: Sequence[str] = ()) -> None:
        """Say how an action stands."""
        self._say(f"/deploymentBase/{action}/feedback", _status(action, execution, finished, details))

    def answer_cancel(self, action: str, *, accepted: bool, details: Sequence[str] = ()) -> None:
        """Accept with `closed` (hawkBit takes `canceled` for an error), or go on with the action (`rejected`)."""
        execution: Execution = "closed" if accepted else "rejected"
        self._say(f"/cancelAction/{action}/feedback", _status(action, execution, "success" if accepted else "failure", details))

    def answer_confirmation(self, action: str, *, confirmed: bool, details: Sequence[str] = ()) -> None:
        """Consent to an action, or deny it."""
        said = {"confirmation": "confirmed" if confirmed else "denied", "details": [_short(text) for text in details]}
        self._say(f"/confirmationBase/{action}/feedback", said)

    def put_attributes(self, attributes: Mapping[str, str]) -> None:
        """Tell the server what this device is, for its target filters."""
        self._send("PUT", "/configData", {"mode": "merge", "data": dict(attributes)})

    def _assignment(self, kind: str, field: str, action: str) -> Assignment | None:
        value = self._find(f"/{kind}/{action}")
        if value is None:
            return None
        deployment = _object(value.get(field), field)
        digest, length = _named_patch(action, deployment)
        now = deployment.get("maintenanceWindow") != "unavailable" and "skip" not in (deployment.get("update"), deployment.get("download"))
        return Assignment(action, digest, length, now)

    def _get(self, path: str) -> dict[str, Any]:
        status, body = self._ask("GET", path, None)
        if status != 200:
            raise self._refused(path, status)
        return _read(body)

    def _find(self, path: str) -> dict[str, Any] | None:
        status, body = self._ask("GET", path, None)
        if status in _GONE:
            return None
        if status != 200:
            raise self._refused(path, status)
        return None if body.strip() in (b"", b"null") else _read(body)

    def _say(self, path: str, value: Mapping[str, Any]) -> None:
        status, _ = self._ask("POST", path, value)
        if status not in (200, 201, 204, *_GONE):
            raise self._refused(path, status)

    def _send(self, method: str, path: str, value: Mapping[str, Any]) -> None:
        status, _ = self._ask(method, path, value)
        if status not in (200, 201, 204):
            raise self._refused(path, status)

    def _refused(self, path: str, status: int) -> UnreachableError:
        hint = "check the device's token" if status in (401, 403) else _HINT
        return UnreachableError(f"scheduler refuses {path or 'the poll'}: got HTTP {status}", hint=hint)

    def _ask(self, method: str, path: str, value: Mapping[str, Any] | None) -> tuple[int, bytes]:
        body = None if value is None else json.dumps(value).encode()
        headers = self._headers if body is None else {**self._headers, "Content-Type": "application/json"}
        pool = make_pool(self._link)
        try:
            answer = pool.request(method, self._base + path, body=body, headers=headers, preload_content=False, redirect=False)
            data = self._body(answer)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise UnreachableError(f"cannot reach the scheduler {self._base}: {type(error).__name__}", hint=_HINT) from error
        finally:
            pool.clear()
        return answer.status, data

    def _body(self, answer: urllib3.BaseHTTPResponse) -> bytes:
        pace, data = Pace(self._link), bytearray()
        while chunk := answer.read1(CHUNK):
            data += chunk
            if len(data) > MAX_DDI_BYTES:
                raise IntegrityError(f"answer of the scheduler is too long: expected at most {MAX_DDI_BYTES} bytes", hint=_NOT_DDI)
            pace.took(len(chunk))
        answer.close()
        return bytes(data)


def read_token(path: Path) -> str:
    """The Authorization header of a file that holds a token, bare or behind its scheme; raises InputError when it holds none."""
    try:
        words = path.read_text("utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read token {path}: {error}", hint="write the target's security token into it") from error
    if len(words) == 1 and words[0].isascii():
        return f"{SCHEMES[0]} {words[0]}"
    if len(words) == 2 and words[0] in SCHEMES and words[1].isascii():
        return " ".join(words)
    raise InputError(f"token {path} is wrong: expected a token, or {' or '.join(SCHEMES)} and a token", hint="one line")


def _named_patch(action: str, deployment: Mapping[str, Any]) -> tuple[str, int]:
    """The digest that the only patch of an action has by its file name, its hash and its module's metadata, and its length."""
    names: set[str] = set()
    lengths: set[int] = set()
    chunks = _list(deployment.get("chunks"), "chunks")
    for chunk in chunks:
        for row in _list(_object(chunk, "chunk").get("metadata") or [], "metadata"):
            if _object(row, "metadata").get("key") == METADATA:
                names.add(str(row.get("value")))
        for artifact in _list(chunk.get("artifacts") or [], "artifacts"):
            found, length = _named_by(_object(artifact, "artifact"))
            names |= found
            lengths |= {length} if length else set()
    if len(names) != 1 or len(lengths) > 1:
        raise DdiError(action, f"scheduled action {action} names no patch: expected one digest, got {sorted(names) or 'none'}"[:300])
    digest = names.pop()
    if not _DIGEST.fullmatch(digest):
        raise DdiError(action, f"scheduled action {action} names no patch: expected 64 hexadecimal digits, got {digest[:80]!a}")
    return digest, next(iter(lengths), 0)


def _named_by(artifact: Mapping[str, Any]) -> tuple[set[str], int]:
    """The digests that one artifact claims for its patch: its name's, and its own where it is the patch itself; then its length too."""
    name, size = artifact.get("filename"), artifact.get("size", 0)
    if not isinstance(name, str) or isinstance(size, bool) or not isinstance(size, int):
        raise _wrong("artifact", artifact)
    stem = name.partition(".")[0]
    found = {stem} if _DIGEST.fullmatch(stem) else set()
    if not name.endswith(SUFFIX):
        return found, 0  # a bundle of another update engine around the patch
    sha256 = _object(artifact.get("hashes") or {}, "hashes").get("sha256")
    return found | ({str(sha256)} if sha256 else set()), size


def _status(action: str, execution: Execution, finished: Finished, details: Sequence[str]) -> dict[str, Any]:
    """`id` and `time` are of older servers, `timestamp` (milliseconds) of newer ones; each ignores what it does not know."""
    moment = time.time()
    return {
        "id": action,
        "time": time.strftime("%Y%m%dT%H%M%S", time.gmtime(moment)),
        "timestamp": int(moment * 1000),
        "status": {"execution": execution, "result": {"finished": finished}, "details": [_short(text) for text in details]},
    }


def _action_of(name: str, links: Mapping[str, Any]) -> str:
    if name not in links:
        return ""
    href = _object(links[name], name).get("href")
    found = _ACTION.search(href) if isinstance(href, str) else None
    if found is None or found[1] != name:
        raise _wrong(f"link {name}", href)
    return found[2]


def _seconds(text: object) -> float | None:
    """The server's pause; bounded, so that neither a typing error nor a hostile server silences a device for good."""
    found = _SLEEP.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        return None
    return float(min(MAX_DDI_SLEEP, max(1, int(found[1]) * 3600 + int(found[2]) * 60 + int(found[3]))))


def _short(text: str) -> str:
    return text.encode()[:MAX_OTA_TEXT_BYTES].decode("utf-8", "ignore")


def _read(body: bytes) -> dict[str, Any]:
    try:
        return _object(json.loads(body), "answer")
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"answer of the scheduler is not JSON: {type(error).__name__}", hint=_NOT_DDI) from error


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _wrong(what, value)
    return value


def _list(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise _wrong(what, value)
    return value


def _wrong(what: str, got: object) -> IntegrityError:
    return IntegrityError(f"answer of the scheduler is wrong: expected another {what}, got {str(got)[:80]!a}", hint=_NOT_DDI)
