"""Rollouts and ledger: exact counts, thresholds to the single device, receipts that count once, a history that shows tampering."""

from __future__ import annotations

import hashlib
import json
import math
import subprocess
import sys
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from securesystemslib.signer import CryptoSigner

from edgeedit.errors import GateError, InputError, IntegrityError, MismatchError
from edgeedit.ota.client.receipts import Receipt, sign_receipt
from edgeedit.ota.client.rollout import Conditions, Device, PatchTarget, Rollout, decide, rank, selects
from edgeedit.ota.server import ledger as ledger_module
from edgeedit.ota.server import release, repository
from edgeedit.ota.server.ledger import Enrolled, Ledger
from edgeedit.ota.server.receiver import ingest_files
from edgeedit.ota.server.signers import as_repository_key
from edgeedit.ota.server.tree import Tree
from edgeedit.ota.server.view import as_html, as_text, fleet_view
from tests.support.tuf_reader import MemoryPlace

A, B = "a" * 64, "b" * 64
RULES = Conditions(min_reports=10, success_permille=900, error_count=5, error_permille=100, unknown_permille=200)


class Site:
    """A repository in memory, a ledger in a file, and cameras that sign what they are told to say."""

    def __init__(self, folder: Path, count: int, url: str = "") -> None:
        self.now = datetime.now(timezone.utc).replace(microsecond=0)
        self.place = MemoryPlace()
        names = ("root-1", "root-2", "targets", "online", "ml", "release")
        private = {name: Ed25519PrivateKey.generate() for name in names}
        public = {name: as_repository_key(key.public_key()) for name, key in private.items()}
        self.ring = {public[n].keyid: CryptoSigner(private[n], public[n]) for n in names}
        keys = repository.RootKeys((public["root-1"], public["root-2"]), (public["targets"],), (public["online"],))
        roles = {"patches-linux-cpu": [public["ml"]], "rollouts-plant": [public["release"]]}
        repository.init(self.place, keys, roles, self.ring, self.clock)
        self.path = repository.add_patches(self.tree(), "linux-cpu", [b"patch"], self.ring)[0]
        self.ledger = Ledger(url or str(folder / "ledger.db"), self.clock)
        self.signer = CryptoSigner.generate_ed25519()
        self.devices = [Device(f"cam-{n}", "linux-cpu", f"line-{n % 3}", frozenset({"lab"} if n == 0 else ())) for n in range(count)]
        self.ledger.enrol(Enrolled(device, "plant", self.signer.public_key) for device in self.devices)
        self.spoken: dict[str, int] = {}

    def clock(self) -> datetime:
        return self.now

    def tree(self) -> Tree:
        return Tree(self.place, self.clock)

    def plan(self, *stages: str, rules: Conditions = RULES, name: str = "r1", seed: str = "s") -> Rollout:
        made = release.plan_stages([release.parse_wanted(text) for text in stages], self.devices, seed)
        target = PatchTarget(self.path, hashlib.sha256(b"patch").hexdigest(), 5)
        return Rollout(name, "plant", "linux-cpu", 1, 0, "running", target, A, B, seed, made, 0, rules)

    def say(self, state: str, *devices: Device, name: str = "r1", reason: str = "", signer: CryptoSigner | None = None) -> list[bytes]:
        made = []
        for device in devices:
            number = self.spoken[device.id] = self.spoken.get(device.id, 0) + 1
            receipt = Receipt(device.id, name, number, state, hashlib.sha256(b"patch").hexdigest(), 1, reason, int(self.now.timestamp()))
            made.append(sign_receipt(receipt, signer or self.signer))
        return made

    def takers(self, document: Rollout) -> list[Device]:
        return [device for device in self.devices if decide(document, device, int(self.now.timestamp())).action == "take"]

    def document(self) -> Rollout:
        return release.read_rollout(self.tree(), "plant", "r1")


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path, 100)


def test_counts_are_exact_for_every_fleet_size() -> None:
    wanted = [release.parse_wanted(text) for text in ("canary=1", "early=5%", "third=33.3%", "all=100%")]
    everybody = [Device(f"cam-{n}", "p") for n in range(10_000)]
    for n in range(1, 10_001):
        expected = (1, math.ceil(Fraction(n, 20)), math.ceil(Fraction(333 * n, 1000)), n)
        assert tuple(release.quota(want, n) for want in wanted) == expected
        if n <= 60 or n in (300, 1000, 5000, 9999, 10_000):
            # And what devices decide of themselves adds up to it.
            stages = release.plan_stages(wanted, everybody[:n], "seed")
            taken = [0, 0, 0, 0]
            for device in everybody[:n]:
                own = rank("seed", device.id)
                for at, stage in enumerate(stages):
                    taken[at] += own <= stage.cutoff or device.id in stage.devices
            assert tuple(taken) == tuple(max(e, c) for e, c in zip(expected, (1, 1, 1, 1), strict=True)) == tuple(s.count for s in stages)
    assert release.plan_stages(wanted[1:2], everybody[:50], "seed")[0].count == 3


@pytest.mark.parametrize("count", [1, 2, 7, 50, 333])
def test_every_line_has_a_canary_and_stages_nest(count: int) -> None:
    fleet = [Device(f"cam-{n}", "p", f"line-{n % 12}") for n in range(count)]
    wanted = [release.parse_wanted(t) for t in ("canary=1", "early=5%", "quarter=25%", "all=100%")]
    stages = release.plan_stages(wanted, fleet, "x")
    lines = min(12, count)
    before: set[str] = set()
    for stage, share in zip(stages, (0, 50, 250, 1000), strict=True):
        taken = {d.id for d in fleet if selects(stage, "x", d)}
        assert len(taken) == stage.count == max(lines, -(-count * share // 1000))
        assert {d.line for d in fleet if d.id in taken} == {d.line for d in fleet}
        assert before <= taken
        before = taken


def test_another_seed_tries_other_cameras_first() -> None:
    fleet = [Device(f"cam-{n}", "p") for n in range(5000)]
    stages = {s: release.plan_stages([release.parse_wanted("c=5%")], fleet, s)[0] for s in ("one", "two")}
    first, second = ({d.id for d in fleet if selects(stage, s, d)} for s, stage in stages.items())
    assert len(first) == len(second) == 250 and len(first & second) < 40


@pytest.mark.parametrize("text", ["x", "x=", "x=0", "x=-3", "x=0%", "x=101%", "x=5%,soak=a", "x=5%,sook=1", "x=1.5"])
def test_a_stage_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="stage cannot be read"):
        release.parse_wanted(text)


def test_a_release_goes_through_its_stages(site: Site) -> None:
    made = release.start(site.tree(), site.plan("lab=label:lab", "early=20%,soak=3600", "all=100%,approval"), site.ring, site.ledger)
    assert [d.id for d in site.takers(made)] == ["cam-0"] and made.sequence == 1
    with pytest.raises(GateError, match="0 reports: expected at least 10"):
        release.advance(site.tree(), "plant", "r1", site.ring, site.ledger)
    site.ledger.ingest(site.say("confirmed", site.devices[0]))
    made, _ = release.advance(site.tree(), "plant", "r1", site.ring, site.ledger)
    early = site.takers(made)
    assert len(early) == 20 and made.sequence == 2
    site.ledger.ingest(site.say("staged", *early) + site.say("confirmed", *early[:15]))
    with pytest.raises(GateError, match=r"of 20 devices are silent: expected at most 200 per mille; 0 s without an error"):
        release.advance(site.tree(), "plant", "r1", site.ring, site.ledger)
    site.ledger.ingest(site.say("confirmed", *early[15:]))
    site.now += timedelta(seconds=3600)
    with pytest.raises(GateError, match="stage all needs an approval"):
        release.advance(site.tree(), "plant", "r1", site.ring, site.ledger)
    made, _ = release.advance(site.tree(), "plant", "r1", site.ring, site.ledger, by="M. Curie")
    assert len(site.takers(made)) == 100 and made.approvals[0].by == "M. Curie"
    site.ledger.ingest(site.say("confirmed", *site.devices))
    assert release.advance(site.tree(), "plant", "r1", site.ring, site.ledger)[1].verdict == "done"


@pytest.mark.parametrize(("rules", "limit"), [(RULES, 5), (replace(RULES, error_count=1000, error_permille=100), 4)])
def test_it_halts_at_the_exact_threshold(site: Site, rules: Conditions, limit: int) -> None:
    release.start(site.tree(), site.plan("all=100%", rules=rules), site.ring, site.ledger)
    # 36 good reports: the fourth bad one is 4 of 40, which is 100 per mille; the fifth is the count of 5.
    site.ledger.ingest(site.say("confirmed", *site.devices[10:46] if limit == 4 else site.devices[10:90]))
    site.ledger.ingest(site.say("reverted", *site.devices[: limit - 1], reason="probe 3 differs"))
    assert release.judge(site.document(), site.ledger).verdict != "halt"
    site.ledger.ingest(site.say("reverted", site.devices[limit - 1], reason="probe 3 differs"))
    with pytest.raises(GateError, match="was halted") as caught:
        release.advance(site.tree(), "plant", "r1", site.ring, site.ledger)
    assert caught.value.exit_code == 3
    assert site.document().state == "halted" and not site.takers(site.document())
    with pytest.raises(MismatchError, match="expected running, got halted"):
        release.advance(site.tree(), "plant", "r1", site.ring, site.ledger)


def test_withdraw_names_the_generation_before(site: Site) -> None:
    release.start(site.tree(), site.plan("all=100%"), site.ring, site.ledger)
    second = replace(site.plan("all=100%", name="r2"), parent=B, result="c" * 64)
    release.start(site.tree(), second, site.ring, site.ledger)
    made = release.withdraw(site.tree(), "plant", "r2", site.ring, site.ledger)
    assert made.withdraw_to is not None
    assert (made.withdraw_to.generation, made.withdraw_to.patch) == (B, hashlib.sha256(b"patch").hexdigest())
    assert made.sequence == 3
    assert decide(made, site.devices[0], 0).action == "return"
    base = release.withdraw(site.tree(), "plant", "r1", site.ring, site.ledger)
    assert base.withdraw_to is not None and base.withdraw_to.patch == ""
    with pytest.raises(MismatchError, match="was withdrawn"):
        release.halt(site.tree(), "plant", "r1", site.ring, site.ledger, state="running")


def test_a_release_of_an_absent_patch_or_an_old_name_is_refused(site: Site) -> None:
    plan = site.plan("all=100%")
    other = PatchTarget(repository.patch_path("linux-cpu", A), A, 5)
    with pytest.raises(MismatchError, match="does not name the patch"):
        release.start(site.tree(), replace(plan, patch=other), site.ring, site.ledger)
    release.start(site.tree(), plan, site.ring, site.ledger)
    with pytest.raises(MismatchError, match="started already"):
        release.start(site.tree(), plan, site.ring, site.ledger)
    assert hashlib.sha256(b"patch").hexdigest() in release.needed_patches(site.tree(), "linux-cpu", 0)


def check_receipts(site: Site) -> None:
    """What must hold on every database."""
    lines = site.say("offered", *site.devices[:5]) + site.say("confirmed", *site.devices[:5])
    assert (site.ledger.ingest(lines).accepted, site.ledger.ingest(lines).known) == (10, 10)
    stranger = CryptoSigner.generate_ed25519()
    forged = site.say("reverted", site.devices[7], signer=stranger)
    unknown = site.say("reverted", Device("nobody", "linux-cpu"))
    changed = [lines[0].replace(b"a", b"b", 1), b"{}", b"\xff", lines[1][:-5]]
    done = site.ledger.ingest(forged + unknown + changed + site.say("confirmed", site.devices[8]))
    assert done.accepted == 1 and len(done.refused) == 6
    site.spoken["cam-0"] = 1
    assert "signed two receipts" in site.ledger.ingest(site.say("reverted", site.devices[0])).refused[0]
    assert len(site.ledger.outcomes("r1")) == 6
    count, _ = site.ledger.verify_history()
    assert count == len(site.ledger.history()) == 100 + 4


def test_receipts_count_once_and_only_from_their_device(site: Site) -> None:
    check_receipts(site)


TAMPER = [
    "UPDATE audit SET data = '{}' WHERE number = 50",
    "DELETE FROM audit WHERE number = 50",
    "UPDATE receipt SET state = 'reverted' WHERE device = 'cam-1'",
    "DELETE FROM receipt WHERE device = 'cam-1'",
    "UPDATE receipt SET envelope = (SELECT envelope FROM receipt WHERE device = 'cam-2') WHERE device = 'cam-1'",
    "UPDATE receipt SET batch = 7 WHERE device = 'cam-1'",
    "UPDATE receipt SET batch = 900 WHERE device = 'cam-1'",
    "UPDATE audit SET time = time + 1 WHERE number = 101",
    "UPDATE device SET key = (SELECT key FROM device WHERE id = 'cam-2') || ' ' WHERE id = 'cam-99'",
    "UPDATE device SET labels = '[]', line = 'z' WHERE id = 'cam-99'",
    "DELETE FROM device WHERE id = 'cam-99'",
]


@pytest.mark.parametrize("change", TAMPER)
def test_tampering_with_the_ledger_is_found(site: Site, change: str) -> None:
    site.ledger.ingest(site.say("confirmed", *site.devices[:5]))
    site.ledger.verify_history()
    with site.ledger.transaction() as db:
        db.execute(sa.text(change))
    with pytest.raises(IntegrityError, match=r"changed|behind the history"):
        site.ledger.verify_history()


def test_a_camera_with_a_new_key_leaves_its_old_receipts_valid(site: Site) -> None:
    site.ledger.ingest(site.say("confirmed", *site.devices[:3]))
    fresh = CryptoSigner.generate_ed25519()
    site.ledger.enrol([Enrolled(site.devices[1], "plant", fresh.public_key)])
    old, new = site.say("offered", site.devices[1]), site.say("staged", site.devices[1], signer=fresh)
    done = site.ledger.ingest([*old, *new])
    assert (done.accepted, done.refused) == (1, ["receipt is not signed by device cam-1"])
    assert site.ledger.verify_history()[0] == 104


def test_what_a_large_stick_brings_is_taken_in_parts(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "MAX_TOGETHER", 3)
    lines = [line for _ in range(4) for line in site.say("offered", *site.devices[:2])]
    done = site.ledger.ingest(iter([*lines[:2], *lines]))
    assert (done.accepted, done.known) == (8, 2)
    assert [json.loads(row["data"])["count"] for row in site.ledger.history() if row["event"] == "receipts"] == [2, 2, 3, 1]
    site.ledger.verify_history()


def test_a_stick_brings_receipts_home_twice(site: Site, tmp_path: Path) -> None:
    home = tmp_path / "stick" / "receipts"
    home.mkdir(parents=True)
    (home / "cam-1.jsonl").write_bytes(b"\n".join(site.say("offered", site.devices[1]) + site.say("confirmed", site.devices[1])) + b"\n")
    (home / "evil.jsonl").symlink_to("/etc/passwd")
    assert ingest_files(site.ledger, [tmp_path / "stick"]).accepted == 2
    done = ingest_files(site.ledger, [tmp_path / "stick"])
    assert (done.accepted, done.known, done.refused) == (0, 2, [])


def test_two_processes_append_to_one_history(site: Site) -> None:
    code = (
        "import sys\nfrom edgeedit.ota.server.ledger import Ledger\nledger = Ledger(sys.argv[1])\n"
        "for n in range(20): ledger.record('noted', str(n), {})"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code, site.ledger.url]) for _ in range(2)]
    assert [process.wait(60) for process in processes] == [0, 0]
    assert site.ledger.verify_history()[0] == 140


def test_the_fleet_view_shows_what_is_and_escapes_it(site: Site) -> None:
    release.start(site.tree(), site.plan("all=100%"), site.ring, site.ledger)
    site.ledger.ingest(
        site.say("confirmed", *site.devices[:60]) + site.say("reverted", site.devices[60], reason="<script>alert(1)</script>")
    )
    view: dict[str, Any] = fleet_view(site.ledger, site.tree())
    assert view["states"] == {"confirmed": 60, "reverted": 1, "never heard of": 39}
    assert [row["device"] for row in view["failures"]] == ["cam-60"] and len(view["silent"]) == 39
    assert (view["releases"][0]["confirmed"], view["releases"][0]["reverted"], view["releases"][0]["silent"]) == (60, 1, 39)
    page = as_html(view)
    assert "<script" not in page and "&lt;script&gt;" in page and "cam-99" in page and "http" not in page.replace("http-equiv", "")
    assert "cam-60" in as_text(view).splitlines()[3]
    site.now += timedelta(days=8)
    assert len(fleet_view(site.ledger, None)["silent"]) == 100
