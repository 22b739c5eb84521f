"""Frozen patch files: what was written once is read for ever; the public test key is never accepted in earnest."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edgeedit.errors import IntegrityError
from edgeedit.patch.keys import public_half
from edgeedit.patch.read import read_unverified

GOLDEN = Path(__file__).parent / "v0-small.eep"
SHA256 = "e989590567474c0303bb8fe5cd553b74c70a903a67193d08979478f834596191"
TRUST = [public_half(Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33))))]


def test_frozen_file_reads_to_the_frozen_numbers() -> None:
    data = GOLDEN.read_bytes()
    assert hashlib.sha256(data).hexdigest() == SHA256
    patch = read_unverified(data).verify(TRUST, allow_test_keys=True)
    first, second = (patch.tensor_delta(t.name) for t in patch.manifest.tensors)
    assert first.sparse is not None and second.low_rank is not None
    assert first.sparse.index.tolist() == [0, 5, 17, 29]
    assert first.sparse.q.tolist() == [1, -127, 3, 64]
    assert first.sparse.step == 2.0**-10
    assert second.low_rank.rows.tolist() == [0, 2, 5]
    assert second.low_rank.b.tolist() == [[3, 0, -1, 9], [1, 1, 1, -127]]
    assert np.array_equal(patch.expected(), np.array([[0.5, -1.25], [2.0, 0.0]], np.float32))
    assert (patch.manifest.parent, patch.manifest.precision, patch.manifest.recipe) == ("1" * 64, "float16", "dinov2")


def test_test_key_is_refused_without_the_flag() -> None:
    with pytest.raises(IntegrityError, match="test key"):
        read_unverified(GOLDEN.read_bytes()).verify(TRUST)
