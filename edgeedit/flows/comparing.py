"""One model in two forms on the same probes: torch, the graph, another Bundle's graph, or an engine that runs.

Guarantees: an engine is opened as the device's Runtime opens it, with the options of the Bundle's profile, and on a store with the weights
of its head; nothing is written but a plan that an engine keeps.  A device has no torch: `edgeedit compare` is a server's command, and
there `edgeedit doctor` and the golden outputs judge an engine.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from edgeedit.bundle import Bundle, load_bundle
from edgeedit.deploy.compare import compare, difference, run_graph
from edgeedit.deploy.layers import compare_layers, first_drift, graph_layers, torch_layers
from edgeedit.device.engines.choose import open_engine
from edgeedit.device.prepare import replay
from edgeedit.device.store import DATABASE, Store
from edgeedit.errors import InputError, MismatchError
from edgeedit.flows.server import encoder_of

Array = np.ndarray[Any, Any]


def compare_bundle(path: Path, other: Path | None = None, *, per_layer: bool = False, engine: bool = False) -> dict[str, Any]:
    """Bundle `path` on its own probes against what is named.

    other None          torch against the Bundle's graph, or with `engine` the graph against the engine of the Bundle's profile
    other a Bundle      graph against graph, or with `engine` against the other's engine
    other a store       the graph against the store's engine, with the weights of its head

    Returns `cosine_min`, `max_abs`, `mean_abs` (output units); with `per_layer` also each patchable matrix's input and the first that
    drifts ("" when none does).  Raises InputError for layers of an engine, MismatchError when the inputs differ in shape, RefusedError
    when the engine does not start.
    """
    bundle = load_bundle(path)
    pixels = bundle.probes()
    store = other is not None and (other / DATABASE).is_file()
    if store or engine:
        if per_layer:
            raise InputError(
                "no layers to compare: expected two graphs, got an engine, which shows its output only", hint="leave out --per-layer"
            )
        return _against_engine(bundle, pixels, other, store=store)
    if other is None and not per_layer:
        value: dict[str, Any] = compare(encoder_of(bundle), bundle).to_json()
        return value
    if other is None:
        left, right = torch_layers(encoder_of(bundle), bundle.precision, pixels), graph_layers(bundle, pixels)
    else:
        second = load_bundle(other)
        _check_input(bundle, second)
        left, right = graph_layers(bundle, pixels), graph_layers(second, pixels)
    layers = compare_layers(left, right)
    value = {key: number for key, number in layers[-1].to_json().items() if key != "name"}
    if per_layer:
        value |= {"layers": [layer.to_json() for layer in layers], "first_drift": first_drift(layers)}
    return value


def _against_engine(bundle: Bundle, pixels: Array, other: Path | None, *, store: bool) -> dict[str, Any]:
    found, outputs = _store_outputs(other, bundle, pixels) if other is not None and store else _bundle_outputs(other, bundle, pixels)
    return difference(run_graph(bundle.path, pixels), outputs).to_json() | {"engine": found}


def _bundle_outputs(other: Path | None, bundle: Bundle, pixels: Array) -> tuple[str, Array]:
    second = load_bundle(other) if other is not None else bundle
    _check_input(bundle, second)
    return f"{second.engine} {second.mode}".strip(), open_engine(second, second.weights()).run(pixels)


def _store_outputs(path: Path, bundle: Bundle, pixels: Array) -> tuple[str, Array]:
    with Store.open(path) as opened:
        second, head = opened.bundle, opened.head()
        _check_input(bundle, second)
        weights, _ = replay(second, [opened.patch(generation.patch) for generation in opened.chain(head.id)])
        return f"{second.engine} {second.mode}, generation {head.id}", open_engine(second, weights).run(pixels)


def _check_input(first: Bundle, second: Bundle) -> None:
    if second.input_shape != first.input_shape:
        raise MismatchError(f"bundles do not compare: expected input {first.input_shape}, got {second.input_shape}")
