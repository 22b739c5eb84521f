"""Training in place against the dense reference, what it keeps in memory, and the base after every pass."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from edgeedit.edit import train as module
from edgeedit.edit.evaluate import features
from edgeedit.edit.locality import Locality, scored_names, select
from edgeedit.edit.losses import HeadLoss
from edgeedit.edit.methods.local import round_selection
from edgeedit.edit.readers import Reader, fit_linear
from edgeedit.edit.selection import Selected, Selection
from edgeedit.edit.settings import Settings
from edgeedit.edit.shots import Shots, load_pixels
from edgeedit.edit.train import TrainData, train
from edgeedit.encoder.encoder import Encoder
from edgeedit.encoder.values import parameter_values, with_values
from tests.support.dense_training import DenseSelected

WIDE = {"share": 0.1, "heads": 2, "rank": 3, "batch": 4, "patterns": 2, "lr": 1e-3, "lr_low_rank": 5e-3}
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "half": {"amp": "bfloat16"},
    "columns": {"output_columns": True, "share_input": True, "unit": "neurons", "scope": "global"},
    "rounded": {"rounding_steps": 4},
    "checkpoint": {"checkpoint": True, "amp": "bfloat16"},
    "directions": {"project": 4, "drift": 0.1},
    "compiled": {"compiler": "aot_eager"},
}


def _parts(encoder: Encoder, sets: dict[str, Shots], settings: Settings) -> tuple[Encoder, Locality, TrainData, Reader]:
    twin, base = with_values(encoder, {}), sets["base"]
    reader = fit_linear(features(encoder, load_pixels(base, encoder.preprocess)), base.labels, base.classes)
    pixels, control = (torch.from_numpy(load_pixels(sets[n], encoder.preprocess)) for n in ("shots", "control"))
    rng, shapes = np.random.default_rng(0), {n: tuple(p.shape) for n, p in encoder.parameters_by_name().items()}
    scores = {n: rng.normal(size=shapes[n]).astype(np.float32) for n in scored_names(encoder, settings)}
    return twin, select(encoder, scores, settings), TrainData(pixels, torch.from_numpy(sets["shots"].labels), control), reader


def _same_bits(encoder: Encoder, twin: Encoder) -> bool:
    before, after = parameter_values(encoder, "float32"), parameter_values(twin, "float32")
    return all(before[n].tobytes() == after[n].tobytes() for n in before)


@pytest.mark.parametrize("kind", KINDS)
def test_training_in_place_equals_the_dense_reference(
    encoder: Encoder, sets: dict[str, Shots], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(**{"steps": 8, "amp": "off", **WIDE, **KINDS[kind]})
    twin, locality, data, reader = _parts(encoder, sets, settings)
    found = []
    for way, own in ((Selected, settings), (DenseSelected, replace(settings, compiler="off"))):
        monkeypatch.setattr(module, "Selected", way)
        selection = train(twin, locality, data, reader, own, 0, None)
        found.append((selection.deltas(), round_selection(twin, locality, selection, 4)))
    (sparse, low), (sparse_again, low_again) = found[0][0], found[1][0]
    # bfloat16 keeps 8 bits, and Adam turns the sign of a tiny gradient into a whole step
    tolerance = 0.02 if settings.amp != "off" else 1e-3
    for one, two in [*((sparse[n], sparse_again[n]) for n in sparse), *((low[n][i], low_again[n][i]) for n in low for i in (0, 1))]:
        assert np.linalg.norm(two) > 0
        assert np.linalg.norm(one - two) <= tolerance * np.linalg.norm(two)
    if settings.amp == "off":
        for first, second in zip(found[0][1], found[1][1], strict=True):
            if first.sparse is not None and second.sparse is not None:
                moved = {int(i): int(q) for i, q in zip(first.sparse.index, first.sparse.q, strict=True)}
                other = {int(i): int(q) for i, q in zip(second.sparse.index, second.sparse.q, strict=True)}
                assert sum(moved.get(i, 0) != other.get(i, 0) for i in {*moved, *other}) <= 0.01 * len(moved)
    assert _same_bits(encoder, twin)


def test_the_encoder_is_the_base_after_a_pass_that_raises(encoder: Encoder, sets: dict[str, Shots]) -> None:
    settings = Settings(**{**WIDE, "output_columns": True})
    twin, locality, data, _ = _parts(encoder, sets, settings)
    selection = Selection(twin, locality, 3, torch.Generator().manual_seed(0))
    for values in (*selection.values, *selection.a):
        torch.nn.init.normal_(values)
    model = Selected(twin, selection, "off")
    forwards = {n: m.forward.__func__ for n, m in twin.named_modules() if hasattr(m.forward, "__func__")}

    def fails(found: torch.Tensor) -> float:
        assert not _same_bits(encoder, twin)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.run(data.shots[:2], fails, rounded=False)
    assert _same_bits(encoder, twin)
    assert forwards == {n: m.forward.__func__ for n, m in twin.named_modules() if hasattr(m.forward, "__func__")}


@pytest.mark.parametrize("amp", ["off", "bfloat16"])
def test_the_backward_pass_keeps_no_copy_of_a_weight(encoder: Encoder, sets: dict[str, Shots], amp: str) -> None:
    """Every tensor that autograd saves is a weight itself (no copy) or an activation; q, k and v share one input."""
    settings = Settings(**{**WIDE, "patterns": 0})
    twin, locality, data, reader = _parts(encoder, sets, settings)
    owned = {p.untyped_storage().data_ptr() for p in twin.parameters()}
    shapes = {tuple(p.shape) for n, p in twin.parameters_by_name().items() if n in twin.editable()}
    saved: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor)
        return tensor

    def run(way: type[Selected]) -> tuple[int, int]:
        model = way(twin, Selection(twin, locality, 3, torch.Generator().manual_seed(0)), amp)
        saved.clear()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            model.run(data.shots[:4], lambda f: HeadLoss(reader)(f, data.labels[:4]).item(), rounded=False)
        fresh = {t.untyped_storage().data_ptr(): t for t in saved if t.untyped_storage().data_ptr() not in owned}
        return sum(tuple(t.shape) in shapes for t in fresh.values()), sum(t.untyped_storage().nbytes() for t in fresh.values())

    copies, size = run(Selected)
    dense_copies, dense_size = run(DenseSelected)
    assert copies == 0 < dense_copies
    assert size < 0.9 * dense_size
