"""Unusable input gets one sentence and exit code 2; the optimiser's state is as large as the selection."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from edgeedit.catalog import load_recipe
from edgeedit.edit.evaluate import features
from edgeedit.edit.locality import choose
from edgeedit.edit.lorsu import Lorsu
from edgeedit.edit.readers import Reader, fit_linear, load_reader, save_reader
from edgeedit.edit.run import HeldOut, edit
from edgeedit.edit.selection import Selected, Selection
from edgeedit.edit.settings import Settings
from edgeedit.edit.shots import Shots, load_pixels, load_shots, make_shots
from edgeedit.edit.train import _optimiser
from edgeedit.encoder.encoder import Encoder
from edgeedit.encoder.values import with_values
from edgeedit.errors import InputError


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
