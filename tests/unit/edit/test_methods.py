"""Every method through the one call, the selection's options, losses and rounding.  Strictness: test_strictness.py."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from torch.func import functional_call

from edgeedit.edit.evaluate import features
from edgeedit.edit.locality import scored_names, select
from edgeedit.edit.lorsu import Lorsu
from edgeedit.edit.losses import HeadLoss, TextLoss
from edgeedit.edit.methods.alpha import choose_alpha
from edgeedit.edit.methods.default import Default
from edgeedit.edit.methods.every import LOCAL, METHODS
from edgeedit.edit.projection import EntryProjection, principal_directions
from edgeedit.edit.quantize import rounded_low_rank, rounded_values, sparse_part
from edgeedit.edit.readers import Reader, fit_linear
from edgeedit.edit.run import EditResult, HeldOut, edit
from edgeedit.edit.scores import accumulate, part_name
from edgeedit.edit.settings import Settings
from edgeedit.edit.shots import Shots, load_pixels
from edgeedit.edit.train import TrainData, train
from edgeedit.encoder.encoder import Encoder
from edgeedit.encoder.values import parameter_values
from edgeedit.errors import InputError

SMALL: dict[str, Any] = {"steps": 4, "batch": 4}


def _reader(encoder: Encoder, base: Shots) -> Reader:
    return fit_linear(features(encoder, load_pixels(base, encoder.preprocess)), base.labels, base.classes)


def _run(encoder: Encoder, sets: dict[str, Shots], method: Any) -> EditResult:
    held = HeldOut(sets["target"], sets["base"])
    reader = _reader(encoder, sets["base"])
    return edit(encoder, sets["shots"], sets["control"], reader, method=method, precision="float32", heldout=held, seed=0, limit=0.5)


def _small(kind: Any) -> Any:
    known = kind.__dataclass_fields__
    values = {**SMALL, **({"rounding_steps": 2} if kind is Default else {})}
    return kind(**{key: value for key, value in values.items() if key in known})


@pytest.mark.parametrize("kind", METHODS, ids=lambda kind: kind.name)
def test_every_method_goes_through_the_one_call(encoder: Encoder, sets: dict[str, Shots], kind: Any) -> None:
    before = parameter_values(encoder, "float32")
    result = _run(encoder, sets, _small(kind))
    assert all(np.array_equal(before[n], a) for n, a in parameter_values(encoder, "float32").items()), "the given encoder was changed"
    assert result.info["method"]["name"] == kind.name
    assert result.metrics.outside_mask == 0
    assert (result.patch is not None) == kind.local
    assert (result.payload > 0) == (kind.name != "none")
    changed = not np.array_equal(result.features_before["target"], result.features_after["target"])
    assert changed == (kind.name not in ("none", "refit-shots", "refit-base-shots"))
    if not kind.local:
        with pytest.raises(InputError, match="has no delta"):
            _ = result.delta


def test_lora_sends_its_factors_and_changes_what_peft_merges(encoder: Encoder, sets: dict[str, Shots]) -> None:
    from edgeedit.edit.methods.lora import Lora

    result = _run(encoder, sets, Lora(rank=2, **SMALL))
    shapes = {n: p.shape for n, p in encoder.parameters_by_name().items()}
    assert set(result.values) == {part_name(encoder, part, b) for b in range(2) for part in ("q", "k", "v", "o", "fc1", "fc2")}
    assert result.payload == 2 * sum(2 * sum(shapes[n]) for n in result.values)
    for name, value in result.values.items():
        assert np.linalg.matrix_rank(value - parameter_values(encoder, "float32")[name], tol=1e-5) <= 2


def _locality(encoder: Encoder, sets: dict[str, Shots], settings: Settings) -> Any:
    return select(encoder, _scores(encoder, sets, settings.score, scored_names(encoder, settings)), settings)


def _scores(encoder: Encoder, sets: dict[str, Shots], kind: str = "mean", names: Any = None, amp: str = "off") -> dict[str, Any]:
    reader, shots = _reader(encoder, sets["base"]), sets["shots"]
    pixels, labels = torch.from_numpy(load_pixels(shots, encoder.preprocess)), torch.from_numpy(shots.labels)
    loss = HeadLoss(reader)
    return accumulate(encoder, lambda rows: loss(encoder(pixels[rows]), labels[rows]), len(labels), 5, kind=kind, names=names, amp=amp)


def test_scores_equal_their_definitions(encoder: Encoder, sets: dict[str, Shots]) -> None:
    name = encoder.fc1_name(1)
    reader, shots = _reader(encoder, sets["base"]), sets["shots"]
    pixels, labels = torch.from_numpy(load_pixels(shots, encoder.preprocess)), torch.from_numpy(shots.labels)
    weight = encoder.parameters_by_name()[name].detach().clone()

    def one(own: torch.Tensor, image: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        found = functional_call(encoder, {"wrapped." + name: own}, (image[None],))
        return torch.nn.functional.cross_entropy(reader.logits(found), label[None])

    each = np.stack([torch.func.grad(one)(weight, p, y).detach().numpy() for p, y in zip(pixels, labels, strict=True)])
    scale = np.abs(each).max()
    assert np.allclose(_scores(encoder, sets)[name], each.mean(0), atol=1e-4 * scale)
    assert np.allclose(_scores(encoder, sets, "fisher")[name], np.sqrt((each**2).sum(0)), atol=1e-3 * scale)
    assert np.allclose(_scores(encoder, sets, "snip")[name], np.abs(weight.numpy() * each.mean(0)), atol=1e-4 * scale)
    half = _scores(encoder, sets, amp="float16")[name]
    assert np.corrcoef(half.ravel(), each.mean(0).ravel())[0, 1] > 0.99


def test_float16_scores_do_not_underflow(encoder: Encoder) -> None:
    """A loss of size 1e-7 has gradients that float16 cannot hold; the scaled pass keeps their order."""
    pixels = torch.randn(4, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    name = encoder.fc1_name(1)
    exact, half = (
        accumulate(encoder, lambda rows: 1e-7 * encoder(pixels[rows]).square().mean(), 4, 4, names=[name], amp=amp)[name]
        for amp in ("off", "float16")
    )
    assert np.corrcoef(exact.ravel(), half.ravel())[0, 1] > 0.99


def _gain(mask: tuple[int, ...], gradient: Any) -> float:
    return float(sum(gradient[list(mask)] ** 2))


@pytest.mark.parametrize("unit", ["entries", "neurons"])
def test_one_budget_for_all_blocks_is_the_best_mask(encoder: Encoder, unit: str) -> None:
    """Brute force over every mask of the size on a gradient with eight non-zero places spread over both blocks."""
    rng = np.random.default_rng(5)
    settings = Settings(share=3 / 256 if unit == "neurons" else 3 / 8192, heads=0, scope="global", unit=unit, patterns=0)
    parameters = encoder.parameters_by_name()
    scores = {n: np.zeros(parameters[n].shape, np.float32) for n in scored_names(encoder, settings)}
    assert scores[encoder.fc1_name(0)].size * 2 == 8192 and parameters[encoder.fc1_name(0)].shape[0] * 2 == 256
    spots = [(block, int(row)) for block in (0, 1) for row in rng.choice(128, 4, replace=False)]
    gradient = rng.normal(size=8)
    for (block, row), value in zip(spots, gradient, strict=True):
        scores[encoder.fc1_name(block)][row, 7] = value
    best = max(combinations(range(8), 3), key=lambda mask: _gain(mask, gradient))
    found = select(encoder, scores, settings).entries
    first = {(b, int(p) // 32) for b in (0, 1) for p in found.get(encoder.fc1_name(b), ())}
    assert first == {spots[i] for i in best}
    if unit == "neurons":  # the neuron's column of the second matrix comes with its row of the first
        second = {(b, int(p) % 128) for b in (0, 1) for p in found.get(part_name(encoder, "fc2", b), ())}
        assert second == first
        assert sum(v.size for v in found.values()) == 3 * (32 + 32)


def test_shared_input_factor_is_one_parameter(encoder: Encoder, sets: dict[str, Shots]) -> None:
    pixels = torch.from_numpy(load_pixels(sets["shots"], encoder.preprocess))
    method = Settings(share=0.0, heads=1, rank=2, share_input=True, steps=2, batch=4, lr_low_rank=1e-2)
    labels = torch.from_numpy(sets["shots"].labels)
    locality = _locality(encoder, sets, method)
    selection = train(encoder, locality, TrainData(pixels, labels, pixels), _reader(encoder, sets["base"]), method, 0, None)
    assert (len(selection.a), len(selection.b)) == (6, 2)
    factors = selection.factors()
    query, key, value = encoder.qkv_names(0)
    assert torch.equal(factors[query][1], factors[key][1]) and torch.equal(factors[query][1], factors[value][1])


def test_checkpointing_changes_memory_not_results(encoder: Encoder, sets: dict[str, Shots]) -> None:
    plain, saved = (_run(encoder, sets, Lorsu(steps=5, batch=4, lr=1e-2, lr_low_rank=1e-2, checkpoint=c)).delta for c in (False, True))
    for one, two in zip(plain.tensors, saved.tensors, strict=True):
        for part, other in ((one.sparse, two.sparse), (one.low_rank, two.low_rank)):
            assert (part is None) == (other is None)
            if part is not None and hasattr(part, "q"):
                assert np.array_equal(part.q, other.q)  # type: ignore[union-attr]


def test_projection_hides_the_change_from_the_control_images(encoder: Encoder, sets: dict[str, Shots]) -> None:
    """Of the factors and of the single entries: the change, as it is trained, reads nothing of the protected directions."""
    pixels = torch.from_numpy(load_pixels(sets["shots"], encoder.preprocess))
    control = torch.from_numpy(load_pixels(sets["control"], encoder.preprocess))
    labels, reader = torch.from_numpy(sets["shots"].labels), _reader(encoder, sets["base"])
    method = Settings(share=0.4, heads=1, rank=2, steps=3, batch=4, lr=1e-2, lr_low_rank=1e-1, project=5)
    locality = _locality(encoder, sets, method)
    selection = train(encoder, locality, TrainData(pixels, labels, control), reader, method, 0, None)
    directions = principal_directions(encoder, control, [*locality.rows, *locality.entries], 5)
    sparse, low = selection.deltas()
    changes = {name: a @ b for name, (a, b) in low.items()}
    for name, values in sparse.items():
        changes[name] = np.zeros(encoder.parameters_by_name()[name].shape, np.float32)
        changes[name].reshape(-1)[locality.entries[name]] = values
    assert len(changes) == 8
    for name, change in changes.items():
        u = directions[name].numpy()
        assert np.allclose(u.T @ u, np.eye(5), atol=1e-5)
        assert np.abs(change).max() > 0 and np.abs(change @ u).max() < 1e-5 * np.abs(change).max() * 32
    before = parameter_values(encoder, "float32")
    with selection.placed(), torch.no_grad():  # what training computed with is the projected change
        for name, change in changes.items():
            moved = encoder.parameters_by_name()[name].detach().numpy() - before[name]
            rows = locality.rows.get(name, slice(None))
            assert np.allclose(moved[rows], change, atol=1e-6)


def test_projection_of_entries_equals_least_squares_row_by_row() -> None:
    rng = np.random.default_rng(4)
    directions = np.linalg.qr(rng.normal(size=(12, 3)))[0].astype(np.float32)
    index = np.sort(np.concatenate([rng.choice(12, 8, replace=False), 12 + rng.choice(12, 2, replace=False), 36 + np.arange(12)]))
    values = rng.normal(size=index.size).astype(np.float32)
    given = torch.from_numpy(values).requires_grad_(True)
    found = EntryProjection(torch.from_numpy(index), (4, 12), torch.from_numpy(directions))(given)
    for row in (0, 1, 3):
        own = index // 12 == row
        read = directions[index[own] % 12].astype(np.float64)
        expected = values[own] - read @ np.linalg.lstsq(read, values[own], rcond=None)[0]
        assert np.allclose(found.detach().numpy()[own], expected, atol=1e-5)
    assert np.abs(found.detach().numpy()[index // 12 == 1]).max() < 1e-5, "two entries cannot avoid three directions"
    found.square().sum().backward()  # an orthogonal projection: the gradient of |Pv|^2 is 2 Pv
    assert given.grad is not None and torch.allclose(given.grad, 2 * found.detach(), atol=1e-5)


def test_drift_penalty_makes_the_change_smaller_and_flips_can_be_off(encoder: Encoder, sets: dict[str, Shots]) -> None:
    def size(**kind: Any) -> float:
        result = _run(encoder, sets, Lorsu(steps=8, batch=4, heads=0, lr=1e-2, **kind))
        return sum(
            float((t.sparse.step * t.sparse.q.astype(float)) @ (t.sparse.step * t.sparse.q)) for t in result.delta.tensors if t.sparse
        )

    assert size(drift=1e3) < 0.8 * size()
    assert size(augment=False) != size()


def test_rounded_training_computes_with_the_integer_form() -> None:
    rng = np.random.default_rng(0)
    values = torch.from_numpy(rng.normal(0, 1e-3, 200).astype(np.float32))
    part = sparse_part(np.arange(200, dtype=np.int64), values.numpy(), 3)
    assert part is not None
    rounded = rounded_values(values, 3)
    assert np.allclose(rounded.numpy()[part.index], part.step * part.q)
    assert len(torch.unique(rounded)) < 25
    a, b = torch.randn(6, 2), torch.randn(2, 9)
    assert torch.allclose(rounded_low_rank(a, b), a @ b, atol=0.05 * float((a @ b).abs().max()))
    assert not rounded_low_rank(torch.zeros(6, 2), b).any()


def test_text_losses_equal_their_formulas_and_know_no_false_negative() -> None:
    rng = np.random.default_rng(3)
    text, images = rng.normal(size=(3, 6)).astype(np.float32), rng.normal(size=(5, 6)).astype(np.float32)
    labels = np.array([0, 0, 2, 2, 2])
    cosine = (images / np.linalg.norm(images, axis=1, keepdims=True)) @ (text / np.linalg.norm(text, axis=1, keepdims=True)).T
    scores = 10.0 * cosine
    to_text = -np.mean([scores[i, y] - np.log(np.exp(scores[i]).sum()) for i, y in enumerate(labels)])
    columns = [-np.mean([scores[i, c] - np.log(np.exp(scores[:, c]).sum()) for i in np.flatnonzero(labels == c)]) for c in (0, 2)]
    found = TextLoss(text, scale=10.0)(torch.from_numpy(images), torch.from_numpy(labels))
    assert float(found) == pytest.approx((to_text + np.mean(columns)) / 2, rel=1e-5)
    sign = np.where(labels[:, None] == np.arange(3), 1.0, -1.0)
    expected = np.log1p(np.exp(-sign * (scores - 2.0))).sum(axis=1).mean()
    found = TextLoss(text, "sigmoid", 10.0, -2.0)(torch.from_numpy(images), torch.from_numpy(labels))
    assert float(found) == pytest.approx(expected, rel=1e-5)
    same = torch.from_numpy(np.repeat(text[:1], 4, axis=0)).requires_grad_(True)  # four perfect images of one class
    TextLoss(text, scale=10.0)(same, torch.zeros(4, dtype=torch.int64)).backward()
    assert same.grad is not None and torch.allclose(same.grad, same.grad[:1].expand(4, -1), atol=1e-6), "images of a class repel each other"
    with pytest.raises(InputError, match="class texts"):
        TextLoss(np.zeros((2, 6), np.float32))


def test_alpha_is_the_largest_that_control_accepts(encoder: Encoder, sets: dict[str, Shots]) -> None:
    reader = _reader(encoder, sets["base"])
    control = torch.from_numpy(load_pixels(sets["base"], encoder.preprocess))

    class Shifted(torch.nn.Module):
        """Moves every feature along the direction that separates the verdicts."""

        def __init__(self, alpha: float) -> None:
            super().__init__()
            self.move = torch.from_numpy((alpha * 100 * reader.weight[:, 1] * reader.std).astype(np.float32))

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = encoder(pixels) + self.move
            return found

    alpha, flips = choose_alpha(encoder, Shifted, reader, control, 0.25)  # type: ignore[arg-type]
    accepted = [float(a) for a, share in flips.items() if share <= 0.25]
    assert flips["1"] > 0.25
    assert alpha == (max(accepted) if accepted else 0.1)


def test_settings_out_of_range_are_named() -> None:
    for wrong in (
        {"score": "guess"},
        {"unit": "blocks"},
        {"optimiser": "lion"},
        {"amp": "int8"},
        {"compiler": "gcc"},
        {"share": 0.0, "heads": 0},
        {"rounding_steps": 99},
    ):
        with pytest.raises(InputError, match="method setting"):
            Settings(**wrong)  # type: ignore[arg-type]
    assert len({kind.name for kind in METHODS}) == len(METHODS) == 13
    assert all(kind.local for kind in LOCAL)
