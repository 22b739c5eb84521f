"""`edgeedit build-engine`: the plan lies where the Runtime looks, is proven by golden outputs, and a refused one is not kept."""

from __future__ import annotations

import importlib.util
import json
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from edgeedit.bundle import Bundle, load_bundle, save_bundle
from edgeedit.cli.main import run
from edgeedit.device import build_engine as building
from edgeedit.device.engines import trt_plan
from edgeedit.device.engines.trt import TrtEngine
from edgeedit.device.store import Store
from edgeedit.digest import digest_file
from edgeedit.errors import InputError, RefusedError


def _load_fake() -> types.ModuleType:
    path = Path(__file__).parents[2] / "support" / "fake_tensorrt.py"
    spec = importlib.util.spec_from_file_location("fake_tensorrt", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


fake = _load_fake()


@pytest.fixture
def bundle(world: Any, reference: Any) -> Bundle:
    np.save(world.bundle.path / "golden.npy", reference(world.weights, world.bundle.probes()).astype(np.float32))
    golden = digest_file(world.bundle.path / "golden.npy")
    made = replace(world.bundle, engine="tensorrt", mode="refit", provider="tensorrt", golden_digest=golden)
    save_bundle(made)
    return made


# Version, whether it can mark single weights, whether it refits on a stream: JetPack 6, 7.0/7.1, 7.2, data centre, RTX.
MATRIX = [("10.3.0", True), ("10.13.3.9", True), ("10.16.2.10", True), ("11.4.1", True), ("10.3.0", False)]


@pytest.mark.parametrize(("version", "individual"), MATRIX)
def test_built_once_marked_and_proven(bundle: Bundle, version: str, individual: bool) -> None:
    module = fake.Module(version, individual=individual)
    built = building.build_engine(bundle, module=module, memory=fake.Memory())
    assert (built.refit, built.cached) == ("REFIT_INDIVIDUAL" if individual else "REFIT", False)
    assert built.refittable == (2 if individual else 3)
    assert built.golden_gap < 1e-4
    assert Path(built.plan).stat().st_size == built.bytes
    assert module.configs[0].cleared == {"TF32"}  # float32 means float32
    again = fake.Module(version, individual=individual)
    TrtEngine(bundle, bundle.weights(), module=again, memory=fake.Memory())
    assert not again.configs  # the Runtime's engine found the plan
    assert building.build_engine(bundle, module=again, memory=fake.Memory()).cached


def test_rtx_module_has_a_plan_of_its_own(bundle: Bundle) -> None:
    first = building.build_engine(bundle, module=fake.Module("1.7.1"), memory=fake.Memory())
    rtx = fake.Module("1.7.1")
    rtx.__name__ = "tensorrt_rtx"
    second = building.build_engine(bundle, module=rtx, memory=fake.Memory())
    assert (second.module, second.cached) == ("tensorrt_rtx", False)
    assert first.plan != second.plan


def test_engine_that_loses_a_bias_is_refused_and_not_kept(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """What TensorRT 11.3.0 is reported to do: the bias is gone before any refit, so a refit of the same weights moves nothing."""
    plain = fake.ICudaEngine.__init__

    def loses_the_bias(engine: Any, plan: bytes) -> None:
        plain(engine, plan)
        for tensor in engine.model.graph.initializer:
            if tensor.name == "bias":
                tensor.raw_data = bytes(len(tensor.raw_data))

    monkeypatch.setattr(fake.ICudaEngine, "__init__", loses_the_bias)
    with pytest.raises(RefusedError, match="does not compute the encoder") as caught:
        building.build_engine(bundle, module=fake.Module(), memory=fake.Memory())
    assert caught.value.exit_code == 6
    assert not list((bundle.path.parent / trt_plan.CACHE).glob("*"))


def test_a_bundle_for_another_engine_needs_no_build(bundle: Bundle) -> None:
    with pytest.raises(InputError, match="nothing to build"):
        building.build_engine(replace(bundle, engine="onnxruntime", mode="aliased"))


@pytest.mark.parametrize("change", [{"precision": "int8"}, {"provider_options": {"useDLACore": "0"}}])
def test_int8_and_dla_are_refused_before_the_library_is_looked_for(bundle: Bundle, change: dict[str, Any]) -> None:
    with pytest.raises(RefusedError, match="cannot be patched"):
        building.build_engine(replace(bundle, **change))


def test_command_builds_for_a_store(bundle: Bundle, world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = tmp_path / "store"
    Store.create(store, bundle.path, [world.public]).close()
    plain = building.build_engine
    monkeypatch.setattr(building, "build_engine", lambda found: plain(found, module=fake.Module(), memory=fake.Memory()))
    from edgeedit.cli.main import cli

    done = CliRunner().invoke(cli, ["build-engine", "--store", str(store), "--json"])
    assert done.exit_code == 0, done.output
    value = json.loads(done.stdout)
    assert Path(value["plan"]).is_relative_to(store)
    assert load_bundle(store / "base").golden() is not None


def test_command_without_the_library_ends_with_6(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["build-engine", str(bundle.path)]) == 6
    assert "tensorrt is missing" in capsys.readouterr().err
    assert run(["build-engine"]) == 2
