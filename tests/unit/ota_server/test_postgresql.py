"""The ledger on a real PostgreSQL server that the test starts on a socket of its own: what must hold on SQLite holds there."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from edgeedit.errors import InputError, UnreachableError
from edgeedit.ota.server.ledger import Ledger
from tests.unit.ota_server import test_rollout as same
from tests.unit.ota_server.test_rollout import Site

pytestmark = pytest.mark.sysdeps
_NUMBERS = itertools.count(1)


def _programs() -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]))
    if not found:
        pytest.skip("postgresql is not installed: make test-deps")
    return found[-1].parent


@pytest.fixture(scope="module")
def socket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of the socket of a running server; it does not run as root, so root hands it to its own user."""
    programs, at = _programs(), Path(tmp_path_factory.mktemp("pg"))
    as_user = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
    for parent in [at, *at.parents]:  # its user must be able to come here
        if parent.stat().st_uid == os.getuid() and parent != Path("/"):
            parent.chmod(parent.stat().st_mode | 0o011)
    if as_user:
        shutil.chown(at, "postgres")
    make = [programs / "initdb", "-D", at / "data", "-A", "trust", "-U", "desk", "-E", "UTF8", "--no-sync"]
    done = subprocess.run([*as_user, *map(str, make)], cwd="/", capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    serve = [programs / "postgres", "-D", at / "data", "-k", at, "-c", "listen_addresses=", "-c", "fsync=off", "-c", "shared_buffers=16MB"]
    with (at / "log").open("wb") as log:
        process = subprocess.Popen([*as_user, *map(str, serve)], cwd="/", stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        _wait(process, at)
        yield at
    finally:
        process.terminate()
        process.wait(60)


def _wait(process: subprocess.Popen[bytes], at: Path) -> None:
    end = time.monotonic() + 60
    while True:
        try:
            psycopg.connect(host=str(at), user="desk", dbname="postgres", connect_timeout=5).close()
            return
        except psycopg.OperationalError:
            assert process.poll() is None and time.monotonic() < end, (at / "log").read_text()
            time.sleep(0.1)


@pytest.fixture
def site(socket: Path, tmp_path: Path) -> Iterator[Site]:
    """A site whose ledger is an empty database."""
    name = f"ledger{next(_NUMBERS)}"
    with psycopg.connect(host=str(socket), user="desk", dbname="postgres", autocommit=True) as db:
        db.execute(f"CREATE DATABASE {name}")
    made = Site(tmp_path, 100, f"postgresql://desk@/{name}?host={socket}")
    yield made
    made.ledger.close()


@pytest.mark.parametrize(
    "holds",
    [
        same.check_receipts,
        same.test_a_release_goes_through_its_stages,
        same.test_withdraw_names_the_generation_before,
        same.test_a_camera_with_a_new_key_leaves_its_old_receipts_valid,
        same.test_two_processes_append_to_one_history,
        same.test_the_fleet_view_shows_what_is_and_escapes_it,
    ],
)
def test_what_holds_on_sqlite_holds_here(site: Site, holds: Callable[[Site], None]) -> None:
    holds(site)


@pytest.mark.parametrize("change", same.TAMPER[:6])
def test_tampering_is_found_here_too(site: Site, change: str) -> None:
    same.test_tampering_with_the_ledger_is_found(site, change)


def test_an_open_ledger_is_opened_again_and_an_absent_server_is_exit_8(site: Site, tmp_path: Path) -> None:
    again = Ledger(site.ledger.url.replace("+psycopg", ""), site.clock)
    assert [device.id for device in again.devices("plant")] == sorted(device.id for device in site.devices)
    again.close()
    with pytest.raises(UnreachableError, match="ledger cannot be used") as caught:
        Ledger(f"postgresql://desk@/x?host={tmp_path}")
    assert caught.value.exit_code == 8
    with pytest.raises(InputError, match="not a ledger address"):
        Ledger("nosql://x")
