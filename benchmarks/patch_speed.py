"""Time and memory to apply the `lorsu` patch of a ViT-L/14-shaped encoder (SYNTHETIC, patch_vitl.py), beside zstd and xdelta3.

    in process     decode + apply of every changed tensor, one thread, weights in memory; nothing is read, written or hashed
    whole process  from files to a flushed new file: `edgeedit-apply` from $EDGEEDIT_APPLY, PATH or build/native, else
                   `edgeedit materialize` (Python; it also verifies the signature and hashes every tensor), `cp`,
                   `zstd -d --patch-from` and `xdelta3 -d`

The rivals' patches are taken from a run of patch_size.py where it left them, else made here (minutes; --limit).  zstd -19 needs longer than
that for the whole file, so without such a run its decoder gets a patch of level 3, and its row says so.
Peak memory is the process's largest resident size; it counts mapped files.  Run: python benchmarks/patch_speed.py [--quick] [--json FILE]
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import patch_edits
import patch_rivals
import patch_vitl
from patch_case import Case, make_case

Array = np.ndarray[Any, Any]
GOAL_SECONDS, GOAL_BYTES = 0.2, 1.4e9
QUICK_LEVEL = 3  # of zstd, where there is no patch of its best level


def build(folder: Path, *, quick: bool) -> Case:
    """The case; `quick` is two narrow blocks with the same code."""
    real = patch_edits.real_delta("lorsu").tensors
    sizes: dict[str, Any] = {"blocks": 2, "width": 256, "hidden": 1024, "embedding": (64, 64)} if quick else {}
    bundle = patch_vitl.make_bundle(folder / "bundle", **sizes)
    return make_case("vit-l lorsu (synthetic)", bundle, patch_vitl.make_deltas(bundle, real), folder)


def in_process(case: Case, repeats: int) -> dict[str, Any]:
    """Decode + apply of all tensors: median seconds, bytes of the touched tensors, Python's peak heap."""
    names = [row.name for row in case.patch.manifest.tensors]
    weights = {name: np.array(array) for name, array in case.bundle.weights().items() if name in names}
    touched = sum(array.nbytes for array in weights.values())

    def once() -> None:
        for name in names:
            case.patch.apply(name, weights[name])

    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        once()
        seconds.append(time.perf_counter() - start)
    tracemalloc.start()
    once()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return {"seconds": statistics.median(seconds), "fastest": min(seconds), "touched_bytes": touched, "peak_heap_bytes": peak}


# A process that is started by a large one inherits its peak; so a small one starts it (floor of the figure: about 10 MB).
_STARTER = """
import json, os, sys, time
start = time.perf_counter()
pid = os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, 2, 1)])
_, status, usage = os.wait4(pid, 0)
print("figures", json.dumps([time.perf_counter() - start, usage.ru_utime, usage.ru_maxrss * 1024, os.waitstatus_to_exitcode(status)]))
"""


def timed(command: Sequence[str]) -> tuple[float, float, int] | str:
    """Wall seconds, user CPU and peak resident bytes of a command, or how it failed."""
    done = subprocess.run([sys.executable, "-I", "-S", "-c", _STARTER, *command], capture_output=True, text=True, check=True)
    wall, user, peak, code = json.loads(done.stdout.rpartition("figures ")[2])
    return f"failed with code {code}: {done.stderr.strip()[-200:]}" if code else (wall, user, peak)


def summary(runs: Sequence[tuple[float, float, int]]) -> dict[str, Any]:
    """Wall seconds (median, range), median user CPU and the largest peak of a command's runs."""
    walls, users, peaks = (list(column) for column in zip(*runs, strict=True))
    return {
        "seconds": statistics.median(walls),
        "range": [min(walls), max(walls)],
        "user": statistics.median(users),
        "peak_bytes": max(peaks),
    }


def _rival(case: Case, tool: str, make: Callable[[Path, Path, Path, float], int], limit: float) -> Path | str:
    """The rival's patch of this very target, or the reason why there is none."""
    number = list(patch_rivals.GENERIC).index(tool)
    path = case.eep.parent / f"{case.new.stem}.{number}.patch"
    if path.exists():
        return path
    try:
        make(case.old, case.new, path, limit)
    except patch_rivals.ToolError as error:
        path.unlink(missing_ok=True)
        return str(error)
    return path


def _zstd(case: Case, limit: float) -> tuple[str, Path | str]:
    """Name of the row and zstd's patch (or why there is none): of its best level where patch_size.py left one, else of a quick one."""
    best = case.eep.parent / f"{case.new.stem}.{list(patch_rivals.GENERIC).index('zstd -19 --patch-from')}.patch"
    if best.exists():
        return "zstd -d", best
    quick, name = case.eep.parent / f"{case.new.stem}.quick.patch", f"zstd -d (patch of level {QUICK_LEVEL})"
    try:
        patch_rivals.zstd(case.old, case.new, quick, limit, QUICK_LEVEL)
    except patch_rivals.ToolError as error:
        return name, str(error)
    return name, quick


def own_command(case: Case, out: Path) -> tuple[str, list[str]]:
    """Name and command line of our whole process."""
    built = patch_edits.CACHE.parent / "native" / "edgeedit-apply"
    native = os.environ.get("EDGEEDIT_APPLY") or shutil.which("edgeedit-apply") or (str(built) if built.exists() else None)
    trust, bundle = str(case.eep.parent / "ml.pub"), str(case.bundle.path)
    if native:
        return "edgeedit-apply", [native, "--trust", trust, "--bundle", bundle, "-o", str(out), str(case.eep)]
    words = ["materialize", str(case.eep), "--bundle", bundle, "--trust", trust, "-o", str(out)]
    return "edgeedit materialize (Python)", [sys.executable, "-m", "edgeedit.cli.main", *words]


def processes(case: Case, repeats: int, limit: float) -> dict[str, dict[str, Any]]:
    """Whole processes, in rounds of all tools, each onto no file: what the machine does with its memory meets all of them.  Every output
    but cp's must equal the target."""
    out = case.eep.parent / "out.bin"
    name, command = own_command(case, out)
    commands: dict[str, list[str] | str] = {"cp": ["cp", str(case.old), str(out)], name: command}
    zstd_row, zstd = _zstd(case, limit)
    xdelta = _rival(case, "xdelta3 -9", patch_rivals.xdelta3, limit)
    window = str(max(case.old.stat().st_size, 1 << 19))
    options = ["-q", "-f", "-d", "--long=31", f"--patch-from={case.old}"]
    commands[zstd_row] = zstd if isinstance(zstd, str) else ["zstd", *options, str(zstd), "-o", str(out)]
    commands["xdelta3 -d"] = (
        xdelta if isinstance(xdelta, str) else ["xdelta3", "-d", "-f", "-B", window, "-s", str(case.old), str(xdelta), str(out)]
    )
    notes = {label: words for label, words in commands.items() if isinstance(words, str)}
    runs: dict[str, list[tuple[float, float, int]]] = {label: [] for label in commands}
    wanted = patch_rivals.digest_file(case.new)
    for number, (label, words) in itertools.product(range(repeats), commands.items()):
        if label in notes:
            continue
        out.unlink(missing_ok=True)
        one = timed(words)  # type: ignore[arg-type]
        if isinstance(one, str):
            notes[label] = one
            continue
        runs[label].append(one)
        if number == 0 and label != "cp" and patch_rivals.digest_file(out) != wanted:
            notes[label] = "did not rebuild the target"
    out.unlink(missing_ok=True)
    return {label: {"note": notes[label]} if label in notes else summary(runs[label]) for label in commands}


def goals(inside: dict[str, Any], whole: dict[str, dict[str, Any]], own: str) -> list[dict[str, Any]]:
    """The goals of the patch format, met or not; a rival that did not run gives no goal."""
    rate = inside["touched_bytes"] / inside["seconds"]
    found = [
        ("vit-l decode + apply, one thread, seconds", f"<= {GOAL_SECONDS}", inside["seconds"], inside["seconds"] <= GOAL_SECONDS),
        ("vit-l decode + apply, bytes of touched tensors per second", f">= {GOAL_BYTES:.1e}", rate, rate >= GOAL_BYTES),
    ]
    for rival in (label for label in whole if label.startswith(("zstd -d", "xdelta3 -d"))):
        if "seconds" in whole[rival] and "seconds" in whole[own]:
            ratio = whole[own]["seconds"] / whole[rival]["seconds"]
            found.append((f"vit-l whole process ({own}) over {rival}, wall", "< 1", ratio, ratio < 1))
    return [{"name": name, "goal": goal, "value": round(float(value), 4), "met": bool(met)} for name, goal, value, met in found]


def measure(folder: Path, *, quick: bool, repeats: int, limit: float) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows and goals."""
    case = build(folder, quick=quick)
    inside = in_process(case, repeats)
    whole = processes(case, repeats, limit)
    own = next(name for name in whole if name.startswith("edgeedit"))
    rows = [{"name": "decode + apply, in process", **inside}, *({"name": name, **figures} for name, figures in whole.items())]
    return rows, [] if quick else goals(inside, whole, own)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tiny encoder: shows that it works, says nothing about speed")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--limit", type=float, default=120.0, help="seconds for making one rival's patch where there is none yet")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    folder = patch_edits.CACHE / ("vit-l-quick" if options.quick else "vit-l")
    rows, made = measure(folder, quick=options.quick, repeats=options.repeats, limit=options.limit)
    for row in rows:
        print("  ".join(f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}" for key, value in row.items()))
    for goal in made:
        print(f"{'met ' if goal['met'] else 'LOST'}  {goal['name']}: {goal['value']} (goal {goal['goal']})")
    print(f"peak resident of this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024} MiB (builds the case too)")
    if options.json:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
        about = {"machine": f"{platform.machine()}, {os.cpu_count()} cores", "commit": commit, "quick": options.quick}
        options.json.write_text(json.dumps({**about, "rows": rows, "goals": made}, indent=1))


if __name__ == "__main__":
    main()
