"""The native programs against the Python side: same bytes, same digests, same refusals, on x86-64 and on aarch64."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

import native_cases as cases
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edgeedit import limits
from edgeedit.deploy.materialize import write_tensors
from edgeedit.digest import digest_array
from edgeedit.errors import IntegrityError
from edgeedit.patch.keys import TEST_KEY_IDS, PublicKey, public_half
from edgeedit.patch.read import read_unverified
from edgeedit.rounding import apply_delta, finite

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = sorted((ROOT / "tests" / "golden").glob("*.eep"))
TEST_KEYS = [Ed25519PrivateKey.from_private_bytes(bytes(range(n, n + 32))) for n in (1, 2)]
TRUST = [public_half(key) for key in (*TEST_KEYS, cases.KEY)]
PRECISIONS = ("float32", "float16", "bfloat16", "int8")
RANDOM_PATCHES = 200


@pytest.fixture(scope="session")
def patches(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """All golden files and 200 random patches, a quarter of them for each deployed dtype."""
    folder = tmp_path_factory.mktemp("patches")
    found = list(GOLDEN)
    for seed in range(RANDOM_PATCHES):
        precision = PRECISIONS[seed % 4]
        weights = {name: cases.weights_by_rule(precision, shape) for name, shape in cases.SHAPES.items()}
        path = folder / f"{seed}.eep"
        path.write_bytes(cases.make_patch(weights, precision, seed)[0])
        found.append(path)
    return found


def _digests(program: Sequence[str], paths: Sequence[Path], folder: Path, *options: str) -> list[str]:
    keys = folder / "keys.bin"
    keys.write_bytes(b"".join(key.raw for key in TRUST))
    given = "".join(f"{path}\n" for path in paths)
    done = subprocess.run([*program, str(keys), *options], input=given, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def _python_line(path: Path, trust: Sequence[PublicKey]) -> str:
    """What digest_many should print, by the Python reader and the numpy rule."""
    patch = read_unverified(path.read_bytes()).verify(trust, allow_test_keys=True)
    fields = [str(path), "0"]
    for row in patch.manifest.tensors:
        fields += [row.name, digest_array(apply_delta(cases.weights_by_rule(row.dtype, row.shape), patch.tensor_delta(row.name)))]
    return "\t".join(fields)


def _check_lines(lines: Sequence[str], paths: Sequence[Path]) -> None:
    assert len(lines) == len(paths)
    for line, path in zip(lines, paths, strict=True):
        try:
            assert line == _python_line(path, TRUST)
        except IntegrityError:
            assert line.split("\t")[:2] == [str(path), "5"], line


def test_digests_equal_numpys_for_goldens_and_random_patches(native: Path, patches: list[Path], tmp_path: Path) -> None:
    lines = _digests([str(native / "digest_many")], patches, tmp_path)
    _check_lines(lines, patches)
    assert sum(line.split("\t")[1] == "0" for line in lines) >= RANDOM_PATCHES + 2


def test_aarch64_digests_equal_x86_64s(native: Path, aarch64: Path, patches: list[Path], tmp_path: Path) -> None:
    here = _digests([str(native / "digest_many")], patches, tmp_path)
    there = _digests(["qemu-aarch64", str(aarch64 / "digest_many")], patches, tmp_path)
    assert there == here


def test_the_wide_form_gives_the_digests_of_the_scalar_form_on_both(
    native: Path, aarch64: Path, patches: list[Path], tmp_path: Path
) -> None:
    """AVX2 and F16C here, NEON under qemu-user; where this processor has no AVX2 its half compares the scalar form with itself."""
    for program in ([str(native / "digest_many")], ["qemu-aarch64", str(aarch64 / "digest_many")]):
        assert _digests(program, patches, tmp_path) == _digests(program, patches, tmp_path, "scalar")


def test_aarch64_core_tests_pass(aarch64: Path) -> None:
    done = subprocess.run(["qemu-aarch64", str(aarch64 / "test_core")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_every_byte_of_the_goldens_gets_the_python_readers_verdict(native: Path, tmp_path: Path) -> None:
    """One changed byte at every place of the good files, judged by both readers under the first test key only."""
    paths = []
    for golden in (path for path in GOLDEN if path.stem.startswith("v")):
        data = bytearray(golden.read_bytes())
        for position in range(len(data)):
            data[position] ^= 1 << (position % 8)
            path = tmp_path / f"{golden.stem}-{position}.eep"
            path.write_bytes(data)
            paths.append(path)
            data[position] ^= 1 << (position % 8)
    keys = tmp_path / "one.bin"
    keys.write_bytes(TRUST[0].raw)
    given = "".join(f"{path}\n" for path in paths)
    done = subprocess.run([str(native / "digest_many"), str(keys)], input=given, capture_output=True, text=True, check=True)
    accepted = {line.split("\t")[0] for line in done.stdout.splitlines() if line.split("\t")[1] == "0"}
    expected = set()
    for path in paths:
        try:
            read_unverified(path.read_bytes()).verify(TRUST[:1], allow_test_keys=True)
        except IntegrityError:
            continue
        expected.add(str(path))
    assert accepted == expected
    assert 0 < len(expected) <= 96  # only in the slot of a signer that this reader does not trust


def _apply(program: Sequence[str], *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*program, *map(str, arguments)], capture_output=True, text=True, check=False)


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    """The trusted .pub file."""
    path = tmp_path / "ml.pub"
    path.write_bytes(cases.public_pem())
    return path


@pytest.mark.parametrize("machine", ["x86-64", "aarch64"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_chain_materialises_to_the_bytes_that_python_writes(
    precision: str, machine: str, native: Path, aarch64: Path, tmp_path: Path, key_file: Path
) -> None:
    bundle, weights = cases.make_bundle(tmp_path / "bundle", precision, 7)
    chain = []
    for number in range(3):
        data, weights = cases.make_patch(weights, precision, number)
        chain.append(tmp_path / f"{number}.eep")
        chain[-1].write_bytes(data)
    rows = sorted(bundle.tensor_map.tensors, key=lambda tensor: tensor.offset)
    write_tensors(tmp_path / "expected.bin", [(row.offset, weights[row.name]) for row in rows])
    program = [str(native / "edgeedit-apply")] if machine == "x86-64" else ["qemu-aarch64", str(aarch64 / "edgeedit-apply")]
    out = tmp_path / "weights.bin"
    done = _apply(program, "--bundle", bundle.path, "--trust", key_file, *chain, "-o", out, "--json")
    assert done.returncode == 0, done.stderr
    assert out.read_bytes() == (tmp_path / "expected.bin").read_bytes()
    value = json.loads(done.stdout)
    assert (value["schema_version"], value["patches"], value["parent"]) == (1, 3, bundle.fingerprint)
    assert value["fingerprint"] == read_unverified(chain[-1].read_bytes()).verify(TRUST).manifest.result


def test_refusals_name_who_must_act_and_leave_nothing(native: Path, tmp_path: Path, key_file: Path) -> None:
    program = [str(native / "edgeedit-apply")]
    bundle, weights = cases.make_bundle(tmp_path / "bundle", "float16", 1)
    first, after = cases.make_patch(weights, "float16", 1)
    second, _ = cases.make_patch(after, "float16", 2)
    stranger, _ = cases.make_patch(weights, "float16", 1, Ed25519PrivateKey.generate())
    test_key, _ = cases.make_patch(weights, "float16", 1, TEST_KEYS[0])
    files = {"first": first, "second": second, "stranger": stranger, "test": test_key, "cut": first[:-1]}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "test.pub").write_bytes(cases.public_pem(TEST_KEYS[0]))
    out = tmp_path / "out" / "weights.bin"
    out.parent.mkdir()
    head = ["--bundle", bundle.path, "--trust", key_file]
    expected = [
        (2, ["--bundle", bundle.path, "--trust", key_file, "-o", out]),
        (2, [*head, tmp_path / "missing", "-o", out]),
        (2, ["--bundle", tmp_path / "missing", "--trust", key_file, tmp_path / "first", "-o", out]),
        (2, ["--bundle", bundle.path, "--trust", tmp_path / "first", tmp_path / "first", "-o", out]),
        (4, [*head, tmp_path / "second", "-o", out]),
        (4, [*head, tmp_path / "second", tmp_path / "first", "-o", out]),
        (4, [*head, tmp_path / "first", tmp_path / "first", "-o", out]),
        (5, ["--bundle", bundle.path, tmp_path / "first", "-o", out]),
        (5, [*head, tmp_path / "stranger", "-o", out]),
        (5, [*head, tmp_path / "cut", "-o", out]),
        (5, [*head, "--trust", tmp_path / "test.pub", tmp_path / "test", "-o", out]),
        (6, [*head, tmp_path / "first", "-o", tmp_path / "nowhere" / "weights.bin"]),
        (6, [*head, tmp_path / "first", "-o", bundle.path / "weights.bin"]),
    ]
    base = (bundle.path / "weights.bin").read_bytes()
    for code, arguments in expected:
        done = _apply(program, *arguments)
        assert done.returncode == code, (arguments, done.stderr)
        assert re.fullmatch(r"error: [^\n]+[^.\n]\nhint: [^\n]+\n", done.stderr), done.stderr
        assert done.stdout == "" and list(out.parent.iterdir()) == []
    damaged = bytearray(base)
    damaged[bundle.tensor_map.by_name()["untouched"].offset] ^= 1
    (bundle.path / "weights.bin").write_bytes(damaged)
    done = _apply(program, *head, tmp_path / "first", "-o", out)
    assert done.returncode == 5 and "digest of untouched differs" in done.stderr
    assert list(out.parent.iterdir()) == []


def test_a_full_disk_leaves_the_former_file(native: Path, tmp_path: Path, key_file: Path) -> None:
    bundle, weights = cases.make_bundle(tmp_path / "bundle", "float32", 1)
    (tmp_path / "first").write_bytes(cases.make_patch(weights, "float32", 1)[0])
    out = tmp_path / "out" / "weights.bin"
    out.parent.mkdir()
    out.write_bytes(b"former")
    program = f"{native / 'edgeedit-apply'} --bundle {bundle.path} --trust {key_file} {tmp_path / 'first'} -o {out}"
    command = f"trap '' XFSZ; ulimit -f 8; exec {program}"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == 6, done.stderr
    assert [path.name for path in out.parent.iterdir()] == ["weights.bin"] and out.read_bytes() == b"former"


NO_THREADS = """
#include <errno.h>
#include <pthread.h>
int pthread_create(pthread_t *thread, const pthread_attr_t *how, void *(*start)(void *), void *with) {
  (void)thread, (void)how, (void)start, (void)with;
  return EAGAIN;
}
"""


def test_without_threads_the_result_is_the_same(native: Path, tmp_path: Path, key_file: Path) -> None:
    (tmp_path / "none.c").write_text(NO_THREADS)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(tmp_path / "none.so"), str(tmp_path / "none.c")], check=True)
    bundle, weights = cases.make_bundle(tmp_path / "bundle", "float16", 1)
    (tmp_path / "first").write_bytes(cases.make_patch(weights, "float16", 1)[0])
    found = []
    for preload in ("", str(tmp_path / "none.so")):
        out = tmp_path / f"weights{len(found)}.bin"
        words = [native / "edgeedit-apply", "--bundle", bundle.path, "--trust", key_file, tmp_path / "first", "-o", out]
        done = subprocess.run(
            [str(word) for word in words], capture_output=True, text=True, check=False, env={**os.environ, "LD_PRELOAD": preload}
        )
        assert done.returncode == 0, done.stderr
        found.append(out.read_bytes())
    assert found[0] == found[1]


def test_only_the_abi_is_visible(native: Path) -> None:
    done = subprocess.run(["nm", "-D", "--defined-only", str(native / "libedgeedit.so")], capture_output=True, text=True, check=True)
    names = {
        line.split()[2].split("@")[0]
        for line in done.stdout.splitlines()
        if " T " in line or " W " in line or " B " in line or " D " in line
    }
    header = (ROOT / "edgeedit" / "native" / "edgeedit.h").read_text("utf-8")
    assert names == set(re.findall(r"(edgeedit_\w+)\(", header))


def test_the_limits_are_those_of_python() -> None:
    text = (ROOT / "edgeedit" / "native" / "limits.h").read_text("utf-8")
    for name, value in re.findall(r"(MAX_\w+|MIN_\w+) = (.+);", text):
        plain = re.sub(r"std::u?int64_t\{(\d+)\}", r"\1", value)
        assert eval(plain, {"MAX_TENSORS": limits.MAX_TENSORS}) == getattr(limits, name), name
    keys = (ROOT / "edgeedit" / "native" / "container.cc").read_text("utf-8")
    assert set(re.findall(r'"([0-9a-f]{64})"', keys)) == TEST_KEY_IDS


@pytest.mark.parametrize("target", ["json", "manifest", "container", "sparse", "dense", "low_rank", "exact", "tensor", "apply"])
def test_the_fuzz_corpora_replay_under_the_sanitizers(target: str, replay: Path) -> None:
    seeds = sorted((ROOT / "tests" / "fuzz" / "corpus" / target).iterdir())
    assert seeds
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}  # the leak checker needs ptrace, which containers forbid
    done = subprocess.run([str(replay / f"fuzz_{target}"), *map(str, seeds)], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0 and f"replayed {len(seeds)} files" in done.stdout, done.stderr


def test_the_weight_rule_of_these_tests_is_finite_and_holds_subnormals() -> None:
    for precision in PRECISIONS:
        assert finite(cases.weights_by_rule(precision, (5000,))).all()
    assert (np.abs(cases.weights_by_rule("float16", (5000,))) < 2.0**-14).sum() > 400
