"""How the blocks of an encoder run during a pass that goes backward: activations recomputed instead of kept.

Guarantees: on leaving, the blocks are as before; results do not change.
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
