"""`LanguageSide`: everything of a LLaVA-style model but its vision tower, frozen, answering from a closed list.

The vision tower is replaced by one that hands over given tokens, so that projector, placement of the image tokens and
attention are the model's own code.  Guarantees: no parameter is trained or changed (`digest` covers every one of them);
gradients reach the tokens only.  Text before the image does not depend on it and is computed once per question.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from edgeedit.catalog import Recipe
from edgeedit.digest import fingerprint, tensor_digest
from edgeedit.errors import InputError

IMAGE, QUESTION = "<image>", "{question}"
PROMPT = "USER: <image>\n{question}\nASSISTANT:"  # of LLaVA 1.5
BATCH = 32  # sequences per forward pass when no gradient is needed


class Eyes(nn.Module):
    """Stands where the vision tower was: every hidden state is the tokens that were given, after `skip` empty ones."""

    def __init__(self, tower: Any, skip: int) -> None:
        super().__init__()
        self.config, self.skip = tower.config, skip
        self.tokens = torch.zeros(0)

    @property
    def dtype(self) -> torch.dtype:
        """Of the tokens; some families convert the pixels to it."""
        return self.tokens.dtype

    def forward(self, *_: Any, **__: Any) -> BaseModelOutputWithPooling:
        """The tokens, whatever the pixels are."""
        lead = self.tokens.new_zeros(len(self.tokens), self.skip, self.tokens.shape[-1])
        state = torch.cat([lead, self.tokens], dim=1)
        return BaseModelOutputWithPooling(last_hidden_state=state, hidden_states=(state,) * (int(self.config.num_hidden_layers) + 1))


@dataclass(frozen=True)
class Prompt:
    """Token ids of one question: before and after the image, and of each answer that may follow."""

    before: tuple[int, ...]
    after: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]


class LanguageSide:
    """`model` is the whole vision-language model; its tower is taken out.  `prompt` has `<image>` and `{question}` once each.

    With `cached` the text before the image is computed once per question (off for a language model that is being trained)."""

    def __init__(self, model: Any, tokenizer: Any, recipe: Recipe, prompt: str = PROMPT, *, cached: bool = True) -> None:
        for mark in (IMAGE, QUESTION):
            if prompt.count(mark) != 1:
                raise InputError(f"prompt does not fit: expected {mark} exactly once, got {prompt!r}")
        self.model, self.tokenizer, self.prompt, self.cached = model.eval(), tokenizer, prompt, cached
        self.eyes = _without_tower(model, recipe)
        self.image_id = _image_id(model)
        self.skip = recipe.skip
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        self.answered: dict[str, Any] = {}  # what `VlmReader` was told before, by digest of the features
        self._prompts: dict[tuple[str, tuple[str, ...]], Prompt] = {}
        self._past: dict[tuple[tuple[int, ...], str], Any] = {}

    @classmethod
    def around(cls, model: Any, other: LanguageSide, *, cached: bool) -> LanguageSide:
        """A side around a copy of another side's model, with its tokenizer and prompt; trainable parameters stay so."""
        made = cls.__new__(cls)
        made.model, made.tokenizer, made.prompt, made.cached = model.eval(), other.tokenizer, other.prompt, cached
        made.eyes = next(m for m in model.modules() if isinstance(m, Eyes))
        made.image_id, made.skip = other.image_id, other.skip
        made._prompts, made._past, made.answered = {}, {}, {}
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        return made

    def digest(self) -> str:
        """Fingerprint over every parameter and buffer that is left of the model: SHA-256 of each one's bytes."""
        rows: Mapping[str, torch.Tensor] = self.model.state_dict()
        return fingerprint(tensor_digest(name, value.detach().float().cpu().numpy()) for name, value in rows.items())

    def ids(self, question: str, answers: Sequence[str]) -> Prompt:
        """Token ids of a question; raises InputError when an answer has no token or two answers have the same ones."""
        key = question, tuple(answers)
        if key not in self._prompts:
            self._prompts[key] = self._tokenize(question, answers)
        return self._prompts[key]

    def _tokenize(self, question: str, answers: Sequence[str]) -> Prompt:
        before, after = self.prompt.replace(QUESTION, question).split(IMAGE)
        first = tuple(self.tokenizer(before)["input_ids"])
        end = getattr(self.tokenizer, "eos_token_id", None)
        first = first[:-1] if first and first[-1] == end else first
        rest = self._plain(after)
        found = []
        for answer in answers:
            whole = self._plain(f"{after} {answer}")
            if whole[: len(rest)] != rest or len(whole) == len(rest):
                raise InputError(f"answer cannot be told apart from the prompt: expected tokens of its own for {answer!r}")
            found.append(whole[len(rest) :])
        if len(set(found)) != len(found):
            raise InputError(f"answers have the same tokens: expected different ones for each of {list(answers)}")
        return Prompt(first, rest, tuple(found))

    def _plain(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def scores(self, tokens: torch.Tensor, question: str, answers: Sequence[str]) -> torch.Tensor:
        """Log-likelihood of each answer after the prompt, float32 (n, answers), in nats over the whole vocabulary.

        `tokens` (n, image tokens, vision width); gradients reach them when gradients are enabled."""
        prompt = self.ids(question, answers)
        if torch.is_grad_enabled() and (tokens.requires_grad or not self.cached):
            return self._scores(tokens, prompt)
        with torch.no_grad():
            return torch.cat([self._scores(part, prompt) for part in tokens.split(BATCH)])

    def _scores(self, tokens: torch.Tensor, prompt: Prompt) -> torch.Tensor:
        """One pass per longest beginning of an answer; an answer of one token needs only the prompt's own."""
        beginnings = {answer[:-1] for answer in prompt.answers}
        longest = [b for b in beginnings if not any(o != b and o[: len(b)] == b for o in beginnings)]
        found: dict[tuple[int, ...], torch.Tensor] = {}
        for beginning in sorted(longest):
            rows = self._next(tokens, prompt, beginning)
            for cut in range(len(beginning) + 1):
                found.setdefault(beginning[:cut], rows[:, cut])
        columns = []
        for answer in prompt.answers:
            steps = [found[answer[:cut]][:, token] for cut, token in enumerate(answer)]
            columns.append(torch.stack(steps).sum(dim=0))
        return torch.stack(columns, dim=1)

    def _next(self, tokens: torch.Tensor, prompt: Prompt, beginning: tuple[int, ...]) -> torch.Tensor:
        """Log-probabilities of the next token after the prompt and after each token of `beginning`, (n, 1 + length, vocabulary)."""
        count = len(tokens)
        given = (*[self.image_id] * tokens.shape[1], *prompt.after, *beginning)
        keep = len(beginning) + 1
        past = self._before(prompt.before, tokens) if self.cached and prompt.before else None
        given = given if past is not None else (*prompt.before, *given)
        if past is not None:
            past = copy.deepcopy(past)
            past.batch_repeat_interleave(count)
        rows = torch.tensor([given], device=tokens.device).expand(count, -1)
        self.eyes.tokens = tokens
        try:
            pixels = torch.zeros(count, 1, device=tokens.device)  # the stand-in does not look at them
            out = self.model(input_ids=rows, pixel_values=pixels, past_key_values=past, use_cache=past is not None, logits_to_keep=keep)
        finally:
            self.eyes.tokens = torch.zeros(0)
        return out.logits.float().log_softmax(dim=-1)  # type: ignore[no-any-return]

    def _before(self, ids: tuple[int, ...], tokens: torch.Tensor) -> Any:
        """Keys and values of the text before the image, one row; kept per arithmetic."""
        kind = str(torch.get_autocast_dtype(tokens.device.type)) if torch.is_autocast_enabled(tokens.device.type) else "off"
        if (ids, kind) not in self._past:
            with torch.no_grad():
                rows = torch.tensor([ids], device=tokens.device)
                self._past[ids, kind] = self.model(input_ids=rows, use_cache=True, logits_to_keep=1).past_key_values
        return self._past[ids, kind]


def _without_tower(model: Any, recipe: Recipe) -> Eyes:
    """Put `Eyes` in the place of the vision tower; raises InputError when the model reads something else than the recipe gives."""
    places = [place for place in (*recipe.towers, "model.vision_tower", "vision_tower") if _has(model, place)]
    if not places:
        raise InputError(f"model is no LLaVA-style model: expected a vision tower at model.vision_tower, got {type(model).__name__}")
    if recipe.output != "patch-tokens":
        raise InputError(
            f"recipe {recipe.name} does not feed a language model: expected output patch-tokens, got {recipe.output}",
            hint="export the Bundle with a recipe for --vlm, for example llava-tokens",
        )
    config = model.config
    layer, strategy = getattr(config, "vision_feature_layer", -1), getattr(config, "vision_feature_select_strategy", "default")
    if recipe.towers and layer != -1 - recipe.drop_blocks:
        raise InputError(f"model reads another layer: expected hidden state {-1 - recipe.drop_blocks} as in {recipe.name}, got {layer}")
    if strategy != "default":
        raise InputError(f"model reads other tokens: expected the patch tokens (strategy default), got {strategy}")
    parent, _, name = places[0].rpartition(".")
    eyes = Eyes(model.get_submodule(places[0]), recipe.skip)
    setattr(model.get_submodule(parent), name, eyes)
    return eyes


def _has(model: nn.Module, place: str) -> bool:
    try:
        model.get_submodule(place)
    except AttributeError:
        return False
    return True


def _image_id(model: Any) -> int:
    for name in ("image_token_id", "image_token_index"):
        if getattr(model.config, name, None) is not None:
            return int(getattr(model.config, name))
    raise InputError(f"model has no image token: expected image_token_id in its configuration, got none in {type(model).__name__}")


def load_language(source: str, recipe: Recipe, prompt: str = PROMPT) -> LanguageSide:
    """The language side of a transformers folder or hub id in float32; raises InputError when it is no LLaVA-style model."""
    import transformers
    from safetensors import SafetensorError

    try:
        loaded = getattr(transformers, recipe.model_class).from_pretrained(source, output_loading_info=True, dtype=torch.float32)
        tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"cannot load {source} as {recipe.model_class}: {reason}", hint="give a transformers folder or id") from error
    model, found = loaded
    missing = sorted(found["missing_keys"])
    if missing:
        raise InputError(f"{source} is incomplete: expected all weights, got none for {len(missing)}, for example {missing[0]}")
    return LanguageSide(model, tokenizer, recipe, prompt)
