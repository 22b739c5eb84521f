"""GPU buffers and one stream through the CUDA runtime library, by ctypes: a device image has the library, but no Python package.

Guarantees: each call's status is checked (RefusedError, exit 6); buffers and stream live as long as the object.
"""

from __future__ import annotations

import ctypes
import ctypes.util
from typing import Any

import numpy as np

from edgeedit.errors import RefusedError

Array = np.ndarray[Any, Any]
_TO_DEVICE, _TO_HOST = 1, 2  # cudaMemcpyKind


class CudaMemory:
    """Buffers by name, grown when needed, and a stream (`stream`, an integer handle)."""

    def __init__(self) -> None:
        name = ctypes.util.find_library("cudart") or "libcudart.so"
        try:
            self._library = ctypes.CDLL(name)
        except OSError as error:
            raise RefusedError(f"CUDA runtime library is missing: {error}", hint="install CUDA or use the device's JetPack") from error
        handle = ctypes.c_void_p()
        self._call("cudaStreamCreate", ctypes.byref(handle))
        self.stream = int(handle.value or 0)
        self._buffers: dict[str, tuple[int, int]] = {}

    def _call(self, name: str, *arguments: Any) -> None:
        status = int(getattr(self._library, name)(*arguments))
        if status:
            raise RefusedError(f"{name} failed: expected status 0, got {status}", hint="see `edgeedit doctor`")

    def buffer(self, name: str, nbytes: int) -> int:
        """Address of a device buffer of at least `nbytes`."""
        address, size = self._buffers.get(name, (0, 0))
        if size < nbytes:
            if address:
                self._call("cudaFree", ctypes.c_void_p(address))
                self._buffers.pop(name)
            made = ctypes.c_void_p()
            self._call("cudaMalloc", ctypes.byref(made), ctypes.c_size_t(nbytes))
            address = int(made.value or 0)
            self._buffers[name] = (address, nbytes)
        return address

    def upload(self, address: int, array: Array) -> None:
        """Copy a C-contiguous array to the device; `array` may be freed afterwards."""
        args = (ctypes.c_void_p(address), ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(array.nbytes))
        self._call("cudaMemcpyAsync", *args, ctypes.c_int(_TO_DEVICE), ctypes.c_void_p(self.stream))
        self.wait()

    def download(self, array: Array, address: int) -> None:
        """Copy a device buffer into a C-contiguous array, after all work of the stream."""
        args = (ctypes.c_void_p(array.ctypes.data), ctypes.c_void_p(address), ctypes.c_size_t(array.nbytes))
        self._call("cudaMemcpyAsync", *args, ctypes.c_int(_TO_HOST), ctypes.c_void_p(self.stream))
        self.wait()

    def wait(self) -> None:
        """Wait for the stream."""
        self._call("cudaStreamSynchronize", ctypes.c_void_p(self.stream))
