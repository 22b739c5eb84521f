"""Importers against PEFT itself (merge_and_unload) and against plain differences."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file

from edgeedit.edit.importers import from_checkpoints, from_peft, read_tensors
from edgeedit.encoder.encoder import Encoder
from edgeedit.encoder.values import parameter_values
from edgeedit.errors import InputError
from edgeedit.rounding import apply_delta


def _adapter(encoder: Encoder, folder: Path, **settings: Any) -> dict[str, np.ndarray]:
    """Save an adapter with random factors; returns the weights that PEFT itself makes of it."""
    twin = copy.deepcopy(encoder)
    targets = [n.removesuffix(".weight") for n in (*twin.qkv_names(0), twin.fc1_name(1))]
    model = get_peft_model(twin.wrapped, LoraConfig(r=4, lora_alpha=6, target_modules=targets, **settings))  # type: ignore[arg-type]
    torch.manual_seed(5)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    model.save_pretrained(str(folder))
    merged = model.merge_and_unload()
    return {n: p.detach().numpy() for n, p in merged.named_parameters()}


@pytest.mark.parametrize("rslora", [False, True])
def test_an_adapter_becomes_what_peft_merges(encoder: Encoder, tmp_path: Path, rslora: bool) -> None:
    merged = _adapter(encoder, tmp_path / "a", use_rslora=rslora)
    found = from_peft(encoder, tmp_path / "a")
    base = parameter_values(encoder, "float32")
    assert {t.name for t in found.tensors} == {n for n in base if not np.array_equal(base[n], merged[n])}
    lost = size = 0.0
    for tensor in found.tensors:
        new, wanted = apply_delta(base[tensor.name], tensor), merged[tensor.name]
        lost += float(((new.astype(np.float64) - wanted) ** 2).sum())
        size += float(((wanted.astype(np.float64) - base[tensor.name]) ** 2).sum())
    assert 1 - (lost / size) ** 0.5 == pytest.approx(found.kept, abs=1e-4)
    assert found.kept > 0.97
    assert 0 < found.survival["bfloat16"] <= found.survival["float16"] <= found.survival["float32"]


def test_what_cannot_be_mapped_is_refused_by_name(encoder: Encoder, tmp_path: Path) -> None:
    _adapter(encoder, tmp_path / "a")
    file = tmp_path / "a" / "adapter_model.safetensors"
    tensors = {n: torch.from_numpy(v) for n, v in read_tensors(file).items()}
    tensors["base_model.model.language.head.lora_A.weight"] = torch.zeros(4, 32)
    tensors["base_model.model.language.head.lora_B.weight"] = torch.zeros(8, 4)
    save_file(tensors, file)
    with pytest.raises(InputError, match=r"language\.head"):
        from_peft(encoder, tmp_path / "a")
    found = from_peft(encoder, tmp_path / "a", ignore=["*language.head*"])
    assert len(found.ignored) == 2
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    for change in ({"use_dora": True}, {"peft_type": "IA3"}, {"bias": "all"}):
        (tmp_path / "a" / "adapter_config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(InputError, match="plain LoRA"):
            from_peft(encoder, tmp_path / "a", ignore=["*language.head*"])
    (tmp_path / "a" / "adapter_config.json").write_text("[]")
    with pytest.raises(InputError, match="adapter_config"):
        from_peft(encoder, tmp_path / "a")


def test_two_checkpoints_become_their_difference(encoder: Encoder) -> None:
    base = parameter_values(encoder, "float32")
    rng = np.random.default_rng(0)
    changed = [encoder.fc1_name(0), next(n for n in base if n.endswith("norm1.bias"))]
    tuned = {n: a.copy() for n, a in base.items()}
    for name in changed:
        tuned[name] += rng.normal(0, 1e-3, tuned[name].shape).astype(np.float32)
    found = from_checkpoints(encoder, {f"vision_model.{n}": a for n, a in tuned.items()})
    assert [t.name for t in found.tensors] == sorted(changed)
    for tensor in found.tensors:
        step = tensor.sparse.step if tensor.sparse else 0.0
        assert np.abs(apply_delta(base[tensor.name], tensor) - tuned[tensor.name]).max() <= 0.51 * step
    finer = from_checkpoints(encoder, tuned, bits=7)
    assert finer.kept > found.kept > 0.9
    with pytest.raises(InputError, match="nothing to import"):
        from_checkpoints(encoder, base)
    with pytest.raises(InputError, match=r"extra\.weight"):
        from_checkpoints(encoder, {**tuned, "extra.weight": np.zeros(3, np.float32)})
    with pytest.raises(InputError, match=r"fc1.weight \(missing\)"):
        from_checkpoints(encoder, {n: a for n, a in tuned.items() if n != encoder.fc1_name(0)})
    with pytest.raises(InputError, match="finite"):
        from_checkpoints(encoder, {**tuned, changed[0]: np.full_like(base[changed[0]], np.nan)})


def test_a_pickle_is_never_opened(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(2)}, tmp_path / "model.bin")
    for path in (tmp_path, tmp_path / "model.bin"):
        with pytest.raises(InputError, match=r"expected \.safetensors"):
            read_tensors(path)
    (tmp_path / "broken.safetensors").write_bytes(b"123")
    with pytest.raises(InputError, match="expected safetensors"):
        read_tensors(tmp_path / "broken.safetensors")
