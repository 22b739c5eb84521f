"""What a Runtime needs of an engine, and the words in which a Bundle says which engine it wants.

Guarantees: `stage` may be slow and changes nothing that a frame sees; the function that it returns makes the new weights live
between two frames and is short.  Engines do not lock: the Runtime calls `run` and the returned function under its frame lock.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

Array = np.ndarray[Any, Any]
Commit = Callable[[], None]


@dataclass(frozen=True)
class Staged:
    """A commit of an engine that holds the new weights beside the running ones: `run` answers from them before the commit, from any
    thread, without disturbing frames."""

    commit: Callable[[], None]
    run: Callable[[Array], Array] | None = None

    def __call__(self) -> None:
        """Make the new weights live."""
        self.commit()


class Engine(Protocol):
    """A running model.  `weights` holds the live value of every deployed tensor, name -> array; read it, never write to it."""

    weights: dict[str, Array]

    def run(self, pixels: Array) -> Array:
        """Features float32 (n, width) of normalised pixels float32 (n, 3, s, s)."""

    def swap(self, new: Mapping[str, Array]) -> None:
        """`stage(new)()`: whole tensors, shapes and dtypes as in the Bundle."""

    def describe(self) -> str:
        """One line for `doctor`: which tensors can be changed, and how that is known."""

    def stage(self, new: Mapping[str, Array]) -> Commit:
        """Prepare whole tensors off the frame path; the returned function (a `Staged` where the engine can) makes them live."""
