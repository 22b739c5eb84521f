"""How much memory a model needs on this device, estimated before anything is loaded, so that the answer is exit 6 and not a kill.

The figures are lower bounds made from sizes that are known: weights, private copies of what can be patched, patches.  The
runtime's own library and its activations come on top; `RESERVE` in `prepare` stands for them.
"""

from __future__ import annotations

from edgeedit.bundle import Bundle
from edgeedit.device.prepare import check_memory


def start_memory(bundle: Bundle) -> int:
    """Bytes that an engine of this Bundle takes at least."""
    whole = sum(tensor.length for tensor in bundle.tensor_map.tensors)
    editable = sum(tensor.length for tensor in bundle.tensor_map.tensors if tensor.editable)
    # A rebuilt session and a TensorRT plan hold copies of their own; the others hold the patchable tensors a second time.
    return 2 * whole if bundle.mode in ("rebuild", "refit") else whole + editable


def check_start(bundle: Bundle, chain_bytes: int) -> None:
    """Raise RefusedError (exit 6) unless an engine and `chain_bytes` of patch files fit."""
    check_memory(start_memory(bundle) + chain_bytes)
