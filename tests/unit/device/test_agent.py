"""The agent: what it stages, tells, refuses and leaves; one for each store; offline; small; and its systemd unit."""

from __future__ import annotations

import configparser
import importlib.util
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from edgeedit.device import agent as agent_module
from edgeedit.device.agent import Agent, Order, Report, Situation
from edgeedit.device.receipts import QueuedReceipt
from edgeedit.device.runtime import Runtime
from edgeedit.device.store import Store
from edgeedit.device.updates import TufSource, load_settings
from edgeedit.errors import EdgeEditError, IntegrityError, RefusedError, UnreachableError
from edgeedit.ota.client.link import RejectedError

UNIT = Path(__file__).parents[3] / "devices" / "systemd" / "edgeedit-agent.service"


@pytest.fixture
def store(world: Any, tmp_path: Path) -> Path:
    """A provisioned store."""
    Store.create(tmp_path / "store", world.bundle.path, [world.public], device="cam-1").close()
    return tmp_path / "store"


class Desk:
    """A source that orders what it is told to, and remembers what it was asked."""

    def __init__(self) -> None:
        self.order: Order | None = None
        self.data, self.error = b"", None
        self.asked: list[Situation] = []
        self.fetched = 0

    def offer(self, data: bytes, release: str, sequence: int) -> None:
        from edgeedit.digest import digest_bytes

        self.order, self.data = Order("install", release, sequence, digest_bytes(data)), data

    def poll(self, situation: Situation, floors: Any, now: float) -> Order | None:
        self.asked.append(situation)
        if self.error is not None:
            raise self.error
        if self.order is not None and self.order.action == "install" and self.order.patch in situation.refused:
            return None
        return self.order

    def fetch(self, order: Order, folder: Path) -> Path:
        self.fetched += 1
        (folder / "x.eep").write_bytes(self.data)
        return folder / "x.eep"


def _words(rows: list[QueuedReceipt]) -> list[str]:
    return [row.state for row in rows]


def test_install_confirm_withdraw_and_what_is_told(world: Any, store: Path) -> None:
    desk, told = Desk(), list[QueuedReceipt]()
    data = world.patch(1)
    desk.offer(data, "r1", 3)
    with Agent(store, desk, told.extend) as agent, Runtime(store, threads=1, poll_seconds=0) as runtime:
        first = agent.once()
        assert (first.did, first.generation, first.told) == ("staged", 1, 3)
        assert agent.once().did == "waiting" and desk.fetched == 1
        runtime.step()
        desk.order = None
        assert agent.once().did == "nothing"
        assert desk.asked[-1].running == Store.open(store).head().result and desk.asked[-1].trial == ""
        assert _words(told) == ["offered", "verified", "staged", "confirmed"]
        with Store.open(store) as opened:
            base = opened.bundle.fingerprint
            desk.order = Order("return", "r1", 4, opened.head().patch, base, "halted")
        assert agent.once().did == "returned"
        runtime.step()
        assert runtime.generation == 0
        assert _words(told)[4:] == ["withdrawn"] and told[4].reason == "halted"
        assert [r.sequence for r in told] == [1, 2, 3, 4, 5]
        assert not list((store / "downloads").iterdir())


def test_a_patch_that_fails_is_told_and_not_offered_again(world: Any, store: Path) -> None:
    desk, told = Desk(), list[QueuedReceipt]()
    desk.offer(world.patch(1, wrong_probe=True), "r1", 1)
    with Agent(store, desk, told.extend) as agent, Runtime(store, threads=1, poll_seconds=0) as runtime:
        agent.once()
        runtime.step()
        assert agent.once().did == "nothing"
        assert _words(told)[-1] == "reverted" and "probe 0" in told[-1].reason


def test_a_file_that_the_store_refuses_is_told_once_and_fetched_once(world: Any, store: Path, tree: Any) -> None:
    desk, told = Desk(), list[QueuedReceipt]()
    data = bytearray(world.patch(1))
    data[-1] ^= 1
    desk.offer(bytes(data), "r1", 1)
    with Agent(store, desk, told.extend) as agent:
        assert agent.once().did == "refused"
        assert agent.once().did == "nothing" and desk.fetched == 1
    assert _words(told) == ["offered", "verified", "reverted"] and "digest" in told[-1].reason
    with Store.open(store) as opened:
        assert (opened.head().id, opened.trial()) == (0, None)


def test_a_rollback_by_hand_is_not_undone_by_the_next_poll(world: Any, store: Path) -> None:
    desk = Desk()
    desk.offer(world.patch(1), "r1", 1)
    with Agent(store, desk) as agent, Runtime(store, threads=1, poll_seconds=0) as runtime:
        agent.once()
        runtime.step()
        with Store.open(store) as opened:
            opened.rollback()
        assert agent.once().did == "nothing"


def test_offline_is_exit_8_and_receipts_wait_in_order(world: Any, store: Path) -> None:
    desk, told = Desk(), list[QueuedReceipt]()
    away = True

    def deliver(rows: list[QueuedReceipt]) -> None:
        if away:
            raise UnreachableError("no network")
        told.extend(rows)

    desk.offer(world.patch(1), "r1", 1)
    with Agent(store, desk, deliver) as agent:
        report = agent.once()
        assert (report.did, report.told, report.error) == ("staged", 0, "no network")
        desk.error = UnreachableError("source is away")
        with pytest.raises(UnreachableError) as caught:
            agent.once()
        assert caught.value.exit_code == 8
        away = False
        with pytest.raises(UnreachableError):
            agent.once()
        assert _words(told) == ["offered", "verified", "staged"]


def test_a_patch_that_failed_is_told_once_in_each_release_that_brings_it_again(world: Any, store: Path) -> None:
    """Else this camera is silent there, and its release never ends."""
    desk, told = Desk(), list[QueuedReceipt]()
    desk.offer(world.patch(1, wrong_probe=True), "r1", 1)
    with Agent(store, desk, told.extend) as agent, Runtime(store, threads=1, poll_seconds=0) as runtime:
        agent.once()
        runtime.step()
        assert desk.order is not None
        agent.once()
        desk.order = Order("decline", "r1", 1, desk.order.patch)
        agent.once()
        assert [(row.release, row.state) for row in told][3:] == [("r1", "reverted")], "told twice of its own release"
        desk.order = Order("decline", "r2", 2, desk.order.patch)
        report = agent.once()
        assert (report.did, report.told) == ("nothing", 1) and "probe 0" in report.reason
        agent.once()
    assert [(row.release, row.state) for row in told][4:] == [("r2", "reverted")] and "probe 0" in told[4].reason
    assert desk.fetched == 1


def test_receipts_that_are_rejected_hold_up_nothing_and_are_not_lost(world: Any, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Halved until the culprits stand alone; set aside; sent once more the next day."""
    told, batches = list[QueuedReceipt](), list[int]()
    bad = {3, 11}

    def deliver(rows: list[QueuedReceipt]) -> None:
        batches.append(len(rows))
        if any(row.sequence in bad for row in rows):
            raise RejectedError("receiver rejects: got HTTP 422")
        told.extend(rows)

    now = [2_000_000_000.0]
    monkeypatch.setattr(agent_module.time, "time", lambda: now[0])
    with Agent(store, Desk(), deliver) as agent, Store.open(store) as opened:
        for number in range(20):
            opened.receipts.note(f"r{number}", "offered", "d" * 64)
        report = agent.once()
        assert report.told == 18 and "receipt 11 is set aside" in report.error and "422" in report.error
        assert sorted(row.sequence for row in told) == [n for n in range(1, 21) if n not in bad]
        assert opened.receipts.aside() == 2 and opened.receipts.waiting(99) == []
        sent = len(batches)
        assert agent.once().told == 0 and len(batches) == sent < 30, "asked again at once"
        now[0] += 86_399
        assert agent.once().told == 0 and len(batches) == sent
        bad.remove(3)
        now[0] += 1
        assert agent.once().told == 1 and opened.receipts.aside() == 1, "the mended receiver has it, the other waits for tomorrow"
        bad.clear()
        now[0] += 86_400
        assert agent.once().told == 1 and opened.receipts.aside() == 0
    assert sorted(row.sequence for row in told) == list(range(1, 21))


def test_one_agent_for_each_store(store: Path) -> None:
    with Agent(store, Desk()), pytest.raises(RefusedError, match="another agent") as caught:
        Agent(store, Desk())
    assert caught.value.exit_code == 6
    with Agent(store, Desk()) as free:
        assert free.once().did == "nothing"


def test_it_goes_on_after_errors_and_asks_a_source_that_is_away_less_often(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    desk, heard, pauses = Desk(), list[Any](), list[float]()
    desk.error = UnreachableError("away")

    class Stop(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            pauses.append(timeout or 0.0)
            if len(pauses) == 5:
                desk.error = IntegrityError("forged")
            return len(pauses) > 7

    with Agent(store, desk) as agent:
        agent.run(10.0, Stop(), heard.append)
    assert len(heard) == 7 and all(isinstance(error, EdgeEditError) for error in heard)
    assert 0 <= pauses[0] <= 2 and pauses[4] > 4 * 10 and all(8 <= pause <= 12 for pause in pauses[6:])
    assert len(set(pauses[6:])) == 2, "polls are not jittered"
    # What was forged is in the history once, for a monitor to tell; what was away is not.
    with Store.open(store) as opened:
        assert [reason for _, reason in opened.refusals(0)] == ["forged"]


def _update_repository() -> Any:
    path = Path(__file__).parents[2] / "support" / "update_repository.py"
    spec = importlib.util.spec_from_file_location("update_repository_for_agent", path)
    if spec is None or spec.loader is None:
        raise ImportError(path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def site(world: Any, store: Path, tmp_path: Path) -> Path:
    """A TUF repository in a folder that releases a patch for this store, and the agent's settings file."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    module = _update_repository()
    repository = module.Repository(now=int(time.time()))
    parent = world.bundle.fingerprint
    data = world.patch(1)
    repository.ship(data, parent=parent, result=world.mark(world.weights), issued=int(time.time()))
    repository.write(tmp_path / "tree")
    (tmp_path / "root.json").write_bytes(repository.root_bytes())
    pem = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (tmp_path / "device.pem").write_bytes(pem)
    (tmp_path / "home").mkdir()
    settings = f'source = "tree"\nsite = "{module.SITE}"\nroot = "root.json"\nkey = "device.pem"\nreceipts = "home"\n'
    (tmp_path / "agent.toml").write_text(settings)
    return tmp_path / "agent.toml"


def test_the_command_installs_from_a_signed_tree_and_leaves_signed_receipts(store: Path, site: Path) -> None:
    from edgeedit.cli.main import cli

    arguments = ["agent", "run", "--store", str(store), "--config", str(site), "--once", "--json"]
    done = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert json.loads(done.stdout)["did"] == "staged", done.output
    with Runtime(store, threads=1, poll_seconds=0) as runtime:
        swap = runtime.step()
        assert swap is not None and swap.state == "confirmed"
    done = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert json.loads(done.stdout)["did"] == "nothing"
    left = sorted((site.parent / "home" / "receipts" / "cam-1").glob("*.receipt"))
    lines = [json.loads(line) for file in left for line in file.read_bytes().splitlines()]
    assert len(lines) == 4 and all(line["signatures"] for line in lines)
    with Store.open(store) as opened:
        assert opened.floors.floor("clock") > 0, "the poll raised no floor"
        assert opened.receipts.waiting(10) == []


def test_an_update_takes_one_connection_and_leaves_none_open(store: Path, site: Path) -> None:
    module, tree = _update_repository(), site.parent / "tree"
    files = {str(path.relative_to(tree)): path.read_bytes() for path in tree.rglob("*") if path.is_file()}
    callers: dict[str, Any] = {}

    def note(handler: Any, path: str) -> bool:
        callers.setdefault(f"{handler.client_address}", handler.connection)
        return False

    with module.Server(files, note) as server:
        site.write_text(site.read_text().replace('source = "tree"', f'source = "{server.url}"'))
        settings = load_settings(site)
        with Agent(store, TufSource(settings, store)) as agent:
            assert agent.once().did == "staged" and len(server.log) > 4
            assert len(callers) == 1, "a second handshake for one update"
            assert agent.once().did == "waiting" and len(callers) == 2
            end = time.monotonic() + 10
            while any(connection.fileno() >= 0 for connection in callers.values()):  # the server closes what its client closed
                assert time.monotonic() < end, "a connection stayed open after its round"
                time.sleep(0.01)


# As after `pip install edgeedit[ota]`: securesystemslib loads boto3 (10 MB) wherever it is installed, here by the extra [ota-s3].
_MEASURE = """
import json, sys
sys.modules["boto3"] = sys.modules["botocore"] = sys.modules["botocore.exceptions"] = None
from pathlib import Path
from edgeedit.device.agent import Agent
from edgeedit.device.updates import TufSource, load_settings, make_delivery
settings = load_settings(Path(sys.argv[2]))
with Agent(Path(sys.argv[1]), TufSource(settings, Path(sys.argv[1])), make_delivery(settings)) as agent:
    did = [agent.once().did for _ in range(3)]
# Not ru_maxrss: it starts with what the parent had when it forked.
peak = next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(json.dumps({"did": did, "rss_mb": peak / 1024,
                  "bad": sorted({m.split(".")[0] for m in sys.modules} & {"torch", "onnx", "onnxruntime", "transformers"})}))
"""


def test_the_agent_is_small_and_holds_no_model(store: Path, site: Path) -> None:
    done = subprocess.run([sys.executable, "-c", _MEASURE, str(store), str(site)], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["did"] == ["staged", "waiting", "waiting"] and found["bad"] == []
    assert found["rss_mb"] <= 60, found


def test_the_runtime_loads_no_update_client_and_quickly(store: Path) -> None:
    """The best of several fresh interpreters, less what numpy and cryptography alone take: a busy machine is not the code's fault."""
    code = (
        "import sys, time\nimport numpy, cryptography.hazmat.primitives.asymmetric.ed25519, sqlite3, logging\nstart = time.process_time()\n"
        "import edgeedit.device.runtime\nprint(time.process_time() - start)\n"
        "bad = {'tuf', 'securesystemslib', 'urllib3', 'torch', 'onnxruntime', 'click'} & {m.split('.')[0] for m in sys.modules}\n"
        "sys.exit(f'imports {bad}' if bad else 0)\n"
    )
    times = []
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stderr
        times.append(float(done.stdout))
    assert min(times) <= 0.3, times


def _unit() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in UNIT.read_text("utf-8").splitlines():
        if "=" in line and not line.startswith(("#", "[")):
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


def test_the_unit_is_hardened_and_starts_a_command_that_exists() -> None:
    from edgeedit.cli.main import cli

    parser = configparser.ConfigParser(strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(UNIT)
    assert set(parser.sections()) == {"Unit", "Service", "Install"}
    unit = _unit()
    wanted = {
        "NoNewPrivileges": "yes", "ProtectSystem": "strict", "ProtectHome": "yes", "PrivateTmp": "yes", "PrivateDevices": "yes",
        "CapabilityBoundingSet": "", "RestrictSUIDSGID": "yes", "MemoryDenyWriteExecute": "yes", "SocketBindDeny": "any",
        "ReadWritePaths": "/var/lib/edgeedit", "ProtectKernelModules": "yes", "LockPersonality": "yes", "RestrictNamespaces": "yes",
    }  # fmt: skip
    assert {name: unit[name][0] for name in wanted} == wanted
    assert unit["MemoryMax"] and unit["User"] != ["root"] and not any("Socket" in name and name != "SocketBindDeny" for name in unit)
    binary, *arguments = unit["ExecStart"][0].split()
    assert binary.endswith("/edgeedit")
    # The same words, asked for help: every option is known.
    assert CliRunner().invoke(cli, [*arguments, "--help"]).exit_code == 0
    group = cli.get_command(None, "agent")  # type: ignore[arg-type]
    known = {option for parameter in group.commands["run"].params for option in parameter.opts}  # type: ignore[union-attr]
    assert {word for word in arguments if word.startswith("--")} <= known
    assert arguments[arguments.index("--store") + 1].startswith(unit["ReadWritePaths"][0])


@pytest.mark.sysdeps
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    """`systemd-analyze verify` knows every directive; `security` judges the exposure."""
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text("utf-8").replace("/opt/edgeedit/bin/edgeedit", "/bin/true"), "utf-8")
    done = subprocess.run(
        ["systemd-analyze", "verify", str(copy)], capture_output=True, text=True, check=False, timeout=60, env={**os.environ, "LC_ALL": "C"}
    )
    complaints = [line for line in done.stderr.splitlines() if UNIT.name in line and "man" not in line]
    assert not complaints, complaints


@pytest.mark.sysdeps
def test_systemd_takes_the_timer_that_signs_again(tmp_path: Path) -> None:
    """Timer and service as systemd reads them; the timer starts that service daily; its commands exist with these options."""
    from edgeedit.cli.main import cli

    for name in ("edgeedit-resign.timer", "edgeedit-resign.service"):
        (tmp_path / name).write_text((UNIT.parent / name).read_text("utf-8"), "utf-8")
    words = ["systemd-analyze", "verify", str(tmp_path / "edgeedit-resign.timer"), str(tmp_path / "edgeedit-resign.service")]
    environment = {**os.environ, "LC_ALL": "C", "SYSTEMD_UNIT_PATH": f"{tmp_path}:/usr/lib/systemd/system"}
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60, env=environment)
    complaints = [line for line in done.stderr.splitlines() if "edgeedit-resign" in line and "man" not in line]
    assert not complaints, complaints
    timer = (tmp_path / "edgeedit-resign.timer").read_text("utf-8")
    when = next(line.partition("=")[2] for line in timer.splitlines() if line.startswith("OnCalendar="))
    asked = subprocess.run(["systemd-analyze", "calendar", when], capture_output=True, text=True, check=False, timeout=60)
    assert asked.returncode == 0 and "Persistent=true" in timer
    starts = [
        line.partition("=")[2].split() for line in (tmp_path / "edgeedit-resign.service").read_text().splitlines() if "ExecStart=" in line
    ]
    for _, _, group, verb, *options in starts:
        assert CliRunner().invoke(cli, [group, verb, "--help"]).exit_code == 0
        known = {text for parameter in cli.get_command(None, group).commands[verb].params for text in parameter.opts}  # type: ignore[arg-type,union-attr]
        assert {word for word in options if word.startswith("--")} <= known
    assert [words[3] for words in starts] == ["resign", "status"]


def test_a_report_is_plain_json() -> None:
    assert json.loads(json.dumps(Report("staged", "r1", 2).to_json()))["generation"] == 2
