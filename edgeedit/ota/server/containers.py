"""The file formats around a payload of other update engines: tar (also gzipped), cpio with checksums, squashfs.

Guarantees: the same entries give the same bytes; owner root, time 0, names as given.  Nothing is compressed twice: a patch is dense.
"""

from __future__ import annotations

import gzip
import io
import shutil
import subprocess
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeedit.errors import RefusedError


@dataclass(frozen=True)
class Entry:
    """One file of a container; `mode` is its permission bits."""

    name: str
    data: bytes
    mode: int = 0o644


def make_tar(entries: Sequence[Entry], *, zipped: bool = False) -> bytes:
    """A POSIX tar of the entries in their order."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for entry in entries:
            info = tarfile.TarInfo(entry.name)
            info.size, info.mode, info.uname, info.gname = len(entry.data), entry.mode, "root", "root"
            archive.addfile(info, io.BytesIO(entry.data))
    return gzip.compress(out.getvalue(), mtime=0) if zipped else out.getvalue()


def make_cpio(entries: Sequence[Entry]) -> bytes:
    """A cpio archive of the SVR4 format with checksums (`cpio -H crc`), as SWUpdate reads it."""
    out = bytearray()
    for number, entry in enumerate((*entries, Entry("TRAILER!!!", b"", 0)), 1):
        name = entry.name.encode() + b"\0"
        mode = 0o100000 | entry.mode if entry.mode else 0
        #        inode   mode  uid gid links time size          device    of a device node  name       checksum
        fields = (number, mode, 0, 0, 1, 0, len(entry.data), 0, 0, 0, 0, len(name), sum(entry.data) & 0xFFFFFFFF)
        out += b"070702" + b"".join(b"%08X" % value for value in fields) + name
        out += bytes(-len(out) % 4) + entry.data
        out += bytes(-len(out) % 4)
    return bytes(out + bytes(-len(out) % 512))


def make_squashfs(folder: Path, out: Path) -> None:
    """A squashfs of a folder by `mksquashfs`; raises RefusedError (exit 6) where it is missing or fails."""
    program = shutil.which("mksquashfs")
    if program is None:
        raise RefusedError("cannot make a squashfs: expected mksquashfs, got none", hint="install squashfs-tools, or write a folder")
    flags = ["-noappend", "-all-root", "-no-xattrs", "-mkfs-time", "0", "-all-time", "0", "-no-progress", "-quiet"]
    done = subprocess.run([program, str(folder), str(out), *flags], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RefusedError(f"cannot make a squashfs: mksquashfs says {done.stderr.strip()[-200:]}", hint="free disk space")
