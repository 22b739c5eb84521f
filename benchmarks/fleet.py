"""A fleet on one machine: 5,000 simulated cameras take a release in stages, over loopback, with the device's real client code.

    release r1   canary 5 -> 5 % -> 25 %, where the desk halts it at exactly the 15th reverted camera, and withdraws it
    release r2   canary 5 -> 5 % -> 25 % -> 100 %, 2 % of all cameras fail, and it finishes

A camera is `edgeedit.ota.client`: it polls (`session.poll`, its own cache and floors), fetches and verifies the patch, and posts its signed
receipts to `edgeedit fleet serve`.  nginx serves the tree.  The swap is SIMULATED: a camera says `confirmed`, or `reverted` when it is
every 50th by the release's rank.  Caches, tree and ledger lie in /dev/shm where there is one, as 5,000 cameras have 5,000 flashes.  The
whole fleet polls at the first stage of r1 and takes r2 by its last; else those poll that the stage takes, and up to 250 others as
witnesses, who must take nothing.  Each of a few processes plays its share of the cameras over connections that it keeps open; the ledger
syncs as always.

Run: python benchmarks/fleet.py [--quick] [--json FILE]
"""

from __future__ import annotations

import argparse
import bisect
import contextlib
import hashlib
import json
import math
import os
import platform
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fleet_cameras import BASE, PROFILE, SITE, Fleet, World
from securesystemslib.signer import CryptoSigner

from edgeedit.errors import GateError
from edgeedit.ota.client.rollout import Conditions, Device, PatchTarget, Rollout, decide, rank
from edgeedit.ota.server import release, repository
from edgeedit.ota.server.ledger import Enrolled, Ledger
from edgeedit.ota.server.places import FolderPlace
from edgeedit.ota.server.signers import as_repository_key
from edgeedit.ota.server.tree import Tree

SEED = "fleet"
RESULT = {"r1": "1" * 64, "r2": "2" * 64}
STAGES = ("canary=5", "early=5%", "quarter=25%", "all=100%")
WITNESSES = 250  # cameras outside a stage that poll during it
ONE_IN, LIMIT_SHARE = 50, 0.003  # 2 % fail; r1 halts at this share of the fleet
GOAL_SECONDS, GOAL_RSS_MB, MOST = 120.0, 60.0, 10_000
NGINX = """daemon off; worker_processes 1; pid {at}/nginx.pid; error_log {at}/error.log crit;
events {{ worker_connections 256; }}
http {{ access_log off; client_body_temp_path {at}; proxy_temp_path {at}; fastcgi_temp_path {at}; uwsgi_temp_path {at}; scgi_temp_path {at};
server {{ listen 127.0.0.1:{port}; root {root}; }} }}"""
# As after `pip install edgeedit[ota]`: securesystemslib loads boto3 wherever it is installed.
AGENT = """
import json, sys
sys.modules["boto3"] = sys.modules["botocore"] = sys.modules["botocore.exceptions"] = None
from pathlib import Path
from edgeedit.device.agent import Agent
from edgeedit.device.updates import TufSource, load_settings, make_delivery
settings, store = load_settings(Path(sys.argv[2])), Path(sys.argv[1])
with Agent(store, TufSource(settings, store), make_delivery(settings)) as agent:
    did = [agent.once().did for _ in range(3)]
peak = next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(json.dumps({"did": did, "rss_mb": round(peak / 1024, 1)}))
"""


class Desk:
    """The release engineer: repository, ledger, keys."""

    def __init__(self, folder: Path, count: int) -> None:
        names = ("root-1", "root-2", "targets", "online", "ml", "release")
        private = {name: Ed25519PrivateKey.generate() for name in names}
        public = {name: as_repository_key(key.public_key()) for name, key in private.items()}
        self.ring = {public[n].keyid: CryptoSigner(private[n], public[n]) for n in names}
        self.place, self.count = FolderPlace(folder / "tree"), count
        keys = repository.RootKeys((public["root-1"], public["root-2"]), (public["targets"],), (public["online"],))
        roles = {f"patches-{PROFILE}": [public["ml"]], f"rollouts-{SITE}": [public["release"]]}
        repository.init(self.place, keys, roles, self.ring)
        self.key = Ed25519PrivateKey.generate()
        signer = CryptoSigner(self.key)
        self.devices = [Device(f"cam-{n:04d}", PROFILE, "a", frozenset()) for n in range(count)]
        self.ledger = Ledger(str(folder / "ledger.db"))
        self.ledger.enrol(Enrolled(device, SITE, signer.public_key) for device in self.devices)
        self.order = sorted(self.devices, key=lambda device: rank(SEED, device.id))
        self.patches = {name: os.urandom(40_000) for name in RESULT}
        self.paths = dict(zip(RESULT, repository.add_patches(self.tree(), PROFILE, list(self.patches.values()), self.ring), strict=True))
        self.document: Rollout | None = None

    def tree(self) -> Tree:
        """The repository as it is now."""
        return Tree(self.place)

    def start(self, name: str, limit: int) -> Rollout:
        """Publish a release with its canary open."""
        digest = hashlib.sha256(self.patches[name]).hexdigest()
        path = next(path for path in self.paths.values() if digest in path)
        stages = release.plan_stages([release.parse_wanted(text) for text in STAGES], self.devices, SEED)
        rules = Conditions(min_reports=5, success_permille=950, error_count=limit, error_permille=1000, unknown_permille=0)
        target = PatchTarget(path, digest, len(self.patches[name]))
        plan = Rollout(name, SITE, PROFILE, 1, self.ledger.now(), "running", target, BASE, RESULT[name], SEED, stages, 0, rules)
        return release.start(self.tree(), plan, self.ring, self.ledger)

    def advance(self, name: str) -> Rollout:
        """Open the next stage, or raise GateError."""
        return release.advance(self.tree(), SITE, name, self.ring, self.ledger)[0]

    def read(self, name: str) -> Rollout:
        """The published document."""
        return release.read_rollout(self.tree(), SITE, name)


def takers(desk: Desk, document: Rollout) -> list[Device]:
    """The cameras that the document as published takes now, in the order of the desk."""
    now = int(time.time())
    return [device for device in desk.order if decide(document, device, now).action == "take"]


def stage(desk: Desk, fleet: Fleet, document: Rollout, *, everybody: bool) -> dict[str, Any]:
    """Let a stage's cameras come (and witnesses); counts beside what the document asked for."""
    wanted = document.stages[document.opened - 1].count
    takes = takers(desk, document)
    fresh, known = fleet.fresh(takes), {device.id for device in takes}
    others = [device for device in desk.order if device.id not in known]
    found = fleet.visit([*fresh, *(others if everybody else others[:WITNESSES])])
    took = {name for did in ("confirmed", "reverted") for name in found.get(did, ())}
    exact = len(takes) == wanted and took == {device.id for device in fresh}
    return {"stage": document.stages[document.opened - 1].name, "wanted": wanted, "takers": len(takes), "new": len(took), "exact": exact}


def halted(desk: Desk, fleet: Fleet, limit: int) -> dict[str, Any]:
    """r1 until the limit: the healthy cameras of the stage first, then the failing ones one by one, judged after each."""
    fresh = fleet.fresh(takers(desk, desk.read("r1")))
    bad = [device for device in fresh if device.id in fleet.world.fails["r1"]]
    fleet.visit([device for device in fresh if device.id not in fleet.world.fails["r1"]])
    verdicts = {}
    while True:
        standing = release.judge(desk.read("r1"), desk.ledger)
        verdicts[standing.reverted] = standing.verdict
        if standing.verdict == "halt" or not bad:
            break
        fleet.visit([bad.pop(0)])
    try:
        desk.advance("r1")
        refused = False
    except GateError:
        refused = True
    after = fleet.visit(bad)  # the halt is seen at the next poll
    at = min((count for count, verdict in verdicts.items() if verdict == "halt"), default=0)
    return {
        "limit": limit, "halted_at": at, "not_before": all(v != "halt" for n, v in verdicts.items() if n < limit), "left": len(bad),
        "taken_after_halt": len(bad) - len(after.get("nothing", ())), "advance_refused": refused, "state": desk.read("r1").state,
    }  # fmt: skip


def scenario(desk: Desk, fleet: Fleet) -> dict[str, Any]:
    """Both releases; every count that the goals need."""
    limit = max(2, round(LIMIT_SHARE * desk.count))
    stages = [stage(desk, fleet, desk.start("r1", limit), everybody=True), stage(desk, fleet, desk.advance("r1"), everybody=False)]
    desk.advance("r1")
    halt = halted(desk, fleet, limit)
    release.withdraw(desk.tree(), SITE, "r1", desk.ring, desk.ledger)
    holders = [device for device in desk.order if device.id in fleet.holders]
    back = fleet.visit(holders)
    fleet.begin()
    withdrawn = {"holders": len(holders), "returned": len(back.get("returned", ()))}
    document = desk.start("r2", desk.count)
    for number in range(len(STAGES)):
        stages.append(stage(desk, fleet, document, everybody=False))
        if number + 1 < len(STAGES):
            document = desk.advance("r2")
    standing = release.judge(desk.read("r2"), desk.ledger)
    end = {"confirmed": standing.confirmed, "reverted": standing.reverted, "silent": standing.silent, "verdict": standing.verdict}
    return {"stages": stages, "halt": halt, "withdrawn": withdrawn, "end": end}


def _port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextlib.contextmanager
def served(words: Sequence[object], url: str) -> Iterator[None]:
    """A server process, up when `url` answers."""
    process = subprocess.Popen([str(word) for word in words])
    try:
        for _ in range(300):
            try:
                with urllib.request.urlopen(url, timeout=5):  # noqa: S310 - loopback
                    break
            except OSError as error:
                if process.poll() is not None:
                    raise SystemExit(f"{words[0]} ended") from error
                time.sleep(0.1)
        yield
    finally:
        process.terminate()
        process.wait(timeout=30)


def cpu_seconds() -> float:
    """User and system seconds of this process and of its children that have ended: cameras, nginx, receiver, desk."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def agent_rss(folder: Path, source: str, receiver: str) -> dict[str, Any]:
    """Three rounds of one real agent process against this fleet's repository, with a store of a small real Bundle."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from edgeedit.device.store import Store
    from edgeedit.patch.keys import new_key
    from tests.unit.device.conftest import make_bundle

    bundle = make_bundle(folder / "bundle")
    new_key(folder / "device.key", folder / "device.pub")
    Store.create(folder / "store", bundle.path, [folder / "device.pub"], device="cam-0000").close()
    shutil.copyfile(folder / "tree" / "metadata" / "1.root.json", folder / "root.json")
    lines = {"source": source, "site": SITE, "root": "root.json", "key": "device.key", "receipts": receiver}
    (folder / "agent.toml").write_text("".join(f'{name} = "{value}"\n' for name, value in lines.items()))
    words = [sys.executable, "-c", AGENT, str(folder / "store"), str(folder / "agent.toml")]
    found: dict[str, Any] = json.loads(subprocess.run(words, capture_output=True, text=True, check=True, timeout=300).stdout)
    return found


def run(folder: Path, count: int) -> dict[str, Any]:
    """Everything; the clock runs from the first poll to the last verdict."""
    desk = Desk(folder, count)
    web, home = _port(), _port()
    (folder / "nginx.conf").write_text(NGINX.format(at=folder, port=web, root=desk.place.root))
    root = desk.place.read("metadata/1.root.json") or b""
    fails = frozenset(device.id for device in desk.order[ONE_IN - 1 :: ONE_IN])
    source, receiver = f"http://127.0.0.1:{web}", f"http://127.0.0.1:{home}"
    world = World(source, receiver, root, folder / "caches", dict.fromkeys(RESULT, fails), desk.key.private_bytes_raw())
    world.folder.mkdir()
    nginx = ["nginx", "-e", folder / "error.log", "-p", folder, "-c", folder / "nginx.conf"]
    take = [sys.executable, "-m", "edgeedit.cli.main", "fleet", "serve", "--ledger", folder / "ledger.db", "--port", home]
    before = cpu_seconds()
    with served(nginx, f"{source}/metadata/1.root.json"), served(take, f"{receiver}/healthz"):
        with Fleet(world, desk.devices) as fleet:
            fleet.visit([])  # until every process is there
            start = time.perf_counter()
            value = scenario(desk, fleet)
            value["seconds"], value["polls"] = round(time.perf_counter() - start, 1), fleet.polls
        value["agent"] = agent_rss(folder, source, receiver)
    value["cpu_seconds"] = round(cpu_seconds() - before, 1)
    value["history_rows"], value["exact_sizes"] = desk.ledger.verify_history()[0], exact_sizes(MOST)
    return value


def exact_sizes(limit: int) -> int:
    """Of fleets of 1 to `limit` cameras: how many have a canary of exactly min(5, n), then of max(that, ceil(n / 20)), by the cut-offs
    that cameras compare their ranks with."""
    wanted = [release.parse_wanted(text) for text in ("canary=5", "early=5%")]
    order: list[tuple[str, Device]] = []
    ranks: list[str] = []
    exact = 0
    for n in range(1, limit + 1):
        device = Device(f"cam-{n}", PROFILE, "a")
        at = bisect.bisect(ranks, rank(SEED, device.id))
        ranks.insert(at, rank(SEED, device.id))
        order.insert(at, (ranks[at], device))
        counts = [bisect.bisect(ranks, stage.cutoff) + len(stage.devices) for stage in release.plan_ranked(wanted, order)]
        exact += counts == [min(5, n), max(min(5, n), math.ceil(n / 20))]
    return exact


def goals(value: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """Each goal of the fleet with what was found."""
    halt, end, failing = value["halt"], value["end"], count // ONE_IN
    exact = all(row["exact"] for row in value["stages"])
    stopped = halt["halted_at"] == halt["limit"] and halt["not_before"] and not halt["taken_after_halt"] and halt["state"] == "halted"
    finished = (end["confirmed"], end["reverted"], end["silent"], end["verdict"]) == (count - failing, failing, 0, "done")
    back = value["withdrawn"]["returned"] == value["withdrawn"]["holders"] > 0
    expected = [5, math.ceil(count / 20)]
    rows = [
        ("seconds", f"< {GOAL_SECONDS:.0f}", value["seconds"], value["seconds"] < GOAL_SECONDS),
        ("CPU seconds of all processes", f"< {2 * GOAL_SECONDS:.0f}", value["cpu_seconds"], value["cpu_seconds"] < 2 * GOAL_SECONDS),
        ("canary exact for fleets of 1 to 10,000", MOST, value["exact_sizes"], value["exact_sizes"] == MOST),
        ("counts exact", expected, [row["takers"] for row in value["stages"]], exact),
        ("halt at the threshold", halt["limit"], halt["halted_at"], stopped and halt["advance_refused"]),
        ("withdrawal obeyed", value["withdrawn"]["holders"], value["withdrawn"]["returned"], back),
        ("finished with 2 % failing", failing, end["reverted"], finished),
        ("agent RSS, MB", f"<= {GOAL_RSS_MB:.0f}", value["agent"]["rss_mb"], value["agent"]["rss_mb"] <= GOAL_RSS_MB),
    ]
    return [{"name": name, "goal": goal, "value": found, "met": bool(met)} for name, goal, found, met in rows]


def main() -> int:
    """Run, print, write; 1 when a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="600 cameras")
    parser.add_argument("--cameras", type=int, help="another size, a multiple of 50, at least 400")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    count = options.cameras or (600 if options.quick else 5000)
    memory = Path("/dev/shm")  # noqa: S108
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        value = run(Path(folder), count)
    judged = goals(value, count)
    for row in judged:
        print(f"{'ok  ' if row['met'] else 'MISS'}  {row['name']}: {row['value']} (goal {row['goal']})")
    if options.json is not None:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
        about = {"machine": f"{platform.machine()}, {os.cpu_count()} cores", "commit": commit, "quick": options.quick, "cameras": count}
        options.json.write_text(json.dumps({**about, **value, "goals": judged}, indent=1) + "\n")
    return 0 if all(row["met"] for row in judged) else 1


if __name__ == "__main__":
    sys.exit(main())
