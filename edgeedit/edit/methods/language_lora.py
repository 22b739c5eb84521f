"""The rivals `language-lora` (the encoder stays, PEFT's LoRA in the language model) and `encoder+language` (both).

Guarantees: the same loss, schedule, retention and data as the localized methods; the base's language side stays as it is
(a copy is adapted and becomes the reader that judges); what would be sent is the factors in fp16, and they are needed
wherever the language model runs.  PEFT is imported lazily.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from edgeedit.edit.language import LanguageSide
from edgeedit.edit.methods.full import FP16, whole_update
from edgeedit.edit.methods.lora import Adapted
from edgeedit.edit.methods.method import Task, Update
from edgeedit.edit.selection import Pass
from edgeedit.edit.settings import Settings
from edgeedit.edit.train import fit
from edgeedit.edit.vlm import AnswerLoss, VlmReader
from edgeedit.encoder.encoder import Encoder
from edgeedit.errors import InputError

PARTS = ("q_proj", "k_proj", "v_proj", "o_proj")  # of every layer of the language model


class AdaptedLanguage:
    """A copy of a reader's language side with PEFT's adapters; `reader` answers through it."""

    def __init__(self, reader: VlmReader, rank: int) -> None:
        try:
            from peft import LoraConfig, inject_adapter_in_model
        except ImportError as error:
            raise InputError("method language-lora needs PEFT: expected the package peft", hint="pip install 'edgeedit[rivals]'") from error
        side = reader.side
        model = copy.deepcopy(side.model)
        found = [n for n, m in model.named_modules() if "language_model" in n and n.rpartition(".")[2] in PARTS and _linear(m)]
        if not found:
            raise InputError(f"language model has no known attention: expected layers named {', '.join(PARTS)}, got none")
        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=found), model)
        # No cache: keys and values of the text before the image depend on the adapters.
        self.side = LanguageSide.around(model, side, cached=False)
        self.own = [p for name, p in model.named_parameters() if "lora_" in name]
        for parameter in self.own:
            parameter.requires_grad_(True)
        self.reader = replace(reader, language=self.side)

    def size(self) -> torch.Tensor:
        """Squared norm of the factors."""
        return torch.stack([p.square().sum() for p in self.own]).sum()

    def finished(self) -> VlmReader:
        """The reader with frozen adapters."""
        for parameter in self.own:
            parameter.requires_grad_(False)
        return self.reader

    def payload(self) -> int:
        """Bytes of the factors in fp16."""
        return int(FP16 * sum(p.numel() for p in self.own))


def _linear(module: object) -> bool:
    return isinstance(module, torch.nn.Linear)


class LanguageOnly:
    """A `Trainable`: the encoder is a constant, the language side's adapters are trained."""

    def __init__(self, encoder: Encoder, language: AdaptedLanguage, amp: str) -> None:
        self.inner, self.language, self.amp = Pass(encoder), language, amp

    def run(self, images: torch.Tensor, then: Callable[[torch.Tensor], float], *, rounded: bool) -> float:
        """See Trainable; there is no integer form."""
        del rounded
        reached: float = self.inner(images, then, self.amp)
        return reached

    def groups(self, settings: Settings) -> list[dict[str, Any]]:
        """All factors at the low-rank rate."""
        return [{"params": self.language.own, "lr": settings.lr_low_rank}]

    def size(self) -> torch.Tensor:
        """Squared norm of the factors."""
        return self.language.size()


class Both(LanguageOnly):
    """A `Trainable`: PEFT's adapters in a copy of the encoder and in the language side."""

    def __init__(self, encoder: Encoder, language: AdaptedLanguage, rank: int, amp: str) -> None:
        self.adapted = Adapted(encoder, rank, amp)
        super().__init__(self.adapted.encoder, language, amp)

    def groups(self, settings: Settings) -> list[dict[str, Any]]:
        """All factors of both sides at the low-rank rate."""
        return [*self.adapted.groups(settings), *super().groups(settings)]

    def size(self) -> torch.Tensor:
        """Squared norm of the change of the encoder and of the language side's factors."""
        return self.adapted.size() + self.language.size()


@dataclass(frozen=True)
class LanguageLora(Settings):
    """LoRA of rank `rank` on q, k, v and output projections of the language model; the encoder is untouched."""

    patterns: int = 0
    lr_low_rank: float = 1e-3
    name: ClassVar[str] = "language-lora"
    local: ClassVar[bool] = False

    def update(self, task: Task) -> Update:
        """Another reader; raises InputError without PEFT or when the reader is no language model."""
        language = _adapted(task, self.rank)
        _fit(LanguageOnly(task.base, language, self.amp), language, task, self)
        return Update(language.payload(), reader=language.finished())


@dataclass(frozen=True)
class EncoderLanguage(Settings):
    """LoRA of rank `rank` in the encoder and in the language model, trained together."""

    patterns: int = 0
    lr_low_rank: float = 1e-3
    name: ClassVar[str] = "encoder+language"
    local: ClassVar[bool] = False

    def update(self, task: Task) -> Update:
        """Merged encoder weights and another reader; raises InputError as `language-lora`."""
        language = _adapted(task, self.rank)
        model = Both(task.base, language, self.rank, self.amp)
        _fit(model, language, task, self)
        sent = FP16 * sum(p.numel() for p in model.adapted.own)
        return replace(whole_update(task.base, model.adapted.merged(), sent + language.payload(), {}), reader=language.finished())


def _adapted(task: Task, rank: int) -> AdaptedLanguage:
    torch.manual_seed(task.seed)
    if not isinstance(task.reader, VlmReader):
        raise InputError(f"reader is no language model: expected one made by --vlm, got {task.reader.kind}")
    return AdaptedLanguage(task.reader, rank)


def _fit(model: LanguageOnly, language: AdaptedLanguage, task: Task, settings: Settings) -> None:
    closed = task.loss.closed if isinstance(task.loss, AnswerLoss) else True
    judge = language.reader, AnswerLoss(language.reader, closed)
    generator = torch.Generator().manual_seed(task.seed)
    data = task.data()
    fit(model, task.base, data, judge, settings, (task.seed, generator), task.progress)
