"""The agent against a live DDI server: goosebit on loopback, in its own environment (`make .venv-goosebit/.installed`).

goosebit takes SWUpdate files only, so an assigned file wraps the patch and names it: `<digest>.swu`.  It knows no cancellation and no
confirmation; those are tested against the stub.
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import urllib3
from plant import Plant, found_plant

from edgeedit.device.store import Store
from edgeedit.errors import IntegrityError, UnreachableError
from edgeedit.ota.client.session import DisagreementError
from edgeedit.ota.server.engines import Payload, write_payload

ROOT = Path(__file__).parents[3]
PYTHON = ROOT / ".venv-goosebit" / "bin" / "python"
TOKEN = "0123456789abcdef"


@dataclass
class Goosebit:
    """The running server, spoken to as an operator does."""

    url: str
    log: Path
    headers: dict[str, str]

    def call(self, method: str, path: str, **given: Any) -> Any:
        answer = urllib3.request(method, f"{self.url}/api/v1/{path}", headers=self.headers, timeout=30.0, **given)
        assert answer.status == 200, (answer.status, answer.data)
        return answer.json()

    def assign(self, patch: bytes, version: str, name: str = "") -> int:
        """Upload the SWUpdate file that wraps the patch, named after it, and open a rollout of it; the rollout's number."""
        payload = Payload("swupdate", patch, ("default",), version)
        write_payload(payload, self.log.with_name("upload.swu"))
        file = (name or f"{payload.digest}.swu", self.log.with_name("upload.swu").read_bytes())
        software = self.call("PUT", "software", fields={"file": file})["id"]
        return int(self.call("PUT", "rollouts", json={"name": version, "feed": "plant", "software_id": software})["id"])

    def device(self, name: str = "cam-1") -> dict[str, Any]:
        return next(row for row in self.call("GET", "devices")["devices"] if row["id"] == name)

    def said(self, name: str = "cam-1") -> str:
        return str(self.call("GET", f"devices/{name}/log")["log"])

    def rollout(self, number: int) -> dict[str, Any]:
        return next(row for row in self.call("GET", "rollouts")["rollouts"] if row["id"] == number)


@pytest.fixture
def goosebit(tmp_path: Path) -> Iterator[Goosebit]:
    """A fresh server that knows `cam-1` and its token (strict: it knows nobody else)."""
    if not PYTHON.exists():
        pytest.skip("goosebit is not installed: make .venv-goosebit/.installed")
    folder = tmp_path / "goosebit"
    folder.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = {"DB_URI": f"sqlite:///{folder}/db.sqlite3", "ARTIFACTS_DIR": str(folder / "artifacts"), "DEVICE_AUTH__ENABLE": "true"}
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("GOOSEBIT_", "PYTHON", "OTEL_"))}
    environment |= {f"GOOSEBIT_{name}": value for name, value in settings.items()}
    script = ROOT / "tests" / "support" / "goosebit_server.py"
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([PYTHON, script, str(port)], cwd=folder, env=environment, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 60
        while socket.socket().connect_ex(("127.0.0.1", port)):
            assert process.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.05)
        url = f"http://127.0.0.1:{port}"
        login = urllib3.request("POST", f"{url}/setup", fields={"username": "desk", "password": "x"}, timeout=30.0)
        server = Goosebit(url, folder / "log", {"Authorization": f"Bearer {login.json()['access_token']}"})
        server.call("PUT", "devices", json={"devices": ["cam-1"], "auth_token": TOKEN, "feed": "plant"})
        yield server
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture
def plant(world: Any, tmp_path: Path, goosebit: Goosebit) -> Plant:
    (tmp_path / "cam").mkdir()
    return found_plant(world, tmp_path / "cam", f"{goosebit.url}/DEFAULT", TOKEN)


def patch_of(plant: Plant) -> bytes:
    (file,) = (plant.at / "tree" / "targets" / "patches").rglob("*.eep")
    return file.read_bytes()


def test_assigned_fetched_from_the_repository_and_told(plant: Plant, goosebit: Goosebit) -> None:
    """First poll to success; a pause and a foreign token on the way; what goosebit holds is never downloaded."""
    assert plant.once() == "nothing" and goosebit.device()["last_state"] == "Registered"
    number = goosebit.assign(patch_of(plant), "1.0.0")
    goosebit.call("PATCH", "rollouts", json={"ids": [number], "paused": True})
    assert plant.once() == "nothing", "a paused rollout was taken"
    goosebit.call("PATCH", "rollouts", json={"ids": [number], "paused": False})
    (plant.at / "token").write_text("another\n")
    with plant.agent() as agent, pytest.raises(UnreachableError, match="401") as caught:
        agent.once()
    assert caught.value.exit_code == 8
    (plant.at / "token").write_text(f"{TOKEN}\n")

    assert plant.once() == "staged" and goosebit.device()["last_state"] == "Running"
    plant.once()
    plant.take()
    assert plant.once() == "nothing"
    assert Store.open(plant.store).head().patch == plant.rollout.patch.sha256
    assert (goosebit.device()["last_state"], goosebit.device()["progress"]) == ("Finished", 100)
    assert (goosebit.rollout(number)["success_count"], goosebit.rollout(number)["failure_count"]) == (1, 0)
    assert "the patch runs, its probes passed" in goosebit.said()
    assert plant.once() == "nothing" and goosebit.rollout(number)["success_count"] == 1, "a success was told twice"
    assert "/download" not in goosebit.log.read_text()


def test_what_fails_here_is_goosebits_failure_with_the_reason(world: Any, goosebit: Goosebit, tmp_path: Path) -> None:
    """Reverted by its probes; then, after the operator forces another try, assigned but signed by nobody; then named by nothing."""
    (tmp_path / "cam").mkdir()
    plant = found_plant(world, tmp_path / "cam", f"{goosebit.url}/DEFAULT", TOKEN, wrong_probe=True)
    plant.once()
    first = goosebit.assign(patch_of(plant), "1.0.0")
    assert plant.once() == "staged"
    plant.take()
    assert plant.once() == "nothing"
    assert goosebit.device()["last_state"] == "Error" and goosebit.rollout(first)["failure_count"] == 1
    assert "probe 0" in goosebit.said()

    for version, name, error in (("2.0.0", "", DisagreementError), ("3.0.0", "firmware.swu", IntegrityError)):
        number = goosebit.assign(f"signed by nobody {version}".encode(), version, name)
        goosebit.call("PATCH", "devices", json={"devices": ["cam-1"], "force_update": True})
        with plant.agent() as agent, pytest.raises(error) as caught:
            agent.once()
        assert caught.value.exit_code == 5 and caught.value.message[:40] in goosebit.said()
        assert goosebit.rollout(number)["failure_count"] == 1
    assert Store.open(plant.store).head().id == 0
