"""A `tensorrt` stand-in that enforces the published rules of building, refitting and running; ONNX Runtime does the arithmetic.

Rules: only marked weights (or all, with REFIT) can be set; count and dtype must equal the prototype's; refit returns False and
leaves a part of the new values behind when a weight of a group is missing; weights are read when the refit runs, so a buffer freed
before is garbage; an engine under refit must not be running; unset weights keep their last value; flags have other numbers in
each major version.  A context runs only when all addresses and the input shape are set.
"""

from __future__ import annotations

import ctypes
import enum
import json
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper

Array = np.ndarray[Any, Any]


class Memory:
    """Host memory with the face of `CudaMemory`."""

    stream = 7

    def __init__(self) -> None:
        self._buffers: dict[str, Array] = {}

    def buffer(self, name: str, nbytes: int) -> int:
        if name not in self._buffers or self._buffers[name].nbytes < nbytes:
            self._buffers[name] = np.zeros(nbytes, np.uint8)
        return int(self._buffers[name].ctypes.data)

    def upload(self, address: int, array: Array) -> None:
        ctypes.memmove(address, array.ctypes.data, array.nbytes)

    def download(self, array: Array, address: int) -> None:
        ctypes.memmove(array.ctypes.data, address, array.nbytes)

    def wait(self) -> None:
        pass


class Weights:
    """Held by reference, like the real ones."""

    def __init__(self, array: Array) -> None:
        self.array = weakref.ref(array)
        self.dtype, self.size = array.dtype, array.size


class _Prototype:
    def __init__(self, dtype: Any, size: int) -> None:
        self.dtype, self.size = dtype, size


class NetworkDefinitionCreationFlag(enum.IntEnum):
    EXPLICIT_BATCH = 0
    STRONGLY_TYPED = 1


class Logger:
    WARNING = 2

    def __init__(self, min_severity: int = WARNING) -> None:
        self.min_severity = min_severity


class INetworkDefinition:
    def __init__(self) -> None:
        self.model = onnx.ModelProto()
        self.marked: list[str] = []

    def names(self) -> set[str]:
        return {t.name for t in self.model.graph.initializer if t.data_type in (1, 10)}

    def mark_weights_refittable(self, name: str) -> bool:
        if name not in self.names():
            return False
        self.marked.append(name)
        return True


class IOptimizationProfile:
    def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:
        self.largest = tuple(max)


class IBuilderConfig:
    def __init__(self) -> None:
        self.flags: set[Any] = set()
        self.cleared: set[str] = set()
        self.profile: IOptimizationProfile | None = None

    def set_flag(self, flag: Any) -> None:
        self.flags.add(flag)

    def clear_flag(self, flag: Any) -> None:
        self.flags.discard(flag)
        self.cleared.add(flag.name)

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        self.profile = profile
        return 0


class OnnxParser:
    num_errors = 1

    def __init__(self, network: INetworkDefinition, logger: Logger) -> None:
        self._network = network

    def parse_from_file(self, model: str) -> bool:
        if not Path(model).is_file():
            return False
        self._network.model = onnx.load(model)
        return True

    def get_error(self, index: int) -> str:
        return "no such file"


class IExecutionContext:
    def __init__(self, engine: ICudaEngine) -> None:
        self._engine = engine
        self._addresses: dict[str, int] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}

    def set_input_shape(self, name: str, shape: Any) -> bool:
        self._shapes[name] = tuple(shape)
        return len(shape) == 4 and 1 <= shape[0] <= self._engine.largest

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        engine = self._engine
        if engine.broken:
            # Undefined after a refused refit; finite nonsense is the worst case for a caller that trusts it.
            engine.ran_broken = True
        (name, shape), model = next(iter(self._shapes.items())), engine.model
        pixels = np.empty(shape, np.float32)
        ctypes.memmove(pixels.ctypes.data, self._addresses[name], pixels.nbytes)
        filled = onnx.ModelProto()
        filled.CopyFrom(model)
        for tensor in filled.graph.initializer:
            if tensor.name in engine.values:
                tensor.CopyFrom(numpy_helper.from_array(engine.values[tensor.name], tensor.name))
        result = ort.InferenceSession(filled.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {name: pixels})[0]
        ctypes.memmove(self._addresses[model.graph.output[0].name], result.ctypes.data, result.nbytes)
        return True


class ICudaEngine:
    def __init__(self, plan: bytes) -> None:
        head, _, body = plan.partition(b"\n")
        info = json.loads(head)
        self.model = onnx.load_from_string(body)
        self.names: list[str] = info["names"]
        self.refittable, self.largest = bool(info["refittable"]), info["largest"]
        self.values = {t.name: numpy_helper.to_array(t) for t in self.model.graph.initializer if t.name in self.names}
        self.broken, self.ran_broken = False, False

    def create_execution_context(self, strategy: Any = None) -> IExecutionContext:
        return IExecutionContext(self)


class Runtime:
    def __init__(self, logger: Logger) -> None:
        self.engines: list[ICudaEngine] = []

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine:
        self.engines.append(ICudaEngine(serialized_engine))
        return self.engines[-1]


class Refitter:
    """`groups` (set by a test) are tensors that must be set together; `fail_after` n makes the nth refit of all refitters half-done."""

    groups: tuple[frozenset[str], ...] = ()
    fail_next = False

    def __init__(self, engine: ICudaEngine, logger: Logger) -> None:
        if not engine.refittable:
            raise RuntimeError("engine is not refittable")
        self._engine = engine
        self._set: dict[str, Weights] = {}

    def get_all_weights(self) -> list[str]:
        return list(self._engine.names)

    def get_weights_prototype(self, weights_name: str) -> _Prototype:
        value = self._engine.values.get(weights_name)
        return _Prototype(np.dtype(np.float32), -1) if value is None else _Prototype(value.dtype, value.size)

    def set_named_weights(self, name: str, weights: Weights) -> bool:
        value = self._engine.values.get(name)
        if value is None or weights.size != value.size or weights.dtype != value.dtype:
            return False
        self._set[name] = weights
        return True

    def get_missing_weights(self) -> list[str]:
        touched = [group for group in self.groups if group & set(self._set)]
        return sorted(set().union(*touched) - set(self._set)) if touched else []

    def refit_cuda_engine(self) -> bool:
        failing, type(self).fail_next = type(self).fail_next, False
        missing = bool(self.get_missing_weights())
        for number, (name, weights) in enumerate(self._set.items()):
            if failing and number:
                break  # a part of the new values is in
            array = weights.array()
            old = self._engine.values[name]
            self._engine.values[name] = np.full_like(old, np.nan) if array is None else np.array(array).reshape(old.shape)
        self._engine.broken = self._engine.broken or failing or missing
        return not (failing or missing)


class AsyncRefitter(Refitter):
    """10.3 and later also have this."""

    def refit_cuda_engine_async(self, stream_handle: int) -> bool:
        return self.refit_cuda_engine()


def nptype(trt_type: Any) -> Any:
    return trt_type


class Module:
    """One version of the library."""

    def __init__(self, version: str = "10.3.0", *, individual: bool = True, asynchronous: bool = True) -> None:
        self.__name__, self.__version__ = "tensorrt", version
        flags = {"REFIT": 4, "TF32": 7, "STRIP_PLAN": 19, "REFIT_IDENTICAL": 20}
        if version.startswith("11"):
            flags = {"REFIT": 4, "TF32": 7, "STRIP_PLAN": 18, "REFIT_IDENTICAL": 19}
        if individual:
            flags["REFIT_INDIVIDUAL"] = max(flags.values()) + 3
        self.BuilderFlag = enum.IntEnum("BuilderFlag", flags)
        # Python's own class attributes are shared: each module gets its own refitter class.
        self.Refitter = type("Refitter", (AsyncRefitter if asynchronous else Refitter,), {})
        self.NetworkDefinitionCreationFlag = NetworkDefinitionCreationFlag
        self.INetworkDefinition = INetworkDefinition if individual else type("INetworkDefinition", (), {})
        self.Logger, self.Runtime, self.OnnxParser, self.Weights, self.nptype = Logger, Runtime, OnnxParser, Weights, nptype
        self.configs: list[IBuilderConfig] = []
        self.networks: list[tuple[int, INetworkDefinition]] = []

    def Builder(self, logger: Logger) -> Builder:  # noqa: N802  the library's own name
        return Builder(self)


class Builder:
    def __init__(self, module: Module) -> None:
        self._module = module

    def create_network(self, flags: int = 0) -> INetworkDefinition:
        self._module.networks.append((flags, INetworkDefinition()))
        return self._module.networks[-1][1]

    def create_builder_config(self) -> IBuilderConfig:
        self._module.configs.append(IBuilderConfig())
        return self._module.configs[-1]

    def create_optimization_profile(self) -> IOptimizationProfile:
        return IOptimizationProfile()

    def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> bytes:
        names = {flag.name for flag in config.flags}
        if "REFIT_IDENTICAL" in names or {"REFIT", "REFIT_INDIVIDUAL"} <= names:
            raise AssertionError("flags that must not be used")
        chosen = sorted(network.names()) if "REFIT" in names else network.marked
        largest = config.profile.largest[0] if config.profile else network.model.graph.input[0].type.tensor_type.shape.dim[0].dim_value
        head = {"names": chosen, "refittable": bool(names & {"REFIT", "REFIT_INDIVIDUAL"}), "largest": largest}
        return json.dumps(head).encode() + b"\n" + network.model.SerializeToString()
