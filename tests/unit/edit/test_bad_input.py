"""Unusable input gets one sentence and exit code 2; the optimiser's state is as large as the selection."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from edgeedit.catalog import load_recipe
from edgeedit.edit.locality import choose
from edgeedit.edit.selection import Selected, Selection
from edgeedit.edit.settings import Settings
from edgeedit.edit.shots import Shots, load_pixels, load_shots
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
