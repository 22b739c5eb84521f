"""Each engine answers like numpy before, after and back again, and refuses what it could not change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from edgeedit.bundle import Bundle
from edgeedit.device.engines import ort as aliased
from edgeedit.device.engines import ort_rebuild
from edgeedit.device.engines.choose import open_engine
from edgeedit.device.engines.ort_inputs import OrtInputsEngine
from edgeedit.device.engines.protocol import Staged
from edgeedit.digest import digest_file
from edgeedit.errors import IntegrityError, RefusedError

Array = np.ndarray[Any, Any]


def as_inputs(bundle: Bundle) -> Bundle:
    """The same Bundle with its patchable matrices as overridable graph inputs."""
    path = bundle.path / "model.onnx"
    model = onnx.load(str(path), load_external_data=False)
    for row in bundle.tensor_map.tensors:
        if row.editable:
            model.graph.input.append(onnx.helper.make_tensor_value_info(row.name, onnx.TensorProto.FLOAT, row.shape))
    onnx.save(model, str(path))
    return replace(bundle, mode="inputs")


def changed(bundle: Bundle, share: float) -> dict[str, Array]:
    rng = np.random.default_rng(5)
    new = {}
    for row in bundle.tensor_map.tensors:
        if row.editable:
            array = np.array(bundle.weights()[row.name])
            array[rng.random(array.shape) < share] += np.float32(0.25)
            new[row.name] = array
    return new


@pytest.mark.parametrize("mode", ["aliased", "inputs", "rebuild"])
@pytest.mark.parametrize("share", [0.01, 0.6])
def test_engine_follows_its_weights_and_returns_bit_for_bit(world: Any, reference: Any, mode: str, share: float) -> None:
    bundle = as_inputs(world.bundle) if mode == "inputs" else replace(world.bundle, mode=mode)
    engine = open_engine(bundle, bundle.weights(), threads=1)
    pixels = bundle.probes()
    first = engine.run(pixels)
    new = changed(bundle, share)
    old = {name: engine.weights[name].copy() for name in new}
    commit = engine.stage(new)
    assert np.array_equal(engine.run(pixels), first)  # staging shows nothing
    beside = commit.run(pixels) if isinstance(commit, Staged) and commit.run is not None else None
    assert (beside is None) == (mode == "aliased")
    assert np.array_equal(engine.run(pixels), first)  # nor does a probe of what is staged
    commit()
    after = engine.run(pixels)
    assert beside is None or np.array_equal(beside, after)
    assert np.abs(after - reference({**bundle.weights(), **new}, pixels)).max() < 1e-4
    assert not np.array_equal(after, first)
    fresh = open_engine(bundle, {**bundle.weights(), **new}, threads=1)
    assert np.array_equal(after.view(np.uint8), fresh.run(pixels).view(np.uint8))
    engine.swap(old)
    assert np.array_equal(engine.run(pixels).view(np.uint8), first.view(np.uint8))


def test_aliased_engine_is_audited_and_every_tensor_proven(world: Any) -> None:
    engine = aliased.OrtEngine(world.bundle, world.bundle.weights(), threads=1)
    assert engine.audited
    assert set(engine.proven) == {"first", "second"}


def test_tensor_that_the_session_does_not_report_is_refused(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aliased, "used_initialisers", lambda *_: frozenset({"first", "bias"}))
    with pytest.raises(RefusedError, match="does not use second"):
        aliased.OrtEngine(world.bundle, world.bundle.weights(), threads=1)


def test_inputs_engine_refuses_a_graph_with_constants_and_foreign_tensors(world: Any) -> None:
    with pytest.raises(RefusedError, match="as an input"):
        OrtInputsEngine(world.bundle, world.bundle.weights(), threads=1)
    engine = OrtInputsEngine(as_inputs(world.bundle), world.bundle.weights(), threads=1)
    with pytest.raises(IntegrityError, match="bias"):
        engine.stage({"bias": np.zeros(32, np.float32)})
    with pytest.raises(IntegrityError, match="first"):
        engine.stage({"first": np.zeros((32, 48), np.float32)})


def test_inputs_engine_keeps_two_sets_of_buffers_and_takes_only_the_last_staging(world: Any) -> None:
    engine = OrtInputsEngine(as_inputs(world.bundle), world.bundle.weights(), threads=1)
    pixels, old = world.bundle.probes(), {n: np.array(world.bundle.weights()[n]) for n in changed(world.bundle, 0.3)}
    before, first = engine.run(pixels), engine.weights["first"].ctypes.data
    older, newer = engine.stage(changed(world.bundle, 0.2)), engine.stage(changed(world.bundle, 0.3))
    with pytest.raises(RefusedError, match="staged weights are gone"):
        older()
    assert engine.run(pixels).tobytes() == before.tobytes()
    held = engine._binding
    newer()
    assert engine._former is held, "freed under the frame lock"
    with pytest.raises(RefusedError, match="second commit"):
        newer()
    fresh = OrtInputsEngine(as_inputs(world.bundle), {**world.bundle.weights(), **changed(world.bundle, 0.3)}, threads=1)
    assert engine.run(pixels).tobytes() == fresh.run(pixels).tobytes()
    back = engine.stage(old)
    assert engine._former is None
    back()
    assert engine.weights["first"].ctypes.data == first, "memory was taken anew"
    assert engine.run(pixels).tobytes() == before.tobytes()


def test_undo_of_a_rebuild_builds_nothing(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = ort_rebuild.OrtRebuildEngine(replace(world.bundle, mode="rebuild"), world.bundle.weights(), threads=1)
    new = changed(world.bundle, 0.3)
    old = {name: engine.weights[name].copy() for name in new}
    engine.swap(new)
    monkeypatch.setattr(engine, "_build", lambda _: pytest.fail("built again"))
    engine.swap(old)


class CachingSession:
    """A provider that keeps compiled models under a prefix and never looks at the weights, as a real one was seen to do."""

    cache: ClassVar[dict[str, Any]] = {}

    def __init__(self, path: str, options: Any, providers: list[Any], disabled_optimizers: list[str]) -> None:
        prefix = providers[0][1].get("prefix", "same")
        if prefix not in self.cache:
            self.cache[prefix] = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._inner = self.cache[prefix]

    def run(self, outputs: list[str], feed: Mapping[str, Array]) -> list[Array]:
        found: list[Array] = self._inner.run(outputs, feed)
        return found

    def get_providers(self) -> list[str]:
        return ["Caching"]


@pytest.mark.parametrize(("option", "stale"), [("prefix", False), ("", True)])
def test_stale_compiled_engine_never_runs(world: Any, reference: Any, monkeypatch: pytest.MonkeyPatch, option: str, stale: bool) -> None:
    CachingSession.cache = {}
    monkeypatch.setattr(ort, "InferenceSession", CachingSessionFactory(ort.InferenceSession))
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["Caching", "CPUExecutionProvider"])
    bundle = replace(world.bundle, mode="rebuild", provider="Caching", provider_options={"enable": "1"}, cache_prefix_option=option)
    engine = open_engine(bundle, bundle.weights(), threads=1)
    new = changed(bundle, 0.5)
    if stale:
        # Without the prefix the fake runs the old model; the engine sees it, and goes on answering as before.
        before = engine.run(bundle.probes())
        with pytest.raises(RefusedError, match="compiled engine of other weights"):
            engine.swap(new)
        assert engine.run(bundle.probes()).tobytes() == before.tobytes()
        assert np.array_equal(engine.weights["first"], bundle.weights()["first"])
        return
    engine.swap(new)
    golden = reference({**bundle.weights(), **new}, bundle.probes())
    assert np.abs(engine.run(bundle.probes()) - golden).max() < 1e-4
    assert len(CachingSession.cache) == 2


def with_golden(bundle: Bundle, golden: Array) -> Bundle:
    np.save(bundle.path / "golden.npy", golden.astype(np.float32))
    return replace(bundle, golden_digest=digest_file(bundle.path / "golden.npy"))


def test_cache_of_other_weights_at_the_start_is_seen_by_the_golden_outputs(
    world: Any, reference: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another application on the device filled the provider's cache under the same name."""
    CachingSession.cache = {}
    monkeypatch.setattr(ort, "InferenceSession", CachingSessionFactory(ort.InferenceSession))
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["Caching", "CPUExecutionProvider"])
    bundle = with_golden(world.bundle, reference(world.bundle.weights(), world.bundle.probes()))
    bundle = replace(bundle, mode="rebuild", provider="Caching", provider_options={"enable": "1"})
    other = {**bundle.weights(), **changed(bundle, 0.5)}
    open_engine(replace(bundle, golden_digest=""), other, threads=1)
    with pytest.raises(RefusedError, match="does not compute the encoder"):
        open_engine(bundle, bundle.weights(), threads=1)
    CachingSession.cache = {}
    open_engine(bundle, bundle.weights(), threads=1)


class CachingSessionFactory:
    """Makes CachingSessions for the fake provider and real sessions for the fake itself."""

    def __init__(self, real: Any) -> None:
        self._real = real

    def __call__(self, path: str, options: Any, providers: list[Any], **more: Any) -> Any:
        if providers == ["CPUExecutionProvider"]:
            return self._real(path, options, providers=providers)
        return CachingSession(path, options, providers, more["disabled_optimizers"])


class DeviceValue:
    """An OrtValue in another memory: a write to the host array does not reach it, only `update_inplace` does."""

    def __init__(self, array: Array) -> None:
        self.own = np.array(array)
        self.inner = ort.OrtValue.ortvalue_from_numpy(self.own)
        self.updates = 0

    def update_inplace(self, array: Array) -> None:
        self.updates += 1
        self.own[...] = array


def test_device_memory_is_written_by_the_same_protocol(world: Any, reference: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Values:
        @staticmethod
        def ortvalue_from_numpy(array: Array, device: str = "cpu", number: int = 0) -> Any:
            assert (device, number) == ("cuda", 0)
            return DeviceValue(array)

    class Options(ort.SessionOptions):
        def add_initializer(self, name: str, value: Any) -> None:
            super().add_initializer(name, value.inner)

    class Module:
        OrtValue, SessionOptions, capi = Values, Options, ort.capi
        InferenceSession, GraphOptimizationLevel = ort.InferenceSession, ort.GraphOptimizationLevel
        get_available_providers = staticmethod(ort.get_available_providers)

    monkeypatch.setattr(aliased, "load_ort", lambda: Module)
    bundle = replace(world.bundle, memory="cuda")
    engine = aliased.OrtEngine(bundle, bundle.weights(), threads=1)
    new = changed(bundle, 0.2)
    engine.swap(new)
    assert np.abs(engine.run(bundle.probes()) - reference({**bundle.weights(), **new}, bundle.probes())).max() < 1e-4


@pytest.mark.gpu
def test_weights_on_a_gpu_are_live(world: Any, reference: Any) -> None:
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        pytest.skip("gpu: needs onnxruntime-gpu and an NVIDIA GPU")
    bundle = replace(world.bundle, provider="CUDAExecutionProvider", memory="cuda")
    engine = open_engine(bundle, bundle.weights())
    new = changed(bundle, 0.2)
    engine.swap(new)
    assert np.abs(engine.run(bundle.probes()) - reference({**bundle.weights(), **new}, bundle.probes())).max() < 1e-2


def test_missing_provider_and_unknown_engine_are_refused(world: Any, tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="lacks the provider") as caught:
        open_engine(replace(world.bundle, mode="rebuild", provider="NoSuchProvider"), world.bundle.weights())
    assert caught.value.exit_code == 6
    with pytest.raises(RefusedError, match="no such engine"):
        open_engine(replace(world.bundle, engine="magic"), world.bundle.weights())
