"""Checks of a device and its store, each OK, WARN or FAIL with a way to mend it."""

from __future__ import annotations

import platform
import shutil
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np

from edgeedit.bundle import verify_bundle
from edgeedit.device.engines.trt_plan import check_version
from edgeedit.device.prepare import available_memory
from edgeedit.device.runtime import Runtime
from edgeedit.device.store import Store
from edgeedit.errors import EdgeEditError, RefusedError

BUILT = 1_767_225_600.0  # seconds from 1970 to 2026-01-01 UTC: a clock before the year of this release is wrong
LOW_MEMORY, LOW_DISK = 512 * 1024 * 1024, 256 * 1024 * 1024  # bytes


@dataclass(frozen=True)
class Check:
    """`level` is OK, WARN or FAIL; `fix` is empty when nothing is wrong."""

    name: str
    level: str
    text: str
    fix: str


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _runtime() -> Check:
    plain, gpu = _version("onnxruntime"), _version("onnxruntime-gpu")
    if plain and gpu:
        return Check("onnxruntime", "FAIL", f"both onnxruntime {plain} and onnxruntime-gpu {gpu} are installed", "uninstall one of them")
    if not (plain or gpu):
        return Check("onnxruntime", "WARN", "not installed", 'pip install "edgeedit[ort]", or use the one of the device image')
    return Check("onnxruntime", "OK", f"{plain or gpu}{' (gpu)' if gpu else ''}", "")


def _tensorrt() -> Check:
    for name in ("tensorrt", "tensorrt_rtx"):
        # The version is read from the package's record where there is one, so that nothing is loaded onto a GPU here.
        version = _version(name.replace("_", "-"))
        if version is None:
            continue
        try:
            check_version(name, version)
        except RefusedError as error:
            return Check("tensorrt", "WARN", error.message, error.hint)
        return Check("tensorrt", "OK", f"{name} {version}", "")
    return Check("tensorrt", "OK", "not installed; needed for TensorRT profiles only", "")


def _memory() -> Check:
    free = available_memory()
    if free is None:
        return Check("memory", "WARN", "the system does not say how much is free", "check by hand")
    low = free < LOW_MEMORY
    return Check("memory", "WARN" if low else "OK", f"{free // (1 << 20)} MiB free", "stop other programs" if low else "")


def _disk(path: Path) -> Check:
    free = shutil.disk_usage(path).free
    low = free < LOW_DISK
    return Check("disk", "WARN" if low else "OK", f"{free // (1 << 20)} MiB free at {path}", "free disk space" if low else "")


def _clock() -> Check:
    wrong = time.time() < BUILT
    text = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    return Check("clock", "FAIL" if wrong else "OK", text, "set the clock: expiry dates cannot be judged" if wrong else "")


def _store(path: Path) -> list[Check]:
    checks: list[Check] = []
    stage = "store"
    try:
        with Store.open(path) as store:
            head, trial = store.current()
            waiting = f", generation {trial.id} is {trial.state}" if trial is not None else ""
            checks.append(Check("store", "OK", f"head is generation {head.id}, {head.result[:12]}{waiting}", ""))
            keys = len(store.trust)
            checks.append(Check("keys", "OK" if keys else "FAIL", f"{keys} trusted", "" if keys else "put a .pub file into trust/"))
            stage = "bundle"
            verify_bundle(store.bundle)
            checks.append(Check("bundle", "OK", f"every tensor of {store.bundle.fingerprint[:12]} verified", ""))
        stage = "engine"
        with Runtime(path, poll_seconds=0) as runtime:
            text = runtime.engine.describe()
        checks.append(Check("engine", "OK", f"generation {head.id} runs; {text}", ""))
    except EdgeEditError as error:
        checks.append(Check(stage, "FAIL", error.message, error.hint or "provision the device again"))
    return checks


def examine(store: Path | None) -> list[Check]:
    """All checks; the store's too when one is given (this starts an engine)."""
    checks = [
        Check("python", "OK", f"{platform.python_version()} on {platform.machine()}", ""),
        Check("numpy", "OK", np.__version__, ""),
        _runtime(),
        _tensorrt(),
        _memory(),
        _disk(store if store is not None and store.exists() else Path.cwd()),
        _clock(),
    ]
    return checks + (_store(store) if store is not None else [])
