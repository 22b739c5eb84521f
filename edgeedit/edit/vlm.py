"""`VlmReader`: a frozen language side as the reader of an encoder, and the answer loss through it.

Guarantees: verdicts are the likeliest answer of the question's closed list; the same features give the same verdicts
whether they come from the torch encoder or from a device.  The language side is never part of a Bundle or a patch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from edgeedit.edit.language import LanguageSide
from edgeedit.edit.readers import Reader
from edgeedit.edit.shots import Shots
from edgeedit.encoder.encoder import Encoder
from edgeedit.errors import InputError

Array = np.ndarray[Any, Any]
REMEMBERED = 32  # sets of features whose answers are kept: the same held-out set is asked about more than once


@dataclass(frozen=True)
class VlmReader(Reader):
    """Classes are `question answer`; logits are log-likelihoods normalised over the closed list of their question, so
    that softmax cross-entropy over the classes of one question is the closed-list answer loss.

    `mean`, `std` float32 (width,) give the retention losses their unit; `amp` is the autocast of training."""

    language: LanguageSide | None = None
    pairs: tuple[tuple[str, str], ...] = ()
    tokens: int = 1
    amp: str = "bfloat16"

    def questions(self) -> dict[str, list[int]]:
        """Question -> its class numbers."""
        found: dict[str, list[int]] = {}
        for number, (question, _) in enumerate(self.pairs):
            found.setdefault(question, []).append(number)
        return found

    @property
    def side(self) -> LanguageSide:
        """The language side; raises InputError for a reader that was built without one."""
        if self.language is None:
            raise InputError("reader has no language side: expected one made by vlm_reader")
        return self.language

    def likelihoods(self, features: torch.Tensor, question: str) -> torch.Tensor:
        """Log-likelihood of every answer of `question`, float32 (n, answers), over the whole vocabulary."""
        answers = [self.pairs[number][1] for number in self.questions()[question]]
        return self.side.scores(features.reshape(len(features), self.tokens, -1), question, answers)

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """Closed-list log-probabilities, (n, classes), under the autocast of training; gradients reach `features`."""
        kind = getattr(torch, self.amp) if self.amp != "off" else torch.bfloat16
        with torch.autocast(features.device.type, kind, enabled=self.amp != "off"):
            return self._closed(features)

    def _closed(self, features: torch.Tensor) -> torch.Tensor:
        columns: list[torch.Tensor] = [features.new_zeros(0)] * len(self.classes)
        for question, numbers in self.questions().items():
            rows = self.likelihoods(features, question).log_softmax(dim=1)
            for place, number in enumerate(numbers):
                columns[number] = rows[:, place]
        return torch.stack(columns, dim=1)

    def logits_numpy(self, features: Array) -> Array:
        """The same rule in float32 arithmetic, (n, classes)."""
        rows = np.ascontiguousarray(features, dtype=np.float32)
        key = hashlib.sha256(repr((self.pairs, rows.shape)).encode() + rows.tobytes()).hexdigest()
        known = self.side.answered
        if key not in known:
            if len(known) >= REMEMBERED:
                known.pop(next(iter(known)))
            with torch.no_grad():
                known[key] = self._closed(torch.from_numpy(rows)).numpy()
        result: Array = known[key].copy()
        return result

    def verdict_logits(self, logits: Array, labels: Array) -> Array:
        """`logits` with the answers to questions that were not asked set to minus infinity; labels >= 0 say what was asked."""
        questions = self.questions()
        if len(questions) == 1:
            return logits
        if (labels < 0).any():
            raise InputError(
                f"images have no question: expected question and answer on every line, as there are {len(questions)} questions",
                hint="give labelled control images, or shots with one question",
            )
        asked = np.array([list(questions).index(question) for question, _ in self.pairs])
        result: Array = np.where(asked[None, :] == asked[labels][:, None], logits, -np.inf)
        return result

    def digest(self) -> str:
        """SHA-256 over the language side's fingerprint, the prompt and the classes."""
        return hashlib.sha256(repr((self.kind, self.side.digest(), self.side.prompt, self.pairs)).encode()).hexdigest()


def vlm_reader(language: LanguageSide, encoder: Encoder, sets: Sequence[Shots], *, amp: str = "bfloat16") -> VlmReader:
    """A reader whose closed lists are all answers in `sets`; raises InputError without question and answer, or when the
    recipe gives no patch tokens."""
    if encoder.recipe.output != "patch-tokens":
        raise InputError(
            f"encoder does not feed a language model: expected a recipe with output patch-tokens, got {encoder.recipe.name}",
            hint="export the Bundle with a recipe for --vlm, for example llava-tokens",
        )
    for shots in sets:
        if shots.classes and not shots.pairs:
            raise InputError(
                "images have no question: expected a .jsonl with question and answer for --vlm, got plain labels",
                hint='one line per image: {"image": "a.png", "question": "Is it defective?", "answer": "yes"}',
            )
    pairs = tuple(sorted({pair for shots in sets for pair in shots.pairs}))
    lists: dict[str, list[str]] = {}
    for question, answer in pairs:
        lists.setdefault(question, []).append(answer)
    single = sorted(question for question, answers in lists.items() if len(answers) < 2)
    if single or not lists:
        raise InputError(f"closed list is too short: expected two answers or more to {single[0] if single else 'a question'}")
    for question, answers in lists.items():
        language.ids(question, answers)  # refused here, not after minutes
    width = encoder.width
    zeros = np.zeros(width, np.float32)
    classes = tuple(f"{question} {answer}" for question, answer in pairs)
    reader = VlmReader(
        "vlm", classes, zeros, np.ones(width, np.float32), np.zeros((width, 0), np.float32), np.zeros(0, np.float32), language=language
    )
    return replace(reader, pairs=pairs, tokens=encoder.tokens, amp=amp)


def with_unit(reader: VlmReader, features: Array) -> VlmReader:
    """The reader with the spread of each vision channel over images and positions of `features`, (n, width), as its unit."""
    rows = features.reshape(len(features) * reader.tokens, -1)
    mean, std = (np.tile(v, reader.tokens).astype(np.float32) for v in (rows.mean(0), np.maximum(rows.std(0), 1e-6)))
    return replace(reader, mean=mean, std=std)


@dataclass(frozen=True)
class AnswerLoss:
    """Negative log-likelihood of the right answer through the frozen language side, mean over images, in nats.

    `closed`: normalised over the closed list of the question instead of the whole vocabulary."""

    reader: VlmReader
    closed: bool = False

    def __call__(self, features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Mean loss of `features` (n, width) for `labels` (n,), class numbers of the reader."""
        kind = getattr(torch, self.reader.amp) if self.reader.amp != "off" else torch.bfloat16
        total = features.new_zeros(())
        with torch.autocast(features.device.type, kind, enabled=self.reader.amp != "off"):
            for question, numbers in self.reader.questions().items():
                places = torch.tensor(numbers, device=labels.device)
                rows = torch.isin(labels, places).nonzero()[:, 0]
                if len(rows):
                    likely = self.reader.likelihoods(features[rows], question)
                    right = (labels[rows][:, None] == places[None, :]).int().argmax(dim=1)
                    likely = likely.log_softmax(dim=1) if self.closed else likely
                    total = total + functional.nll_loss(likely, right, reduction="sum")
        return total / len(labels)
