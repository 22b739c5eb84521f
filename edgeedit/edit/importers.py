"""Importers: a PEFT LoRA adapter, or the difference of two checkpoints, becomes a Delta.

Guarantees: every changed tensor is mapped or the import is refused by the names of those that cannot be; nothing is left out
in silence (`ignore` names patterns to leave out, and they are listed in the result); the result says what the integer form keeps.
Adapters and checkpoints are read as safetensors only, never by pickle.
"""

from __future__ import annotations

import fnmatch
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeedit.delta import TensorDelta
from edgeedit.edit.quantize import low_rank_part, sparse_part, survival
from edgeedit.encoder.encoder import Encoder
from edgeedit.encoder.values import parameter_values
from edgeedit.errors import InputError
from edgeedit.limits import MAX_RANK
from edgeedit.rounding import apply_delta

Array = np.ndarray[Any, Any]
_PEFT_PREFIXES = ("base_model.model.", "base_model.", "model.", "vision_tower.", "vision_model.", "wrapped.")


@dataclass(frozen=True)
class Imported:
    """`tensors` in integer form; `kept` 1 - |integer form - wanted| / |wanted| over all tensors (1 = nothing lost);
    `survival` share of the changed weights that still change after rounding to each precision; `ignored` names left out."""

    tensors: tuple[TensorDelta, ...]
    kept: float
    survival: Mapping[str, float]
    ignored: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Figures without the tensors."""
        return {"tensors": len(self.tensors), "kept": self.kept, "survival": dict(self.survival), "ignored": list(self.ignored)}


def read_tensors(path: Path) -> dict[str, Array]:
    """Tensors of a .safetensors file, or of all of them in a folder, as float32; raises InputError."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if not files or any(f.suffix != ".safetensors" for f in files):
        raise InputError(
            f"cannot read {path}: expected .safetensors, got none", hint="save with safe_serialization; pickles are not opened"
        )
    found: dict[str, Array] = {}
    try:
        for file in files:
            found.update({name: tensor.to(torch.float32).numpy() for name, tensor in load_file(file).items()})
    except (OSError, SafetensorError) as error:
        raise InputError(f"cannot read {path}: expected safetensors, got {error}") from error
    return found


def from_peft(encoder: Encoder, folder: Path, *, bits: int = 4, ignore: Sequence[str] = ()) -> Imported:
    """A saved PEFT LoRA adapter as low-rank parts: scale x B.A on whole weights, alpha / r or alpha / sqrt(r) (rsLoRA).

    Raises InputError naming what cannot be mapped: other adapter kinds, DoRA, biases, tensors the encoder does not hold."""
    config = _peft_config(folder)
    pairs: dict[str, dict[str, Array]] = {}
    refused, ignored = [], []
    for name, value in read_tensors(folder).items():
        module, _, part = name.partition(".lora_")
        side = part.split(".")[0]
        if _matches(name, ignore):
            ignored.append(name)
        elif side in ("A", "B") and value.ndim == 2:
            pairs.setdefault(module, {})[side] = value
        else:
            refused.append(name)
    shapes = {name: tuple(p.shape) for name, p in encoder.parameters_by_name().items()}
    wanted: dict[str, tuple[Array, Array]] = {}
    for module, sides in pairs.items():
        target = _known(f"{module}.weight", shapes)
        if target is None or set(sides) != {"A", "B"} or shapes[target] != (sides["B"].shape[0], sides["A"].shape[1]):
            refused.append(module)
            continue
        wanted[target] = (sides["B"] * np.float32(_lora_scale(config, module, sides["A"].shape[0])), sides["A"])
    _refuse(refused, "adapter")
    tensors = []
    for name, (left, right) in sorted(wanted.items()):
        factors = low_rank_part(np.arange(left.shape[0], dtype=np.int64), left, right) if left.any() and right.any() else None
        if factors is not None:
            tensors.append(TensorDelta(name, shapes[name], low_rank=factors))
    del bits  # factors are int8 always; the keyword keeps both importers' calls alike
    return _finish(encoder, tensors, {name: left @ right for name, (left, right) in wanted.items()}, ignored)


def _peft_config(folder: Path) -> Mapping[str, Any]:
    try:
        config: dict[str, Any] = json.loads((folder / "adapter_config.json").read_text("utf-8"))
        kind = config["peft_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"cannot read adapter {folder}: expected adapter_config.json of PEFT, got {error!r}") from error
    odd = [k for k in ("use_dora", "fan_in_fan_out", "modules_to_save", "trainable_token_indices", "layer_replication") if config.get(k)]
    if kind != "LORA" or odd or config.get("bias", "none") != "none":
        got = ", ".join([str(kind), *odd, *([f"bias {config['bias']}"] if config.get("bias", "none") != "none" else [])])
        raise InputError(f"adapter cannot be imported: expected a plain LoRA, got {got}", hint="merge it and use `import-checkpoint`")
    return config


def _lora_scale(config: Mapping[str, Any], module: str, rank: int) -> float:
    """alpha / r, with PEFT's per-module `alpha_pattern`; `rank` comes from the tensor, so `rank_pattern` needs no reading."""
    alpha = float(config["lora_alpha"])
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        if module.endswith(pattern):
            alpha = float(value)
    if rank > MAX_RANK:
        raise InputError(f"adapter rank is too large at {module}: expected at most {MAX_RANK}, got {rank}")
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def from_checkpoints(encoder: Encoder, tuned: Mapping[str, Array], *, bits: int = 4, ignore: Sequence[str] = ()) -> Imported:
    """The difference of `tuned` (parameter name -> float32 array) and `encoder` as sparse integers with a step per tensor.

    Raises InputError naming tensors that the encoder does not hold, that have another shape, or that the checkpoint lacks."""
    base = parameter_values(encoder, "float32")
    shapes = {name: a.shape for name, a in base.items()}
    differences: dict[str, Array] = {}
    refused, ignored = [], []
    for name, value in tuned.items():
        target = _known(name, shapes)
        if _matches(name, ignore) or name.endswith("mask_token"):
            ignored.append(name)
        elif target is None or shapes[target] != value.shape:
            refused.append(name)
        elif not np.isfinite(value).all():
            raise InputError(f"checkpoint is not usable: expected finite weights, got NaN or infinity in {name}")
        else:
            differences[target] = value.astype(np.float32) - base[target]
    lacking = sorted(n for n in base if n not in differences and not n.endswith("mask_token") and not _matches(n, ignore))
    _refuse([*refused, *(f"{n} (missing)" for n in lacking)], "checkpoint")
    tensors = []
    for name, difference in sorted(differences.items()):
        part = sparse_part(np.arange(difference.size, dtype=np.int64), difference.reshape(-1), bits)
        if part is not None:
            tensors.append(TensorDelta(name, tuple(difference.shape), sparse=part))
    return _finish(encoder, tensors, differences, ignored)


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, p) for p in patterns)


def _known(name: str, shapes: Mapping[str, Any]) -> str | None:
    """The encoder's own name for a tensor that may carry the prefixes of an outer model."""
    while name not in shapes:
        prefix = next((p for p in _PEFT_PREFIXES if name.startswith(p)), None)
        if prefix is None:
            return None
        name = name[len(prefix) :]
    return name


def _refuse(names: Sequence[str], what: str) -> None:
    if names:
        shown = ", ".join(sorted(names)[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        raise InputError(
            f"{what} cannot be mapped: expected tensors of the encoder only, got {shown}", hint="leave parts out with --ignore PATTERN"
        )


def _finish(encoder: Encoder, tensors: Sequence[TensorDelta], wanted: Mapping[str, Array], ignored: Sequence[str]) -> Imported:
    if not tensors:
        raise InputError("nothing to import: expected at least one tensor that differs, got none")
    base = parameter_values(encoder, "float32")
    made = {t.name: t for t in tensors}
    lost = size = 0.0
    counts = {kind: [0, 0] for kind in ("float32", "float16", "bfloat16")}
    for name, difference in wanted.items():
        target = difference.astype(np.float64)
        zero = np.zeros(difference.shape, dtype=np.float32)
        got = apply_delta(zero, made[name]).astype(np.float64) if name in made else zero
        lost, size = lost + float(((got - target) ** 2).sum()), size + float((target**2).sum())
        if name in made:
            new = apply_delta(base[name], made[name])
            for kind, row in counts.items():
                lived, changed = survival(base[name], new, kind)
                row[0], row[1] = row[0] + lived, row[1] + changed
    shares = {kind: (lived / changed if changed else 0.0) for kind, (lived, changed) in counts.items()}
    return Imported(tuple(tensors), 1.0 - (lost / size) ** 0.5, shares, tuple(sorted(ignored)))
