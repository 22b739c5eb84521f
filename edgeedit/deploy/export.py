"""Builds a Bundle from an Encoder: trace, map, write, prove.

The graph is traced from stand-in values (see `mapping`) and then given the true ones under the same names, so its
structure cannot depend on the values that a patch changes.  The finished graph is run against torch on the probes: a
constant folded from a stand-in, or a baked batch size, shows there and the export is refused.
Guarantees: an unfinished export leaves nothing; `bundle.json` is written last.
"""

from __future__ import annotations

import io
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeedit.bundle import GOLDEN_FILE, MODEL_FILE, PROBES_FILE, WEIGHTS_FILE, Bundle, MappedTensor, TensorMap, save_bundle
from edgeedit.catalog import DeviceProfile, check_precision
from edgeedit.deploy.compare import difference, run_encoder, run_graph
from edgeedit.deploy.graph import (
    INPUT_NAME,
    OUTPUT_NAME,
    TORCH_DTYPES,
    externalise,
    fix_batch,
    float_initialisers,
    in_float32,
    open_inputs,
    rename,
    store_rows,
    trace,
)
from edgeedit.deploy.int8 import Codes, quantise
from edgeedit.deploy.mapping import Match, ambiguous, match, stand_ins
from edgeedit.deploy.materialize import layout, write_tensors
from edgeedit.deploy.probes import DEFAULT_PROBES, check_inputs
from edgeedit.deploy.ready import candidates
from edgeedit.deploy.tolerance import STRUCTURE, half_features, scale_of, tolerance_of
from edgeedit.digest import digest_array, digest_file, dtype_word, fingerprint
from edgeedit.encoder.values import parameter_values, with_values
from edgeedit.errors import InputError, RefusedError
from edgeedit.files import fsync_dir, replace_file
from edgeedit.patterns import synthetic_pixels
from edgeedit.rounding import widen

if TYPE_CHECKING:
    import onnx

    from edgeedit.encoder.encoder import Encoder

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class _Request:
    """What to export, into the unfinished folder `temp`."""

    encoder: Encoder
    temp: Path
    profile: DeviceProfile
    precision: str
    pixels: Array
    seed: int
    ready: Path | None

    @property
    def stored(self) -> str:
        """Precision of the traced graph; int8 codes are made of a float32 one."""
        return "float32" if self.precision == "int8" else self.precision


@dataclass(frozen=True)
class _Written:
    """A written model: its graph without values, its tensors' table, their values by name, and the parameters they stand for."""

    model: onnx.ModelProto
    tensors: tuple[MappedTensor, ...]
    arrays: Mapping[str, Array]
    values: Mapping[str, Array]


def export_bundle(
    encoder: Encoder,
    out: Path,
    *,
    profile: DeviceProfile,
    precision: str,
    probes: Array | None = None,
    seed: int = 0,
    ready: Path | None = None,
) -> Bundle:
    """Export `encoder` for `profile` into the new folder `out`; `ready` is an ONNX file of the same encoder to take instead of tracing.

    `probes` are normalised images, float32 (n, 3, s, s); None makes 16 synthetic ones from `seed`.  Raises InputError when
    `out` exists and is not empty, when an editable parameter cannot be mapped, or when the graph disagrees with torch;
    RefusedError when the disk refuses, or the profile the precision.
    """
    check_precision(profile, precision)
    _check_target(out)
    size = encoder.preprocess.size
    pixels = synthetic_pixels(encoder.preprocess, DEFAULT_PROBES, seed) if probes is None else probes
    check_inputs(pixels, size)
    values = parameter_values(encoder, "float32" if precision == "int8" else precision)
    out.parent.mkdir(parents=True, exist_ok=True)
    temp = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        temp.mkdir()
        request = _Request(encoder, temp, profile, precision, pixels, seed, ready)
        bundle = _write_bundle(request, values)
        temp.rename(out)
        fsync_dir(out.parent)
    except OSError as error:
        raise RefusedError(f"cannot write {out}: {error.strerror or error}", hint="free disk space or choose another place") from error
    finally:
        shutil.rmtree(temp, ignore_errors=True)
    return replace(bundle, path=out)


def _check_target(out: Path) -> None:
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise InputError(f"cannot export to {out}: expected a new or empty folder", hint="choose another folder; a bundle is immutable")


def _write_bundle(request: _Request, values: Mapping[str, Array]) -> Bundle:
    replace_file(request.temp / PROBES_FILE, _npy(request.pixels))
    editable = frozenset(request.encoder.editable())
    gaps, limit = list[float](), 0.0
    # A parameter that is both ambiguous and folded into a constant leaves its stand-in there.  The second attempt gives
    # stand-ins to the editable parameters only; tensors that no patch can touch may then be shared.
    for model, traced in _models(request, values, editable):
        written = _write_model(request, model, traced, values)
        expected = run_encoder(with_values(request.encoder, written.values), request.pixels)
        limit = STRUCTURE[request.precision] * scale_of(expected)
        got = _run(request, written)
        if request.ready is not None and got.shape != expected.shape:
            continue  # another output of a graph made elsewhere
        gaps.append(difference(expected, got).max_abs)
        if gaps[-1] <= limit:
            half = half_features(request.encoder, values, request.precision, request.pixels)
            replace_file(request.temp / GOLDEN_FILE, _npy(expected))
            return _describe(request, written.tensors, tolerance_of(expected, [got, half], request.precision))
    raise InputError(
        f"graph disagrees with the encoder: expected at most {limit:.3g}, got {min(gaps, default=np.inf):.3g}",
        hint="try float32; if that fails too, the exporter mistranslates this encoder",
    )


def _run(request: _Request, written: _Written) -> Array:
    """Features of the written graph; of a bfloat16 one computed in float32, because no CPU session runs it."""
    if request.precision != "bfloat16":
        return run_graph(request.temp, request.pixels, threads=request.profile.threads)
    single = {row.name: widen(written.arrays[row.name]) for row in written.tensors}
    offsets = layout([single[row.name].nbytes for row in written.tensors])
    rows = {
        row.name: replace(row, dtype="float32", offset=offset, length=single[row.name].nbytes)
        for row, offset in zip(written.tensors, offsets, strict=True)
    }
    with tempfile.TemporaryDirectory(dir=request.temp) as name:
        write_tensors(Path(name) / WEIGHTS_FILE, ((row.offset, single[row.name]) for row in rows.values()))
        (Path(name) / MODEL_FILE).write_bytes(externalise(in_float32(written.model), rows))
        return run_graph(Path(name), request.pixels)


def _models(
    request: _Request, values: Mapping[str, Array], editable: frozenset[str]
) -> Iterator[tuple[onnx.ModelProto, Mapping[str, Array]]]:
    """Graphs to try, each with the values that it holds."""
    if request.ready is not None:
        for model in candidates(request.ready):
            yield model, values
        return
    for chosen in (editable | ambiguous(values), editable):
        traced = stand_ins(values, chosen, request.seed)
        twin = with_values(request.encoder, traced, TORCH_DTYPES[request.stored])
        yield trace(twin, request.encoder.preprocess.size, request.stored, request.profile.opset), traced


def _write_model(request: _Request, model: onnx.ModelProto, traced: Mapping[str, Array], values: Mapping[str, Array]) -> _Written:
    editable = frozenset(request.encoder.editable())
    floats = float_initialisers(model)
    matches = match(floats, traced, editable)
    if _rows_are_faster(request):
        for old in store_rows(model, [old for old, found in matches.items() if found.primary and found.transposed]):
            matches[old] = replace(matches[old], name=matches[old].parameter, transposed=False)
            floats[old] = floats[old].T
    rename(model, {old: found.name for old, found in matches.items()})
    arrays = {found.name: _true_value(found, floats[old], values) for old, found in matches.items()}
    found = {match.name: match for match in matches.values()}
    codes: Mapping[str, Codes] = {}
    if request.precision == "int8":
        codes = quantise(model, arrays)
        _check_coded(codes, found, editable)
        values = {**values, **_decoded(codes, found, values)}
        arrays |= {name: code.values for name, code in codes.items()}
        arrays |= {code.name: code.scales for code in codes.values()}
        found |= {code.name: Match(code.name, code.name, "", False, False) for code in codes.values()}
    tensors = _table(arrays, found, editable, codes)
    write_tensors(request.temp / WEIGHTS_FILE, ((row.offset, arrays[row.name]) for row in tensors))
    editable_names = [row.name for row in tensors if row.editable]
    replace_file(
        request.temp / MODEL_FILE, externalise(_for_mode(model, request.profile, editable_names), {row.name: row for row in tensors})
    )
    return _Written(model, tensors, arrays, values)


def _rows_are_faster(request: _Request) -> bool:
    """Whether the runtime reads matrices as they are stored, at each frame: MLAS takes a second factor (N, K) row by row, but gathers a
    (K, N) one from all over memory.  A session that repacks (`rebuild`) does not care, TensorRT could not fold a refittable one, and
    float16 is cast before the product, which keeps ONNX Runtime from fusing the Transpose into it."""
    profile = request.profile
    in_place = profile.engine == "onnxruntime" and profile.mode in ("aliased", "inputs") and profile.provider == "CPUExecutionProvider"
    return in_place and request.precision == "float32"


def _check_coded(codes: Mapping[str, Codes], found: Mapping[str, Match], editable: Collection[str]) -> None:
    for name in sorted(n for n, m in found.items() if m.primary and m.parameter in editable):
        if name not in codes:
            raise InputError(f"cannot quantise {name}: expected the matrix of one product", hint="export in float32 or float16")


def _decoded(codes: Mapping[str, Codes], found: Mapping[str, Match], values: Mapping[str, Array]) -> dict[str, Array]:
    """Parameter -> the weights that its codes stand for."""
    result = {}
    for name, code in codes.items():
        if parameter := found[name].parameter:
            wide = code.weights(name)
            result[parameter] = np.ascontiguousarray(wide.T if found[name].transposed else wide).reshape(values[parameter].shape)
    return result


def _for_mode(model: onnx.ModelProto, profile: DeviceProfile, editable: Collection[str]) -> onnx.ModelProto:
    if profile.mode == "inputs":
        open_inputs(model, editable)
    if profile.batch:
        fix_batch(model, profile.batch)
    return model


def _true_value(found: Match, traced: Array, values: Mapping[str, Array]) -> Array:
    if not found.parameter:
        return traced
    value = values[found.parameter]
    deployed: Array = np.ascontiguousarray(value.T if found.transposed else value).reshape(traced.shape)
    return deployed


def _table(
    arrays: Mapping[str, Array], matches: Mapping[str, Match], editable: Collection[str], codes: Mapping[str, Codes]
) -> tuple[MappedTensor, ...]:
    names = sorted(arrays)
    rows = []
    for name, offset in zip(names, layout([arrays[name].nbytes for name in names]), strict=True):
        array, found = arrays[name], matches[name]
        parameter = found.parameter if found.primary else ""
        place = (dtype_word(array.dtype), tuple(array.shape), offset, array.nbytes, digest_array(array))
        coded = codes.get(name)
        scales = (coded.name, coded.axis) if coded else ("", 0)
        rows.append(MappedTensor(name, parameter, found.primary and found.transposed, *place, parameter in editable, *scales))
    return tuple(rows)


def _describe(request: _Request, tensors: tuple[MappedTensor, ...], tolerance: float) -> Bundle:
    encoder, size = request.encoder, request.encoder.preprocess.size
    bundle = Bundle(
        path=request.temp,
        recipe=encoder.recipe.name,
        source_digest=encoder.source_digest(),
        precision=request.precision,
        profile=request.profile.name,
        input_name=INPUT_NAME,
        input_shape=(3, size, size),
        output_name=OUTPUT_NAME,
        output_width=encoder.width,
        preprocess=encoder.preprocess,
        tolerance=tolerance,
        graph_digest=digest_file(request.temp / MODEL_FILE),
        probes_digest=digest_file(request.temp / PROBES_FILE),
        fingerprint=fingerprint(row.digest() for row in tensors),
        tensor_map=TensorMap(tensors),
        engine=request.profile.engine,
        mode=request.profile.mode,
        provider=request.profile.provider,
        provider_options=dict(request.profile.provider_options),
        cache_prefix_option=request.profile.cache_prefix_option,
        memory=request.profile.memory,
        threads=request.profile.threads,
        batch=request.profile.batch,
        probes_first=request.profile.probes_first,
        soak_frames=request.profile.soak_frames,
        soak_seconds=request.profile.soak_seconds,
        max_slowdown=request.profile.max_slowdown,
        max_growth_mb=request.profile.max_growth_mb,
        monitor_seconds=request.profile.monitor_seconds,
        monitor_frames=request.profile.monitor_frames,
        monitor_windows=request.profile.monitor_windows,
        false_alarms=request.profile.false_alarms,
        golden_digest=digest_file(request.temp / GOLDEN_FILE),
    )
    save_bundle(bundle)
    return bundle


def _npy(array: Array) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()
