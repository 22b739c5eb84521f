"""The rival `lora`: PEFT's LoRA on q, k, v, the output projection and both FFN matrices of every block.

Guarantees: PEFT's own layers and initialisation; what would be sent is its factors in fp16.  PEFT is imported lazily.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from edgeedit.edit.methods.full import FP16, whole_update
from edgeedit.edit.methods.method import Task, Update
from edgeedit.edit.scores import part_name
from edgeedit.edit.selection import Pass
from edgeedit.edit.settings import Settings
from edgeedit.edit.train import fit
from edgeedit.encoder.encoder import Encoder
from edgeedit.errors import InputError

Array = np.ndarray[Any, Any]
PARTS = ("q", "k", "v", "o", "fc1", "fc2")


class Adapted:
    """A `Trainable`: a copy of the encoder that PEFT has put adapters into."""

    def __init__(self, encoder: Encoder, rank: int, amp: str) -> None:
        try:
            from peft import LoraConfig, inject_adapter_in_model
        except ImportError as error:
            raise InputError("method lora needs PEFT: expected the package peft", hint="pip install 'edgeedit[rivals]'") from error
        self.modules = [part_name(encoder, part, b).removesuffix(".weight") for b in range(encoder.blocks) for part in PARTS]
        self.encoder, self.amp = copy.deepcopy(encoder), amp
        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=self.modules), self.encoder.wrapped)
        self.own = [p for n, p in self.encoder.named_parameters() if "lora_" in n]
        for name, parameter in self.encoder.named_parameters():
            parameter.requires_grad_("lora_" in name)
        self.inner = Pass(self.encoder)

    def run(self, images: torch.Tensor, then: Callable[[torch.Tensor], float], *, rounded: bool) -> float:
        """See Trainable; there is no integer form."""
        del rounded
        reached: float = self.inner(images, then, self.amp)
        return reached

    def groups(self, settings: Settings) -> list[dict[str, Any]]:
        """All factors at the low-rank rate."""
        return [{"params": self.own, "lr": settings.lr_low_rank}]

    def size(self) -> torch.Tensor:
        """Squared norm of the change."""
        layers: list[Any] = [self.encoder.wrapped.get_submodule(name) for name in self.modules]
        return torch.stack([layer.get_delta_weight("default").square().sum() for layer in layers]).sum()

    def merged(self) -> dict[str, Array]:
        """Name -> base weight + adapter, float32."""
        values: dict[str, Array] = {}
        with torch.no_grad():
            for name in self.modules:
                layer: Any = self.encoder.wrapped.get_submodule(name)
                values[name + ".weight"] = (layer.base_layer.weight + layer.get_delta_weight("default")).float().cpu().numpy()
        return values


@dataclass(frozen=True)
class Lora(Settings):
    """LoRA of rank `rank` with alpha = rank."""

    patterns: int = 0
    lr_low_rank: float = 1e-3
    name: ClassVar[str] = "lora"
    local: ClassVar[bool] = False

    def update(self, task: Task) -> Update:
        """The merged weights; raises InputError without PEFT."""
        torch.manual_seed(task.seed)
        model = Adapted(task.base, self.rank, self.amp)
        generator = torch.Generator().manual_seed(task.seed)
        data = task.data()
        fit(model, task.base, data, (task.reader, task.loss), self, (task.seed, generator), task.progress)
        return whole_update(task.base, model.merged(), FP16 * sum(p.numel() for p in model.own), {})
