"""The coder of sparse parts: round trips, a second decoder, every damaged byte, and the size against the model's own cost."""

from __future__ import annotations

import math
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeedit.codec import _core, density
from edgeedit.errors import IntegrityError

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
from class_tables import row_of
from density_reader import DamagedError, page_tables
from density_reader import decode as second_decode

Entries = tuple[np.ndarray, np.ndarray]


def _entries(seed: int, shape: tuple[int, ...], density_of: float) -> Entries:
    rng = np.random.default_rng(seed)
    size = int(np.prod(shape))
    mask = rng.random(size) < density_of
    mask[rng.integers(size)] = True
    index = np.flatnonzero(mask).astype(np.int64)
    big = rng.random(index.size) < 0.1
    q = np.where(big, rng.integers(1, 256, index.size), rng.integers(1, 9, index.size)) * rng.choice([-1, 1], index.size)
    return index, q.astype(np.int16)


SHAPES = st.one_of(
    st.tuples(st.integers(1, 80)),
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(1, 6)),
)


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), shape=SHAPES, share=st.sampled_from([0.0, 0.01, 0.1, 0.5, 0.9, 1.0]))
def test_any_shape_and_density_round_trips_in_both_decoders(seed: int, shape: tuple[int, ...], share: float) -> None:
    index, q = _entries(seed, shape, share)
    section = density.encode(index, q, shape)
    found, steps = density.decode(section, shape)
    assert np.array_equal(found, index) and np.array_equal(steps, q)
    assert second_decode(section, *density.as_matrix(shape)) == dict(zip(index.tolist(), q.tolist(), strict=True))


@pytest.mark.parametrize("shape", [(3, 20_000), (20_000, 3), (300, 517)])
def test_long_streams_use_eight_lanes(shape: tuple[int, int]) -> None:
    index, q = _entries(1, shape, 0.4)
    section = density.encode(index, q, shape)
    found, steps = density.decode(section, shape)
    assert np.array_equal(found, index) and np.array_equal(steps, q)
    assert 8 in section[:2], "neither stream is long enough to need more lanes"


@pytest.mark.parametrize("share", [0.05, 0.6])
def test_every_damaged_byte_is_refused_alike_or_gives_other_legal_entries(share: float) -> None:
    """The coder has no checksum (the container has): what counts is that both decoders agree and nothing illegal comes out."""
    shape = (12, 13)
    index, q = _entries(3, shape, share)
    section = density.encode(index, q, shape)
    refused = 0
    for at in range(len(section)):
        for flip in (1, 0x80, 0xFF):
            bad = section[:at] + bytes([section[at] ^ flip]) + section[at + 1 :]
            try:
                expected = second_decode(bad, *shape)
            except DamagedError:
                with pytest.raises(IntegrityError):
                    density.decode(bad, shape)
                refused += 1
                continue
            found, steps = density.decode(bad, shape)
            assert dict(zip(found.tolist(), steps.tolist(), strict=True)) == expected
    assert refused > len(section), "almost every change must be seen"


@given(data=st.binary(max_size=200), rows=st.integers(1, 9), cols=st.integers(1, 9))
@settings(max_examples=200, deadline=None)
def test_random_bytes_are_refused(data: bytes, rows: int, cols: int) -> None:
    with pytest.raises(IntegrityError):
        density.decode(data, (rows, cols))


def test_cut_and_lengthened_sections_are_refused() -> None:
    index, q = _entries(5, (40, 40), 0.1)
    section = density.encode(index, q, (40, 40))
    for length in range(len(section)):
        with pytest.raises(IntegrityError):
            density.decode(section[:length], (40, 40))
    with pytest.raises(IntegrityError):
        density.decode(section + b"\0", (40, 40))
    with pytest.raises(IntegrityError):
        density.decode(section, (40, 41))


def test_a_declared_size_above_the_limit_is_refused_before_anything_is_reserved() -> None:
    assert _core.density_workspace(1 << 20, 1 << 20) == 0
    section = np.frombuffer(b"\x01\x01" + b"\xff" * 24, np.uint8)
    assert _core.density_count(section, 4, 4)[0] != 0


def test_the_encoder_refuses_what_it_cannot_say() -> None:
    for index, q in (([], []), ([3, 2], [1, 1]), ([0], [0]), ([0], [256]), ([99], [1])):
        with pytest.raises(IntegrityError):
            density.encode(np.array(index, np.int64), np.array(q, np.int16), (4, 4))


def test_the_frozen_tables_are_those_of_the_page() -> None:
    core = (Path(__file__).parents[2] / "edgeedit" / "codec" / "core" / "class_tables.h").read_text("utf-8")
    assert re.findall(r"^    \{.*\},$", core, re.MULTILINE) == [row_of(*table) for table in page_tables()]
    for limit, frequencies, escape in page_tables():
        assert len(frequencies) == limit + 1 and (escape == 0) == (limit == 8)
        assert sum(math.comb(8, k) * f for k, f in enumerate(frequencies)) + escape == 4096


def _sampled(share: float) -> tuple[Entries, float]:
    """A 1536 x 384 mask with row and column structure, and the bytes its own sampling model needs (margins not counted)."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(0, 1.0, (1536, 1)), rng.normal(0, 0.9, (1, 384))
    low, high = -12.0, 5.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if (1 / (1 + np.exp(-(a + b + middle)))).mean() < share else (low, middle)
    p = 1 / (1 + np.exp(-(a + b + middle)))
    mask = rng.random(p.shape) < p
    index = np.flatnonzero(mask).astype(np.int64)
    q = np.round(rng.laplace(0, 3, index.size)).astype(np.int16)
    q[q == 0] = 1
    _, counts = np.unique(q, return_counts=True)
    order0 = -(counts * np.log2(counts / counts.sum())).sum()
    return (index, q), float((order0 - np.where(mask, np.log2(p), np.log2(1 - p)).sum()) / 8)


@pytest.mark.parametrize(("share", "above"), [(0.1, 0.03), (0.05, 0.05), (0.01, 0.14)])
def test_the_size_is_near_the_models_own_cost(share: float, above: float) -> None:
    """The model's cost leaves out the 1,920 margins, which weigh most in a small patch."""
    (index, q), cost = _sampled(share)
    assert len(density.encode(index, q, (1536, 384))) <= (1 + above) * cost
