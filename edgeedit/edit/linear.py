"""Linear maps of a frozen encoder during training: what the backward pass keeps and which gradients exist.

Guarantees: a frozen map keeps nothing but a reference to its weight (under autocast torch would keep a cast copy of it);
a map with trained values also keeps its input, cast once for the maps that share it (q, k, v).  The gradient of a weight
exists inside one call of `backward` only: the chosen entries are gathered and the rest is freed.  Does not write weights.

The trained values are already IN the weight when the map runs; the function only routes their gradients (for the integer
form that is the straight-through estimator).  With g the gradient of the output and x the input, dW = g'x.  Entries take
dW[index]; rows take D = g[:, rows]'x and columns D = g'x[:, columns], of which dA = D B' and dB = A'D.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional

ENTRIES, ROWS, COLUMNS, FROZEN = "entries", "rows", "columns", "frozen"


@dataclass
class Trained:
    """What trains of one weight: `form`; `where` flat positions, rows or columns (int64); `first` the values (count,) or
    A (rows, rank); `second` B (rank, width).  The last two are set anew for every pass."""

    form: str
    where: torch.Tensor | None = None
    first: torch.Tensor | None = None
    second: torch.Tensor | None = None


class RoutedLinear(torch.autograd.Function):
    """x W' + b, whose backward gives the gradients of the trained values and of x, and none of W."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        cast: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        form: str,
        where: torch.Tensor | None,
        *values: torch.Tensor | None,
    ) -> torch.Tensor:
        """`x` (..., in) as the map is given it, `cast` the same numbers in the arithmetic of the pass; `values` as in Trained."""
        ctx.form, ctx.given = form, x.dtype
        seen = None
        if form != FROZEN:
            seen = cast if form != COLUMNS or where is None else cast.index_select(-1, where)
        ctx.save_for_backward(weight, seen, where, *values)
        return functional.linear(cast, weight.to(cast.dtype), None if bias is None else bias.to(cast.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Gradients of x, of the values or of A, and of B."""
        (gradient,) = gradients
        weight, seen, where, first, second = ctx.saved_tensors
        to_x = (gradient @ weight.to(gradient.dtype)).to(ctx.given) if ctx.needs_input_grad[0] else None
        if ctx.form == FROZEN:
            return to_x, None, None, None, None, None, None, None
        out, into = gradient.reshape(-1, gradient.shape[-1]), seen.reshape(-1, seen.shape[-1])
        if ctx.form == ENTRIES:
            values = (out.T @ into).reshape(-1).index_select(0, where).to(first.dtype)
            return to_x, None, None, None, None, None, values, None
        change = (out.index_select(1, where) if ctx.form == ROWS else out).T @ into
        change = change.to(first.dtype)
        return to_x, None, None, None, None, None, change @ second.T, first.T @ change


class Routes(AbstractContextManager["Routes"]):
    """While entered, the linear maps of `blocks` run through `RoutedLinear`; on leaving they are as before.

    `trained`: weight name -> what trains of it; every other linear map of the blocks is frozen."""

    def __init__(self, root: nn.Module, blocks: list[str], trained: dict[str, Trained]) -> None:
        self._calls: list[tuple[nn.Module, Callable[[torch.Tensor], torch.Tensor]]] = []
        self._given: weakref.ref[torch.Tensor] | None = None
        self._cast: torch.Tensor | None = None
        self._stack = ExitStack()
        found = set()
        for name, module in root.named_modules():
            if type(module) is nn.Linear and any(name.startswith(block + ".") for block in blocks):
                found.add(name + ".weight")
                own = trained.get(name + ".weight", Trained(FROZEN))
                self._calls.append((module, partial(self._forward, module, own)))
        if not set(trained) <= found:
            raise TypeError(f"weights of linear maps inside the blocks expected, got {sorted(set(trained) - found)}")

    def __enter__(self) -> Routes:
        for module, call in self._calls:
            module.forward = call
            self._stack.callback(module.__dict__.pop, "forward", None)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        self._given = self._cast = None

    def _forward(self, module: nn.Linear, own: Trained, x: torch.Tensor) -> torch.Tensor:
        kind = x.device.type
        with torch.no_grad():
            cast = self._once(x, torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x
        with torch.autocast(kind, enabled=False):
            result: torch.Tensor = RoutedLinear.apply(  # type: ignore[no-untyped-call]
                x, cast, module.weight, module.bias, own.form, own.where, own.first, own.second
            )
        return result

    def _once(self, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """`x` in `dtype`; maps that are given the same tensor one after another share the cast."""
        if torch.compiler.is_compiling():
            return x.to(dtype)
        if self._given is None or self._given() is not x or self._cast is None or self._cast.dtype != dtype:
            self._given, self._cast = weakref.ref(x), x.to(dtype)
        return self._cast
