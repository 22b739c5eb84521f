"""The Bundle in FOLDER was mapped from optimum's graph: every patchable parameter is there once, it runs, and a wrong source is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnx

from edgeedit.bundle import MODEL_FILE, load_bundle, verify_bundle
from edgeedit.catalog import load_profile, load_recipe
from edgeedit.deploy.compare import compare
from edgeedit.deploy.export import export_bundle
from edgeedit.device.engines.choose import open_engine
from edgeedit.encoder.load import load_encoder, random_encoder
from edgeedit.errors import InputError

SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96, "image_size": 28, "patch_size": 7}


def must(true: bool, what: str) -> None:
    """End with an exception unless `true`."""
    if not true:
        raise SystemExit(f"optimum: {what}")


def main() -> None:
    """Check the folder named on the command line."""
    folder = Path(sys.argv[1])
    bundle, graph = load_bundle(folder / "bundle"), folder / "onnx" / "model.onnx"
    verify_bundle(bundle)
    encoder = load_encoder(str(folder / "model"), load_recipe("siglip"), size=28)
    held = sorted(t.parameter for t in bundle.tensor_map.tensors if t.editable)
    must(held == sorted(encoder.editable()), "a patchable parameter is missing")
    found = compare(encoder, bundle)
    must(found.max_abs <= bundle.tolerance, f"features differ by {found.max_abs}")
    engine = open_engine(bundle, bundle.weights(), threads=1)
    pixels = np.array(bundle.probes()[:1])
    before, name = engine.run(pixels), next(t.name for t in bundle.tensor_map.tensors if t.editable)
    engine.swap({name: bundle.weights()[name] * 2})
    must(not np.array_equal(engine.run(pixels), before), "a patch changes nothing")
    other = random_encoder(load_recipe("siglip"), SHAPE, seed=8)
    try:
        export_bundle(other, folder / "other", profile=load_profile("linux-cpu"), precision="float32", ready=graph)
    except InputError as error:
        refused = error.message
    else:
        raise SystemExit("optimum: the graph of another encoder was taken")
    made = onnx.load(str(graph), load_external_data=False)
    mine = onnx.load(str(bundle.path / MODEL_FILE), load_external_data=False)
    value = {"producer": f"{made.producer_name} {made.producer_version}", "initialisers": len(made.graph.initializer), "refused": refused}
    value |= {"patchable": len(held), "max_abs": found.max_abs, "tolerance": bundle.tolerance, "nodes": len(mine.graph.node)}
    print(json.dumps(value, indent=1))


if __name__ == "__main__":
    main()
