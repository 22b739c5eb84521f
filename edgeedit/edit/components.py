"""The parts of an edit (a head, a block's first FFN) and what happens without each of them.

Guarantees: leaving a component out gives exactly the encoder that holds the edit without it; only the blocks from the component's own
onward are computed, the rest comes from kept activations, and both give the same numbers.  The encoders given are left unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from edgeedit.edit.evaluate import features
from edgeedit.edit.readers import Reader
from edgeedit.edit.saliency import margin
from edgeedit.encoder.encoder import Encoder

Array = np.ndarray[Any, Any]
BATCH = 16  # images whose activations before every block are kept at a time
FFN = ("fc1", "fc2")


@dataclass(frozen=True)
class Component:
    """`kind` is head, ffn or other; `parts` parameter -> boolean array of its elements that the edit changed; `energy` the
    sum of squared changes.  A parameter outside the blocks is `other` with block None."""

    kind: str
    block: int | None
    head: int | None
    parts: Mapping[str, Array]
    changed: int
    energy: float

    @property
    def name(self) -> str:
        """`block 3, head 1`, `block 3, FFN`, or the parameter's name."""
        if self.kind == "other":
            return ", ".join(self.parts)
        return f"block {self.block}, head {self.head}" if self.kind == "head" else f"block {self.block}, FFN"


@dataclass(frozen=True)
class Judged:
    """Images that judge a component: normalised pixels float32 (n, 3, s, s), the reader's labels int64 (n,), the reader."""

    name: str
    pixels: Array
    labels: Array
    reader: Reader


class Judgement(NamedTuple):
    """Mean cross-entropy of the labels, number misjudged, mean margin of the true class (logits; unlike the loss it is not ruled
    by the few images that are misjudged with confidence)."""

    loss: float
    wrong: int
    margin: float


@dataclass(frozen=True)
class Effect:
    """One component left out: set -> `Judgement` without it."""

    component: Component
    sets: Mapping[str, Judgement]


def components_of(encoder: Encoder, base: Mapping[str, Array], edited: Mapping[str, Array]) -> tuple[Component, ...]:
    """Every component in which `edited` differs from `base` (parameter -> array), in the order of the blocks."""
    places: dict[tuple[str, int | None, int | None], dict[str, Array]] = {}
    for name, old in base.items():
        differ = old != edited[name]
        if not differ.any():
            continue
        kind, block, axis = _place(encoder, name)
        if kind != "head":
            places.setdefault((kind, block, None if kind == "ffn" else -len(places)), {})[name] = differ
            continue
        for number in range(encoder.heads):
            rows = encoder.head_rows(number)
            own = np.zeros_like(differ)
            cut = (rows,) if axis == 0 else (slice(None), rows)
            own[cut] = differ[cut]
            if own.any():
                places.setdefault(("head", block, number), {})[name] = own
    made = []
    for (kind, block, head), parts in places.items():
        energy = sum(float(((edited[n].astype(np.float64) - base[n].astype(np.float64))[m] ** 2).sum()) for n, m in parts.items())
        count = sum(int(m.sum()) for m in parts.values())
        made.append(Component(kind, block, head if kind == "head" else None, parts, count, energy))
    last = encoder.blocks
    made.sort(key=lambda c: (last if c.block is None else c.block, c.kind, -1 if c.head is None else c.head, c.name))
    return tuple(made)


def _place(encoder: Encoder, name: str) -> tuple[str, int | None, int]:
    """(kind, block, axis along which heads lie) of a parameter."""
    for block, prefix in enumerate(encoder.block_names()):
        if not name.startswith(prefix + "."):
            continue
        if name in encoder.qkv_names(block):
            return "head", block, 0
        for part in ("o", *FFN):
            if any(name == pattern.format(block=block) + ".weight" for pattern in encoder.recipe.names.get(part, ())):
                return ("head", block, 1) if part == "o" else ("ffn", block, 0)
        return "other", block, 0
    return "other", None, 0


def judge_rows(rows: Array, judged: Judged) -> Judgement:
    """Features (n, width) judged by the set's reader and labels."""
    logits = judged.reader.verdict_logits(judged.reader.logits_numpy(rows), judged.labels).astype(np.float64)
    top = logits.max(axis=1, keepdims=True)
    likely = logits - top - np.log(np.exp(logits - top).sum(axis=1, keepdims=True))
    wrong = logits.argmax(axis=1) != judged.labels
    kept = float(margin(judged.reader, rows, judged.labels).mean(dtype=np.float64))
    return Judgement(float(-likely[np.arange(len(rows)), judged.labels].mean()), int(wrong.sum()), kept)


def leave_one_out(
    edited: Encoder,
    base: Mapping[str, Array],
    components: Sequence[Component],
    sets: Sequence[Judged],
    progress: Callable[[int, int, str], None] | None = None,
) -> tuple[Effect, ...]:
    """The effect of giving each component its `base` values back while the rest of the edit stays."""
    found: dict[str, list[list[Array]]] = {judged.name: [[] for _ in components] for judged in sets}
    batches = [(judged, start) for judged in sets for start in range(0, len(judged.pixels), BATCH)]
    for number, (judged, start) in enumerate(batches):
        if progress is not None:
            progress(number, len(batches), f"leaving one of {len(components)} components out")
        pixels = torch.from_numpy(np.ascontiguousarray(judged.pixels[start : start + BATCH]))
        kept = block_inputs(edited, pixels)
        for rows, component in zip(found[judged.name], components, strict=True):
            with reverted(edited, base, component), entered(edited, component.block, kept), torch.inference_mode():
                rows.append(edited(pixels).numpy())
    if progress is not None:
        progress(len(batches), len(batches), "components judged")
    return tuple(
        Effect(component, {judged.name: judge_rows(np.concatenate(found[judged.name][number]), judged) for judged in sets})
        for number, component in enumerate(components)
    )


def brute_force(edited: Encoder, base: Mapping[str, Array], component: Component, judged: Judged) -> Judgement:
    """The same figures as `leave_one_out` gives, by whole passes: its reference."""
    with reverted(edited, base, component):
        return judge_rows(features(edited, judged.pixels), judged)


@contextmanager
def reverted(edited: Encoder, base: Mapping[str, Array], component: Component) -> Iterator[None]:
    """`edited` with the component's elements at their base values, and back."""
    known = edited.parameters_by_name()
    kept = {name: known[name].data for name in component.parts}
    try:
        for name, mask in component.parts.items():
            known[name].data = torch.where(torch.from_numpy(mask), torch.from_numpy(base[name]), kept[name])
        yield
    finally:
        for name, values in kept.items():
            known[name].data = values


@dataclass(frozen=True)
class Kept:
    """What every block was given, and whether it returns a tuple."""

    rows: tuple[torch.Tensor, ...]
    tuples: tuple[bool, ...]


def block_inputs(encoder: Encoder, pixels: torch.Tensor) -> Kept:
    """One pass of `encoder` that keeps the hidden state before every block."""
    rows: list[torch.Tensor] = []
    tuples: list[bool] = []

    def keep(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        rows.append(given[0] if given else named["hidden_states"])
        tuples.append(isinstance(output, tuple))

    handles = [encoder.wrapped.get_submodule(n).register_forward_hook(keep, with_kwargs=True) for n in encoder.block_names()]
    try:
        with torch.inference_mode():
            encoder(pixels)
    finally:
        for handle in handles:
            handle.remove()
    return Kept(tuple(rows), tuple(tuples))


@contextmanager
def entered(encoder: Encoder, block: int | None, kept: Kept) -> Iterator[None]:
    """Passes of `encoder` start at `block` from the kept state; the blocks before it hand on what they are given (None: a whole pass)."""
    if not block:
        yield
        return
    modules = [encoder.wrapped.get_submodule(name) for name in encoder.block_names()[: block + 1]]

    def skip(as_tuple: bool) -> Callable[..., Any]:
        def forward(*given: Any, **named: Any) -> Any:
            state = given[0] if given else named["hidden_states"]
            return (state,) if as_tuple else state

        return forward

    def start(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return ((kept.rows[block], *given[1:]), named) if given else ((), {**named, "hidden_states": kept.rows[block]})

    for module, as_tuple in zip(modules[:block], kept.tuples, strict=False):
        module.forward = skip(as_tuple)
    handle = modules[block].register_forward_pre_hook(start, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
        for module in modules[:block]:
            del module.forward
