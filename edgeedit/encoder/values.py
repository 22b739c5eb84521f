"""Parameter values of an encoder at the deployed precision, and copies of an encoder that hold given values.

Guarantees: float16 values are float32 values rounded once to nearest even, as on the device; a copy never shares memory
with its source.  Does not know the deployed layout.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from edgeedit.bundle import DTYPES
from edgeedit.errors import InputError
from edgeedit.rounding import finite, narrow, widen

if TYPE_CHECKING:
    from edgeedit.encoder.encoder import Encoder

Array = np.ndarray[Any, Any]


def check_precision(precision: str) -> None:
    """Raise InputError unless `precision` is one that a parameter is rounded to (int8 codes need scales: deploy)."""
    words = [word for word in DTYPES if word != "int8"]
    if precision == "int8":
        raise InputError(
            f"cannot compute with int8 codes here: expected a Bundle in {', '.join(words)}, got int8",
            hint="use the float32 Bundle of the same encoder",
        )
    if precision not in words:
        raise InputError(f"precision is not supported: expected one of {', '.join(words)}, got {precision}")


def parameter_values(encoder: Encoder, precision: str) -> dict[str, Array]:
    """Parameter name -> array in `precision`; a tied parameter appears once, under its first name.

    Raises InputError when a value is not finite in that precision.
    """
    check_precision(precision)
    values: dict[str, Array] = {}
    seen: set[int] = set()
    for name, parameter in encoder.parameters_by_name().items():
        if id(parameter) in seen:
            continue
        seen.add(id(parameter))
        with np.errstate(over="ignore"):
            values[name] = narrow(parameter.detach().to("cpu", torch.float32).numpy(), DTYPES[precision])
        if not finite(values[name]).all():
            raise InputError(f"cannot round {name} to {precision}: expected finite weights", hint="choose a profile with float32")
    return values


def with_values(encoder: Encoder, values: Mapping[str, Array], dtype: torch.dtype = torch.float32) -> Encoder:
    """A copy of the encoder on the CPU, in evaluation mode, without gradients, computing in `dtype` with `values`."""
    twin = copy.deepcopy(encoder).to("cpu", dtype).eval()
    for name, parameter in twin.parameters_by_name().items():
        if name in values:
            parameter.data = torch.from_numpy(widen(values[name])).to(dtype)
        parameter.requires_grad_(False)
    return twin
