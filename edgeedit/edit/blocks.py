"""How an encoder runs during a pass that goes backward: activations recomputed instead of kept; compiled.

Guarantees: on leaving, the encoder is as before; results do not change, but for the order of sums in a compiled pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from torch.utils.checkpoint import checkpoint

from edgeedit.encoder.encoder import Encoder


@contextmanager
def checkpointed(encoder: Encoder, enabled: bool) -> Iterator[None]:
    """Recompute each block's activations in the backward pass instead of keeping them."""
    blocks = [encoder.wrapped.get_submodule(name) for name in encoder.block_names()] if enabled else []
    for block in blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


@contextmanager
def compiled(encoder: Encoder, backend: str) -> Iterator[None]:
    """Run the encoder through `torch.compile` with `backend`; `off` leaves it as it is."""
    if backend != "off":
        encoder.compile(backend=backend)
    try:
        yield
    finally:
        encoder._compiled_call_impl = None  # torch has no public way back
