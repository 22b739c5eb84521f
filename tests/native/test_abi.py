"""The C ABI through ctypes: what a C program would do, wrong arguments included."""

from __future__ import annotations

import ctypes
import threading
from pathlib import Path
from typing import Any

import native_cases as cases
import numpy as np
import pytest

from edgeedit.digest import fingerprint, tensor_digest
from edgeedit.patch.keys import public_half

KEY_BYTES = public_half(cases.KEY).raw
OK, INPUT, MISMATCH, INTEGRITY = 0, 2, 4, 5


class Error(ctypes.Structure):
    _fields_ = (("message", ctypes.c_char * 512), ("hint", ctypes.c_char * 256))


class Tensor(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("dtype", ctypes.c_char_p),
        ("shape", ctypes.POINTER(ctypes.c_uint64)),
        ("dims", ctypes.c_size_t),
        ("bytes", ctypes.c_uint64),
        ("sha256", ctypes.c_char_p),
        ("after", ctypes.c_char_p),
        ("offset", ctypes.c_uint64),
    )


@pytest.fixture(scope="module")
def library(native: Path) -> Any:
    """The shared library; every function whose result is a text or a size says so."""
    found = ctypes.CDLL(str(native / "libedgeedit.so"))
    for name in ("patch_parent", "patch_result", "bundle_fingerprint"):
        getattr(found, f"edgeedit_{name}").restype = ctypes.c_char_p
    for name in ("patch_tensor_count", "bundle_tensor_count"):
        getattr(found, f"edgeedit_{name}").restype = ctypes.c_size_t
    return found


def _open(library: Any, data: bytes, keys: bytes = KEY_BYTES) -> tuple[int, ctypes.c_void_p, Error]:
    handle, error = ctypes.c_void_p(), Error()
    size = ctypes.c_size_t(len(data))
    status = library.edgeedit_patch_open(data, size, keys, ctypes.c_size_t(len(keys) // 32), ctypes.byref(handle), ctypes.byref(error))
    return status, handle, error


def _apply(library: Any, handle: ctypes.c_void_p, index: int, old: bytes, size: int) -> tuple[int, bytes, str]:
    out, error = ctypes.create_string_buffer(max(size, 1)), Error()
    lengths = ctypes.c_size_t(len(old)), ctypes.c_size_t(size)
    status = library.edgeedit_patch_apply(handle, ctypes.c_size_t(index), old, lengths[0], out, lengths[1], ctypes.byref(error))
    return status, out.raw[:size], error.message.decode()


def _tensors(library: Any, handle: ctypes.c_void_p) -> list[Tensor]:
    rows = [Tensor() for _ in range(library.edgeedit_patch_tensor_count(handle))]
    for index, row in enumerate(rows):
        assert library.edgeedit_patch_tensor(handle, ctypes.c_size_t(index), ctypes.byref(row), None) == OK
    return rows


def test_a_patch_is_listed_and_applied_tensor_by_tensor_by_many_threads(library: Any, tmp_path: Path) -> None:
    bundle, weights = cases.make_bundle(tmp_path / "bundle", "float16", 3)
    data, new = cases.make_patch(weights, "float16", 3)
    status, handle, error = _open(library, data)
    assert (status, error.message) == (OK, b"")
    assert library.edgeedit_patch_check_parent(handle, bundle.fingerprint.encode(), None) == OK
    assert library.edgeedit_patch_check_parent(handle, b"0" * 64, None) == MISMATCH
    rows = _tensors(library, handle)
    wrong: list[str] = []

    def work() -> None:
        for _ in range(20):
            for index, row in enumerate(rows):
                name = row.name.decode()
                assert tuple(row.shape[: row.dims]) == cases.SHAPES[name]
                got = _apply(library, handle, index, weights[name].tobytes(), row.bytes)
                if got[:2] != (OK, new[name].tobytes()):
                    wrong.append(name)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    library.edgeedit_patch_close(handle)


def test_refusals(library: Any, tmp_path: Path) -> None:
    _, weights = cases.make_bundle(tmp_path / "bundle", "float32", 3)
    data, _ = cases.make_patch(weights, "float32", 3)
    for keys in (b"", bytes(32)):
        status, handle, error = _open(library, data, keys)
        assert (status, handle.value) == (INTEGRITY, None) and b"no trusted signature" in error.message
    assert _open(library, data[:-1])[0] == INTEGRITY
    assert _open(library, b"")[0] == INTEGRITY
    status, handle, _ = _open(library, data)
    row = _tensors(library, handle)[0]
    old = weights[row.name.decode()].tobytes()
    assert _apply(library, handle, 0, old[:-1], row.bytes)[0] == INPUT
    assert _apply(library, handle, 0, old, row.bytes - 1)[0] == INPUT
    assert _apply(library, handle, 99, old, row.bytes)[0] == INPUT
    assert _apply(library, ctypes.c_void_p(), 0, old, row.bytes)[0] == INPUT
    changed = bytes([old[0] ^ 1]) + old[1:]
    status, _, message = _apply(library, handle, 0, changed, row.bytes)
    assert status == MISMATCH and "is not the one the patch was made for" in message
    shared = ctypes.create_string_buffer(old, len(old))
    size = ctypes.c_size_t(len(old))
    assert library.edgeedit_patch_apply(handle, ctypes.c_size_t(0), shared, size, shared, size, None) == INPUT
    library.edgeedit_patch_close(handle)
    library.edgeedit_patch_close(None)


def test_bundle_key_and_fingerprint(library: Any, tmp_path: Path) -> None:
    bundle, weights = cases.make_bundle(tmp_path / "bundle", "float16", 5)
    handle, error = ctypes.c_void_p(), Error()
    assert library.edgeedit_bundle_open(str(bundle.path).encode(), ctypes.byref(handle), ctypes.byref(error)) == OK
    assert library.edgeedit_bundle_fingerprint(handle).decode() == bundle.fingerprint
    count = library.edgeedit_bundle_tensor_count(handle)
    rows = (Tensor * count)()
    for index in range(count):
        data = ctypes.c_void_p()
        library.edgeedit_bundle_tensor(handle, ctypes.c_size_t(index), ctypes.byref(rows[index]), ctypes.byref(data), None)
        assert data.value is not None
        assert ctypes.string_at(data.value, rows[index].bytes) == weights[rows[index].name.decode()].tobytes()
    out = ctypes.create_string_buffer(65)
    assert library.edgeedit_fingerprint(rows, ctypes.c_size_t(count), out, None) == OK
    assert out.value.decode() == bundle.fingerprint
    library.edgeedit_bundle_close(handle)
    key, pem = ctypes.create_string_buffer(32), cases.public_pem()
    assert library.edgeedit_key_from_pem(pem, ctypes.c_size_t(len(pem)), key, None) == OK
    assert key.raw == KEY_BYTES
    assert library.edgeedit_key_from_pem(b"x", ctypes.c_size_t(1), key, ctypes.byref(error)) == INPUT
    assert library.edgeedit_bundle_open(b"/nowhere", ctypes.byref(handle), ctypes.byref(error)) == INPUT


@pytest.mark.parametrize("points", [range(0x20, 0x180), [0x7F, 0x80, 0x7FF, 0x800, 0xD7FF, 0xE000, 0xFFFF, 0x10000, 0x10FFFF]])
def test_fingerprints_of_any_name_equal_pythons(library: Any, points: Any) -> None:
    array = np.zeros((2, 3), np.float32)
    digests = [tensor_digest(chr(point) + "A", array) for point in points]
    shape = (ctypes.c_uint64 * 2)(2, 3)
    rows = (Tensor * len(digests))()
    for row, digest in zip(rows, digests, strict=True):
        row.name, row.dtype, row.shape, row.dims, row.sha256 = digest.name.encode(), b"float32", shape, 2, digest.sha256.encode()
    out = ctypes.create_string_buffer(65)
    assert library.edgeedit_fingerprint(rows, ctypes.c_size_t(len(digests)), out, None) == OK
    assert out.value.decode() == fingerprint(digests)
