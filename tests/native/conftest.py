"""Builds the native programs once per session, for this machine, for aarch64 and with the sanitizers."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(Path(__file__).parent))  # for native_cases.py
_PATH = f"{Path(sys.prefix) / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}"


@contextmanager
def _alone() -> Generator[None, None, None]:
    """Keeps the folder `build` to one of pytest's processes at a time."""
    (ROOT / "build").mkdir(exist_ok=True)
    with (ROOT / "build" / "native.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build(folder: str, *options: str) -> Path:
    """Configure and build into `build/FOLDER`; a failure shows the compiler's output."""
    cmake, ninja = shutil.which("cmake", path=_PATH), shutil.which("ninja", path=_PATH)
    assert cmake and ninja, "cmake and ninja are development dependencies: make install"
    build = ROOT / "build" / folder
    configure = [
        cmake,
        "-S",
        str(ROOT),
        "-B",
        str(build),
        "-G",
        "Ninja",
        f"-DCMAKE_MAKE_PROGRAM={ninja}",
        "-DEDGEEDIT_PYTHON=OFF",
        *options,
    ]
    with _alone():
        for command in (configure, [cmake, "--build", str(build)]):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}\nsystem packages: make test-deps"
    return build


@pytest.fixture(scope="session")
def native() -> Path:
    """Folder with `edgeedit-apply`, `digest_many`, `swap_example` and the libraries for this machine."""
    headers = ROOT / "build" / "assets" / "onnxruntime"
    script = ["sh", str(ROOT / "tests" / "support" / "ort_headers.sh"), str(headers), sys.executable]
    with _alone():
        done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}\nmake ort-headers"
    return _build("native", "-DEDGEEDIT_TESTS=ON", "-DEDGEEDIT_NATIVE=ON", f"-DEDGEEDIT_ONNXRUNTIME={headers}")


@pytest.fixture(scope="session")
def aarch64() -> Path:
    """The same for aarch64; its programs run under qemu-aarch64."""
    toolchain = ROOT / "devices" / "toolchains" / "aarch64-linux-gnu.cmake"
    return _build("aarch64", f"-DCMAKE_TOOLCHAIN_FILE={toolchain}", "-DEDGEEDIT_TESTS=ON", "-DEDGEEDIT_NATIVE=ON")


@pytest.fixture(scope="session")
def replay() -> Path:
    """The fuzz targets as plain programs, compiled with the default compiler, AddressSanitizer and UBSan."""
    return _build("replay", "-DEDGEEDIT_REPLAY=ON")
