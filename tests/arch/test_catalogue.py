"""Catalogue contracts: every recipe and profile in the tree is read, complete and says where its figures come from."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from edgeedit.catalog import load_profile, load_recipe, names
from edgeedit.errors import InputError


def test_known_recipes_and_profiles_are_listed() -> None:
    assert {"dinov2", "clip", "siglip"} <= set(names("export"))
    assert {"linux-cpu", "linux-cpu-fp16"} <= set(names("devices"))


REFUSED = ("qwen2-vl", "qwen2.5-vl", "siglip2-naflex")


@pytest.mark.parametrize("name", REFUSED)
def test_a_family_that_cannot_be_edited_is_refused_by_name(name: str) -> None:
    with pytest.raises(InputError, match=f"family {re.escape(name)} is not supported: expected .* got packed patches") as caught:
        load_recipe(name)
    assert caught.value.exit_code == 2 and caught.value.hint


@pytest.mark.parametrize("name", sorted(set(names("export")) - set(REFUSED)))
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
    assert profile.batch >= 0 and profile.threads >= 0
    assert bool(profile.cache_prefix_option) <= (profile.mode == "rebuild")
    # A comment says where the figures come from.
    text = (Path(__file__).parents[2] / "devices" / f"{name}.toml").read_text("utf-8")
    assert text.startswith("# ")
    assert profile.engine != "tensorrt" or "JetPack" in text or "RTX" in text


def test_every_promised_device_has_a_profile() -> None:
    promised = {"linux-cpu", "linux-cpu-inputs", "linux-cuda", "rtx", "jetson-agx-thor", "jetson-xavier"}
    promised |= {f"jetson-orin-{kind}" for kind in ("nano-4gb", "nano-8gb", "nx-8gb", "nx-16gb")} | {
        "jetson-agx-orin-32gb",
        "jetson-agx-orin-64gb",
    }
    assert promised <= set(names("devices"))
    assert "JetPack 5" in load_profile("jetson-xavier").unsupported


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [('mode = "aliased"', 'mode = "refit"', "refit"), ("threads", "thread_count = 1\nthreads", "thread_count")],
)
def test_wrong_or_unknown_field_is_named(tmp_path: Path, old: str, new: str, named: str) -> None:
    text = (Path(__file__).parents[2] / "devices" / "linux-cpu.toml").read_text("utf-8")
    own = tmp_path / "mine.toml"
    own.write_text(text.replace(old, new), "utf-8")
    with pytest.raises(InputError, match=named):
        load_profile(str(own))


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
