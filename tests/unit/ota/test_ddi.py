"""hawkBit's device API against recorded answers: what is read, what is refused, and that no address in an answer is followed."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hawkbit_stub import Action, Hawkbit, deployment

from edgeedit.errors import EdgeEditError, InputError, IntegrityError, UnreachableError
from edgeedit.limits import MAX_DDI_BYTES, MAX_DDI_SLEEP
from edgeedit.ota.client.ddi import Assignment, DdiClient, DdiError, Polled, read_token
from edgeedit.ota.client.link import Link

RECORDED = Path(__file__).parents[2] / "support" / "ddi"
DIGEST = "5" * 64


def recorded(name: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((RECORDED / f"{name}.json").read_text())
    return value


class _Replay(http.server.BaseHTTPRequestHandler):
    answers: dict[str, tuple[int, bytes]]

    def do_GET(self) -> None:
        status, body = self.answers.get(self.path, (404, b""))
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def replay() -> Iterator[tuple[DdiClient, dict[str, tuple[int, bytes]]]]:
    answers: dict[str, tuple[int, bytes]] = {}
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Replay,), {"answers": answers}))
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield DdiClient(f"http://127.0.0.1:{server.server_port}/PLANT", "cam-1", "TargetToken x", Link(timeout=2, patience=2)), answers
    finally:
        server.shutdown()
        server.server_close()


BASE = "/PLANT/controller/v1/cam-1"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("poll_idle", Polled(12 * 3600.0)),
        ("poll_first", Polled(10.0, wants_attributes=True)),
        ("poll_deploy", Polled(300.0, deploy="8")),
        ("poll_cancel", Polled(300.0, cancel="8")),
        ("poll_confirm", Polled(300.0, confirm="8")),
    ],
)
def test_a_recorded_poll(replay: Any, name: str, expected: Polled) -> None:
    client, answers = replay
    answers[BASE] = 200, (RECORDED / f"{name}.json").read_bytes()
    assert client.poll() == expected


@pytest.mark.parametrize(
    ("name", "length", "now"),
    [
        ("deployment", 4711, True),
        ("deployment_wrapped", 0, True),
        ("deployment_goosebit", 0, True),
        ("deployment_window", 4711, False),
    ],
)
def test_a_recorded_deployment_names_one_patch(replay: Any, name: str, length: int, now: bool) -> None:
    client, answers = replay
    answers[f"{BASE}/deploymentBase/8"] = 200, (RECORDED / f"{name}.json").read_bytes()
    assert client.assignment("8") == Assignment("8", DIGEST, length, now)
    assert client.assignment("9") is None


def test_a_recorded_confirmation_and_cancel(replay: Any) -> None:
    client, answers = replay
    for name, kind in (("confirmation", "confirmationBase"), ("cancel", "cancelAction")):
        answers[f"{BASE}/{kind}/8"] = 200, (RECORDED / f"{name}.json").read_bytes()
    assert client.confirmation("8") == Assignment("8", DIGEST, 4711, True)
    assert (client.stopped("8"), client.stopped("9")) == ("8", "")


def _changed(where: list[Any], value: Any) -> bytes:
    answer = recorded("deployment")
    at = answer["deployment"]
    for step in where[:-1]:
        at = at[step]
    at[where[-1]] = value
    return json.dumps(answer).encode()


ARTIFACT = ["chunks", 0, "artifacts", 0]


@pytest.mark.parametrize(
    "body",
    [
        _changed([*ARTIFACT, "filename"], "6" * 64 + ".eep"),
        _changed([*ARTIFACT, "filename"], "fix.swu"),
        _changed([*ARTIFACT, "hashes"], {"sha256": DIGEST.upper().replace("5", "A")}),
        _changed(["chunks"], []),
        _changed(["chunks", 0, "metadata"], [{"key": "edgeedit.patch", "value": "7" * 64}]),
        _changed(["chunks", 0, "artifacts"], [{"filename": f"{d * 64}.eep", "size": 1, "hashes": {}} for d in "56"]),
    ],
    ids=["name and hash differ", "no digest", "no such digest", "nothing", "metadata and name differ", "two patches"],
)
def test_an_action_that_names_no_patch(replay: Any, body: bytes) -> None:
    client, answers = replay
    answers[f"{BASE}/deploymentBase/8"] = 200, body
    with pytest.raises(DdiError) as caught:
        client.assignment("8")
    assert (caught.value.action, caught.value.exit_code) == ("8", 5)


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (200, b"<html>sign in</html>", IntegrityError),
        (200, b"[" * 100_000, IntegrityError),
        (200, b" " * (MAX_DDI_BYTES + 1), IntegrityError),
        (200, b'{"_links": {"deploymentBase": {"href": "https://x/y/cancelAction/3"}}}', IntegrityError),
        (200, b'{"_links": {"deploymentBase": {"href": "https://x/deploymentBase/../../secret"}}}', IntegrityError),
        (200, b'{"_links": []}', IntegrityError),
        (401, b"", UnreachableError),
        (302, b"", UnreachableError),
        (500, b"", UnreachableError),
        (429, b"", UnreachableError),
    ],
)
def test_answers_that_are_no_ddi(replay: Any, status: int, body: bytes, kind: type[EdgeEditError]) -> None:
    client, answers = replay
    answers[BASE] = status, body
    with pytest.raises(kind):
        client.poll()


@pytest.mark.parametrize(("sleep", "seconds"), [("00:00:00", 1.0), ("999:00:00", float(MAX_DDI_SLEEP)), ("soon", None), (7, None)])
def test_no_sleep_silences_a_device(replay: Any, sleep: object, seconds: float | None) -> None:
    client, answers = replay
    answers[BASE] = 200, json.dumps({"config": {"polling": {"sleep": sleep}}}).encode()
    assert client.poll().sleep == seconds


def test_what_is_said_keeps_to_the_documented_words() -> None:
    """The stub refuses every other word with 400, a closed action with 410."""
    with Hawkbit() as server:
        server.actions = {
            n: Action(deployment(f"{DIGEST}.eep", {}, 1), state) for n, state in enumerate(("running", "canceling", "waiting"))
        }
        client = DdiClient(server.url, "cam/1 ä", server.token, Link())
        client.put_attributes({"profile": "linux-cpu"})
        client.feedback("0", "proceeding", "none", ["x" * 5000, "ä"])
        client.feedback("0", "closed", "failure", ["probe 0 failed"])
        client.feedback("0", "closed", "success")  # closed already: nothing to do, nothing to fear
        client.answer_cancel("1", accepted=True)
        client.answer_confirmation("2", confirmed=False, details=["no role names it"])
        first, second, third = server.actions.values()
        assert (first.result, second.result, third.words) == ("failure", "cancelled", ["denied"])
        assert server.attributes == {"profile": "linux-cpu"} and server.device == "cam%2F1%20%C3%A4"
        assert max(map(len, first.said)) <= 1024
        with pytest.raises(UnreachableError, match="401"):
            DdiClient(server.url, "cam-1", "TargetToken other", Link()).poll()


def test_addresses_and_tokens_that_cannot_be_used(tmp_path: Path) -> None:
    for base in ("hawkbit.example", "ftp://x/y", "https:///T"):
        with pytest.raises(InputError):
            DdiClient(base, "cam-1", "", Link())
    with pytest.raises(UnreachableError):
        DdiClient("http://127.0.0.1:9/T", "cam-1", "", Link(timeout=1)).poll()
    token = tmp_path / "token"
    for text, header in (("abc\n", "TargetToken abc"), ("GatewayToken xyz", "GatewayToken xyz")):
        token.write_text(text)
        assert read_token(token) == header
    for text in ("", "Bearer abc", "a b c", "tökén"):
        token.write_text(text)
        with pytest.raises(InputError):
            read_token(token)
    with pytest.raises(InputError):
        read_token(tmp_path / "none")
