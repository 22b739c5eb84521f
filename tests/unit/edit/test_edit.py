"""The edit on a tiny encoder: strictness, optimality of the mask, repeatability, integers, and the gate."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch

from edgeedit.edit.evaluate import features
from edgeedit.edit.gate import decide
from edgeedit.edit.locality import Locality, choose, mean_gradients, top_entries
from edgeedit.edit.lorsu import Lorsu
from edgeedit.edit.methods.alpha import FORMER_ALPHAS
from edgeedit.edit.quantize import low_rank_part, sparse_part, to_bfloat16
from edgeedit.edit.readers import Reader, fit_linear, fit_prototypes, load_reader, save_reader
from edgeedit.edit.run import EditResult, HeldOut, _census, edit
from edgeedit.edit.selection import Selection
from edgeedit.edit.shots import Shots, join_shots, load_pixels, make_shots
from edgeedit.edit.train import TrainData, train
from edgeedit.encoder.encoder import Encoder
from edgeedit.encoder.values import parameter_values, with_values
from edgeedit.errors import InputError
from edgeedit.metrics import Interval, SetResult, metrics_from_json
from edgeedit.rounding import apply_delta, changed_elements, check_scale, legal_step, low_rank_product

METHOD = Lorsu(share=0.1, heads=1, rank=2, lr=3e-3, lr_low_rank=1e-2, steps=6, batch=8, patterns=2)


def _reader(encoder: Encoder, base: Shots) -> Reader:
    return fit_linear(features(encoder, load_pixels(base, encoder.preprocess)), base.labels, base.classes)


def _edit(encoder: Encoder, sets: dict[str, Shots], method: Lorsu = METHOD, precision: str = "float32", seed: int = 0) -> EditResult:
    held = HeldOut(sets["target"], sets["base"])
    return edit(
        encoder,
        sets["shots"],
        sets["control"],
        _reader(encoder, sets["base"]),
        method=method,
        precision=precision,
        heldout=held,
        seed=seed,
        limit=0.5,
    )


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_nothing_outside_the_mask_changes(encoder: Encoder, sets: dict[str, Shots], precision: str) -> None:
    before = parameter_values(encoder, "float32")
    result = _edit(encoder, sets, replace(METHOD, steps=12), precision)
    assert result.metrics.outside_mask == 0
    assert 0 < result.metrics.changed_share < 0.2
    assert all(np.array_equal(before[n], a) for n, a in parameter_values(encoder, "float32").items()), "the given encoder was changed"
    touched = {t.name for t in result.delta.tensors}
    assert touched <= set(encoder.editable())
    for tensor in result.delta.tensors:
        old = parameter_values(encoder, precision)[tensor.name]
        new = apply_delta(old, tensor)
        assert np.array_equal(old[~changed_elements(tensor)], new[~changed_elements(tensor)])


def test_same_seed_gives_the_same_bytes_and_another_seed_does_not(encoder: Encoder, sets: dict[str, Shots], tmp_path: Path) -> None:
    files = []
    for number, seed in enumerate((4, 4, 5)):
        delta = _edit(encoder, sets, seed=seed).delta
        replace(delta, info={}).save(tmp_path / f"{number}.delta")
        files.append((tmp_path / f"{number}.delta").read_bytes())
    assert files[0] == files[1]
    assert files[0] != files[2]


def test_judged_features_are_those_of_the_rounded_weights(encoder: Encoder, sets: dict[str, Shots]) -> None:
    from edgeedit.encoder.values import with_values

    result = _edit(encoder, sets, precision="float16")
    values = parameter_values(encoder, "float16")
    values.update({t.name: apply_delta(values[t.name], t) for t in result.delta.tensors})
    again = features(with_values(encoder, values), load_pixels(sets["target"], encoder.preprocess))
    assert np.array_equal(again, result.features_after["target"])
    assert metrics_from_json(result.metrics.to_json()) == result.metrics


def test_top_entries_are_the_best_mask_of_their_size() -> None:
    gradient = np.array([[0.5, -2.0, 0.1], [1.5, 0.0, -0.7]], dtype=np.float32)
    best = max(combinations(range(6), 3), key=lambda mask: sum(gradient.reshape(-1)[list(mask)] ** 2))
    assert top_entries(gradient, 0.5).tolist() == sorted(best)


def test_mean_gradient_does_not_depend_on_the_batch_size_and_heads_rank_by_energy(encoder: Encoder, sets: dict[str, Shots]) -> None:
    reader, shots = _reader(encoder, sets["base"]), sets["shots"]
    pixels, labels = torch.from_numpy(load_pixels(shots, encoder.preprocess)), torch.from_numpy(shots.labels)

    def loss(rows: slice) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(reader.logits(encoder(pixels[rows])), labels[rows])

    whole, parts = (mean_gradients(encoder, loss, len(labels), batch) for batch in (16, 5))
    for name, gradient in whole.items():
        assert np.allclose(gradient, parts[name], atol=1e-6 + 1e-3 * np.abs(gradient).max())
    locality = choose(encoder, whole, 0.1, 1)
    for block in range(encoder.blocks):
        energy = [
            sum((whole[n][encoder.head_rows(h)].astype(np.float64) ** 2).sum() for n in encoder.qkv_names(block))
            for h in range(encoder.heads)
        ]
        assert locality.chosen[block].tolist() == [h == int(np.argmax(energy)) for h in range(encoder.heads)]


def test_only_chosen_values_are_parameters(encoder: Encoder, sets: dict[str, Shots]) -> None:
    gradients = {
        n: np.random.default_rng(0).normal(size=p.shape).astype(np.float32)
        for n, p in encoder.parameters_by_name().items()
        if n in encoder.editable()
    }
    locality = choose(encoder, gradients, 0.05, 1)
    selection = Selection(encoder, locality, 2, torch.Generator().manual_seed(0))
    expected = sum(i.size for i in locality.entries.values()) + sum(r.size * 2 + 2 * 32 for r in locality.rows.values())
    assert sum(p.numel() for p in selection.parameters()) == expected


def test_integer_forms_are_close_and_legal() -> None:
    rng = np.random.default_rng(1)
    values = rng.normal(0, 1e-3, 500).astype(np.float32)
    part = sparse_part(np.arange(500, dtype=np.int64), values, 4)
    assert part is not None
    check_scale(part.step, power_of_two=False)
    rms = float(np.sqrt((values.astype(np.float64) ** 2).mean()))
    assert part.step == legal_step(rms / 4)  # rms x 2^(2 - bits)
    rebuilt = np.zeros(500)
    rebuilt[part.index] = part.step * part.q
    assert np.abs(rebuilt - values).max() <= part.step / 2 * 1.001
    a, b = rng.normal(size=(8, 4)), rng.normal(size=(4, 32)) * 1e-3
    low = low_rank_part(np.arange(8, dtype=np.int64), a, b)
    assert low is not None
    check_scale(low.scale, power_of_two=True)
    error = np.linalg.norm(low.scale * low_rank_product(low) - a @ b) / np.linalg.norm(a @ b)
    assert error < 0.03
    a[:, 1] = a[:, 0]  # of rank 3: no component is made up
    poor = low_rank_part(np.arange(8, dtype=np.int64), a, b)
    assert poor is not None and poor.a.shape[1] <= 3
    assert np.linalg.norm(poor.scale * low_rank_product(poor) - a @ b) / np.linalg.norm(a @ b) < 0.03
    assert sparse_part(np.arange(3, dtype=np.int64), np.zeros(3, np.float32), 4) is None
    values[0] = 1.0  # far outside: the step grows until it fits 127
    outlier = sparse_part(np.arange(500, dtype=np.int64), values, 8)
    assert outlier is not None and np.abs(outlier.q).max() == 127
    assert outlier.step * 127 == pytest.approx(1.0, rel=1e-3)


def test_bfloat16_rounding_equals_torch() -> None:
    values = np.random.default_rng(2).normal(size=1000).astype(np.float32)
    assert np.array_equal(to_bfloat16(values), torch.from_numpy(values).bfloat16().float().numpy())


def test_readers_agree_with_torch_and_survive_a_file(encoder: Encoder, sets: dict[str, Shots], tmp_path: Path) -> None:
    base = sets["base"]
    rows = features(encoder, load_pixels(base, encoder.preprocess))
    for fit in (fit_linear, fit_prototypes):
        reader = fit(rows, base.labels, base.classes)
        assert np.allclose(reader.logits(torch.from_numpy(rows)).numpy(), reader.logits_numpy(rows), atol=1e-4)
        save_reader(reader, tmp_path / "r.npz")
        assert load_reader(tmp_path / "r.npz").digest() == reader.digest()


def _set(name: str, before: float, after: float, low: float, high: float) -> SetResult:
    return SetResult(name, 100, before, after, None, None, Interval(0, 1), Interval(0, 1), 30, 1, 1e-6, Interval(low, high))


def test_gate_decides_by_the_intervals() -> None:
    good, kept = _set("target", 0.5, 0.2, -0.4, -0.2), _set("control", 0.1, 0.1, -0.01, 0.01)
    assert decide(good, kept, None, 0.02).verdict == "pass"
    assert decide(good, _set("control", 0.1, 0.2, 0.05, 0.15), None, 0.02).verdict == "fail"
    assert decide(good, _set("control", 0.1, 0.12, -0.01, 0.05), None, 0.02).verdict == "undecided"
    assert decide(_set("target", 0.5, 0.55, 0.0, 0.1), kept, None, 0.02).verdict == "fail"
    assert decide(good, None, None, 0.02).verdict == "undecided"
    for chance in (replace(good, fixed=6, broken=1, mcnemar_p=0.125), replace(good, fixed=1, broken=30)):
        found = decide(chance, kept, None, 0.02)
        assert found.verdict == "undecided" and "McNemar" in found.reasons[0]


def test_unusable_sets_are_input_errors(encoder: Encoder, sets: dict[str, Shots]) -> None:
    reader = _reader(encoder, sets["base"])
    common = {"method": METHOD, "precision": "float32", "seed": 0, "limit": 0.02}
    with pytest.raises(InputError, match="also used to edit"):
        edit(encoder, sets["shots"], sets["control"], reader, heldout=HeldOut(sets["shots"]), **common)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="overlap"):
        edit(encoder, sets["shots"], sets["shots"], reader, heldout=HeldOut(sets["target"]), **common)  # type: ignore[arg-type]
    unlabelled = replace(sets["shots"], labels=np.full(16, -1, np.int64))
    with pytest.raises(InputError, match="no labels"):
        edit(encoder, unlabelled, sets["control"], reader, heldout=HeldOut(sets["target"]), **common)  # type: ignore[arg-type]
    stranger = replace(sets["shots"], classes=("square", "circle"))
    with pytest.raises(InputError, match="unknown to the reader"):
        edit(encoder, stranger, sets["control"], reader, heldout=HeldOut(sets["target"]), **common)  # type: ignore[arg-type]


def test_input_is_checked_before_training(encoder: Encoder, sets: dict[str, Shots], tmp_path: Path) -> None:
    reader = _reader(encoder, sets["base"])
    target = HeldOut(sets["target"])
    for number, path in enumerate(sets["shots"].paths):
        (tmp_path / f"{number}.png").write_bytes(path.read_bytes())
    copies = replace(sets["shots"], paths=tuple(tmp_path / f"{n}.png" for n in range(len(sets["shots"].paths))))
    narrow = replace(reader, mean=reader.mean[:5], std=reader.std[:5], weight=reader.weight[:5])
    wider = replace(
        reader, classes=("square", "stripe", "ring"), weight=np.pad(reader.weight, ((0, 0), (0, 1))), bias=np.zeros(3, np.float32)
    )
    ring = replace(sets["target"], classes=("square", "ring"))
    cases = {
        "also used to edit": (reader, HeldOut(copies), 0.02),
        "does not fit the encoder": (narrow, target, 0.02),
        "only on one side": (wider, HeldOut(ring), 0.02),
        "unrelated set is incomplete": (reader, HeldOut(sets["target"], None, sets["base"]), 0.02),
        "limit is out of range": (reader, target, float("nan")),
    }
    for words, (own, heldout, limit) in cases.items():
        steps: list[int] = []
        with pytest.raises(InputError, match=words):
            edit(
                encoder,
                sets["shots"],
                sets["control"],
                own,
                method=METHOD,
                precision="float32",
                heldout=heldout,
                seed=0,
                limit=limit,
                progress=lambda done, *_, steps=steps: steps.append(done),  # type: ignore[misc]
            )
        assert not steps, words


def test_training_that_diverges_is_an_input_error(encoder: Encoder, sets: dict[str, Shots]) -> None:
    with pytest.raises(InputError, match="diverged"):
        _edit(encoder, sets, replace(METHOD, lr=1e30))
    with pytest.raises(InputError, match="out of range"):
        replace(METHOD, lr=float("nan"))


def test_the_census_sees_a_planted_leak(encoder: Encoder) -> None:
    """One sign bit of a zero outside the mask counts; the same inside does not."""
    name = encoder.fc1_name(0)
    old = {name: np.zeros((4, 3), np.float32), "bias": np.zeros(4, np.float32)}
    locality = Locality({name: np.array([2], np.int64)}, {}, np.zeros((1, 1)), np.zeros((1, 1), bool))
    inside = {**old, name: old[name].copy()}
    inside[name].flat[2] = 1.0
    assert (_census(old, inside, locality).changed, _census(old, inside, locality).outside) == (1, 0)
    leak = {**inside, "bias": np.array([0, -0.0, 0, 0], np.float32)}
    assert (_census(old, leak, locality).changed, _census(old, leak, locality).outside) == (2, 1)


def test_unlabelled_control_is_agreement_with_the_base(encoder: Encoder, sets: dict[str, Shots]) -> None:
    base = replace(sets["base"], labels=np.full(len(sets["base"].paths), -1, np.int64), classes=())
    reader = _reader(encoder, sets["base"])
    held = HeldOut(sets["target"], base)
    result = edit(encoder, sets["shots"], sets["control"], reader, method=METHOD, precision="float32", heldout=held, seed=0, limit=0.5)
    before, after = (reader.logits_numpy(f["control"]).argmax(1) for f in (result.features_before, result.features_after))
    control = result.metrics.control
    assert control is not None and control.error_before == 0 and control.fixed == 0
    assert control.broken == int((before != after).sum())


def test_training_repairs_the_shots_and_distillation_holds_the_control(encoder: Encoder, sets: dict[str, Shots]) -> None:
    """Labels are swapped, so the base is wrong on most shots; a wrong sign anywhere in the loss fails here."""
    shots, reader = sets["shots"], _reader(encoder, sets["base"])
    swapped = torch.from_numpy(1 - shots.labels)
    pixels, control = (torch.from_numpy(load_pixels(sets[n], encoder.preprocess)) for n in ("shots", "control"))
    everything = {n: np.ones(p.shape, np.float32) for n, p in encoder.parameters_by_name().items() if n in encoder.editable()}
    locality = choose(encoder, everything, 0.5, 2)

    def trained(method: Lorsu) -> tuple[float, float]:
        selection = train(encoder, locality, TrainData(pixels, swapped, control), reader, method, 0, None)
        with torch.no_grad():
            with selection.placed():
                seen, kept = encoder(pixels), encoder(control)
            drift = ((kept - encoder(control)) / torch.from_numpy(reader.std)).square().mean()
            return float(torch.nn.functional.cross_entropy(reader.logits(seen), swapped)), float(drift)

    method = replace(METHOD, lr=2e-2, lr_low_rank=5e-2, steps=25, patterns=0, distill=0.0, kl=0.0)
    with torch.no_grad():
        start = float(torch.nn.functional.cross_entropy(reader.logits(encoder(pixels)), swapped))
    free, held = trained(method), trained(replace(method, distill=50.0, kl=5.0))
    assert free[0] < 0.8 * start
    assert held[1] < 0.5 * free[1]


def test_reader_files_that_do_not_fit_are_input_errors(encoder: Encoder, sets: dict[str, Shots], tmp_path: Path) -> None:
    reader, path = _reader(encoder, sets["base"]), tmp_path / "r.npz"
    np.save(tmp_path / "plain.npy", np.zeros(3))
    (tmp_path / "empty.npz").write_bytes(b"")
    for name in ("plain.npy", "empty.npz", "absent.npz"):
        with pytest.raises(InputError, match="cannot read reader"):
            load_reader(tmp_path / name)
    bad = [
        replace(reader, weight=reader.weight[:-1]),
        replace(reader, kind="tree"),
        replace(reader, classes=("square", "square")),
        replace(reader, std=np.zeros_like(reader.std)),
        replace(reader, bias=np.full(2, np.nan, np.float32)),
    ]
    for broken in bad:
        save_reader(broken, path)
        with pytest.raises(InputError, match=r"reader .* is"):
            load_reader(path)


def test_shots_of_earlier_edits_teach_what_their_labels_say(encoder: Encoder, sets: dict[str, Shots]) -> None:
    reader, target = _reader(encoder, sets["base"]), sets["target"]
    swapped = make_shots(target.paths, 1 - target.labels, target.classes, target.groups)
    method = replace(METHOD, steps=40, share=0.5, heads=4, distill=0.0, kl=0.0, patterns=0, lr=1e-2, former_use="train")
    losses = []
    for former in (target, None, swapped):
        held = HeldOut(sets["base"])
        result = edit(
            encoder, sets["shots"], sets["control"], reader, method=method, precision="float32", heldout=held, seed=0, limit=1,
            former=former,
        )  # fmt: skip
        values = parameter_values(encoder, "float32")
        values.update({t.name: apply_delta(values[t.name], t) for t in result.delta.tensors})
        logits = reader.logits(torch.from_numpy(features(with_values(encoder, values), load_pixels(target, encoder.preprocess))))
        losses.append(float(torch.nn.functional.cross_entropy(logits, torch.from_numpy(target.labels))))
        assert (result.info.get("former") or {}).get("n") == (None if former is None else len(former.paths))
    assert losses[0] < losses[2] - 0.005
    with pytest.raises(InputError, match="held-out images were also used"):
        edit(
            encoder, sets["shots"], sets["control"], reader, method=METHOD, precision="float32", heldout=HeldOut(target), seed=0, limit=1,
            former=target,
        )  # fmt: skip


def test_shots_of_earlier_edits_choose_how_much_of_a_change_stays(encoder: Encoder, sets: dict[str, Shots]) -> None:
    """The same training with and without them; what is kept is the length with the least loss, computed here from the whole change."""
    reader, target = _reader(encoder, sets["base"]), sets["target"]
    swapped = make_shots(target.paths, 1 - target.labels, target.classes, target.groups)
    method = replace(METHOD, steps=40, share=0.5, heads=4, distill=0.0, kl=0.0, patterns=0, lr=1e-1, former_use="alpha")
    values = parameter_values(encoder, "float32")
    pixels = load_pixels(join_shots([sets["shots"], target]), encoder.preprocess)

    def made(former: Shots | None) -> EditResult:
        held = HeldOut(sets["base"])
        return edit(
            encoder, sets["shots"], sets["control"], reader, method=method, precision="float32", heldout=held, seed=0, limit=1,
            former=former,
        )  # fmt: skip

    whole, kept = made(None).delta.tensors, []
    for former in (target, swapped):
        labels = torch.from_numpy(np.concatenate([sets["shots"].labels, former.labels]))
        losses = {}
        for alpha in FORMER_ALPHAS:
            own = {t.name: values[t.name] + np.float32(alpha) * (apply_delta(values[t.name], t) - values[t.name]) for t in whole}
            rows = features(with_values(encoder, {**values, **own}), pixels)
            losses[alpha] = float(torch.nn.functional.cross_entropy(reader.logits(torch.from_numpy(rows)), labels))
        result = made(former)
        notes = result.info["payload"]
        assert notes["former_loss"] == pytest.approx({f"{alpha:g}": loss for alpha, loss in losses.items()}, rel=0.05)
        assert notes["alpha"] == float(min(notes["former_loss"], key=notes["former_loss"].__getitem__))
        kept.append(notes["alpha"])
        for ours, theirs in zip(result.delta.tensors, whole, strict=True):
            moved = [np.linalg.norm(apply_delta(values[t.name], t) - values[t.name]) for t in (ours, theirs)]
            assert moved[0] == pytest.approx(notes["alpha"] * moved[1], rel=0.02)
    assert kept[1] < kept[0]  # shots that contradict the new ones shorten the change
    assert "alpha" not in made(None).info["payload"]


@pytest.mark.parametrize("use", ["train", "both"])
def test_half_of_each_class_of_former_shots_trains_where_both_is_asked(encoder: Encoder, sets: dict[str, Shots], use: str) -> None:
    """The classes of the former shots alternate here, so every second image would be of one class."""
    reader, target = _reader(encoder, sets["base"]), sets["target"]
    order = [i for pair in zip(*(np.flatnonzero(target.labels == c) for c in (0, 1)), strict=False) for i in pair]
    former = make_shots([target.paths[i] for i in order], target.labels[order], target.classes, [target.groups[i] for i in order])
    pixels = load_pixels(former, encoder.preprocess)
    trained: list[torch.Tensor] = []
    chosen: list[int] = []

    def loss(rows: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if rows.requires_grad:
            trained.append(labels)
        else:
            chosen.append(len(labels))
        return torch.nn.functional.cross_entropy(reader.logits(rows), labels)

    method = replace(METHOD, steps=8, batch=4, former_use=use)
    result = edit(
        encoder, sets["shots"], sets["control"], reader, method=method, precision="float32", heldout=HeldOut(sets["base"]), seed=0,
        limit=1, former=former, loss=loss,
    )  # fmt: skip
    again = torch.cat(trained[-16:][1::2])  # of each step first the new shots, then former ones
    assert len(again) == 32
    assert set(again.tolist()) == {0, 1}
    judges = sum(chosen) // len(FORMER_ALPHAS) - len(sets["shots"].labels)
    assert judges == (len(pixels) // 2 if use == "both" else -len(sets["shots"].labels))
    assert ("alpha" in result.info["payload"]) == (use == "both")


def test_joined_sets_keep_every_image_its_class_by_name(sets: dict[str, Shots]) -> None:
    one, other = sets["shots"], sets["target"]
    turned = make_shots(other.paths, 1 - other.labels, other.classes[::-1], other.groups)
    both = join_shots([one, turned])
    names = [both.classes[label] for label in both.labels]
    assert names == [path.parent.name for path in (*one.paths, *other.paths)] and both.paths == one.paths + other.paths
    flat = make_shots(one.paths, np.full(len(one.paths), -1), (), one.groups)
    with pytest.raises(InputError, match="cannot join"):
        join_shots([one, flat])
