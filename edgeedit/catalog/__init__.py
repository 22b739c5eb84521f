"""The catalogue: recipes of encoder families (`export/`) and profiles of devices (`devices/`), one TOML file each.

Guarantees: a catalogue name or a path to the user's own file is accepted; a wrong field is an InputError that names it.
The files are data with no code; supporting a new encoder or device is adding a file.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from importlib import resources
from pathlib import Path
from typing import Any

from edgeedit.bundle import Preprocess
from edgeedit.errors import InputError, RefusedError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_ROOTS = {"export": "export", "devices": "devices"}
_MODES: Mapping[str, tuple[str, ...]] = {"onnxruntime": ("aliased", "inputs", "rebuild"), "tensorrt": ("refit",)}
_PRECISIONS = ("float32", "float16", "bfloat16", "int8")
_PARTS = ("q", "k", "v", "o", "fc1", "fc2")
_OUTPUTS = ("cls+mean", "patch-mean", "patch-tokens", "pooled")


@dataclass(frozen=True)
class Recipe:
    """How a family's vision tower is found and named.  `names` maps q, k, v, o, fc1, fc2 to alternative module names with
    `{block}`; `output` is `cls+mean` (final norm's class token beside the mean patch token), `patch-mean` (mean over the
    patch tokens that a vision-language model reads), `patch-tokens` (those tokens side by side, each the mean of `pool` x `pool`
    neighbours: what a language side reads) or `pooled`; the first `skip` tokens are no patches.  `towers` are the
    places of the vision tower inside `model_class` (empty: the model is the tower); `drop_blocks` last blocks are never
    read by the language model and are cut off, so nothing can edit them.  `options` go to the model's constructor."""

    name: str
    family: str
    model_class: str
    config_class: str
    names: Mapping[str, tuple[str, ...]]
    output: str
    preprocess: Preprocess
    sources: tuple[str, ...]
    skip: int = 1
    towers: tuple[str, ...] = ()
    drop_blocks: int = 0
    options: Mapping[str, bool] = field(default_factory=dict)
    pool: int = 1


@dataclass(frozen=True)
class DeviceProfile:
    """A device or runtime target.  `memory_mb` (mebibytes of RAM shared by CPU and GPU) is None where unknown; `unsupported` is the
    reason why nothing is exported for it, "" where it is supported.  The words for the engine are those of `Bundle`."""

    name: str
    engine: str
    provider: str
    precision: str
    threads: int
    opset: int
    memory_mb: int | None
    probes_first: bool
    python: tuple[str, ...]
    notes: str
    mode: str = "aliased"
    memory: str = "host"
    batch: int = 0
    provider_options: Mapping[str, str] = field(default_factory=dict)
    cache_prefix_option: str = ""
    unsupported: str = ""
    soak_frames: int = 8
    soak_seconds: float = 5.0
    max_slowdown: float = 3.0
    max_growth_mb: int = 0
    monitor_seconds: float = 10.0
    monitor_frames: int = 32
    monitor_windows: int = 512
    false_alarms: float = 0.1


def check_precision(profile: DeviceProfile, precision: str) -> None:
    """Raise RefusedError (exit 6) with the reason when nothing in `precision` is exported for `profile`."""
    if profile.unsupported:
        raise RefusedError(f"profile {profile.name} is not supported: {profile.unsupported}", hint="choose another profile")
    if precision == "int8" and (profile.engine, profile.mode, profile.provider) != ("onnxruntime", "rebuild", "CPUExecutionProvider"):
        raise RefusedError(
            f"profile {profile.name} cannot run patchable int8: expected a session that is rebuilt (CPUExecutionProvider), got "
            f"{profile.engine} {profile.mode} ({profile.provider})",
            hint="choose linux-cpu-int8, or another precision",
        )
    if precision == "bfloat16" and profile.engine != "tensorrt":
        raise RefusedError(
            f"profile {profile.name} cannot run bfloat16: expected TensorRT, got {profile.provider}, which has no bfloat16 MatMul here",
            hint="choose a TensorRT profile, or float16",
        )


_PROFILE_FIELDS = {item.name for item in fields(DeviceProfile)} - {"name"}


def _folder(kind: str) -> Path:
    installed = Path(str(resources.files("edgeedit.catalog"))) / _ROOTS[kind]
    if installed.is_dir():
        return installed
    # In a source checkout that is on sys.path without being installed the catalogue lies at the top level.
    return Path(__file__).resolve().parents[2] / _ROOTS[kind]


def names(kind: str) -> tuple[str, ...]:
    """Sorted catalogue names; `kind` is `export` or `devices`."""
    return tuple(sorted(path.stem for path in _folder(kind).glob("*.toml")))


def engine_script(name: str) -> str:
    """A part of the shell scripts that other update engines run on a device (`devices/engines/`)."""
    return (_folder("devices") / "engines" / f"{name}.sh").read_text("utf-8")


def _read(kind: str, name_or_path: str) -> tuple[dict[str, Any], Path]:
    path = Path(name_or_path)
    if path.suffix != ".toml":
        path = _folder(kind) / f"{name_or_path}.toml"
    try:
        return tomllib.loads(path.read_text("utf-8")), path
    except OSError as error:
        known = ", ".join(names(kind))
        raise InputError(f"not in the catalogue: expected one of {known} or a .toml file, got {name_or_path}") from error
    except ValueError as error:
        raise InputError(f"cannot read {path}: expected TOML, got {error}") from error


def load_recipe(name_or_path: str) -> Recipe:
    """Read a recipe by catalogue name or path; raises InputError naming the wrong field, or why the family is refused."""
    value, path = _read("export", name_or_path)
    if "refused" in value:
        raise InputError(
            f"family {path.stem} is not supported: expected a tower that takes one image as a pixel array, got {value['refused']}",
            hint=str(value.get("hint", "")),
        )
    try:
        pre = value["preprocess"]
        mean, std = (tuple(float(x) for x in pre[key]) for key in ("mean", "std"))
        parts = {part: tuple(value["names"][part]) for part in _PARTS}
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0 or value["output"] not in _OUTPUTS:
            raise InputError(f"recipe {path} is wrong: expected 3 means, 3 positive stds and output {', '.join(_OUTPUTS)}")
        return Recipe(
            path.stem,
            str(value["family"]),
            str(value["model_class"]),
            str(value["config_class"]),
            parts,
            str(value["output"]),
            Preprocess(int(pre["size"]), (mean[0], mean[1], mean[2]), (std[0], std[1], std[2])),
            tuple(value["sources"]),
            int(value.get("skip", 1)),
            tuple(value.get("towers", ())),
            int(value.get("drop_blocks", 0)),
            dict(value.get("options", {})),
            int(value.get("pool", 1)),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"recipe {path} is wrong: expected field {error}", hint="compare with export/dinov2.toml") from error


def load_profile(name_or_path: str) -> DeviceProfile:
    """Read a device profile by catalogue name or path; raises InputError naming the wrong field."""
    value, path = _read("devices", name_or_path)
    try:
        memory, mode = value["memory_mb"], str(value["mode"])
        if mode not in _MODES.get(str(value["engine"]), ()):
            raise InputError(f"profile {path} is wrong: expected engine and mode of {dict(_MODES)}, got {value['engine']} {mode}")
        if value["precision"] not in _PRECISIONS:
            raise InputError(f"profile {path} is wrong: expected precision {', '.join(_PRECISIONS)}, got {value['precision']}")
        profile = DeviceProfile(
            path.stem,
            str(value["engine"]),
            str(value["provider"]),
            str(value["precision"]),
            int(value["threads"]),
            int(value["opset"]),
            None if memory == "unknown" else int(memory),
            bool(value["probes_first"]),
            tuple(value["python"]),
            str(value["notes"]),
            mode,
            str(value.get("memory", "host")),
            int(value.get("batch", 0)),
            {str(k): str(v) for k, v in value.get("provider_options", {}).items()},
            str(value.get("cache_prefix_option", "")),
            str(value.get("unsupported", "")),
            int(value.get("soak_frames", 8)),
            float(value.get("soak_seconds", 5.0)),
            float(value.get("max_slowdown", 3.0)),
            int(value.get("max_growth_mb", 0)),
            float(value.get("monitor_seconds", 10.0)),
            int(value.get("monitor_frames", 32)),
            int(value.get("monitor_windows", 512)),
            float(value.get("false_alarms", 0.1)),
        )
        if unknown := sorted(set(value) - _PROFILE_FIELDS):
            raise InputError(
                f"profile {path} is wrong: expected known fields, got {unknown[0]}", hint="compare with devices/linux-cpu.toml"
            )
        return profile
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"profile {path} is wrong: expected field {error}", hint="compare with devices/linux-cpu.toml") from error
