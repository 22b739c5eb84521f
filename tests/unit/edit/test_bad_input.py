"""Unusable input gets one sentence and exit code 2; the optimiser's state is as large as the selection."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from edgeedit.catalog import load_recipe
from edgeedit.edit.evaluate import features
from edgeedit.edit.locality import choose
from edgeedit.edit.lorsu import Lorsu
from edgeedit.edit.pixels import check_pixels
from edgeedit.edit.readers import Reader, fit_linear, load_reader, save_reader
from edgeedit.edit.run import HeldOut, edit
from edgeedit.edit.selection import Selected, Selection
from edgeedit.edit.settings import Settings
from edgeedit.edit.shots import Shots, load_pixels, load_shots, make_shots
from edgeedit.edit.train import _optimiser
from edgeedit.encoder.encoder import Encoder
from edgeedit.encoder.values import with_values
from edgeedit.errors import InputError
from edgeedit.flows.elpv import read_cells


def _refused(error: pytest.ExceptionInfo[InputError]) -> None:
    assert error.value.exit_code == 2
    assert "\n" not in str(error.value)


def test_an_image_with_nan_is_refused(encoder: Encoder, sets: dict[str, Shots], tmp_path: Path) -> None:
    path = tmp_path / "nan.tiff"
    Image.fromarray(np.full((28, 28), np.nan, np.float32)).save(path)
    with pytest.raises(InputError, match="8 bits per channel") as error:
        load_pixels(replace(sets["shots"], paths=(path,)), encoder.preprocess)
    _refused(error)


def test_one_class_is_refused(tmp_path: Path) -> None:
    (tmp_path / "only").mkdir()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "only" / "a.png")
    with pytest.raises(InputError, match="one class is missing") as error:
        load_shots(tmp_path)
    _refused(error)


def test_an_encoder_without_a_recipe_is_refused() -> None:
    with pytest.raises(InputError, match="not in the catalogue") as error:
        load_recipe("no-such-tower")
    _refused(error)


def test_shots_that_are_also_control_images_are_refused(encoder: Encoder, sets: dict[str, Shots], tmp_path: Path) -> None:
    copy = tmp_path / "other-name.png"
    copy.write_bytes(sets["shots"].paths[3].read_bytes())
    control = make_shots([*sets["control"].paths, copy], np.full(17, -1), (), [str(n) for n in range(17)])
    with pytest.raises(InputError, match="shots overlap the control images") as error:
        _edit(encoder, sets, _reader(encoder, sets), control)
    _refused(error)


def test_a_reader_of_another_normalisation_is_refused(encoder: Encoder, sets: dict[str, Shots], tmp_path: Path) -> None:
    seen = encoder.preprocess
    for wrong in (replace(seen, mean=(0.5, 0.5, 0.5)), replace(seen, std=(1.0, 1.0, 1.0)), replace(seen, size=seen.size * 2)):
        save_reader(replace(_reader(encoder, sets), preprocess=wrong), tmp_path / "reader.npz")
        with pytest.raises(InputError, match="another normalisation") as error:
            _edit(encoder, sets, load_reader(tmp_path / "reader.npz"), sets["control"])
        _refused(error)
    save_reader(replace(_reader(encoder, sets), preprocess=seen), tmp_path / "reader.npz")
    fits = load_reader(tmp_path / "reader.npz")
    assert fits.preprocess == seen and fits.digest() == _reader(encoder, sets).digest()
    _edit(encoder, sets, fits, sets["control"])
    save_reader(_reader(encoder, sets), tmp_path / "old.npz")  # one that says nothing, as an older file, is taken
    assert load_reader(tmp_path / "old.npz").preprocess is None


def _pictures(folder: Path, arrays: list[np.ndarray[Any, Any]]) -> Shots:
    folder.mkdir()
    for number, array in enumerate(arrays):
        Image.fromarray(array).save(folder / f"{number}.png")
    return load_shots(folder)


def test_pictures_of_cast_numbers_are_refused(encoder: Encoder, tmp_path: Path) -> None:
    """Standardised and 0..1 pixels that someone stored as bytes: wrapped, clipped, or rounded to 0 and 1."""
    rng = np.random.default_rng(0)
    standard = (rng.random((40, 40, 3)) - 0.45) / 0.225
    for name, array in {
        "wrapped": standard.astype(np.int64).astype(np.uint8),
        "clipped": np.clip(standard, 0, 255).astype(np.uint8),
        "unit": rng.random((40, 40, 3)).round().astype(np.uint8),
    }.items():
        with pytest.raises(InputError, match="not pictures of 8 bits") as error:
            load_pixels(_pictures(tmp_path / name, [array, array[::-1].copy()]), encoder.preprocess)
        _refused(error)


def test_dark_bright_flat_and_binary_pictures_are_taken(encoder: Encoder, tmp_path: Path) -> None:
    rng, shape = np.random.default_rng(0), (40, 40, 3)
    sets = {
        "black": [np.zeros(shape, np.uint8)],
        "white": [np.full(shape, 255, np.uint8)],
        "overexposed": [rng.integers(253, 256, shape, np.uint8)],
        "dark": [rng.integers(0, 6, shape, np.uint8)],
        "one dark": [rng.integers(0, 3, shape, np.uint8), rng.integers(90, 160, shape, np.uint8)],
        "flat": [np.full(shape, level, np.uint8) for level in (4, 124, 128, 140, 252)],
        "grey": [rng.integers(124, 161, shape, np.uint8)],  # all between 0 and 1 after the normalisation
        "binary": [(rng.integers(0, 2, shape) * 255).astype(np.uint8)],
    }
    for name, arrays in sets.items():
        pixels = load_pixels(_pictures(tmp_path / name, arrays), encoder.preprocess)
        for one in pixels[:, None]:
            check_pixels(one, encoder.preprocess)


def test_every_real_cell_passes_alone() -> None:
    """Every thirtieth of the electroluminescence images, some nearly black: none may be taken for wrongly normalised."""
    cells = read_cells()[::30]
    assert len(cells) > 70
    for recipe in ("dinov2", "siglip"):
        preprocess = replace(load_recipe(recipe).preprocess, size=56)
        for cell in cells:
            check_pixels(load_pixels(make_shots([cell.path], np.array([0]), ("a", "b"), ["g"]), preprocess), preprocess)


@pytest.mark.parametrize("recipe", ["dinov2", "siglip"])
def test_pixel_arrays_of_another_normalisation_are_refused(sets: dict[str, Shots], recipe: str) -> None:
    preprocess = replace(load_recipe(recipe).preprocess, size=28)
    right = load_pixels(sets["base"], preprocess)
    mean, std = (np.asarray(v, np.float32).reshape(3, 1, 1) for v in (preprocess.mean, preprocess.std))
    unit = right * std + mean
    check_pixels(right, preprocess)
    check_pixels(right + np.random.default_rng(0).normal(0, 0.2, right.shape).astype(np.float32), preprocess)  # overshoot of a filter
    for wrong in (unit, unit * 255, (right - mean) / std, (unit * 255 - mean) / std):
        with pytest.raises(InputError, match="normalised otherwise") as error:
            check_pixels(wrong, preprocess)
        _refused(error)
    with pytest.raises(InputError, match="not finite"):
        check_pixels(np.full_like(right, np.nan), preprocess)


def test_features_refuse_what_is_not_normalised(encoder: Encoder, sets: dict[str, Shots]) -> None:
    right = load_pixels(sets["base"], encoder.preprocess)
    with pytest.raises(InputError, match="normalised otherwise"):
        features(encoder, right * 255)


def _reader(encoder: Encoder, sets: dict[str, Shots]) -> Reader:
    base = sets["base"]
    return fit_linear(features(encoder, load_pixels(base, encoder.preprocess)), base.labels, base.classes)


def _edit(encoder: Encoder, sets: dict[str, Shots], reader: Reader, control: Shots) -> None:
    held, method = HeldOut(sets["target"]), Lorsu(steps=1, batch=2, patterns=0)
    edit(encoder, sets["shots"], control, reader, method=method, precision="float32", heldout=held, seed=0, limit=1.0)


@pytest.mark.parametrize("share", [0.01, 0.1])
def test_optimiser_state_is_proportional_to_the_selection(encoder: Encoder, share: float) -> None:
    rng = np.random.default_rng(0)
    encoder = with_values(encoder, {})  # frozen, as `edit` trains on
    parameters = encoder.parameters_by_name()
    gradients = {n: rng.normal(size=parameters[n].shape).astype(np.float32) for n in encoder.editable()}
    locality = choose(encoder, gradients, share, 0)
    chosen = sum(index.size for index in locality.entries.values())
    assert chosen == pytest.approx(share * sum(parameters[n].numel() for n in locality.entries), rel=0.02)
    model = Selected(encoder, Selection(encoder, locality, 1, torch.Generator().manual_seed(0)), "off")
    settings = Settings(share=share, heads=0)
    optimiser = _optimiser(model.groups(settings), settings)
    pixels = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))

    def backward(found: torch.Tensor) -> float:
        found.square().mean().backward()
        return 0.0

    model.run(pixels, backward, rounded=False)
    optimiser.step()
    moments = sum(v.numel() for state in optimiser.state.values() for v in state.values() if v.ndim)
    assert moments == 2 * chosen
    assert all(p.grad is None for p in parameters.values()), "a frozen weight took a gradient"
