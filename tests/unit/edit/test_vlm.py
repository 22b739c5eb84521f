"""A language side as the reader: likelihoods against the whole model, gradients, frozen weights, controls, rivals, bad input."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from edgeedit.catalog import load_recipe
from edgeedit.edit.components import Judged, components_of, judge_rows
from edgeedit.edit.controls import ImageControls, image_controls
from edgeedit.edit.entries import entry_effects
from edgeedit.edit.evaluate import features, reader_labels
from edgeedit.edit.language import LanguageSide, load_language
from edgeedit.edit.lorsu import Lorsu
from edgeedit.edit.methods.language_lora import EncoderLanguage, LanguageLora
from edgeedit.edit.run import HeldOut, edit
from edgeedit.edit.shots import Shots, load_pixels, load_shots
from edgeedit.edit.vlm import AnswerLoss, VlmReader, vlm_reader, with_unit
from edgeedit.encoder.encoder import Encoder
from edgeedit.encoder.load import load_encoder
from edgeedit.encoder.values import parameter_values, with_values
from edgeedit.errors import EdgeEditError, InputError
from tests.support.families import SIDE
from tests.support.tiny_vlm import COLOUR, PROMPT, QUESTION, questions, save_tiny_llava, whole_model_scores

ANSWERS = ["red", "dark blue", "very dark blue", "very red", "dark"]  # one to three tokens, some begin others


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("vlm")
    save_tiny_llava(made / "model")
    return made


@pytest.fixture(scope="module")
def encoder(folder: Path) -> Encoder:
    return load_encoder(str(folder / "model"), load_recipe("llava-tokens"), size=SIDE)


@pytest.fixture(scope="module")
def language(folder: Path) -> LanguageSide:
    return load_language(str(folder / "model"), load_recipe("llava-tokens"), PROMPT)


@pytest.fixture(scope="module")
def sets(folder: Path) -> dict[str, Shots]:
    sizes = {"shots": 8, "control": 8, "target": 12, "kept": 12}
    found = {}
    for number, (name, count) in enumerate(sizes.items()):
        found[name] = load_shots(questions(folder / "images", name, count, second=True, start=number))
    return found


@pytest.fixture(scope="module")
def reader(language: LanguageSide, encoder: Encoder, sets: dict[str, Shots]) -> VlmReader:
    made = vlm_reader(language, encoder, list(sets.values()), amp="off")
    return with_unit(made, features(encoder, load_pixels(sets["control"], encoder.preprocess)))


def _pixels(count: int) -> torch.Tensor:
    return torch.randn(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("cached", [True, False])
def test_likelihoods_are_those_of_the_whole_model(folder: Path, encoder: Encoder, cached: bool) -> None:
    model = save_tiny_llava(folder / "again")
    pixels = _pixels(35)  # more than one batch
    expected = whole_model_scores(model, pixels, COLOUR, ANSWERS)
    side = LanguageSide(model, load_language(str(folder / "model"), load_recipe("llava-tokens"), PROMPT).tokenizer, encoder.recipe, PROMPT)
    side.cached = cached
    tokens = torch.from_numpy(features(encoder, pixels.numpy())).reshape(len(pixels), encoder.tokens, -1)
    got = side.scores(tokens, COLOUR, ANSWERS)
    assert torch.allclose(got, expected, atol=2e-5, rtol=0)
    assert got.std(dim=0).min() > 1e-5, "the image does not reach the answers: the comparison could not fail"


def test_answers_are_not_confused_by_the_order_of_the_list(language: LanguageSide, encoder: Encoder) -> None:
    tokens = torch.from_numpy(features(encoder, _pixels(3).numpy())).reshape(3, encoder.tokens, -1)
    forward, backward = (language.scores(tokens, COLOUR, answers) for answers in (ANSWERS, ANSWERS[::-1]))
    assert torch.allclose(forward, backward.flip(1), atol=1e-6)


def test_answer_loss_is_the_negative_log_likelihood(reader: VlmReader, encoder: Encoder) -> None:
    rows = torch.from_numpy(features(encoder, _pixels(4).numpy()))
    labels = torch.tensor(
        [reader.classes.index(f"{QUESTION} {a}") for a in ("yes", "no")] + [reader.classes.index(f"{COLOUR} dark blue")] * 2
    )
    expected = []
    for row, label in zip(rows, labels.tolist(), strict=True):
        question, answer = reader.pairs[label]
        answers = [reader.pairs[n][1] for n in reader.questions()[question]]
        expected.append(-reader.likelihoods(row[None], question)[0, answers.index(answer)])
    assert torch.allclose(AnswerLoss(reader)(rows, labels), torch.stack(expected).mean(), atol=1e-6)
    closed = -reader.logits(rows)[torch.arange(4), labels].mean()
    assert torch.allclose(AnswerLoss(reader, closed=True)(rows, labels), closed, atol=1e-6)
    assert torch.allclose(reader.logits(rows).exp().sum(1), torch.full((4,), 2.0), atol=1e-5)  # one for each question


def test_gradients_reach_the_features_and_no_weight(reader: VlmReader, encoder: Encoder) -> None:
    rows = torch.from_numpy(features(encoder, _pixels(2).numpy())).requires_grad_(True)
    AnswerLoss(reader)(rows, torch.tensor([0, 1])).backward()
    assert rows.grad is not None and (rows.grad.abs().sum(1) > 0).all()
    assert all(p.grad is None for p in reader.side.model.parameters())


@pytest.mark.parametrize("closed", [False, True])
def test_an_edit_changes_the_selection_and_nothing_of_the_language_side(
    encoder: Encoder, reader: VlmReader, sets: dict[str, Shots], closed: bool
) -> None:
    before = {name: value.clone() for name, value in reader.side.model.state_dict().items()}
    digest = reader.side.digest()
    result = edit(
        encoder, sets["shots"], sets["control"], reader, method=Lorsu(steps=3, patterns=2, heads=1, amp="off"), precision="float32",
        heldout=HeldOut(sets["target"], sets["kept"]), seed=0, limit=1.0, loss=AnswerLoss(reader, closed),
    )  # fmt: skip
    assert result.metrics.changed_count > 0 == result.metrics.outside_mask
    assert all(torch.equal(value, before[name]) for name, value in reader.side.model.state_dict().items())
    assert reader.side.digest() == digest
    asked = [row for row in result.info["verdicts"] if row["set"] == "target"]
    assert {row["before"].startswith(COLOUR) for row in asked} == {True, False}
    assert all(row["before"].startswith(COLOUR) == row["label"].startswith(COLOUR) for row in asked), "another question was answered"


def test_a_changed_language_side_is_noticed(encoder: Encoder, reader: VlmReader, sets: dict[str, Shots]) -> None:
    class Meddling:
        def __call__(self, found: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            del labels
            next(reader.side.model.parameters()).data[0] += 1e-3
            return found.square().mean()

    weight = next(reader.side.model.parameters())
    kept = weight.data.clone()
    try:
        with pytest.raises(EdgeEditError, match="reader changed during the edit"):
            edit(
                encoder, sets["shots"], sets["control"], reader, method=Lorsu(steps=1, patterns=0, heads=1, amp="off"),
                precision="float32", heldout=HeldOut(sets["target"], sets["kept"]), seed=0, limit=1.0, loss=Meddling(),
            )  # fmt: skip
    finally:
        weight.data.copy_(kept)


@pytest.mark.parametrize("kind", [LanguageLora, EncoderLanguage])
def test_language_rivals_change_a_copy(encoder: Encoder, reader: VlmReader, sets: dict[str, Shots], kind: type[LanguageLora]) -> None:
    digest = reader.side.digest()
    result = edit(
        encoder, sets["shots"], sets["control"], reader, method=kind(steps=3, rank=2, lr_low_rank=0.05, amp="off"), precision="float32",
        heldout=HeldOut(sets["target"], sets["kept"]), seed=0, limit=1.0, loss=AnswerLoss(reader),
    )  # fmt: skip
    assert reader.side.digest() == digest and result.reader is not None and result.reader.digest() != reader.digest()
    assert (result.metrics.changed_count > 0) == (kind is EncoderLanguage)
    tokens = result.features_before["target"]
    same, adapted = reader.logits_numpy(tokens), result.reader.logits_numpy(tokens)
    assert np.abs(same - adapted).max() > 1e-4, "the adapters do nothing"
    assert result.payload >= 2 * 2 * 4 * 2 * 32  # fp16 factors of four projections, rank 2


def test_image_controls_tell_a_reader_that_looks_from_one_that_does_not(
    encoder: Encoder, reader: VlmReader, sets: dict[str, Shots]
) -> None:
    labels = reader_labels(sets["target"], reader)
    found = features(encoder, load_pixels(sets["target"], encoder.preprocess))

    class Brightness(type(reader)):  # type: ignore[misc]
        def logits_numpy(self, rows: np.ndarray) -> np.ndarray:
            near = ((rows[:, None, :] - found[None]) ** 2).sum(-1).argmin(1)
            return np.eye(len(reader.classes))[labels[near]]

    looks = Brightness(**reader.__dict__)
    told = image_controls(encoder, looks, labels, found, seed=0)
    assert told.accuracy == 1.0 and told.reads_images and "answers use the image" in told.sentence()
    blind = image_controls(encoder, looks, labels, np.repeat(found[:1], len(found), 0), seed=0)
    assert not blind.reads_images and "NOT a VLM result" in blind.sentence()
    assert not ImageControls(10, 0.60, 0.505, 0.40).reads_images and ImageControls(10, 0.61, 0.505, 0.40).reads_images


def test_bad_input_is_refused_in_one_sentence(folder: Path, encoder: Encoder, language: LanguageSide, sets: dict[str, Shots]) -> None:
    plain = load_encoder(str(folder / "model"), load_recipe("llava"), size=SIDE)
    with pytest.raises(InputError, match="recipe with output patch-tokens, got llava"):
        vlm_reader(language, plain, list(sets.values()))
    with pytest.raises(InputError, match=r"expected a \.jsonl with question and answer"):
        vlm_reader(language, encoder, [replace(sets["shots"], pairs=())])
    with pytest.raises(InputError, match="same tokens"):
        language.ids(COLOUR, ["unknownword", "anotherunknown"])
    with pytest.raises(InputError, match="<image> exactly once"):
        load_language(str(folder / "model"), load_recipe("llava-tokens"), "no picture {question}")
    with pytest.raises(InputError, match=r"cannot load .*nothing"):
        load_language(str(folder / "nothing"), load_recipe("llava-tokens"))
    with pytest.raises(InputError, match="have no question"):
        vlm_reader(language, encoder, list(sets.values())).verdict_logits(np.zeros((2, 4)), np.array([-1, 0]))


def test_single_weights_are_estimated_through_the_questions_that_were_asked(
    encoder: Encoder, reader: VlmReader, sets: dict[str, Shots]
) -> None:
    old = parameter_values(encoder, "float32")
    name, rng = encoder.fc1_name(0), np.random.default_rng(0)
    step = (rng.normal(size=old[name].shape) * (rng.random(old[name].shape) < 0.2) * 0.05).astype(np.float32)
    new = {**old, name: old[name] + step}
    edited, target = with_values(encoder, new), sets["target"]
    judged = Judged("target", load_pixels(target, encoder.preprocess), reader_labels(target, reader), reader)
    effects = entry_effects(edited, old, components_of(edited, old, new), judged)

    def loss(part: float) -> float:
        mixed = {**new, name: (new[name] + np.float32(part) * (old[name] - new[name])).astype(np.float32)}
        return judge_rows(features(with_values(edited, mixed), judged.pixels), judged).loss

    assert set(effects) == {name} and len(reader.questions()) == 2
    assert float(effects[name].estimates.sum()) == pytest.approx((loss(0.5) - loss(-0.5)), rel=0.05)
