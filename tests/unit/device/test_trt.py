"""The TensorRT engine against a fake that enforces the library's rules, and the fake against the published signatures."""

from __future__ import annotations

import importlib.util
import re
import types
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeedit.device.engines import trt_plan
from edgeedit.device.engines.trt import TrtEngine
from edgeedit.errors import IntegrityError, RefusedError

Array = np.ndarray[Any, Any]


def _load_fake() -> types.ModuleType:
    path = Path(__file__).parents[2] / "support" / "fake_tensorrt.py"
    spec = importlib.util.spec_from_file_location("fake_tensorrt", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


fake = _load_fake()


def change(world: Any, names: tuple[str, ...] = ("first", "second"), by: float = 0.5) -> dict[str, Array]:
    return {name: (np.array(world.weights[name]) + np.float32(by)) for name in names}


@pytest.mark.parametrize(
    ("version", "individual", "asynchronous"),
    [("10.3.0", True, True), ("10.13.3.9", True, True), ("10.16.2", True, False), ("11.4.1", True, True), ("10.3.0", False, False)],
)
def test_refit_follows_the_weights_and_returns(world: Any, reference: Any, version: str, individual: bool, asynchronous: bool) -> None:
    module = fake.Module(version, individual=individual, asynchronous=asynchronous)
    engine = TrtEngine(world.bundle, world.weights, module=module, memory=fake.Memory())
    flags = {flag.name for flag in module.configs[0].flags}
    assert flags == ({"REFIT_INDIVIDUAL"} if individual else {"REFIT"})
    assert module.networks[0][0] == 1 << 1  # strongly typed
    assert {"first", "second"} <= engine.refittable and (("bias" in engine.refittable) != individual)
    pixels = world.bundle.probes()
    before = engine.run(pixels)
    assert np.abs(before - reference(world.weights, pixels)).max() < 1e-4
    commit = engine.stage(change(world))
    assert np.array_equal(engine.run(pixels), before)
    commit()
    assert np.abs(engine.run(pixels) - reference({**world.weights, **change(world)}, pixels)).max() < 1e-4
    engine.swap({name: world.weights[name] for name in ("first", "second")})
    assert np.array_equal(engine.run(pixels), before)


def test_earlier_patch_leaves_nothing_behind(world: Any, reference: Any) -> None:
    engine = TrtEngine(world.bundle, world.weights, module=fake.Module(), memory=fake.Memory())
    engine.swap(change(world, ("first",)))
    engine.swap({"first": world.weights["first"]})
    engine.swap(change(world, ("second",)))
    engine.swap(change(world, ("second",), by=0.75))
    wanted = reference({**world.weights, **change(world, ("second",), by=0.75)}, world.bundle.probes())
    assert np.abs(engine.run(world.bundle.probes()) - wanted).max() < 1e-4


def test_half_done_refit_never_reaches_a_frame(world: Any, reference: Any) -> None:
    module = fake.Module()
    engine = TrtEngine(world.bundle, world.weights, module=module, memory=fake.Memory())
    before = engine.run(world.bundle.probes())
    module.Refitter.fail_next = True
    with pytest.raises(RefusedError, match="refused the refit") as caught:
        engine.swap(change(world))
    assert caught.value.exit_code == 6
    assert np.array_equal(engine.run(world.bundle.probes()), before)
    loads = len(engine._runtime.engines)
    engine.swap(change(world))
    assert len(engine._runtime.engines) == loads + 1  # from the plan again
    assert not any(loaded.ran_broken for loaded in engine._runtime.engines)
    assert np.abs(engine.run(world.bundle.probes()) - reference({**world.weights, **change(world)}, world.bundle.probes())).max() < 1e-4


@pytest.mark.parametrize("individual", [True, False])
def test_missing_weights_come_from_the_base(world: Any, reference: Any, individual: bool) -> None:
    module = fake.Module(individual=individual)
    module.Refitter.groups = (frozenset({"first", "second"} if individual else {"first", "bias"}),)
    engine = TrtEngine(world.bundle, world.weights, module=module, memory=fake.Memory())
    engine.swap(change(world, ("first",)))
    wanted = reference({**world.weights, **change(world, ("first",))}, world.bundle.probes())
    assert np.abs(engine.run(world.bundle.probes()) - wanted).max() < 1e-4


def test_engine_starts_on_a_patched_generation(world: Any, reference: Any) -> None:
    weights = {**world.weights, **change(world)}
    engine = TrtEngine(world.bundle, weights, module=fake.Module(), memory=fake.Memory())
    assert np.abs(engine.run(world.bundle.probes()) - reference(weights, world.bundle.probes())).max() < 1e-4


def test_plan_is_built_once_and_kept_apart_by_version(world: Any) -> None:
    for version, builds in (("10.3.0", 1), ("10.3.0", 0), ("10.13.0", 1)):
        module = fake.Module(version)
        TrtEngine(world.bundle, world.weights, module=module, memory=fake.Memory())
        assert len(module.configs) == builds


def test_many_images_are_cut_into_runs_that_the_plan_allows(world: Any, reference: Any) -> None:
    pixels = np.random.default_rng(0).normal(size=(19, 3, 4, 4)).astype(np.float32)
    engine = TrtEngine(world.bundle, world.weights, module=fake.Module(), memory=fake.Memory())
    assert np.abs(engine.run(pixels) - reference(world.weights, pixels)).max() < 1e-4


def test_rounding_cast_and_foreign_tensor_are_refused(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    module = fake.Module()
    engine = TrtEngine(world.bundle, world.weights, module=module, memory=fake.Memory())
    with pytest.raises(IntegrityError, match="bias"):
        engine.stage({"bias": np.zeros(32, np.float32)})
    monkeypatch.setattr(module, "nptype", lambda _: np.float16)
    with pytest.raises(RefusedError, match="float16"):
        engine.stage(change(world, by=0.1))


def test_output_that_moves_when_the_same_weights_are_set_is_refused(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    module = fake.Module()
    plain = module.Refitter.refit_cuda_engine

    def loses_a_weight(refitter: Any) -> bool:
        done: bool = plain(refitter)
        refitter._engine.values["second"] = np.zeros((32, 8), np.float32)
        return done

    monkeypatch.setattr(module.Refitter, "refit_cuda_engine", loses_a_weight)
    with pytest.raises(RefusedError, match="moved the output"):
        TrtEngine(world.bundle, world.weights, module=module, memory=fake.Memory())


@pytest.mark.parametrize(
    ("version", "reason"),
    [("8.5.2", "JetPack 5"), ("8.6.1", "JetPack 5"), ("10.2.0", "too old"), ("11.3.0", "bias"), ("what", "no version")],
)
def test_version_that_cannot_be_patched_is_refused_with_its_reason(version: str, reason: str) -> None:
    with pytest.raises(RefusedError, match=reason) as caught:
        trt_plan.check_version("tensorrt", version)
    assert caught.value.exit_code == 6


@pytest.mark.parametrize("version", ["10.3.0", "10.13.3.9", "10.16.2.10", "11.4.1"])
def test_version_that_can_be_patched_is_taken(version: str) -> None:
    trt_plan.check_version("tensorrt", version)
    trt_plan.check_version("tensorrt_rtx", "1.7.1")


def test_int8_dla_and_missing_module_are_refused(world: Any) -> None:
    for bundle in (replace(world.bundle, precision="int8"), replace(world.bundle, provider_options={"use_DLA": "0"})):
        with pytest.raises(RefusedError, match="cannot be patched") as caught:
            TrtEngine(bundle, world.weights, module=fake.Module(), memory=fake.Memory())
        assert caught.value.exit_code == 6
    for name in ("tensorrt", "tensorrt_rtx", "other"):  # a folder of type stubs is not the library
        with pytest.raises(RefusedError, match=name):
            trt_plan.load_trt(name)


def test_tensor_unknown_to_the_parser_is_refused(world: Any) -> None:
    row = world.bundle.tensor_map.by_name()["first"]
    rows = tuple(replace(r, name="other") if r is row else r for r in world.bundle.tensor_map.tensors)
    bundle = replace(world.bundle, tensor_map=replace(world.bundle.tensor_map, tensors=rows))
    with pytest.raises(RefusedError, match="does not know the tensor other"):
        trt_plan.build_plan(fake.Module(), fake.Logger(), bundle)


def _published() -> dict[str, dict[str, list[list[str]]]]:
    """Class -> method -> the parameter names of its overloads, from the published type stubs."""
    files = metadata.files("tensorrt-stubs") or []  # a dev dependency: pip install --no-deps tensorrt-stubs==10.13.0.35.1
    text = next(f for f in files if str(f).endswith("tensorrt_bindings/tensorrt.pyi")).read_text()
    found: dict[str, dict[str, list[list[str]]]] = {}
    methods: dict[str, list[list[str]]] = {}
    # Line by line: the stubs are not quite Python (a default before a parameter without one).
    for line in text.splitlines():
        if head := re.match(r"class (\w+)", line):
            methods = found.setdefault(head[1], {})
        elif head := re.match(r"    def (\w+)\(self(.*)\) ->", line):
            methods.setdefault(head[1], []).append(re.findall(r"(\w+)\s*:", head[2]))
    return found


@pytest.mark.parametrize(
    "name", ["INetworkDefinition", "IOptimizationProfile", "IBuilderConfig", "OnnxParser", "IExecutionContext", "ICudaEngine", "Runtime",
             "AsyncRefitter", "Refitter", "Builder"]
)  # fmt: skip
def test_fake_has_the_published_signatures(name: str) -> None:
    published = _published()[{"AsyncRefitter": "Refitter"}.get(name, name)]
    checked = 0
    for method, function in vars(getattr(fake, name)).items():
        if method.startswith("_") or not isinstance(function, types.FunctionType) or method == "names":
            continue
        given = list(function.__code__.co_varnames[1 : function.__code__.co_argcount])
        assert given in published[method], f"{name}.{method}"
        checked += 1
    assert checked
