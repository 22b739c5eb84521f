"""`Bundle`: what a device is provisioned with (graph, weights, TensorMap, probe inputs, fingerprint), and its reader.

A Bundle is a folder: `bundle.json`, `model.onnx` (graph; small integer tensors inline), `weights.bin` (every float
tensor, each 4096-aligned, little-endian, C order), `probes.npy` (float32, probes x the model's input shape) and `golden.npy`
(float32, what torch gives on them).  `reference.npy`, where there is one, is what the encoder says of clean images of the
server (float32, images x numbers of the monitor's projection).
Guarantees: `load_bundle` checks every offset, length and the fingerprint text against the table; it reads weights only
through a copy-on-write mapping, so a Bundle on disk is never changed.  `verify_bundle` re-hashes all content.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgeedit.digest import TensorDigest, digest_array, digest_file, fingerprint
from edgeedit.errors import InputError, IntegrityError
from edgeedit.files import read_json, write_json
from edgeedit.limits import MAX_BUNDLE_JSON_BYTES, MAX_PROBES, MAX_TENSOR_ELEMENTS

Array = np.ndarray[Any, Any]
# Deployed dtypes and the numpy dtype that carries them: bfloat16 as its bits, int8 as the codes of a Q/DQ weight.
DTYPES: Mapping[str, np.dtype[Any]] = {
    "float32": np.dtype("<f4"),
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype("<u2"),
    "int8": np.dtype("i1"),
}
MODEL_FILE, WEIGHTS_FILE, PROBES_FILE, BUNDLE_FILE = "model.onnx", "weights.bin", "probes.npy", "bundle.json"
GOLDEN_FILE, REFERENCE_FILE = "golden.npy", "reference.npy"


@dataclass(frozen=True)
class MappedTensor:
    """One deployed tensor.  `parameter` is the torch name or "" for a tensor that is no parameter (a folded constant);
    `transposed` says that the deployed matrix is the parameter's transpose; `editable` that a patch may touch it.

    Of an editable int8 tensor `scales` names the deployed float32 tensor that turns codes into weights, weight = scale * code
    (zero point 0): one element for all, or one for each index of dimension `axis` of the deployed tensor."""

    name: str
    parameter: str
    transposed: bool
    dtype: str
    shape: tuple[int, ...]
    offset: int
    length: int
    sha256: str
    editable: bool
    scales: str = ""
    axis: int = 0

    def digest(self) -> TensorDigest:
        """Identity of the tensor for the fingerprint."""
        return TensorDigest(self.name, self.dtype, self.shape, self.sha256)


@dataclass(frozen=True)
class TensorMap:
    """All deployed tensors, sorted by name."""

    tensors: tuple[MappedTensor, ...]

    def by_parameter(self, parameter: str) -> MappedTensor:
        """The deployed tensor of a parameter; raises InputError with its name when there is none."""
        for tensor in self.tensors:
            if tensor.parameter == parameter:
                return tensor
        raise InputError(f"parameter is not in the bundle: got {parameter}", hint="export the bundle from the same encoder")

    def by_name(self) -> dict[str, MappedTensor]:
        """Deployed name -> tensor."""
        return {tensor.name: tensor for tensor in self.tensors}


@dataclass(frozen=True)
class Preprocess:
    """How a picture becomes the input: square `size` in pixels, RGB `mean` and `std` per channel on 0..1 values."""

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


@dataclass(frozen=True)
class Bundle:
    """A provisioned model.  `tolerance` is the largest absolute difference (float32 output units) allowed between the
    torch encoder and this graph on the probes; `precision` is a word of DTYPES (in an int8
    Bundle scales and biases stay float32); `source_digest` names the encoder's
    weights, `graph_digest` the ONNX file, `fingerprint` all deployed tensors; `source` is where the server loads the encoder
    from (a device ignores it).  A Bundle made of another one and patches (`materialize`) is named by its fingerprint, and `patched_from` is
    the source digest of the encoder behind it; else that is "".

    The words for the engine come from the device profile: `engine` onnxruntime or tensorrt; `mode` aliased (weights written in
    place), inputs (patchable matrices are graph inputs) or rebuild; `provider` with its options; `memory` host, or the device
    type that holds the weights; `cache_prefix_option` names the provider's option that keeps compiled engines of different
    weights apart; `batch` is the fixed number of images, 0 where it is free; `threads` 0 lets the engine decide.

    The trial of a patch: `probes_first` allows a second binding or engine for its probes; it is then watched for `soak_frames`
    frames, live ones for at most `soak_seconds`; `max_slowdown` and `max_growth_mb` (0: no limit) are its ceilings.

    The field monitor: a frame every `monitor_seconds`, `monitor_frames` make a window, the first `monitor_windows` count as clean days;
    `false_alarms` is the probability that a camera without any change calls an alarm in a month.

    `golden_digest` names what the torch encoder gives on the probes with the base's weights, "" where that is not known; `reference_digest`
    names `reference.npy`, "" without one."""

    path: Path
    recipe: str
    source_digest: str
    precision: str
    profile: str
    input_name: str
    input_shape: tuple[int, int, int]
    output_name: str
    output_width: int
    preprocess: Preprocess
    tolerance: float
    graph_digest: str
    probes_digest: str
    fingerprint: str
    tensor_map: TensorMap
    source: str = ""
    engine: str = "onnxruntime"
    mode: str = "aliased"
    provider: str = "CPUExecutionProvider"
    provider_options: Mapping[str, str] = field(default_factory=dict)
    cache_prefix_option: str = ""
    memory: str = "host"
    threads: int = 0
    batch: int = 0
    probes_first: bool = False
    soak_frames: int = 0
    soak_seconds: float = 0.0
    max_slowdown: float = 3.0
    max_growth_mb: int = 0
    golden_digest: str = ""
    monitor_seconds: float = 10.0
    monitor_frames: int = 32
    monitor_windows: int = 512
    false_alarms: float = 0.1
    reference_digest: str = ""
    patched_from: str = ""

    def weights(self) -> dict[str, Array]:
        """Deployed name -> array, views into a private copy-on-write mapping of `weights.bin`."""
        data = np.memmap(self.path / WEIGHTS_FILE, dtype=np.uint8, mode="c")
        return {t.name: data[t.offset : t.offset + t.length].view(DTYPES[t.dtype]).reshape(t.shape) for t in self.tensor_map.tensors}

    def probes(self) -> Array:
        """Probe inputs, float32 (n, 3, size, size)."""
        probes: Array = np.load(self.path / PROBES_FILE, allow_pickle=False)
        return probes

    def golden(self) -> Array | None:
        """Features of the torch encoder on the probes with the base's weights, float32 (n, width); None where not known."""
        return np.load(self.path / GOLDEN_FILE, allow_pickle=False) if self.golden_digest else None

    def reference(self) -> Array | None:
        """Projected features of clean images of the server with the base's weights, float32 (n, numbers); None where none was shipped."""
        return np.load(self.path / REFERENCE_FILE, allow_pickle=False) if self.reference_digest else None


def save_bundle(bundle: Bundle) -> None:
    """Write `bundle.json` (last file of a Bundle, so an unfinished one cannot be loaded)."""
    value = asdict(bundle)
    del value["path"]
    if not bundle.patched_from:  # a runtime of before this field takes what `export` writes
        del value["patched_from"]
    value["schema_version"] = 1
    value["tensor_map"] = value["tensor_map"]["tensors"]
    write_json(bundle.path / BUNDLE_FILE, value)


def load_bundle(path: Path) -> Bundle:
    """Read and check a Bundle folder; raises InputError when it is missing, IntegrityError when its table is wrong."""
    value = read_json(path / BUNDLE_FILE, MAX_BUNDLE_JSON_BYTES)
    try:
        if value.pop("schema_version") != 1:
            raise InputError(f"cannot read bundle {path}: expected schema_version 1", hint="export it again")
        rows = tuple(MappedTensor(**{**row, "shape": tuple(row["shape"])}) for row in value.pop("tensor_map"))
        pre = value.pop("preprocess")
        preprocess = Preprocess(pre["size"], tuple(pre["mean"]), tuple(pre["std"]))
        value["input_shape"] = tuple(value["input_shape"])
        bundle = Bundle(path=path, preprocess=preprocess, tensor_map=TensorMap(rows), **value)
    except (KeyError, TypeError, AttributeError) as error:
        raise IntegrityError(f"bundle table is wrong: expected the fields of schema 1, got {error!r}", hint="export it again") from error
    _check_table(bundle)
    return bundle


def _check_table(bundle: Bundle) -> None:
    try:
        size = (bundle.path / WEIGHTS_FILE).stat().st_size
    except OSError as error:
        raise InputError(f"bundle has no weights: {error.strerror}", hint="copy the whole bundle folder") from error
    end = 0
    for tensor in sorted(bundle.tensor_map.tensors, key=lambda t: t.offset):
        count = int(np.prod(tensor.shape, dtype=object))
        legal = tensor.dtype in DTYPES and 0 <= count <= MAX_TENSOR_ELEMENTS and tensor.offset >= end
        if not legal or tensor.length != count * DTYPES[tensor.dtype].itemsize or tensor.offset + tensor.length > size:
            raise IntegrityError(f"bundle table is wrong: {tensor.name} does not fit weights.bin of {size} bytes", hint="export it again")
        end = tensor.offset + tensor.length
    if fingerprint(t.digest() for t in bundle.tensor_map.tensors) != bundle.fingerprint:
        raise IntegrityError("bundle fingerprint does not match its own table", hint="export it again")


def verify_bundle(bundle: Bundle) -> None:
    """Re-hash graph, probes and every tensor; raises IntegrityError naming the first that differs."""
    if digest_file(bundle.path / MODEL_FILE) != bundle.graph_digest:
        raise IntegrityError("bundle graph was changed: digest of model.onnx differs", hint="copy the bundle again")
    if digest_file(bundle.path / PROBES_FILE) != bundle.probes_digest:
        raise IntegrityError("bundle probes were changed: digest of probes.npy differs", hint="copy the bundle again")
    if bundle.golden_digest and digest_file(bundle.path / GOLDEN_FILE) != bundle.golden_digest:
        raise IntegrityError("bundle golden outputs were changed: digest of golden.npy differs", hint="copy the bundle again")
    if bundle.reference_digest and digest_file(bundle.path / REFERENCE_FILE) != bundle.reference_digest:
        raise IntegrityError("bundle reference was changed: digest of reference.npy differs", hint="copy the bundle again")
    weights = bundle.weights()
    for tensor in bundle.tensor_map.tensors:
        if digest_array(weights[tensor.name]) != tensor.sha256:
            raise IntegrityError(f"bundle weights were changed: digest of {tensor.name} differs", hint="copy the bundle again")
    if not 0 < len(bundle.probes()) <= MAX_PROBES:
        raise IntegrityError(f"bundle has a wrong number of probes: expected 1..{MAX_PROBES}, got {len(bundle.probes())}")
