"""Run in an environment that has only the device side's dependencies: import every device module, run every `--help`.

A contract can miss what an `__init__` drags in; this cannot.  Exit code 0 means clean; prints what it found otherwise.
With the argument `ota`: in an environment that has that extra too, every module of the update client.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import subprocess
import sys
import time
from pathlib import Path

FORBIDDEN = (
    "torch",
    "onnx",
    "onnxruntime",
    "transformers",
    "tensorrt",
    "scipy",
    "sklearn",
    "PIL",
    "matplotlib",
    "jinja2",
    "cyclonedx",
    "huggingface_hub",
)
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


# What the update client has only by extras of its own, and what belongs to the release desk.
FORBIDDEN_OTA = (*FORBIDDEN, "boto3", "botocore", "aiomqtt", "paho", "sqlalchemy", "alembic", "starlette", "uvicorn")
BY_HAND = ("fields", "floors", "receipts", "rollout")  # a Runtime that is fed by hand may name these


def check_ota() -> None:
    """Every module of the update client, then those parts of the device that use it."""
    import edgeedit.ota.client

    package = edgeedit.ota.client
    names = [m.name for m in pkgutil.walk_packages(package.__path__, f"{package.__name__}.") if m.name != f"{package.__name__}.s3"]
    for name in [*names, "edgeedit.device.agent", "edgeedit.device.updates", "edgeedit.device.hawkbit"]:
        importlib.import_module(name)
        leaked = sorted({m.split(".")[0] for m in sys.modules} & set(FORBIDDEN_OTA))
        if leaked:
            raise SystemExit(f"{name} imports {leaked}")
    words = [sys.executable, "-m", "edgeedit.cli.main", "agent", "run", "--help"]
    if subprocess.run(words, capture_output=True, check=False, timeout=120).returncode:
        raise SystemExit("`agent run --help` failed")
    print(f"update client: ok, {len(names)} modules")


def check_by_hand() -> None:
    """Documents and receipts without the update client's libraries."""
    for name in BY_HAND:
        importlib.import_module(f"edgeedit.ota.client.{name}")
    for absent in ("tuf", "securesystemslib", "urllib3"):
        if importlib.util.find_spec(absent) is not None:
            raise SystemExit(f"expected an environment without {absent}")


def main() -> None:
    """Check imports one by one, then the help of every command."""
    for name in device_modules():
        importlib.import_module(name)
        leaked = sorted({m.split(".")[0] for m in sys.modules} & set(FORBIDDEN))
        if leaked:
            raise SystemExit(f"{name} imports {leaked}")
    check_by_hand()
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
    check_ota() if sys.argv[1:] == ["ota"] else main()
