"""A small random LLaVA with a word tokenizer, written to disk as its library does, and images with questions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.support.families import SIDE, save_checkpoint

WORDS = ("<pad>", "<s>", "</s>", "<unk>", "User", "Is", "it", "defective", "?", "Which", "colour", "Assistant", ":", "yes", "no")
WORDS += ("red", "dark", "blue", "very", ".")
PROMPT = "User <image> {question} Assistant :"
QUESTION, COLOUR = "Is it defective ?", "Which colour ?"


def save_tiny_llava(folder: Path) -> Any:
    """Write model and tokenizer into `folder`; returns the whole model, untouched by edgeedit."""
    model = save_checkpoint("llava", folder)
    words = {word: number for number, word in enumerate(WORDS)}
    inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>")
    tokenizer.save_pretrained(folder)
    return model


def whole_model_scores(model: Any, pixels: torch.Tensor, question: str, answers: list[str]) -> torch.Tensor:
    """Log-likelihood of each answer by plain forward passes of the whole model with its own tower: the reference."""
    words = {word: number for number, word in enumerate(WORDS)}
    before, after = PROMPT.replace("{question}", question).split("<image>")
    patches = (SIDE // 14) ** 2
    prompt = [*(words[w] for w in before.split()), *[63] * patches, *(words[w] for w in after.split())]
    columns = []
    for answer in answers:
        own = [words[w] for w in answer.split()]
        rows = []
        for image in pixels:
            with torch.no_grad():
                out = model(
                    input_ids=torch.tensor([prompt + own]), pixel_values=image[None], attention_mask=torch.ones(1, len(prompt + own))
                )
            likely = out.logits[0].log_softmax(-1)
            rows.append(sum(likely[len(prompt) - 1 + place, token] for place, token in enumerate(own)))
        columns.append(torch.stack(rows))
    return torch.stack(columns, 1)


def questions(folder: Path, name: str, count: int, *, second: bool = False, start: int = 0) -> Path:
    """A .jsonl of `count` small pictures, bright ones `no` and dark ones `yes`; `second`: a colour question on every third."""
    folder.mkdir(exist_ok=True)
    rng, lines = np.random.default_rng(start), []
    for number in range(count):
        dark = number % 2
        noise = rng.integers(0, 60, (32, 32, 3)).astype(np.uint8)
        Image.fromarray(noise if dark else 255 - noise).save(folder / f"{name}{number}.png")
        row = {"image": f"{name}{number}.png", "question": QUESTION, "answer": "yes" if dark else "no"}
        if second and number % 3 == 0:
            row = {**row, "question": COLOUR, "answer": "dark blue" if dark else "red"}
        lines.append(json.dumps(row))
    path = folder / f"{name}.jsonl"
    path.write_text("\n".join(lines), "utf-8")
    return path
