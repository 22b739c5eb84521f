"""Every named method that claims locality, under every optimiser: after 1,000 steps nothing outside its mask has moved.

The mask is not the method's own: it is worked out here from a plain gradient of the shots and what the method's page says it takes.
Every option of an optimiser that touches weights (decay, momentum) is on, since one that is off cannot leak.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pytest
import torch

from edgeedit.catalog import load_recipe
from edgeedit.edit.evaluate import features
from edgeedit.edit.locality import Locality
from edgeedit.edit.losses import HeadLoss
from edgeedit.edit.methods import local
from edgeedit.edit.methods.every import LOCAL
from edgeedit.edit.methods.local import Local
from edgeedit.edit.methods.method import Task
from edgeedit.edit.readers import fit_linear
from edgeedit.edit.selection import Selection
from edgeedit.edit.settings import OPTIMISERS
from edgeedit.edit.shots import Shots, load_pixels
from edgeedit.encoder.encoder import Encoder
from edgeedit.encoder.load import random_encoder
from edgeedit.encoder.values import parameter_values, with_values
from edgeedit.rounding import apply_delta

Array = np.ndarray[Any, Any]
CONFIG = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 14, "patch_size": 7, "mlp_ratio": 2}
LAYER = "encoder.layer.{}."
HEAD = 4  # rows of a head
OPTIONS: dict[str, dict[str, Any]] = {
    "adam": {"weight_decay": 0.2},
    "adamw": {"weight_decay": 0.2},
    "sgd": {"weight_decay": 0.1, "momentum": 0.9, "lr": 2e-3, "lr_low_rank": 2e-3},
}


class Claim(NamedTuple):
    """Share of fc1 (or of hidden neurons) in every block, or `everywhere` over all of them; ranked by |w g| or by |g|."""

    share: float
    heads: int
    everywhere: bool = False
    by_weight: bool = False
    neurons: bool = False


@dataclass(frozen=True)
class Groups(Local):
    """No named method: hidden neurons and heads under one budget, output columns, one input factor."""

    name: ClassVar[str] = "groups"
    share: float = 0.05
    heads: int = 1
    unit: str = "neurons"
    scope: str = "global"
    output_columns: bool = True
    share_input: bool = True


CLAIMS = {
    "edgeedit": Claim(0.05, 2),
    "lorsu": Claim(0.1, 2),
    "lorsu-paper": Claim(0.1, 2),
    "spu": Claim(0.1, 0),
    "attention": Claim(0.0, 2),
    "shira": Claim(0.01, 0, everywhere=True, by_weight=True),
    "groups": Claim(0.05, 1, everywhere=True, neurons=True),
}


class Ground(NamedTuple):
    """A frozen tiny encoder, its weights, the task, and the plain mean gradient of every weight on the shots."""

    encoder: Encoder
    base: dict[str, Array]
    task: Task
    gradient: dict[str, Array]


@pytest.fixture(scope="module")
def ground(sets: dict[str, Shots]) -> Ground:
    encoder = random_encoder(load_recipe("dinov2"), CONFIG, seed=1)
    images = {name: torch.from_numpy(load_pixels(sets[name], encoder.preprocess)) for name in ("base", "shots", "control")}
    known, frozen, base = sets["base"], with_values(encoder, {}), parameter_values(encoder, "float32")
    reader = fit_linear(features(encoder, images["base"].numpy()), known.labels, known.classes)
    shots, labels, control = images["shots"][::4], torch.from_numpy(sets["shots"].labels)[::4], images["control"][::4]
    named = encoder.parameters_by_name()
    loss = torch.nn.functional.cross_entropy(reader.logits(encoder(shots)), labels)
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    gradient = {n: g.numpy() for n, g in zip(named, found, strict=True) if g is not None}
    return Ground(frozen, base, Task(frozen, base, shots, labels, control, reader, HeadLoss(reader), 0, 0.5), gradient)


def _top(scores: list[Array], share: float) -> list[Array]:
    """Boolean arrays of the largest `share` of all `scores` together; a near tie may fall on either side elsewhere."""
    ranked = np.sort(np.concatenate([s.ravel() for s in scores]))[::-1]
    count = round(share * ranked.size)
    return [s >= ranked[count - 1] * (1 - 1e-5) if count else np.zeros(s.shape, bool) for s in scores]


def _each(scores: list[Array], share: float, *, together: bool) -> list[Array]:
    return _top(scores, share) if together else [_top([s], share)[0] for s in scores]


def _mask(of: Ground, claim: Claim) -> dict[str, Array]:
    """Weight -> boolean array of what a method with this claim may change."""
    part = {p: [f"{LAYER.format(b)}{p}.weight" for b in range(2)] for p in ("mlp.fc1", "mlp.fc2", "attention.o_proj")}
    part |= {p: [f"{LAYER.format(b)}attention.{p}_proj.weight" for b in range(2)] for p in "qkv"}
    part["attention.o_proj"] = [n for n in of.base if n.endswith(("o_proj.weight", "attention.output.dense.weight"))]
    score = {n: np.abs(g * of.base[n] if claim.by_weight else g) for n, g in of.gradient.items()}
    mask = {n: np.zeros(a.shape, bool) for n, a in of.base.items()}
    if claim.neurons:
        energy = [(score[a] ** 2).sum(1) + (score[b] ** 2).sum(0) for a, b in zip(part["mlp.fc1"], part["mlp.fc2"], strict=True)]
        for a, b, own in zip(part["mlp.fc1"], part["mlp.fc2"], _each(energy, claim.share, together=claim.everywhere), strict=True):
            mask[a][own], mask[b][:, own] = True, True
    else:
        chosen = _each([score[n] for n in part["mlp.fc1"]], claim.share, together=claim.everywhere)
        mask |= dict(zip(part["mlp.fc1"], chosen, strict=True))
    energy = [np.sum([(score[part[p][b]] ** 2).reshape(4, -1).sum(1) for p in "qkv"], axis=0) for b in range(2)]
    for block, heads in enumerate(_each(energy, claim.heads / 4, together=claim.everywhere)):
        rows = np.repeat(heads, HEAD)
        for p in "qkv":
            mask[part[p][block]][rows] = True
        if claim.neurons:
            mask[part["attention.o_proj"][block]][:, rows] = True
    return mask


def _outside(before: dict[str, Array], after: dict[str, Array], mask: dict[str, Array]) -> int:
    return sum(int((before[n].view("u4") != after[n].view("u4"))[~mask[n]].sum()) for n in before)


def _run(of: Ground, method: Local, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Array]]:
    """Weights that the last step computed with, weights as deployed, and the encoder's own after the method."""
    made: list[Selection] = []
    train = local.train

    def watched(*arguments: Any) -> Selection:
        made.append(train(*arguments))
        return made[-1]

    with monkeypatch.context() as patched:
        patched.setattr(local, "train", watched)
        update = method.update(of.task)
    with made[0].placed():
        trained = parameter_values(of.encoder, "float32")
    deployed = of.base | {t.name: apply_delta(of.base[t.name], t) for t in update.tensors}
    return [trained, deployed, parameter_values(of.encoder, "float32")]


def _small(kind: type[Local], steps: int, **option: Any) -> Local:
    return kind(**{"steps": steps, "batch": 1, "patterns": 0, "amp": "off", "rank": 2, "project": min(kind.project, 1), **option})


RUNS = [*((kind, optimiser) for kind in LOCAL for optimiser in OPTIMISERS), (Groups, "adamw")]


@pytest.mark.parametrize(("kind", "optimiser"), RUNS, ids=lambda value: getattr(value, "name", value))
def test_nothing_outside_the_mask_moves_in_a_thousand_steps(
    ground: Ground, kind: type[Local], optimiser: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mask = _mask(ground, CLAIMS[kind.name])
    found = _run(ground, _small(kind, 1000, optimiser=optimiser, **OPTIONS[optimiser]), monkeypatch)
    assert [_outside(ground.base, after, mask) for after in found] == [0, 0, 0]
    moved = {n for n in ground.base if not np.array_equal(ground.base[n], found[1][n])}
    assert moved == {n for n, own in mask.items() if own.any()}, "a part that the method claims did not move at all"


def test_masks_have_the_sizes_that_methods_claim(ground: Ground) -> None:
    """fc1 of a block has 512 entries and 32 neurons, a head 3 x 64 rows' entries: near ties added none to the masks."""
    sizes = {name: sum(int(own.sum()) for own in _mask(ground, claim).values()) for name, claim in CLAIMS.items()}
    heads = 2 * 2 * 3 * 64
    assert sizes == {
        "edgeedit": 2 * 26 + heads,
        "lorsu": 2 * 51 + heads,
        "lorsu-paper": 2 * 51 + heads,
        "spu": 2 * 51,
        "attention": heads,
        "shira": 10,
        "groups": 3 * 32 + 2 * 4 * 64,
    }


def test_a_leak_is_seen(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """One wrong entry, and a decay of whole weights as the official implementations have it."""
    mask, method = _mask(ground, CLAIMS["lorsu"]), _small(local.Local, 3)
    select, put = local.select, Selection._put

    def shifted(*arguments: Any) -> Locality:
        right = select(*arguments)
        name = ground.encoder.fc1_name(1)
        wrong = np.append(right.entries[name][1:], np.flatnonzero(~mask[name].reshape(-1))[-1])
        return replace(right, entries={**right.entries, name: np.sort(wrong)})

    def decayed(self: Selection, name: str, values: torch.Tensor) -> None:
        self.base[name].mul_(0.9999)
        put(self, name, values)

    assert [_outside(ground.base, after, mask) for after in _run(ground, method, monkeypatch)] == [0, 0, 0]
    with monkeypatch.context() as patched:
        patched.setattr(local, "select", shifted)
        found = _run(ground, method, patched)
    assert [_outside(ground.base, after, mask) for after in found] == [1, 1, 0]
    spare = Ground(with_values(ground.encoder, {}), *ground[1:])
    with monkeypatch.context() as patched:
        patched.setattr(Selection, "_put", decayed)
        found = _run(spare._replace(task=replace(spare.task, base=spare.encoder)), method, patched)
    assert found and _outside(ground.base, found[0], mask) > 1000 and _outside(ground.base, found[2], mask) > 1000
