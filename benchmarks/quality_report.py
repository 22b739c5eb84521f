"""Table, goals and plot of the quality grid, from finished cells only.

Guarantees: a goal is `met` true or false from the means over the seeds that BOTH methods have; where no cell answers it,
`met` is null and the value says so.  Losses are listed like wins.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]
BEATEN = ("lora", "full", "spu", "lorsu-paper")
CLEAR = 0.0  # the mean gain over the re-fitted reader minus its standard error must be above this


def rows_of(folder: Path) -> list[Row]:
    """One row per set, shots and method over its finished seeds, sorted."""
    groups: dict[tuple[str, int, str], list[Row]] = {}
    for path in sorted(folder.glob("*/*.json")):
        cell = json.loads(path.read_text("utf-8"))
        if "failed" not in cell and not path.stem.startswith("lr-"):
            groups.setdefault((cell["set"], cell["shots"], cell["method"]), []).append(cell)
    return [_row(*key, found) for key, found in sorted(groups.items())]


def _row(set_name: str, shots: int, method: str, cells: Sequence[Row]) -> Row:
    cells = sorted(cells, key=lambda c: int(c["seed"]))

    def mean(values: Sequence[float]) -> float:
        return round(statistics.fmean(values), 4)

    row: Row = {"set": set_name, "shots": shots, "method": method, "seeds": [c["seed"] for c in cells], "lr": cells[0]["lr"]}
    for name in ("target", "control", "unrelated"):
        row[f"{name}_error"] = [mean([c[name]["error"][i] for c in cells]) for i in (0, 1)]
        row[f"{name}_change"] = [round(c[name]["error"][1] - c[name]["error"][0], 4) for c in cells]
    areas = [c["target"]["auc"] for c in cells]
    row["target_auc"] = None if areas[0][0] is None else [mean([a[i] for a in areas]) for i in (0, 1)]
    row["target_auc_seeds"] = [a[1] for a in areas]
    row["target_shares"] = {k: mean([c["target"]["shares"][1][k] for c in cells]) for k in cells[0]["target"]["shares"][1]}
    kept = [c["agreement"] for c in cells if c["agreement"] is not None]
    row["borderline_agreement"] = mean(kept) if kept else None
    row["bytes"], row["seconds"] = mean([c["bytes"] for c in cells]), mean([c["seconds"] for c in cells])
    return row


def _paired(ours: Row, theirs: Row, key: str) -> list[float]:
    """theirs - ours per common seed: positive where ours changed the error less or lowered it more."""
    mine, other = (dict(zip(r["seeds"], r[key], strict=True)) for r in (ours, theirs))
    return [other[s] - mine[s] for s in ours["seeds"] if s in other]


def goals(rows: Sequence[Row], *, quick: bool = False) -> list[Row]:
    """The issue's goals with their values."""
    by = {(r["set"], r["shots"], r["method"]): r for r in rows}
    found = []
    for set_name, shots in sorted({(r["set"], r["shots"]) for r in rows}):
        ours = by.get((set_name, shots, "default"))
        if ours is None:
            continue
        here = [r for r in rows if (r["set"], r["shots"]) == (set_name, shots) and r["method"] != "none"]
        where = f"{set_name}, {shots} shots" + (", development images" if quick else "")
        better = [r["method"] for r in here if r is not ours and _dominates(r, ours)]
        found.append(_goal("on the Pareto front", where, "no method is better on target and control", better or "on it", not better))
        rise = statistics.fmean(ours["control_change"])
        found.append(_goal("control drop", where, "<= 0.005", round(rise, 4), rise <= 0.005))
        for name in BEATEN:
            theirs = by.get((set_name, shots, name))
            value = None if theirs is None else _against(ours, theirs)
            met = None if value is None or theirs is None else value["target"] > 0 and value["control"] >= 0 and value["bytes"] <= 1.1
            found.append(_goal(f"dominates {name}", where, "target better, control no worse, at no more than 1.1 x its bytes", value, met))
    beaten = [_refit(by, key) for key in sorted({(r["set"], r["shots"]) for r in rows})]
    known = [b for b in beaten if b is not None]
    wins = {b["where"].split(",")[0] for b in known if b["clear"]}  # the same set at other shots is no second set
    met = len(wins) >= 2 if known else None
    found.append(_goal("beats the re-fitted reader (base + shots)", "all sets", "clearly on at least 2 sets", known or "no cell", met))
    return found


def _goal(name: str, where: str, goal: str, value: Any, met: bool | None) -> Row:
    return {"name": f"{name} ({where})", "goal": goal, "value": value if value is not None else "no cell", "met": met}


def _dominates(a: Row, b: Row) -> bool:
    pairs = [(statistics.fmean(a[k]), statistics.fmean(b[k])) for k in ("target_change", "control_change")]
    return all(x <= y for x, y in pairs) and any(x < y for x, y in pairs)


def _against(ours: Row, theirs: Row) -> Row | None:
    target, control = (_paired(ours, theirs, k) for k in ("target_change", "control_change"))
    if not target:
        return None
    return {
        "target": round(statistics.fmean(target), 4),
        "control": round(statistics.fmean(control), 4),
        "bytes": round(ours["bytes"] / max(1, theirs["bytes"]), 3),
        "seeds": len(target),
    }


def _refit(by: dict[tuple[str, int, str], Row], key: tuple[str, int]) -> Row | None:
    ours, theirs = by.get((*key, "default")), by.get((*key, "refit base+shots"))
    if ours is None or theirs is None:
        return None
    gains = _paired(ours, theirs, "target_change")
    error = statistics.stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else float("inf")
    areas = None
    if ours["target_auc"] and theirs["target_auc"]:
        areas = round(ours["target_auc"][1] - theirs["target_auc"][1], 4)
    gain = statistics.fmean(gains)
    return {
        "where": f"{key[0]}, {key[1]} shots",
        "error_gain": round(gain, 4),
        "standard_error": round(error, 4) if len(gains) > 1 else None,
        "auc_gain": areas,
        # Two standard errors over few seeds: an indication, not a proof.
        "clear": gain - 2 * error > CLEAR,
    }


def table(rows: Sequence[Row], found: Sequence[Row]) -> str:
    """Markdown: error, AUC and share of each verdict together; then the goals."""
    lines = [
        "| set | shots | method | seeds | target error | AUC | judged | control | unrelated | border kept | kB | s |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        area = "-" if r["target_auc"] is None else f"{r['target_auc'][0]:.3f} -> {r['target_auc'][1]:.3f}"
        shares = ", ".join(f"{k} {v:.0%}" for k, v in list(r["target_shares"].items())[-3:])
        kept = "-" if r["borderline_agreement"] is None else f"{r['borderline_agreement']:.0%}"
        changes = [f"{statistics.fmean(r[f'{n}_change']):+.3f}" for n in ("control", "unrelated")]
        lines.append(
            f"| {r['set']} | {r['shots']} | {r['method']} | {len(r['seeds'])} "
            f"| {r['target_error'][0]:.3f} -> {r['target_error'][1]:.3f} | {area} "
            f"| {shares} | {changes[0]} | {changes[1]} | {kept} | {r['bytes'] / 1000:.0f} | {r['seconds']:.0f} |"
        )
    marks = {True: "met", False: "NOT met", None: "not measured"}
    lines += ["", *(f"- {marks[g['met']]}: {g['name']}; goal {g['goal']}; value {g['value']}" for g in found)]
    return "\n".join(lines)


BRIEF = ("default", "fc1-10", "lorsu", "attention", "spu", "lorsu-paper", "lora", "full", "refit base+shots")


def brief(rows: Sequence[Row], shots: int) -> str:
    """Markdown for the README: change of the target error / of the control error in points, mean over seeds, and patch size."""
    by = {(r["set"], r["method"]): r for r in rows if r["shots"] == shots}
    names = sorted({key[0] for key in by})
    lines = ["| method | " + " | ".join(names) + " | kB |", "|---|" + "---|" * (len(names) + 1)]
    for method in (m for m in BRIEF if any((n, m) in by for n in names)):
        own = [by.get((n, method)) for n in names]
        cells = [
            "-" if r is None else " / ".join(f"{100 * statistics.fmean(r[f'{k}_change']):+.1f}" for k in ("target", "control")) for r in own
        ]
        size = statistics.fmean(r["bytes"] for r in own if r is not None) / 1000
        lines.append(f"| {method} | " + " | ".join(cells) + f" | {size:.0f} |")
    return "\n".join(lines)


def plot(rows: Sequence[Row], out: Path) -> None:
    """Target gain against control drop, one panel per set and shots."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = sorted({(r["set"], r["shots"]) for r in rows})
    wide = min(len(panels), 4)
    high = -(-len(panels) // wide)
    figure, axes = pyplot.subplots(high, wide, figsize=(5.2 * wide, 4.4 * high), squeeze=False, layout="constrained")
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    for axis, key in zip(axes.flat, panels, strict=False):
        for row in (r for r in rows if (r["set"], r["shots"]) == key):
            x, y = (100 * statistics.fmean(row[k]) for k in ("control_change", "target_change"))
            own = row["method"] == "default"
            axis.scatter(x, -y, s=70 if own else 28, color="#0072b2" if own else "#555555", marker="D" if own else "o", zorder=3)
            axis.annotate(row["method"], (x, -y), xytext=(5, 4), textcoords="offset points", fontsize=8)
        axis.axvline(0.5, color="#d55e00", linewidth=1, linestyle="--")
        axis.set(title=f"{key[0]}, {key[1]} shots", xlabel="control error, change in points", ylabel="target error, points repaired")
        axis.grid(alpha=0.25)
    figure.savefig(out, dpi=85)
    pyplot.close(figure)
