"""Runs every libFuzzer target and records executions and coverage.

    python tests/fuzz/run.py BUILD_FOLDER --runs 10000000 --jobs 2 --json FILE

`--runs` is shared out evenly between the targets.  New inputs go to a scratch corpus in the build folder, never into the committed
one.  A finding (crash, sanitizer report, leak, timeout) makes the exit status 1 and is named in the JSON.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
TARGETS = ("json", "manifest", "container", "sparse", "dense", "low_rank", "exact", "tensor", "apply")


def run_target(build: Path, target: str, runs: int) -> dict[str, Any]:
    """One target: executions, coverage (edges and features that libFuzzer counts), seconds, and what it printed on a finding."""
    scratch = build / "corpus" / target
    scratch.mkdir(parents=True, exist_ok=True)
    command = [str(build / f"fuzz_{target}"), f"-runs={runs}", "-seed=1", "-max_len=4096", "-timeout=20", "-rss_limit_mb=2048"]
    command += ["-print_final_stats=1", f"-artifact_prefix={build}/finding-{target}-", str(scratch), str(HERE / "corpus" / target)]
    start = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    seconds = time.monotonic() - start
    executed = re.search(r"stat::number_of_executed_units:\s*(\d+)", done.stderr)
    coverage = re.findall(r"cov: (\d+) ft: (\d+)", done.stderr)
    return {
        "target": target,
        "executions": int(executed.group(1)) if executed else 0,
        "edges": int(coverage[-1][0]) if coverage else 0,
        "features": int(coverage[-1][1]) if coverage else 0,
        "seconds": round(seconds, 1),
        "finding": done.stderr[-2000:] if done.returncode else "",
    }


def main() -> int:
    """Exit status 0 when nothing was found and every target ran as often as asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("build", type=Path)
    parser.add_argument("--runs", type=int, required=True)
    parser.add_argument("--jobs", type=int, default=1, help="targets at a time; what a target does is the same")
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    each = -(-options.runs // len(TARGETS))
    with ThreadPoolExecutor(options.jobs) as pool:
        rows = list(pool.map(lambda target: run_target(options.build, target, each), TARGETS))
    total = sum(row["executions"] for row in rows)
    findings = sum(bool(row["finding"]) for row in rows)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=HERE, capture_output=True, text=True, check=False).stdout.strip()
    goals = [
        {"name": "fuzz executions", "goal": options.runs, "value": total, "met": total >= options.runs},
        {"name": "fuzz findings", "goal": 0, "value": findings, "met": findings == 0},
    ]
    value = {"schema_version": 1, "machine": platform.platform(), "commit": commit, "rows": rows, "goals": goals}
    options.json.write_text(json.dumps(value, indent=2) + "\n")
    for row in rows:
        verdict = "FINDING" if row["finding"] else "ok"
        print(f"{row['target']:10} {row['executions']:>9} executions {row['edges']:>5} edges {row['seconds']:>7} s {verdict}")
        sys.stderr.write(row["finding"])
    print(f"total {total} executions, {findings} findings")
    return 1 if findings or total < options.runs else 0


if __name__ == "__main__":
    sys.exit(main())
