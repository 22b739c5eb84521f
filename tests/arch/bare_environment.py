"""Run in an environment that has only the device side's dependencies: import every device module, run every `--help`.

A contract can miss what an `__init__` drags in; this cannot.  Exit code 0 means clean; prints what it found otherwise.
"""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys
import time
from pathlib import Path

FORBIDDEN = ("torch", "onnx", "onnxruntime", "transformers", "tensorrt", "scipy", "sklearn", "PIL", "matplotlib", "jinja2")
DEVICE_ROOMS = ("codec", "patch", "device", "catalog")
GROUND = ("errors", "limits", "digest", "files", "rounding", "delta", "bundle", "metrics")


def device_modules() -> list[str]:
    """Every module of the device side, in order."""
    import edgeedit

    found = [f"edgeedit.{name}" for name in GROUND]
    for room in DEVICE_ROOMS:
        package = importlib.import_module(f"edgeedit.{room}")
        found.append(package.__name__)
        found += [m.name for m in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")]
    if Path(edgeedit.__file__).parent == Path(__file__).resolve().parents[2] / "edgeedit":
        raise SystemExit("expected the installed wheel, got the source tree")
    return found


def main() -> None:
    """Check imports one by one, then the help of every command."""
    for name in device_modules():
        importlib.import_module(name)
        leaked = sorted({m.split(".")[0] for m in sys.modules} & set(FORBIDDEN))
        if leaked:
            raise SystemExit(f"{name} imports {leaked}")
    from edgeedit.cli.main import COMMANDS

    for command in ("", *COMMANDS):
        start = time.monotonic()
        arguments = [sys.executable, "-m", "edgeedit.cli.main", *([command] if command else []), "--help"]
        done = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=120)
        if done.returncode or "Usage: edgeedit" not in done.stdout:
            raise SystemExit(f"`{command} --help` failed: {done.stderr}")
        print(f"help {command or 'edgeedit':<10} {time.monotonic() - start:.2f} s")
    print("bare environment: ok")


if __name__ == "__main__":
    main()
