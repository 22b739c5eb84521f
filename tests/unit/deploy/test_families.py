"""Contract of every family in the catalogue: loaded from its own checkpoint, read as its user reads it, edited, exported.

The table in `export/README.md` is written from these results (EDGEEDIT_WRITE_SNAPSHOTS=1) and must agree with them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import transformers

from edgeedit.catalog import load_profile, load_recipe, names
from edgeedit.deploy.export import export_bundle
from edgeedit.encoder.encoder import Encoder
from edgeedit.encoder.load import load_encoder
from edgeedit.errors import InputError
from tests.support.families import FAMILIES, SIDE, TEXT, VISION, save_checkpoint

TABLE = Path(__file__).parents[3] / "export" / "README.md"
LOADED = [f for f in FAMILIES if f != "timm-vit"]  # timm needs torchvision, see the last test
REFUSED = ("qwen2-vl", "qwen2.5-vl", "siglip2-naflex")


def _side(family: str) -> int:
    return 8 * 14 if family == "dinov2-tokens" else SIDE  # its four tokens need 8 x 8 patches


def _pixels(side: int = SIDE) -> torch.Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))


def _read_by_user(family: str, model: Any, pixels: torch.Tensor) -> torch.Tensor:
    """The features as the family's own whole model computes them, without edgeedit."""
    if family == "llava-tokens":
        return _submodule(model, "vision_tower")(pixel_values=pixels, output_hidden_states=True).hidden_states[-2][:, 1:].flatten(1)
    if family == "dinov2-tokens":  # rows of patches from the top left; each quarter of the picture is one token
        tokens = model(pixel_values=pixels).last_hidden_state[:, 1:].unflatten(1, (8, 8))
        quarters = [tokens[:, down : down + 4, right : right + 4].flatten(1, 2).mean(1) for down in (0, 4) for right in (0, 4)]
        return torch.cat(quarters, 1)
    if family == "llava":
        found = _submodule(model, "vision_tower")(pixel_values=pixels, output_hidden_states=True)
        return found.hidden_states[-2][:, 1:].mean(1)
    if family in ("paligemma", "internvl"):
        tokens = _submodule(model, "vision_tower")(pixel_values=pixels).last_hidden_state
        return tokens.mean(1) if family == "paligemma" else tokens[:, 1:].mean(1)
    if family == "smolvlm":
        return model.model.vision_model(pixel_values=pixels).last_hidden_state.mean(1)
    found = model(pixel_values=pixels)
    if family == "clip":
        return found.image_embeds
    if family == "siglip":
        return found.pooler_output
    tokens, first = found.last_hidden_state, 3 if family == "dinov3" else 1
    return torch.cat([tokens[:, 0], tokens[:, first:].mean(1)], 1)


def _submodule(model: Any, name: str) -> Any:
    return getattr(model, name) if hasattr(model, name) else getattr(model.model, name)


def _bundle_matches(encoder: Encoder, folder: Path) -> float:
    """Export, run the graph in ONNX Runtime; the largest difference to torch.  The map must hold every editable parameter."""
    bundle = export_bundle(encoder, folder, profile=load_profile("linux-cpu"), precision="float32", probes=None, seed=0)
    mapped = {t.parameter for t in bundle.tensor_map.tensors}
    assert set(encoder.editable()) <= mapped
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    pixels = _pixels(encoder.preprocess.size)[:1]
    got = session.run(None, {session.get_inputs()[0].name: pixels.numpy()})[0]
    with torch.no_grad():
        return float(np.abs(got - encoder(pixels).numpy()).max())


@pytest.mark.parametrize("family", LOADED)
def test_family_is_read_edited_and_exported(family: str, tmp_path: Path) -> None:
    recipe = load_recipe(family)
    if not hasattr(transformers, recipe.model_class):  # only in the run with an old transformers
        with pytest.raises(InputError, match="too old"):
            load_encoder(str(tmp_path), recipe, size=SIDE)
        return
    model = save_checkpoint(family, tmp_path / "checkpoint")
    encoder = load_encoder(str(tmp_path / "checkpoint"), recipe, size=_side(family))
    assert encoder.blocks == 3 - recipe.drop_blocks and encoder.heads == 4
    assert len(encoder.editable()) == 4 * encoder.blocks
    pixels = _pixels(_side(family))
    with torch.no_grad():
        assert torch.allclose(encoder(pixels), _read_by_user(family, model, pixels), atol=1e-6)
    encoder(pixels).square().sum().backward()
    parameters = encoder.parameters_by_name()
    for name in encoder.editable():
        gradient = parameters[name].grad
        assert gradient is not None and float(gradient.abs().max()) > 0, name
    assert _bundle_matches(encoder, tmp_path / "bundle") < 2e-5


def test_a_tower_that_normalises_its_output_cannot_be_cut(tmp_path: Path) -> None:
    """With a SigLIP tower inside LLaVA the cut tower would end with a norm that the language model never saw."""
    vision = transformers.SiglipVisionConfig(**VISION)
    config = transformers.LlavaConfig(vision_config=vision, text_config=transformers.LlamaConfig(**TEXT), image_token_index=63)
    transformers.LlavaForConditionalGeneration(config).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="cannot be cut for llava"):
        load_encoder(str(tmp_path), load_recipe("llava"), size=SIDE)


def test_a_checkpoint_of_another_family_is_refused(tmp_path: Path) -> None:
    save_checkpoint("clip", tmp_path)
    with pytest.raises(InputError, match=r"is no ViTModel|cannot load"):
        load_encoder(str(tmp_path), load_recipe("vit"), size=SIDE)


_TIMM = """
import sys, torch
sys.path.append(sys.prefix + "/timm")  # installed there by `make install`
from pathlib import Path
from tests.support.families import SIDE, timm_model, without_torchvision, _scramble
without_torchvision()
from edgeedit.catalog import load_recipe
from edgeedit.encoder.load import finish
from edgeedit.encoder.timm_tower import TimmTower, plain, timm_tower
from edgeedit.errors import InputError
from timm.models.vision_transformer import VisionTransformer
import timm
model = timm_model(); _scramble(model)
pixels = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
with torch.no_grad():
    tokens = model.forward_features(pixels).clone()
encoder = finish(plain(model, "vit", VisionTransformer), load_recipe("timm-vit"), SIDE)
with torch.no_grad():
    got = encoder(pixels)
assert torch.allclose(got, torch.cat([tokens[:, 0], tokens[:, 1:].mean(1)], 1), atol=1e-6), "split q/k/v gives other numbers"
assert len(encoder.editable()) == 12 and encoder.parameters_by_name()[encoder.qkv_names(0)[1]].shape == (32, 32)
from tests.unit.deploy.test_families import _bundle_matches
assert _bundle_matches(encoder, Path(sys.argv[1]) / "bundle") < 2e-5
whole = timm.create_model("vit_tiny_patch16_224", pretrained=False)
file = Path(sys.argv[1]) / "tiny.pth"; torch.save(whole.state_dict(), file)
loaded = timm_tower(f"vit_tiny_patch16_224@{file}")
assert all(torch.equal(a, b) for a, b in zip(loaded.model.state_dict().values(), whole.state_dict().values(), strict=True))
wrong = {"vit_tiny_patch16_224": "no such checkpoint", f"resnet18@{file}": "cannot load", f"none@{file}": "cannot load"}
for source, word in wrong.items():
    try:
        timm_tower(source)
    except InputError as error:
        assert word in str(error), error
    else:
        raise AssertionError(source)
try:
    plain(timm.create_model("resnet18", pretrained=False), "resnet18", VisionTransformer)
except InputError as error:
    assert "got ResNet" in str(error), error
else:
    raise AssertionError("a convolutional model was taken")
print("timm fits")
"""


def test_timm_vit_fits_in_a_process_of_its_own(tmp_path: Path) -> None:
    """torchvision is not part of any environment of this project; a stand-in takes its place, in another process."""
    done = subprocess.run(
        [sys.executable, "-c", _TIMM, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[3],
        timeout=300,
    )
    assert done.returncode == 0 and "timm fits" in done.stdout, done.stderr[-3000:]


def test_the_table_of_families_is_true() -> None:
    rows = ["| recipe | model class | features | blocks never read | status |", "|---|---|---|---|---|"]
    for name in sorted(set(names("export")) - set(REFUSED)):
        assert name in FAMILIES, f"{name} has no contract test"
        recipe = load_recipe(name)
        rows.append(f"| `{name}` | {recipe.model_class} | {recipe.output} | {recipe.drop_blocks} | loaded, edited and exported by tests |")
    for name in REFUSED:
        with pytest.raises(InputError) as caught:
            load_recipe(name)
        rows.append(f"| `{name}` | - | - | - | refused: {str(caught.value).split('got ')[1]} |")
    text = TABLE.read_text("utf-8")
    before, _, rest = text.partition("<!-- families -->\n")
    expected = f"{before}<!-- families -->\n" + "\n".join(rows) + "\n<!-- end -->" + rest.partition("<!-- end -->")[2]
    if os.environ.get("EDGEEDIT_WRITE_SNAPSHOTS"):
        TABLE.write_text(expected, "utf-8")
    assert text == expected or os.environ.get("EDGEEDIT_WRITE_SNAPSHOTS")
