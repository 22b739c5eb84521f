"""Builds and proves the TensorRT engine of a Bundle on this device, ahead of its first use.

A build takes minutes and much memory, so it is a step of its own (`edgeedit build-engine`), not a surprise at the first frame; the
plan lies where the Runtime looks for it.  Guarantees: the engine that is left has been loaded, refitted and compared with the encoder's
golden outputs; a refused one leaves no plan.  One build per process: a failed build can poison TensorRT for the next.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from edgeedit.bundle import Bundle
from edgeedit.device.engines.trt_plan import check_bundle, load_trt, plan_path, refit_flag
from edgeedit.errors import InputError, RefusedError

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class BuiltEngine:
    """`refit` is the builder flag that was used, `editable` the tensors a patch may change, `golden_gap` the largest difference to torch
    on the probes (output units); `cached` says that the plan was there already."""

    plan: str
    bytes: int
    module: str
    version: str
    refit: str
    editable: int
    refittable: int
    golden_gap: float
    seconds: float
    cached: bool

    def to_json(self) -> dict[str, Any]:
        """Plain JSON object."""
        return asdict(self)


def build_engine(bundle: Bundle, *, module: Any = None, memory: Any = None) -> BuiltEngine:
    """Build (or load) and prove; raises InputError for a Bundle that needs no engine, RefusedError with the reason."""
    if bundle.engine != "tensorrt":
        raise InputError(
            f"nothing to build: expected a bundle for tensorrt, got {bundle.engine}", hint="ONNX Runtime reads the bundle itself"
        )
    check_bundle(bundle)
    from edgeedit.device.engines.trt import TrtEngine

    trt = module or load_trt(bundle.provider)
    path = plan_path(trt, bundle)
    cached, start = path.is_file(), time.perf_counter()
    try:
        engine = TrtEngine(bundle, bundle.weights(), module=trt, memory=memory)
    except RefusedError:
        path.unlink(missing_ok=True)
        raise
    return BuiltEngine(
        plan=str(path),
        bytes=path.stat().st_size,
        module=trt.__name__,
        version=str(trt.__version__),
        refit=refit_flag(trt),
        editable=sum(t.editable for t in bundle.tensor_map.tensors),
        refittable=len(engine.refittable),
        golden_gap=engine.golden_gap,
        seconds=time.perf_counter() - start,
        cached=cached,
    )
