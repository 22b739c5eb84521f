"""Fingerprints, durable files and the Bundle's table."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from edgeedit.digest import digest_file, fingerprint, tensor_digest
from edgeedit.errors import InputError, RefusedError
from edgeedit.files import read_json, replace_file, write_json


def test_fingerprint_sees_name_dtype_shape_and_bytes_but_not_order() -> None:
    a, b = np.arange(6, dtype=np.float32).reshape(2, 3), np.zeros(3, np.float16)
    rows = [tensor_digest("a", a), tensor_digest("b", b)]
    mark = fingerprint(rows)
    assert fingerprint(reversed(rows)) == mark
    others = [
        [tensor_digest("c", a), rows[1]],
        [tensor_digest("a", a.reshape(3, 2)), rows[1]],
        [tensor_digest("a", np.nextafter(a, 9)), rows[1]],
        [rows[0], tensor_digest("b", b.view(np.int16))],
        [rows[0]],
    ]
    assert all(fingerprint(other) != mark for other in others)


def test_failed_write_keeps_the_old_file_and_leaves_no_temp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.json"
    write_json(path, {"a": 1})
    before = digest_file(path)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RefusedError, match="No space") as caught:
        replace_file(path, b"new")
    assert caught.value.exit_code == 6
    assert digest_file(path) == before
    assert [p.name for p in tmp_path.iterdir()] == ["state.json"]


def test_json_reader_caps_the_size_and_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "big.json"
    path.write_text("[" + "1," * 100 + "1]", "utf-8")
    with pytest.raises(InputError, match="at most 10 bytes"):
        read_json(path, 10)
    path.write_text("{", "utf-8")
    with pytest.raises(InputError, match=r"big\.json"):
        read_json(path, 100)
