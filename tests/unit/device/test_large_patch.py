"""A patch larger than what a device may hold twice: staged from its file in pieces, with the same refusals as from memory."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeedit.delta import SparsePart, TensorDelta
from edgeedit.device.agent import Agent, Order, Situation
from edgeedit.device.store import Store
from edgeedit.digest import digest_array, digest_file
from edgeedit.errors import IntegrityError, RefusedError
from edgeedit.files import BLOCK, FileOctets, blocks
from edgeedit.patch.keys import load_trust
from edgeedit.patch.read import read_unverified
from edgeedit.patch.write import PatchContent, build_patch
from edgeedit.rounding import apply_delta


@pytest.fixture(scope="module")
def large(wide_world: Any) -> bytes:
    """A patch that changes every weight of a wide layer."""
    bundle, old = wide_world.bundle, wide_world.weights["first"]
    rng = np.random.default_rng(1)
    steps = rng.integers(1, 128, old.size) * rng.choice([-1, 1], old.size)
    delta = TensorDelta("first", old.shape, sparse=SparsePart(np.arange(old.size, dtype=np.int64), steps.astype(np.int16), 2.0**-10))
    new = {"first": apply_delta(old, delta)}
    content = PatchContent(
        parent=bundle.fingerprint, result=wide_world.mark({**wide_world.weights, **new}), precision="float32", recipe="tiny",
        deltas=[delta], before={"first": digest_array(old)}, after={"first": digest_array(new["first"])}, dtypes={"first": "float32"},
        expected=np.zeros((4, 8), np.float32), tolerance=1e-4, provenance={},
    )  # fmt: skip
    return build_patch(content, [wide_world.key])


class Stick:
    """A source that has the patch as a file."""

    def __init__(self, path: Path, digest: str) -> None:
        self.path, self.order = path, Order("install", "r1", 1, digest)

    def poll(self, situation: Situation, floors: object, now: float) -> Order:
        return self.order

    def fetch(self, order: Order, folder: Path) -> Path:
        os.link(self.path, folder / "x.eep")
        return folder / "x.eep"


def test_the_agent_never_holds_a_large_patch(wide_world: Any, large: bytes, tmp_path: Path) -> None:
    world, data = wide_world, large
    assert len(data) > 2_500_000
    (tmp_path / "fix.eep").write_bytes(data)
    digest = digest_file(tmp_path / "fix.eep")
    Store.create(tmp_path / "store", world.bundle.path, [world.public]).close()
    with Agent(tmp_path / "store", Stick(tmp_path / "fix.eep", digest)) as agent:
        tracemalloc.start()
        try:
            assert agent.once().did == "staged"
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert peak < 4 * BLOCK < len(data) / 2, f"{peak} bytes at once of a patch of {len(data)}"
    with Store.open(tmp_path / "store") as store:
        trial = store.trial()
        assert trial is not None and store.patch(trial.patch).data == data


def test_a_file_is_refused_as_its_bytes_are(wide_world: Any, large: bytes, tmp_path: Path) -> None:
    world, data = wide_world, large
    path, trust = tmp_path / "bad.eep", load_trust([world.public])
    for at in (3, 9, 700, len(data) // 2, len(data) - 1):
        bad = bytearray(data)
        bad[at] ^= 1
        path.write_bytes(bad)
        told = []
        for content in (bytes(bad), FileOctets(path)):
            with pytest.raises(IntegrityError) as caught:
                read_unverified(content).verify(trust)
            told.append(caught.value.message)
        assert told[0] == told[1], at


def test_a_file_that_changes_after_it_was_verified_is_seen(wide_world: Any, large: bytes, tmp_path: Path) -> None:
    world, data = wide_world, large
    path = tmp_path / "fix.eep"
    path.write_bytes(data)
    Store.create(tmp_path / "store", world.bundle.path, [world.public]).close()
    with FileOctets(path) as content, Store.open(tmp_path / "store") as store:
        patch = read_unverified(content).verify(store.trust)
        section = patch.manifest.sections[0]
        with path.open("r+b") as handle:
            handle.seek(patch.payload_start + section.offset + 1000)
            handle.write(b"changed")
        with pytest.raises(IntegrityError, match="was changed"):
            patch.section_bytes(section)
        with pytest.raises(IntegrityError, match="changed while it was copied"):
            store._keep(patch, store.head(), ("", 0))
        assert store.trial() is None and not list((tmp_path / "store" / "objects").iterdir())


def test_a_file_that_shrinks_or_cannot_be_read_is_an_error_and_no_signal(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(bytes(range(256)) * 4096)
    with FileOctets(path) as content:
        assert (len(content), content[5:9], content[-3:]) == (1 << 20, b"\x05\x06\x07\x08", b"\xfd\xfe\xff")
        assert b"".join(blocks(content, 7, 600_000)) == path.read_bytes()[7:600_000]
        os.truncate(path, 4096)
        with pytest.raises(IntegrityError, match="became shorter"):
            content[4000:5000]
    with pytest.raises(RefusedError, match="cannot read"):
        content[:1]
    with pytest.raises(RefusedError, match="cannot read"):
        FileOctets(tmp_path / "none")
