"""`Collection`: frames kept on disk for the next shots, for who asks for it: of a low margin, or whose verdict an operator changed.

    Monitor(collection=Collection(Path("/var/lib/camera/shots"), max_bytes=64 << 20))
    runtime.override(pixels, "intact", group="module-17")

A frame is a PNG and, written after it, a JSON file that names it.  `export_shots` makes a set of them that `edgeedit edit` reads.
Guarantees: opt-in; never more than `max_bytes` on disk, frames of a low margin going first and then the oldest; readable by the owner
only; a frame that was cut off by a power failure is no frame.  Pictures are what the encoder saw (its size, 8 bits), nothing else of
the camera is kept.
"""

from __future__ import annotations

import json
import os
import re
import struct
import time
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeedit.errors import InputError, RefusedError
from edgeedit.files import copy_file, replace_file
from edgeedit.limits import MAX_OTA_TEXT_BYTES

Array = np.ndarray[Any, Any]
KINDS = ("overridden", "low_margin")
_NAME = re.compile(r"\.?\d{20}-(overridden|low_margin)\.(png|json)")
GROUP_SECONDS = 3600  # frames of one hour belong together unless the application says which part they show


@dataclass(frozen=True)
class Taken:
    """A kept frame: `kind` of KINDS, `verdict` the operator's (a class name) or "", `said` the reader's class number, -1 unknown, its
    `margin`, None unknown, the `generation` that answered, `group` and Unix `time`."""

    kind: str
    verdict: str
    said: int
    margin: float | None
    generation: int
    group: str
    time: float


def png(picture: Array) -> bytes:
    """A PNG of a picture uint8 (3, height, width); grey where the planes are equal."""
    grey = bool((picture == picture[:1]).all())
    rows = picture[:1] if grey else picture
    channels, height, width = rows.shape
    lines = np.zeros((height, 1 + width * channels), dtype=np.uint8)  # each line begins with filter 0
    lines[:, 1:] = rows.transpose(1, 2, 0).reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, 0 if grey else 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(lines.tobytes(), 6)), (b"IEND", b""))
    packed = (struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


class Collection:
    """The ring in `folder`; used by one Monitor at a time."""

    def __init__(self, folder: Path, *, max_bytes: int = 64 << 20) -> None:
        self.folder, self._max = folder, max_bytes

    def add(self, picture: Array, taken: Taken) -> bool:
        """Keep a frame, uint8 (3, s, s); False where it alone is larger than the cap.  Raises RefusedError when the disk refuses."""
        data, row = png(picture), json.dumps(asdict(taken), sort_keys=True).encode()
        need = len(data) + len(row)
        if need > self._max:
            return False
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._room(need)
            # Names sort by time; the kind tells who goes first without opening a file.
            name = f"{time.time_ns():020d}-{taken.kind}"
            for suffix, content in ((".png", data), (".json", row)):
                temp = self.folder / f".{name}{suffix}"
                with os.fdopen(os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as handle:
                    handle.write(content)
                temp.replace(self.folder / f"{name}{suffix}")
        except OSError as error:
            raise RefusedError(f"cannot keep a frame in {self.folder}: {error.strerror}", hint="is the disk full?") from error
        return True

    def _room(self, need: int) -> None:
        """Remove frames until `need` more bytes fit."""
        # Only what this class wrote: the folder may hold other things, and those are nobody's to remove.
        files = {path: path.stat().st_size for path in self.folder.iterdir() if _NAME.fullmatch(path.name)}
        total = sum(files.values())
        stems: dict[str, list[Path]] = {}
        for path in files:
            stems.setdefault(path.name.lstrip(".").rsplit(".", 1)[0], []).append(path)
        for stem in sorted(stems, key=lambda s: (s.endswith(KINDS[0]), s)):
            if total + need <= self._max:
                return
            # The JSON first: without it the picture is no frame.
            for path in sorted(stems[stem]):
                path.unlink(missing_ok=True)
                total -= files[path]


def read_frames(folder: Path) -> list[tuple[Path, Taken]]:
    """(picture, what is known of it) of every whole frame, oldest first; raises InputError where `folder` is none or a file is wrong."""
    if not folder.is_dir():
        raise InputError(f"no frames at {folder}: expected the folder of a Collection", hint="Monitor(collection=Collection(...))")
    found = []
    for path in sorted(path for path in folder.glob("[!.]*.json") if _NAME.fullmatch(path.name)):
        picture = path.with_suffix(".png")
        if not picture.is_file():
            continue
        try:
            value = json.loads(path.read_text("utf-8"))
            taken = Taken(**value)
            if taken.kind not in KINDS or any(not isinstance(value[name], str) for name in ("verdict", "group")):
                raise ValueError(f"kind {taken.kind!r}")
        except (OSError, ValueError, TypeError) as error:
            raise InputError(f"cannot read {path}: expected a kept frame, got {error!r}", hint="remove it") from error
        found.append((picture, taken))
    return found


def export_shots(folder: Path, out: Path) -> dict[str, int]:
    """Write `out`: the pictures, `shots.jsonl` of those with an operator's verdict as their label, and `to-label.jsonl` of the others
    (no label, what the reader said beside it); each with its group.  Returns the count of each.

    Raises InputError where there is nothing to export or `out` exists, RefusedError when the disk refuses."""
    frames = read_frames(folder)
    if not frames:
        raise InputError(f"no frames at {folder}: expected at least one, got none", hint="has the monitor run with a collection?")
    if out.exists():
        raise InputError(f"{out} is there already: expected a new folder", hint="choose another name")
    lines: dict[str, list[str]] = {"shots.jsonl": [], "to-label.jsonl": []}
    try:
        (out / "images").mkdir(parents=True)
    except OSError as error:
        raise RefusedError(f"cannot write {out}: {error.strerror}", hint="choose another place") from error
    for picture, taken in frames:
        copy_file(picture, out / "images" / picture.name)
        row: dict[str, Any] = {"image": f"images/{picture.name}", "group": taken.group, "generation": taken.generation, "time": taken.time}
        if taken.verdict:
            lines["shots.jsonl"].append(json.dumps({**row, "label": taken.verdict}, ensure_ascii=False))
        else:
            lines["to-label.jsonl"].append(json.dumps({**row, "said": taken.said, "margin": taken.margin}, ensure_ascii=False))
    for name, rows in lines.items():
        if rows:
            replace_file(out / name, ("\n".join(rows) + "\n").encode())
    return {"labelled": len(lines["shots.jsonl"]), "to_label": len(lines["to-label.jsonl"])}


def group_of(group: str, at: float) -> str:
    """The application's name of the part, cut to what a set may hold, or the hour in which the frame was taken."""
    named = group.encode()[:MAX_OTA_TEXT_BYTES].decode("utf-8", "ignore")
    return named or f"hour-{int(at // GROUP_SECONDS)}"
