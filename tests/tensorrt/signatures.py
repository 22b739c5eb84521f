"""The fake of the tests and our own calls against one published version of the bindings, whose missing libraries are empty stubs.

Run by `run.sh` with the bindings on the path.  Prints one line; any difference ends with an exception."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
import types
from pathlib import Path
from typing import Any

from edgeedit.device.engines.trt_plan import check_version, refit_flag
from edgeedit.errors import RefusedError

FAKES = ("INetworkDefinition", "IOptimizationProfile", "IBuilderConfig", "OnnxParser", "IExecutionContext", "ICudaEngine", "Runtime",
         "Refitter", "AsyncRefitter", "Builder")  # fmt: skip
USED = ("Logger", "Runtime", "Refitter", "Weights", "OnnxParser", "Builder", "nptype")


def load_fake() -> Any:
    """The module tests/support/fake_tensorrt.py."""
    spec = importlib.util.spec_from_file_location("fake_tensorrt", Path(__file__).parents[1] / "support" / "fake_tensorrt.py")
    if spec is None or spec.loader is None:
        raise SystemExit("the fake is missing")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def overloads(function: Any) -> list[list[str]]:
    """The parameter names of each overload, from the text that the binding itself carries."""
    name = function.__name__
    text = re.sub(r"<[^<>]*>", "", function.__doc__ or "")  # default values hold colons too
    return [re.findall(r"(\w+): ", found)[1:] for found in re.findall(rf"(?:^|\d\. ){name}\((self: .*?)\) ->", text, re.M)]


def signatures(trt: Any, fake: Any) -> int:
    """Compare every method of the fake; returns how many."""
    count = 0
    for name in FAKES:
        real = getattr(trt, {"AsyncRefitter": "Refitter"}.get(name, name))
        for method, function in vars(getattr(fake, name)).items():
            if method.startswith("_") or not isinstance(function, types.FunctionType) or method == "names":
                continue
            given = list(function.__code__.co_varnames[1 : function.__code__.co_argcount])
            found = overloads(getattr(real, method))
            if given not in found:
                raise SystemExit(f"{trt.__version__}: {name}.{method}{given} is not among {found}")
            count += 1
    return count


def main() -> None:
    """Check the version on the path."""
    name = sys.argv[1]
    trt = importlib.import_module(name)
    version = str(trt.__version__)
    fake = load_fake()
    count = signatures(trt, fake)
    for word in USED:
        getattr(trt, word)
    if not isinstance(vars(trt.ICudaEngine).get("refittable"), property) or not hasattr(trt.Refitter, "get_weights_prototype"):
        raise SystemExit(f"{version}: an engine or refitter lacks what we read")
    if refit_flag(trt) != "REFIT_INDIVIDUAL":
        raise SystemExit(f"{version}: REFIT_INDIVIDUAL or its marks are missing")
    flags = {flag: int(getattr(trt.BuilderFlag, flag)) for flag in ("REFIT", "REFIT_IDENTICAL", "STRIP_PLAN", "REFIT_INDIVIDUAL")}
    if name == "tensorrt_bindings":
        pretended = fake.Module(version).BuilderFlag
        if {flag: int(pretended[flag]) for flag in flags} != flags:
            raise SystemExit(f"{version}: flags are {flags}, the fake says {dict(pretended.__members__)}")
    try:
        check_version("tensorrt" if name == "tensorrt_bindings" else "tensorrt_rtx", version)
        ours = "supported"
    except RefusedError as error:
        ours = f"refused: {error.message}"
    print(f"{name} {version}: {count} methods as the fake has them, {flags}, {ours}")


if __name__ == "__main__":
    main()
