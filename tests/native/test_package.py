"""What `cmake --install` puts down is found by pkg-config and by CMake, in C99, and works from another folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
#include <stdio.h>
#include "edgeedit.h"
int main(void) {
  char out[65];
  if (edgeedit_sha256("abc", 3, out, NULL) != EDGEEDIT_OK) return 1;
  puts(out);
  return edgeedit_abi_version() != EDGEEDIT_ABI_VERSION;
}
"""
PROJECT = """
cmake_minimum_required(VERSION 3.18)
project(camera LANGUAGES C CXX)
find_package(edgeedit REQUIRED)
add_executable(with_shared camera.c)
target_link_libraries(with_shared edgeedit::shared)
add_executable(with_static camera.c)
set_target_properties(with_static PROPERTIES LINKER_LANGUAGE CXX)
target_link_libraries(with_static edgeedit::static)
"""
ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad\n"  # FIPS 180-4, example of SHA-256


@pytest.fixture(scope="module")
def installed(native: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An installed tree, moved after installing."""
    first = tmp_path_factory.mktemp("installed") / "first"
    cmake = shutil.which("cmake", path=f"{Path(sys.prefix) / 'bin'}{os.pathsep}{os.environ['PATH']}")
    assert cmake is not None
    subprocess.run([cmake, "--install", str(native), "--prefix", str(first), "--component", "native"], check=True, capture_output=True)
    return first.rename(first.with_name("second"))


def test_pkg_config(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "camera.c").write_text(PROGRAM, "utf-8")
    folder = next(installed.rglob("edgeedit.pc")).parent
    environment = {**os.environ, "PKG_CONFIG_PATH": str(folder), "LD_LIBRARY_PATH": str(folder.parent)}
    flags = subprocess.run(["pkg-config", "--cflags", "--libs", "edgeedit"], env=environment, capture_output=True, text=True, check=True)
    command = ["gcc", "-std=c99", "-Wall", "-Wextra", "-pedantic", "-Werror", "camera.c", *flags.stdout.split(), "-o", "camera"]
    subprocess.run(command, cwd=tmp_path, check=True)
    assert subprocess.run(["./camera"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout == ABC


def test_cmake_package(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "camera.c").write_text(PROGRAM, "utf-8")
    (tmp_path / "CMakeLists.txt").write_text(PROJECT, "utf-8")
    cmake = shutil.which("cmake", path=f"{Path(sys.prefix) / 'bin'}{os.pathsep}{os.environ['PATH']}")
    assert cmake is not None
    subprocess.run([cmake, "-S", ".", "-B", "b", f"-DCMAKE_PREFIX_PATH={installed}"], cwd=tmp_path, check=True, capture_output=True)
    subprocess.run([cmake, "--build", "b"], cwd=tmp_path, check=True, capture_output=True)
    for program in ("with_shared", "with_static"):
        assert subprocess.run([tmp_path / "b" / program], capture_output=True, text=True, check=True).stdout == ABC
