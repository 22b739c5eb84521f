"""Makes a whole tensor live by exchanging pages under its address, in microseconds whatever its size.

A session reads a patchable tensor at one address for as long as it lives.  The successor is written beside it, off the frame path;
the commit moves page-table entries (`mremap` with MREMAP_DONTUNMAP, Linux 5.7 and later) and copies nothing.  The former values lie
in the successor's place afterwards.  Every address stays mapped at every moment, so no other thread can be given it.
Guarantees: `exchange` cannot leave a half-made tensor: where the system refuses a move, the values are copied.  Does not lock.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import sys
import time
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
_MAYMOVE, _FIXED, _DONTUNMAP = 1, 2, 4  # linux/mman.h
SLICE = 4 << 20  # bytes that are copied at a stretch beside the frames
REST = 2.0  # pause after each, in multiples of the time it took: frames keep most of the memory's bandwidth, and of a single core
HUGE = 2 << 20  # bytes; at this alignment the kernel moves a whole page table at once


def _mremap() -> Any:
    """The C library's `mremap`, None on a system without it."""
    function = getattr(ctypes.CDLL(None, use_errno=True), "mremap", None) if sys.platform == "linux" else None
    if function is not None:
        function.restype = ctypes.c_void_p
        function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p]
    return function


_MREMAP = _mremap()


class _Region:
    """Private memory of `nbytes` zeros, paged in when touched; 2 MiB aligned, in huge pages where it is that large."""

    def __init__(self, nbytes: int) -> None:
        align = HUGE if nbytes >= HUGE else mmap.PAGESIZE
        self._memory = mmap.mmap(-1, nbytes + align, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        octets: Array = np.frombuffer(self._memory, np.uint8)
        self._start = -octets.ctypes.data % align
        self.nbytes, self.octets = nbytes, octets[self._start : self._start + nbytes]
        self.address = int(self.octets.ctypes.data)
        if align == HUGE:
            # A kernel without huge pages is slower, not wrong.
            with contextlib.suppress(OSError):
                self._memory.madvise(mmap.MADV_HUGEPAGE)

    def move_to(self, other: _Region) -> bool:
        """Move the pages to the other's address; the addresses here stay mapped and read as zeros.  False: nothing moved."""
        flags = _MAYMOVE | _FIXED | _DONTUNMAP
        return bool(_MREMAP(self.address, self.nbytes, self.nbytes, flags, other.address) == other.address)

    def drop(self) -> None:
        """Give the pages back; the addresses read as zeros."""
        self._memory.madvise(mmap.MADV_DONTNEED, self._start, self.nbytes)


def empty(array: Array) -> Array:
    """Private memory for an array like this, C order, in huge pages where it is large: a matrix product that reads it as it is runs
    faster."""
    made: Array = _Region(max(array.nbytes, 1)).octets[: array.nbytes].view(array.dtype).reshape(array.shape)
    return made


def placed(array: Array) -> Array:
    """A copy in private memory, as of `empty`."""
    copy = empty(array)
    copy[...] = array
    return copy


def copy_paced(target: Array, source: Array) -> None:
    """Copy `source` into the C-ordered `target` of the same shape and dtype (else TypeError or ValueError), in slices with pauses."""
    if target.shape != source.shape:
        raise ValueError(f"cannot copy: expected shape {target.shape}, got {source.shape}")
    rows, given = target.reshape(-1), np.ascontiguousarray(source).reshape(-1)
    step = max(1, SLICE // max(target.itemsize, 1))
    for first in range(0, rows.size, step):
        start = time.perf_counter()
        np.copyto(rows[first : first + step], given[first : first + step], casting="no")
        if first + step < rows.size:
            time.sleep(REST * (time.perf_counter() - start))


class Twin:
    """A tensor at a fixed address and the place of its successor, which costs no memory while it is not `filled`."""

    def __init__(self, array: Array) -> None:
        nbytes = -(-max(array.nbytes, 1) // mmap.PAGESIZE) * mmap.PAGESIZE
        self._live, self._next, self._spare = (_Region(nbytes) for _ in range(3))
        self.live, self.next = (r.octets[: array.nbytes].view(array.dtype).reshape(array.shape) for r in (self._live, self._next))
        self.live[...] = array
        self.filled = False

    def fill(self, array: Array) -> None:
        """Write the successor, of the same shape and dtype; a frame sees nothing of it."""
        self.filled = True
        copy_paced(self.next, array)

    def exchange(self) -> None:
        """Make the successor live and keep the former values in its place; no thread may read `live` meanwhile."""
        if not (self._live.move_to(self._spare) and self._next.move_to(self._live)):
            self.live[...] = self.next
            return
        self._spare.move_to(self._next)

    def release(self) -> None:
        """Give the memory of the successor's place back."""
        self._next.drop()
        self._spare.drop()
        self.filled = False


def supported() -> bool:
    """Whether this system exchanges pages; tried on one page, not guessed from a version."""
    if _MREMAP is None:
        return False
    twin = Twin(np.full(8, 1, np.uint8))
    twin.fill(np.full(8, 2, np.uint8))
    address = twin.live.ctypes.data
    if not twin._live.move_to(twin._spare):
        return False
    twin._spare.move_to(twin._live)
    twin.exchange()
    return bool(twin.live.ctypes.data == address and (twin.live == 2).all() and (twin.next == 1).all())
