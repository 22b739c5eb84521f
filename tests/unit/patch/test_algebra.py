"""diff, conflicts, squash and materialize against numpy sets, the rounding rule and each other; refusals leave no file."""

from __future__ import annotations

import functools
import importlib.util
import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeedit.bundle import DTYPES, Bundle, MappedTensor, Preprocess, TensorMap, load_bundle, save_bundle, verify_bundle
from edgeedit.cli.main import run
from edgeedit.delta import LowRankPart, SparsePart, TensorDelta
from edgeedit.digest import digest_array, digest_file, dtype_word, fingerprint, tensor_digest
from edgeedit.errors import InputError, IntegrityError, MismatchError, RefusedError
from edgeedit.patch.algebra_chain import load_chain
from edgeedit.patch.algebra_compare import conflicts, diff
from edgeedit.patch.algebra_fit import fit_change, join_low_rank
from edgeedit.patch.algebra_materialize import materialize_bundle, materialize_weights
from edgeedit.patch.algebra_squash import squash
from edgeedit.patch.describe import describe
from edgeedit.patch.keys import new_key, public_half
from edgeedit.patch.manifest import stated_flips
from edgeedit.patch.read import Patch, read_unverified
from edgeedit.patch.write import PatchContent, build_patch
from edgeedit.rounding import apply_delta, legal_step, narrow

Array = np.ndarray[Any, Any]
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(7, 39)))
SHAPES = {"fc1": (64, 96), "qkv": (48, 32), "bias": (40,)}


@functools.cache
def reader_v1() -> ModuleType:
    """`tests/support/reader_v1.py`."""
    spec = importlib.util.spec_from_file_location("reader_v1", Path(__file__).parents[2] / "support" / "reader_v1.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _bundle(folder: Path, weights: dict[str, Array]) -> Bundle:
    folder.mkdir(parents=True)
    rows, content = [], b""
    for name, array in weights.items():
        data = array.tobytes()
        dtype = dtype_word(array.dtype)
        rows.append(MappedTensor(name, name, False, dtype, array.shape, len(content), len(data), digest_array(array), name != "bias"))
        content += data + b"\0" * (-len(data) % 4096)
    (folder / "weights.bin").write_bytes(content)
    (folder / "model.onnx").write_bytes(b"graph")
    np.save(folder / "probes.npy", np.zeros((3, 3, 2, 2), np.float32))
    bundle = Bundle(
        folder, "tiny", "0" * 64, dtype_word(next(iter(weights.values())).dtype), "linux-cpu", "pixels", (3, 2, 2), "features", 5,
        Preprocess(2, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)), 1e-4, digest_file(folder / "model.onnx"), digest_file(folder / "probes.npy"),
        fingerprint(r.digest() for r in rows), TensorMap(tuple(rows)),
    )  # fmt: skip
    save_bundle(bundle)
    return bundle


@dataclass
class Maker:
    """Makes a chain of signed patches on `weights`, which then hold what numpy's rounding rule says the chain leads to."""

    weights: dict[str, Array]
    patches: list[Patch] = field(default_factory=list)

    def add(self, *deltas: TensorDelta, max_flips: float | None = None) -> Patch:
        new = {d.name: apply_delta(self.weights[d.name], d) for d in deltas}
        parent, before = self.mark(), {d.name: digest_array(self.weights[d.name]) for d in deltas}
        self.weights = {**self.weights, **new}
        dtype = dtype_word(self.weights["fc1"].dtype)
        content = PatchContent(
            parent, self.mark(), dtype, "tiny", deltas, before, {n: digest_array(a) for n, a in new.items()},
            {n: dtype_word(a.dtype) for n, a in new.items()},
            np.full((3, 5), len(self.patches), np.float32), 1e-4, {"number": len(self.patches)}, max_flips,
        )  # fmt: skip
        self.patches.append(read_unverified(build_patch(content, [KEY])).verify([public_half(KEY)]))
        return self.patches[-1]

    def mark(self) -> str:
        return fingerprint(tensor_digest(n, a) for n, a in self.weights.items())


def _weights(rng: np.random.Generator, dtype: str, *, grid: float | None = None) -> dict[str, Array]:
    made = {name: rng.normal(0, 0.05, shape) for name, shape in SHAPES.items()}
    if dtype == "int8":
        return {name: np.rint(400 * a).clip(-80, 80).astype(np.int8) for name, a in made.items()}
    return {name: narrow((np.rint(a / grid) * grid + 0.0 if grid else a).astype(np.float32), DTYPES[dtype]) for name, a in made.items()}


def _sparse(rng: np.random.Generator, step: float, *, share: float = 0.2, name: str = "fc1") -> TensorDelta:
    size = int(np.prod(SHAPES[name]))
    index = np.sort(rng.choice(size, max(1, round(share * size)), replace=False)).astype(np.int64)
    q = (rng.integers(1, 12, index.size) * rng.choice([-1, 1], index.size)).astype(np.int16)
    return TensorDelta(name, SHAPES[name], SparsePart(index, q, step))


def _low_rank(rng: np.random.Generator, scale: float, top: int = 90) -> TensorDelta:
    rows, cols = (np.sort(rng.choice(n, n // 2, replace=False)).astype(np.int64) for n in SHAPES["qkv"])
    a, b = (rng.integers(-top, top + 1, s).astype(np.int8) for s in ((rows.size, 3), (3, cols.size)))
    return TensorDelta("qkv", SHAPES["qkv"], low_rank=LowRankPart(rows, cols, a, b, scale))


def _random_chain(seed: int, dtype: str) -> tuple[dict[str, Array], Maker, list[list[TensorDelta]]]:
    rng = np.random.default_rng(seed)
    base = _weights(rng, dtype)
    maker, made = Maker(dict(base)), []
    for _ in range(int(rng.integers(2, 5))):
        step = legal_step(float(rng.uniform(1e-5, 1e-3)))
        deltas = [_sparse(rng, 1.0 if dtype == "int8" else step, share=float(rng.uniform(0.01, 0.5)))]
        if rng.random() < 0.6 and dtype != "int8":
            deltas.append(_low_rank(rng, 2.0 ** int(rng.integers(-28, -18))))
        maker.add(*deltas)
        made.append(deltas)
    return base, maker, made


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 100_000), st.sampled_from(sorted(DTYPES)))
def test_a_fit_with_its_corrections_repeats_a_random_chain(seed: int, dtype: str) -> None:
    base, maker, made = _random_chain(seed, dtype)
    for name in ("fc1", "qkv"):
        parts = [d for deltas in made for d in deltas if d.name == name]
        fit = fit_change(base[name], maker.weights[name], parts)
        if fit is None:
            assert np.array_equal(base[name], maker.weights[name])
            continue
        assert dtype != "int8" or fit.exact is None, "integers alone repeat a chain of codes"
        again = apply_delta(base[name], TensorDelta(name, SHAPES[name], fit.sparse, fit.low_rank, fit.exact))
        assert again.tobytes() == maker.weights[name].tobytes()


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 100_000))
def test_joined_low_rank_parts_are_the_exact_sum(seed: int) -> None:
    rng = np.random.default_rng(seed)
    parts = [_low_rank(rng, 2.0 ** int(rng.integers(-24, -20)), top=30).low_rank for _ in range(3)]
    joined = join_low_rank([p for p in parts if p is not None])
    total = np.zeros(SHAPES["qkv"])
    for p in parts:
        assert p is not None
        total[np.ix_(p.rows, p.cols)] += p.scale * (p.a.astype(np.int64) @ p.b.astype(np.int64))
    if joined is not None:
        again = np.zeros(SHAPES["qkv"])
        again[np.ix_(joined.rows, joined.cols)] = joined.scale * (joined.a.astype(np.int64) @ joined.b.astype(np.int64))
        assert np.array_equal(again, total)


def _grid_chain(tmp_path: Path, dtype: str) -> tuple[Bundle, Maker]:
    """Weights on a grid that every step fits, so that integers alone repeat the chain; different steps, overlapping masks."""
    rng = np.random.default_rng(5)
    weights = _weights(rng, dtype, grid=2.0**-10)
    maker = Maker(dict(weights))
    mask = _sparse(rng, 2.0**-10).sparse
    assert mask is not None
    for step in (1.0, 1.0, 1.0) if dtype == "int8" else (2.0**-10, 2.0**-9, 2.0**-10):
        q = (rng.integers(1, 9, mask.index.size) * rng.choice([-1, 1], mask.index.size)).astype(np.int16)
        maker.add(TensorDelta("fc1", SHAPES["fc1"], SparsePart(mask.index, q, step)), _sparse(rng, step, share=0.05, name="qkv"))
    return _bundle(tmp_path / "bundle", weights), maker


@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_a_squash_has_the_chains_fingerprints_and_later_patches_fit_it(tmp_path: Path, dtype: str) -> None:
    bundle, maker = _grid_chain(tmp_path, dtype)
    third = maker.patches[2]
    made = squash(bundle, [], maker.patches[:2], [KEY])
    one = read_unverified(made.data).verify([public_half(KEY)])
    assert (one.manifest.parent, one.manifest.result) == (bundle.fingerprint, maker.patches[1].manifest.result)
    assert len(made.data) < sum(len(p.data) for p in maker.patches[:2])
    materialize_weights(bundle, [*maker.patches], tmp_path / "chain.bin")
    materialize_weights(bundle, [one, third], tmp_path / "squash.bin")
    assert (tmp_path / "chain.bin").read_bytes() == (tmp_path / "squash.bin").read_bytes()
    tail = squash(bundle, [maker.patches[0]], maker.patches[1:], [KEY])  # a chain that does not start at the base
    assert tail.parent == maker.patches[0].manifest.result
    assert np.array_equal(one.expected(), maker.patches[1].expected())


@pytest.mark.parametrize(("stated", "whole"), [((None, None), None), ((0.2, None), 0.25), ((0.2, 0.3), 0.5), ((0.7, 0.6), 1.0)])
def test_a_squash_may_change_what_its_chain_may(tmp_path: Path, stated: tuple[float | None, ...], whole: float | None) -> None:
    rng = np.random.default_rng(5)
    weights = _weights(rng, "float32", grid=2.0**-10)
    maker, mask = Maker(dict(weights)), _sparse(rng, 2.0**-10)
    for share in stated:
        maker.add(mask, max_flips=share)
    made = squash(_bundle(tmp_path / "bundle", weights), [], maker.patches, [KEY])
    manifest = read_unverified(made.data).verify([public_half(KEY)]).manifest
    assert stated_flips(manifest.extra) == whole
    assert manifest.max_flips == (0.05 if whole is None else whole)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_a_squash_carries_corrections_where_rounding_once_is_not_rounding_twice(tmp_path: Path, dtype: str) -> None:
    """One step, shared masks, weights on no grid: the sum of the integers misses some weights by a unit in the last place."""
    rng = np.random.default_rng(21)
    weights = _weights(rng, dtype)
    maker, mask, step = Maker(dict(weights)), _sparse(rng, 1.0, share=0.3).sparse, legal_step(0.0007)
    assert mask is not None
    for _ in range(4):
        q = (rng.integers(1, 9, mask.index.size) * rng.choice([-1, 1], mask.index.size)).astype(np.int16)
        maker.add(TensorDelta("fc1", SHAPES["fc1"], SparsePart(mask.index, q, step)))
    bundle = _bundle(tmp_path / "bundle", weights)
    made = squash(bundle, [], maker.patches[:3], [KEY])
    one = read_unverified(made.data).verify([public_half(KEY)])
    exact = one.tensor_delta("fc1").exact
    assert exact is not None and made.to_json()["corrected"] == exact.index.size > 0
    assert describe(one)["tensors"][0]["corrections"] == exact.index.size
    assert (one.manifest.parent, one.manifest.result) == (bundle.fingerprint, maker.patches[2].manifest.result)
    assert made.chain_bytes == sum(len(p.data) for p in maker.patches[:3]) > len(made.data)
    for chain, name in ((maker.patches, "chain.bin"), ([one, maker.patches[3]], "squash.bin")):  # the fourth fits both lineages
        materialize_weights(bundle, chain, tmp_path / name)
    assert (tmp_path / "chain.bin").read_bytes() == (tmp_path / "squash.bin").read_bytes()
    found = diff(one, one)["tensors"][0]
    assert (found["different"], found["corrections_a"]) == (0, exact.index.size)


def test_a_chain_of_one_is_refused(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    weights = _weights(rng, "float32", grid=2.0**-10)
    maker = Maker(dict(weights))
    with pytest.raises(InputError, match="at least 2"):
        squash(_bundle(tmp_path / "b", weights), [], [maker.add(_sparse(rng, 2.0**-10))], [KEY])


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 100_000), st.sampled_from(sorted(DTYPES)))
def test_the_file_of_any_squash_leads_where_its_chain_leads(seed: int, dtype: str) -> None:
    """The fit of a random chain of two to four patches through the file format, whether or not it is smaller than the chain; read by
    the room's reader and by the one that was written from FORMAT.md."""
    base, maker, made = _random_chain(seed, dtype)
    deltas = []
    for name in ("fc1", "qkv"):
        fit = fit_change(base[name], maker.weights[name], [d for step in made for d in step if d.name == name])
        if fit is not None:
            deltas.append(TensorDelta(name, SHAPES[name], fit.sparse, fit.low_rank, fit.exact))
    if not deltas:
        return
    digests = [{d.name: digest_array(state[d.name]) for d in deltas} for state in (base, maker.weights)]
    content = PatchContent(
        "1" * 64, maker.mark(), dtype, "tiny", deltas, *digests, dict.fromkeys(digests[0], dtype), np.ones((1, 2), np.float32), 1e-3, {}
    )
    data = build_patch(content, [KEY])
    patch, other = read_unverified(data).verify([public_half(KEY)]), reader_v1().read(data)
    for delta in deltas:
        wanted = maker.weights[delta.name].tobytes()
        assert patch.apply(delta.name, base[delta.name]).tobytes() == wanted
        assert apply_delta(base[delta.name], patch.tensor_delta(delta.name)).tobytes() == wanted
        assert reader_v1().apply(other["tensors"][delta.name], base[delta.name].tobytes()) == wanted


def test_a_squash_that_is_not_smaller_is_refused_with_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SHAPES, "qkv", (256, 256))
    rng = np.random.default_rng(4)
    weights = _weights(rng, "float32", grid=2.0**-10)
    maker = Maker(dict(weights))
    # Scales too far apart for one set of int8 factors: one part must become steps, entry by entry.
    maker.add(_low_rank(rng, 2.0**-10, top=8))
    maker.add(_low_rank(rng, 2.0**-1, top=8))
    with pytest.raises(InputError, match=r"not be smaller: expected less than the chain's \d+ bytes, got \d+"):
        squash(_bundle(tmp_path / "c", weights), [], maker.patches, [KEY])


def test_a_chain_that_undoes_itself_is_refused(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    weights = _weights(rng, "float32", grid=2.0**-10)
    maker = Maker(dict(weights))
    delta = _sparse(rng, 2.0**-10)
    assert delta.sparse is not None
    maker.add(delta)
    maker.add(TensorDelta("fc1", SHAPES["fc1"], SparsePart(delta.sparse.index, (-delta.sparse.q).astype(np.int16), 2.0**-10)))
    with pytest.raises(InputError, match="changes nothing"):
        squash(_bundle(tmp_path / "b", weights), [], maker.patches, [KEY])


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 100_000))
def test_diff_is_symmetric_and_conflicts_count_like_sets(seed: int) -> None:
    rng = np.random.default_rng(seed)
    weights = _weights(rng, "float32")
    a = Maker(dict(weights)).add(_sparse(rng, 2.0**-12, share=0.3), _low_rank(rng, 2.0**-24))
    b = Maker(dict(weights)).add(_sparse(rng, 2.0**-11, share=0.3), _low_rank(rng, 2.0**-24))
    there, back = diff(a, b), diff(b, a)
    assert (there["only_in_a"], there["only_in_b"], there["same"], there["different"]) == (
        back["only_in_b"], back["only_in_a"], back["same"], back["different"],
    )  # fmt: skip
    assert not there["identical"]
    assert diff(a, a)["identical"]
    found = {row["name"]: row for row in conflicts(a, b)["tensors"]}
    sides = [{int(i): int(q) for i, q in zip(p.index, p.q, strict=True)} for p in (_part(a), _part(b))]
    both = set(sides[0]) & set(sides[1])
    assert found["fc1"]["both"] == len(both)
    assert found["fc1"]["opposing"] == sum(sides[0][i] * sides[1][i] < 0 for i in both)
    rows = [set(p.tensor_delta("qkv").low_rank.rows.tolist()) for p in (a, b)]  # type: ignore[union-attr]
    assert found["qkv"]["low_rank_rows"] == len(rows[0] & rows[1])
    assert conflicts(a, b)["relation"] == "siblings"


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_compare_and_inspect_count_codes_and_bfloat16_like_sets(dtype: str) -> None:
    rng = np.random.default_rng(6)
    weights, step = _weights(rng, dtype), 1.0 if dtype == "int8" else 2.0**-11
    a, b = (Maker(dict(weights)).add(_sparse(rng, step, share=0.3)) for _ in range(2))
    sides = [{int(i): int(q) for i, q in zip(p.index, p.q, strict=True)} for p in (_part(a), _part(b))]
    both = set(sides[0]) & set(sides[1])
    same = sum(sides[0][i] == sides[1][i] for i in both)
    there, clash = diff(a, b), conflicts(a, b)
    assert (there["same"], there["different"], there["only_in_a"]) == (same, len(both) - same, len(sides[0]) - len(both))
    top = max(abs(sides[0].get(i, 0) - sides[1].get(i, 0)) for i in {*sides[0], *sides[1]})
    assert there["tensors"][0]["largest_difference"] == step * top
    assert (clash["both"], clash["opposing"]) == (len(both), sum(sides[0][i] * sides[1][i] < 0 for i in both))
    shown = describe(a)
    assert shown["precision"] == dtype and shown["changed"] == len(sides[0])
    assert [(row["name"], row["dtype"], row["step"], row["nnz"]) for row in shown["tensors"]] == [("fc1", dtype, step, len(sides[0]))]
    other = Maker(_weights(rng, "float16")).add(_sparse(rng, 2.0**-11))
    with pytest.raises(MismatchError, match="one precision"):
        conflicts(a, other)


def test_a_bundle_of_codes_and_bfloat16_squashes_and_materializes_to_its_chain(tmp_path: Path) -> None:
    """A tensor row has its own dtype: an int8 Bundle may hold bfloat16 tensors too."""
    rng = np.random.default_rng(9)
    weights = _weights(rng, "bfloat16", grid=2.0**-10) | {"fc1": _weights(rng, "int8")["fc1"]}
    maker = Maker(dict(weights))
    for _ in range(2):
        maker.add(_sparse(rng, 1.0), _sparse(rng, 2.0**-10, share=0.1, name="qkv"))
    bundle = _bundle(tmp_path / "bundle", weights)
    assert (bundle.precision, {t.dtype for t in bundle.tensor_map.tensors}) == ("int8", {"int8", "bfloat16"})
    one = read_unverified(squash(bundle, [], maker.patches, [KEY]).data).verify([public_half(KEY)])
    materialize_weights(bundle, maker.patches, tmp_path / "chain.bin")
    materialize_weights(bundle, [one], tmp_path / "squash.bin")
    assert (tmp_path / "chain.bin").read_bytes() == (tmp_path / "squash.bin").read_bytes()
    assert one.manifest.result == maker.mark()


def _part(patch: Patch) -> SparsePart:
    part = patch.tensor_delta("fc1").sparse
    assert part is not None
    return part


@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_materialized_weights_are_the_rules_and_the_bundle_loads(tmp_path: Path, dtype: str) -> None:
    base, maker, _ = _random_chain(11, dtype)
    bundle = _bundle(tmp_path / "bundle", base)
    before = (bundle.path / "weights.bin").read_bytes()
    materialize_bundle(bundle, maker.patches, tmp_path / "made")
    again = load_bundle(tmp_path / "made")
    verify_bundle(again)
    assert again.fingerprint == maker.mark() == maker.patches[-1].manifest.result
    for name, array in maker.weights.items():
        assert again.weights()[name].tobytes() == array.tobytes()
    assert (bundle.path / "weights.bin").read_bytes() == before
    with pytest.raises(InputError, match="existing"):
        materialize_bundle(bundle, maker.patches, tmp_path / "made")
    with pytest.raises(InputError, match="own"):
        materialize_weights(bundle, maker.patches, bundle.path / "weights.bin")


def test_wrong_order_and_damage_leave_what_was_there(tmp_path: Path) -> None:
    base, maker, _ = _random_chain(13, "float32")
    bundle = _bundle(tmp_path / "bundle", base)
    out = tmp_path / "w.bin"
    out.write_bytes(b"former")
    with pytest.raises(MismatchError):
        materialize_weights(bundle, maker.patches[1:], out)
    data = bytearray((bundle.path / "weights.bin").read_bytes())
    for offset in (4, bundle.tensor_map.by_name()["bias"].offset):  # a changed tensor, and one that no patch touches
        data[offset] ^= 1
        (bundle.path / "weights.bin").write_bytes(data)
        with pytest.raises(IntegrityError, match="bundle weights were changed"):
            materialize_weights(bundle, maker.patches, out)
        data[offset] ^= 1
    assert out.read_bytes() == b"former"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bundle", "w.bin"]


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, maker, _ = _random_chain(17, "float32")
    bundle = _bundle(tmp_path / "bundle", base)
    out = tmp_path / "w.bin"
    out.write_bytes(b"former")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(RefusedError, match="No space"):
        materialize_weights(bundle, maker.patches, out)
    with pytest.raises(RefusedError, match="No space"):
        materialize_bundle(bundle, maker.patches, tmp_path / "new")
    assert out.read_bytes() == b"former"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bundle", "w.bin"]


_PEAK = """
import resource, sys
from pathlib import Path
from edgeedit.bundle import load_bundle
from edgeedit.patch.algebra_chain import load_chain
from edgeedit.patch.algebra_materialize import materialize_weights
from edgeedit.patch.keys import load_trust
import edgeedit.codec.sections
folder = Path(sys.argv[1])
bundle, trust = load_bundle(folder / "bundle"), load_trust([folder / "ml.pub"])
start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
materialize_weights(bundle, load_chain(sorted(folder.glob("*.eep")), trust), folder / "w.bin")
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start) * 1024)
"""


def test_extra_memory_stays_below_two_tensors_and_the_patches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SHAPES, "fc1", (4096, 2048))
    monkeypatch.setitem(SHAPES, "qkv", (2048, 4096))
    rng = np.random.default_rng(0)
    weights = _weights(rng, "float32")
    maker = Maker(dict(weights))
    _bundle(tmp_path / "bundle", weights)
    new_key(tmp_path / "ml.key", tmp_path / "ml.pub")
    for number in range(2):
        patch = maker.add(_sparse(rng, 2.0**-12, share=0.01), _sparse(rng, 2.0**-12, share=0.01, name="qkv"))
        (tmp_path / f"{number}.eep").write_bytes(_signed_by(patch, tmp_path / "ml.key"))
    done = subprocess.run([sys.executable, "-c", _PEAK, str(tmp_path)], capture_output=True, text=True, check=True)
    largest, patches = weights["fc1"].nbytes, sum(len(p.data) for p in maker.patches)
    assert int(done.stdout) <= 2 * largest + patches + (8 << 20)  # 8 MiB: what an allocator rounds up and decoding holds
    assert (tmp_path / "w.bin").read_bytes()[: weights["fc1"].nbytes] == maker.weights["fc1"].tobytes()


def _signed_by(patch: Patch, key: Path) -> bytes:
    from edgeedit.patch.keys import load_private_key

    m = patch.manifest
    rows = m.tensors
    content = PatchContent(
        m.parent, m.result, m.precision, m.recipe, [patch.tensor_delta(r.name) for r in rows], {r.name: r.before for r in rows},
        {r.name: r.after for r in rows}, {r.name: r.dtype for r in rows}, patch.expected(), m.probe.tolerance, m.provenance,
    )  # fmt: skip
    return build_patch(content, [load_private_key(key)])


def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle, maker = _grid_chain(tmp_path, "float32")
    new_key(tmp_path / "ml.key", tmp_path / "ml.pub")
    files = [str(tmp_path / f"{n}.eep") for n in range(3)]
    for file, patch in zip(files, maker.patches, strict=True):
        Path(file).write_bytes(_signed_by(patch, tmp_path / "ml.key"))
    trust, base = ["--trust", str(tmp_path / "ml.pub")], ["--bundle", str(bundle.path)]
    one = str(tmp_path / "one.eep")
    assert run(["squash", *files[:2], *base, *trust, "--key", str(tmp_path / "ml.key"), "-o", one, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bytes"] == Path(one).stat().st_size
    assert run(["materialize", one, files[2], *base, *trust, "-o", str(tmp_path / "out"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["fingerprint"] == maker.mark()
    for command in ("diff", "conflicts"):
        assert run([command, files[0], one, *trust, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["schema_version"] == 1
    assert run(["materialize", files[1], *base, *trust, "-o", str(tmp_path / "x")]) == 4
    Path(files[0]).write_bytes(Path(files[0]).read_bytes()[:-1] + b"x")
    for command in (["diff", files[0], one], ["materialize", files[0], *base, "-o", str(tmp_path / "x")]):
        assert run([*command, *trust]) == 5
    assert not (tmp_path / "x").exists()
    with pytest.raises(InputError):
        load_chain([], [])
