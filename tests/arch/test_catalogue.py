"""Catalogue contracts: every recipe and profile in the tree is read, complete and says where its figures come from."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeedit.catalog import load_profile, load_recipe, names
from edgeedit.errors import InputError


def test_known_recipes_and_profiles_are_listed() -> None:
    assert {"dinov2", "clip", "siglip"} <= set(names("export"))
    assert {"linux-cpu", "linux-cpu-fp16"} <= set(names("devices"))


@pytest.mark.parametrize("name", names("export"))
def test_recipe_names_every_part_with_a_block(name: str) -> None:
    recipe = load_recipe(name)
    for part in ("q", "k", "v", "o", "fc1", "fc2"):
        assert recipe.names[part]
        assert all("{block}" in pattern for pattern in recipe.names[part])
    assert 0 < recipe.preprocess.size <= 1024


@pytest.mark.parametrize("name", names("devices"))
def test_profile_is_complete(name: str) -> None:
    profile = load_profile(name)
    assert profile.engine in {"onnxruntime", "tensorrt"}
    assert profile.opset >= 17
    assert profile.notes
    assert profile.memory_mb is None or profile.memory_mb > 0


def test_unknown_name_lists_what_there_is() -> None:
    with pytest.raises(InputError, match="dinov2") as caught:
        load_recipe("resnet")
    assert caught.value.exit_code == 2


def test_own_file_is_accepted_and_a_missing_field_is_named(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "devices" / "linux-cpu.toml").read_text("utf-8")
    own = tmp_path / "mine.toml"
    own.write_text(text, "utf-8")
    assert load_profile(str(own)).name == "mine"
    own.write_text(text.replace("opset", "upset"), "utf-8")
    with pytest.raises(InputError, match="opset"):
        load_profile(str(own))
