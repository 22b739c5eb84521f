"""Builds a refittable TensorRT plan from a Bundle on the device, and says which versions of the library may be used.

Guarantees: flags are looked up by name, because their numbers differ between versions; REFIT_INDIVIDUAL with exactly the
patchable tensors marked where the library has it, REFIT otherwise, REFIT_IDENTICAL never; the network is strongly typed where
that can be asked for, so the precision is the graph's.  Int8 and DLA are refused (exit 6).  Does not run frames.
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

from edgeedit.bundle import MODEL_FILE, Bundle
from edgeedit.digest import digest_bytes
from edgeedit.errors import RefusedError
from edgeedit.files import replace_file

MAX_BATCH = 8  # images per run of a plan with a free batch
CACHE = "engine-cache"  # folder beside the bundle; may vanish
_MODULES = ("tensorrt", "tensorrt_rtx")


def load_trt(name: str) -> Any:
    """The module `name` (tensorrt or tensorrt_rtx); raises RefusedError when it is missing or of a version that cannot be patched."""
    if name not in _MODULES:
        raise RefusedError(f"no such TensorRT module: expected one of {', '.join(_MODULES)}, got {name}")
    try:
        trt = importlib.import_module(name)
    except ImportError as error:
        raise RefusedError(f"{name} is missing: {error}", hint="use the Python module of the device image") from error
    version = getattr(trt, "__version__", None)
    if version is None:
        # A folder of type stubs is importable too.
        raise RefusedError(f"{name} is missing: expected the library, got no version", hint="install the device's own module")
    check_version(name, str(version))
    return trt


def check_version(name: str, version: str) -> None:
    """Raise RefusedError with the reason for a version whose refit is missing or wrong."""
    found = re.match(r"(\d+)\.(\d+)", version)
    if found is None:
        raise RefusedError(f"{name} has no version: expected numbers, got {version}")
    if name != "tensorrt":
        return  # numbered on its own
    numbers = (int(found[1]), int(found[2]))
    if numbers[0] == 8:
        raise RefusedError(f"TensorRT {version} (JetPack 5) is not supported: it lacks refit by prototype", hint="update to JetPack 6")
    if numbers < (10, 3):
        raise RefusedError(f"TensorRT is too old: expected 10.3 or later, got {version}", hint="update the device image")
    if numbers == (11, 3):
        raise RefusedError(
            f"TensorRT {version} is refused: its refittable engines can lose the bias of a matrix product", hint="use 11.4 or 10.x"
        )


def check_bundle(bundle: Bundle) -> None:
    """Raise RefusedError for what a TensorRT engine of ours cannot patch."""
    if bundle.precision not in ("float32", "float16", "bfloat16"):
        raise RefusedError(f"TensorRT cannot be patched in {bundle.precision}: expected float32, float16 or bfloat16", hint="use float16")
    if any("dla" in key.lower() for key in bundle.provider_options):
        raise RefusedError("DLA cannot be patched: expected the GPU, got a DLA option", hint="remove the option from the profile")


def named(enum: Any, name: str) -> Any:
    """The enum member `name`, None where this version has none."""
    return getattr(enum, name, None)


def refit_flag(trt: Any) -> str:
    """REFIT_INDIVIDUAL (only marked tensors lose fusions) where this version has it and can mark, else REFIT."""
    individual = named(trt.BuilderFlag, "REFIT_INDIVIDUAL") is not None and hasattr(trt.INetworkDefinition, "mark_weights_refittable")
    return "REFIT_INDIVIDUAL" if individual else "REFIT"


def build_plan(trt: Any, logger: Any, bundle: Bundle) -> bytes:
    """The serialised, refittable plan of a Bundle's graph; raises RefusedError with the parser's or builder's reason."""
    check_bundle(bundle)
    builder = trt.Builder(logger)
    strong = named(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")
    network = builder.create_network(0 if strong is None else 1 << int(strong))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(bundle.path / MODEL_FILE)):
        reasons = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
        raise RefusedError(f"TensorRT cannot read the graph: {reasons[:200]}", hint="export for this device's profile")
    config = builder.create_builder_config()
    # TF32 rounds float32 products to 10 bits; the server evaluated float32.
    if bundle.precision == "float32" and (tf32 := named(trt.BuilderFlag, "TF32")) is not None:
        config.clear_flag(tf32)
    _mark(trt, config, network, bundle)
    if not bundle.batch:
        profile, shape = builder.create_optimization_profile(), bundle.input_shape
        profile.set_shape(bundle.input_name, (1, *shape), (1, *shape), (MAX_BATCH, *shape))
        config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise RefusedError("TensorRT cannot build the engine: expected a plan, got none", hint="look at the log above; free memory")
    return bytes(plan)


def _mark(trt: Any, config: Any, network: Any, bundle: Bundle) -> None:
    chosen = refit_flag(trt)
    config.set_flag(getattr(trt.BuilderFlag, chosen))
    if chosen == "REFIT":
        return
    for row in bundle.tensor_map.tensors:
        if row.editable and not network.mark_weights_refittable(row.name):
            raise RefusedError(f"TensorRT does not know the tensor {row.name}: expected a weight of the graph", hint="export again")


def plan_path(trt: Any, bundle: Bundle) -> Path:
    """Where the plan of this Bundle, library and version is kept."""
    key = digest_bytes("\0".join((bundle.graph_digest, bundle.fingerprint, trt.__name__, str(trt.__version__))).encode())
    return bundle.path.parent / CACHE / f"{key[:32]}.plan"


def cached_plan(trt: Any, logger: Any, bundle: Bundle) -> bytes:
    """The plan of this Bundle, library and version, built when it is not in the cache folder."""
    path = plan_path(trt, bundle)
    try:
        return path.read_bytes()
    except OSError:
        plan = build_plan(trt, logger, bundle)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, plan)
    return plan
