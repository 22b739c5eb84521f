"""What a patch is compared with: generic binary diff tools, and the usual ways to save a weight change.

Every generic tool's patch is applied again and must rebuild the target byte for byte; a tool that is missing, too slow or too hungry
is reported as not run, with the reason.  Sizes in bytes.
"""

from __future__ import annotations

import io
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

from edgeedit.delta import TensorDelta
from edgeedit.digest import digest_file

Array = np.ndarray[Any, Any]
ZSTD_LEVEL = 19
HUNGRY_BYTES = 128 * 1024 * 1024  # above this size suffix-sorting tools need more than 2 GB of memory and many minutes


@dataclass(frozen=True)
class Outcome:
    """`size` of a rival's patch, or None and the reason in `note`; `seconds` to make it (not a timing for the record)."""

    name: str
    size: int | None
    seconds: float = 0.0
    note: str = ""


class ToolError(Exception):
    """A tool could not give a patch; the text says why."""


def _call(command: Sequence[str | Path], limit: float) -> str:
    try:
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, timeout=max(limit, 1))
    except FileNotFoundError as error:
        raise ToolError(f"not installed: {command[0]} (make test-deps)") from error
    except subprocess.TimeoutExpired as error:
        raise ToolError(f"not finished in {limit:.0f} s") from error
    if done.returncode:
        raise ToolError(f"failed: {done.stderr.strip()[-200:]}")
    return done.stdout


def _rebuilt(back: Path, new: Path) -> None:
    same = digest_file(back) == digest_file(new)
    back.unlink()
    if not same:
        raise ToolError("did not rebuild the target")


def bsdiff(old: Path, new: Path, out: Path, limit: float) -> int:
    """bsdiff 4 (bzip2 inside)."""
    if old.stat().st_size > HUNGRY_BYTES:
        raise ToolError(f"not run: about {17 * old.stat().st_size / 1e9:.0f} GB of memory; see the slice")
    _call(["bsdiff", old, new, out], limit)
    _call(["bspatch", old, back := out.with_suffix(".back"), out], limit)
    _rebuilt(back, new)
    return out.stat().st_size


def xdelta3(old: Path, new: Path, out: Path, limit: float) -> int:
    """xdelta3 -9, the whole old file as its window."""
    window = str(max(old.stat().st_size, 1 << 19))
    _call(["xdelta3", "-9", "-B", window, "-e", "-f", "-s", old, new, out], limit)
    _call(["xdelta3", "-d", "-f", "-B", window, "-s", old, out, back := out.with_suffix(".back")], limit)
    _rebuilt(back, new)
    return out.stat().st_size


def zstd(old: Path, new: Path, out: Path, limit: float, level: int = ZSTD_LEVEL) -> int:
    """zstd -19 (or `level`) --long=31 --patch-from."""
    _call(["zstd", "-q", "-f", f"-{level}", "--long=31", f"--patch-from={old}", new, "-o", out], limit)
    _call(["zstd", "-q", "-f", "-d", "--long=31", f"--patch-from={old}", out, "-o", back := out.with_suffix(".back")], limit)
    _rebuilt(back, new)
    return out.stat().st_size


def zchunk(old: Path, new: Path, out: Path, limit: float) -> int:
    """Bytes that zchunk must fetch: header and the chunks that the old file has not."""
    files = [out.with_suffix(f".{side}.zck") for side in ("old", "new")]
    for source, target in zip((old, new), files, strict=True):
        _call(["zck", source, "-o", target], limit)
    text = _call(["zck_delta_size", *files], limit)
    for file in files:
        file.unlink()
    for line in text.splitlines():
        words = line.replace("(", " ").split()
        if "Would download" in line:
            return int(next(word for word in words if word.isdigit()))
    raise ToolError(f"unknown answer: {text[:80]!r}")


def detools(old: Path, new: Path, out: Path, limit: float) -> int:
    """detools, sequential patch, lzma."""
    if old.stat().st_size > HUNGRY_BYTES:
        raise ToolError("not run: suffix array of the whole file; see the slice")
    _call([sys.executable, "-m", "detools", "create_patch", "-c", "lzma", old, new, out], limit)
    _call([sys.executable, "-m", "detools", "apply_patch", old, out, back := out.with_suffix(".back")], limit)
    _rebuilt(back, new)
    return out.stat().st_size


Tool = Callable[[Path, Path, Path, float], int]
GENERIC: dict[str, Tool] = {
    "bsdiff": bsdiff,
    "xdelta3 -9": xdelta3,
    "zstd -19 --patch-from": zstd,
    "zchunk": zchunk,
    "detools lzma": detools,
}


def run_tool(name: str, old: Path, new: Path, out: Path, limit: float) -> Outcome:
    """One generic tool; never raises for a tool's own failure."""
    start = time.perf_counter()
    if limit <= 0:
        return Outcome(name, None, note="not run: the time budget was spent")
    try:
        size = GENERIC[name](old, new, out, limit)
    except ToolError as error:
        for half_done in (out, out.with_suffix(".back")):
            half_done.unlink(missing_ok=True)
        return Outcome(name, None, time.perf_counter() - start, str(error))
    return Outcome(name, size, time.perf_counter() - start)


def _zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress(data)


def bitmap_int8_zstd(deltas: Sequence[TensorDelta]) -> int:
    """The 20-line baseline: all masks as one bitmap stream, all q as one int8 stream, all factors as one; zstd -19 each."""
    masks, steps, factors = [], [], []
    for delta in deltas:
        if delta.sparse is not None:
            mask = np.zeros(int(np.prod(delta.shape)), dtype=bool)
            mask[delta.sparse.index] = True
            masks.append(np.packbits(mask).tobytes())
            steps.append(delta.sparse.q.astype(np.int8).tobytes())
        if delta.low_rank is not None:
            part = delta.low_rank
            factors += [part.rows.astype("<u4").tobytes(), part.a.tobytes(), part.b.tobytes()]
    return sum(len(_zstd(b"".join(parts))) for parts in (masks, steps, factors) if parts)


def torch_sparse_zstd(deltas: Sequence[TensorDelta]) -> int:
    """torch.save of sparse COO tensors (int64 positions, float32 values: exact) and of float16 factors (exact), then zstd -19."""
    import torch

    saved: dict[str, Any] = {}
    for delta in deltas:
        if delta.sparse is not None:
            at = torch.from_numpy(np.stack(np.unravel_index(delta.sparse.index, delta.shape)).astype(np.int64))
            values = torch.from_numpy((delta.sparse.step * delta.sparse.q).astype(np.float32))
            saved[delta.name] = torch.sparse_coo_tensor(at, values, delta.shape)
        if delta.low_rank is not None:
            part = delta.low_rank
            saved[f"{delta.name}.low_rank"] = [
                torch.from_numpy(part.a).half(),
                torch.from_numpy(part.b).half(),
                part.scale,
                part.rows.tolist(),
            ]
    buffer = io.BytesIO()
    torch.save(saved, buffer)
    return len(_zstd(buffer.getvalue()))


def peft_safetensors(deltas: Sequence[TensorDelta], folder: Path) -> dict[str, int]:
    """Bytes of the adapter files that PEFT itself writes: SHiRA for the sparse parts, LoRA (float16) for the low-rank parts.

    PEFT gives every SHiRA layer r x (rows + columns) entries, so masks are padded with zeros to the next r that holds them."""
    sizes = {}
    sparse = [d for d in deltas if d.sparse is not None]
    low = [d for d in deltas if d.low_rank is not None]
    if sparse:
        sizes["PEFT SHiRA safetensors"] = _shira(sparse, folder)
    if low:
        sizes["PEFT LoRA safetensors"] = _lora(low, folder)
    return sizes


def _network(deltas: Sequence[TensorDelta]) -> tuple[Any, list[str]]:
    import torch

    names = [f"m{number}" for number in range(len(deltas))]
    layers = {name: torch.nn.Linear(d.shape[1], d.shape[0], bias=False) for name, d in zip(names, deltas, strict=True)}
    net = torch.nn.Module()
    for name, layer in layers.items():
        net.add_module(name, layer)
    return net, names


def _written(model: Any, folder: Path) -> int:
    model.save_pretrained(str(folder), safe_serialization=True)
    file = folder / "adapter_model.safetensors"
    size = file.stat().st_size
    file.unlink()
    return size


def _shira(deltas: Sequence[TensorDelta], folder: Path) -> int:
    import torch
    from peft import ShiraConfig, get_peft_model

    net, names = _network(deltas)
    parts = [d.sparse for d in deltas if d.sparse is not None]
    rank = max(-(-part.index.size // sum(d.shape)) for part, d in zip(parts, deltas, strict=True))
    by_layer = {id(getattr(net, name)): (d, part) for name, d, part in zip(names, deltas, parts, strict=True)}

    def mask_fn(base_layer: Any, r: int, **_: Any) -> Any:
        delta, part = by_layer[id(base_layer)]
        mask = np.zeros(int(np.prod(delta.shape)), dtype=np.float32)
        mask[part.index] = 1
        free = np.flatnonzero(mask == 0)[: r * sum(delta.shape) - part.index.size]
        mask[free] = 1
        return torch.from_numpy(mask.reshape(delta.shape))

    config = ShiraConfig(r=rank, target_modules=names)
    config.mask_fn = mask_fn
    model = get_peft_model(net, config)
    with torch.no_grad():
        for name, delta, part in zip(names, deltas, parts, strict=True):
            dense = np.zeros(delta.shape, np.float32)
            dense.reshape(-1)[part.index] = part.step * part.q
            layer = getattr(model.base_model.model, name)
            at = layer.shira_indices["default"].numpy()
            layer.shira_weight["default"].copy_(torch.from_numpy(dense[at[0], at[1]]))
    return _written(model, folder)


def _lora(deltas: Sequence[TensorDelta], folder: Path) -> int:
    import torch
    from peft import LoraConfig, get_peft_model

    net, names = _network(deltas)
    parts = [d.low_rank for d in deltas if d.low_rank is not None]
    rank = max(part.a.shape[1] for part in parts)
    model = get_peft_model(net, LoraConfig(r=rank, lora_alpha=rank, target_modules=names))
    with torch.no_grad():
        for name, part in zip(names, parts, strict=True):
            layer = getattr(model.base_model.model, name)
            a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
            a.zero_()
            b.zero_()
            a[: part.a.shape[1], torch.from_numpy(part.cols)] = torch.from_numpy(part.b).float() * part.scale
            b[torch.from_numpy(part.rows)[:, None], torch.arange(part.a.shape[1])] = torch.from_numpy(part.a).float()
    return _written(model.half(), folder)
