"""States of a folder after a power cut, enumerated from a trace of its system calls.

The model of the disk: data written since a file's last fsync may be there wholly, not at all, up to any point, or with any one
write missing or half done; creations, renames and unlinks since the last fsync of their folder may be there up to any point of
their order (metadata is journalled in order, as ext4 and XFS do), and an fsync of a file makes its own creation durable.
`skip` turns one fsync into nothing.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

Tree = dict[str, bytes]


@dataclass(frozen=True)
class Call:
    """One call of the trace: op, path, second path, offset or size, data."""

    op: str
    path: str
    other: str
    offset: int
    data: bytes


def read_trace(data: bytes, root: str) -> list[Call]:
    """The calls in order, paths relative to `root`."""
    calls, at = [], 0
    while at < len(data):
        op = chr(data[at])
        (first,) = struct.unpack_from("<I", data, at + 1)
        path = data[at + 5 : at + 5 + first].decode()
        at += 5 + first
        (second,) = struct.unpack_from("<I", data, at)
        other = data[at + 4 : at + 4 + second].decode()
        at += 4 + second
        offset, size = struct.unpack_from("<QQ", data, at)
        at += 16
        content = data[at : at + size] if op == "W" else b""
        at += size if op == "W" else 0
        calls.append(Call(op, path.removeprefix(root + "/"), other.removeprefix(root + "/"), offset, content))
    return calls


@dataclass
class _Disk:
    """`files`: inode -> synced content; `names`: synced name -> inode; pending changes of both."""

    files: dict[int, bytes]
    names: dict[str, int]
    live: dict[str, int]
    writes: list[tuple[int, Call]] = field(default_factory=list)
    metadata: list[tuple[str, str, str, int]] = field(default_factory=list)


def _written(content: bytes, call: Call, *, half: bool = False) -> bytes:
    if call.op == "L":
        return content[: call.offset].ljust(call.offset, b"\0")
    if call.op == "T":
        return b""
    data = call.data[: len(call.data) // 2] if half else call.data
    padded = content.ljust(call.offset, b"\0")
    return padded[: call.offset] + data + padded[call.offset + len(data) :]


def _rename(names: dict[str, int], change: tuple[str, str, str, int]) -> None:
    op, path, other, inode = change
    if op == "C":
        names[path] = inode
    elif op == "U":
        names.pop(path, None)
    else:
        names[other] = names.pop(path, inode)


def _step(disk: _Disk, call: Call, folders: set[str], synced: bool) -> None:
    if call.op == "S":
        _sync(disk, call, folders, synced)
    elif call.op in "CRU":
        if call.op == "C":
            disk.live[call.path] = max(disk.files, default=0) + 1
            disk.files[disk.live[call.path]] = b""
        inode = disk.live.get(call.path, 0)
        change = (call.op, call.path, call.other, inode)
        _rename(disk.live, change)
        disk.metadata.append(change)
    else:
        disk.writes.append((disk.live[call.path], call))


def _sync(disk: _Disk, call: Call, folders: set[str], synced: bool) -> None:
    if not synced:
        return
    if call.path in folders:
        for change in disk.metadata:
            _rename(disk.names, change)
        disk.metadata = []
        return
    inode = disk.live[call.path]
    for number, write in disk.writes:
        if number == inode:
            disk.files[inode] = _written(disk.files[inode], write)
    disk.writes = [row for row in disk.writes if row[0] != inode]
    # Its own creation, and whatever the journal holds before it.
    created = [i for i, change in enumerate(disk.metadata) if change[0] == "C" and change[3] == inode]
    if created:
        for change in disk.metadata[: created[-1] + 1]:
            _rename(disk.names, change)
        disk.metadata = disk.metadata[created[-1] + 1 :]


def _choices(disk: _Disk) -> Iterator[dict[int, bytes]]:
    """Contents that pending writes may leave: none, all, all but one, all with one half done, any prefix."""
    count = len(disk.writes)
    plans = [[0] * count, [1] * count]
    plans += [[1] * i + [0] * (count - i) for i in range(1, count)]
    plans += [[1] * i + [0] + [1] * (count - i - 1) for i in range(count)]
    plans += [[1] * i + [2] + [1] * (count - i - 1) for i in range(count)]
    for plan in plans:
        files = dict(disk.files)
        for done, (inode, call) in zip(plan, disk.writes, strict=True):
            if done:
                files[inode] = _written(files[inode], call, half=done == 2)
        yield files


def states(start: Tree, calls: list[Call], folders: set[str], skip: int = -1) -> Iterator[Tree]:
    """Every different tree that a cut may leave.  `skip` is the index of an fsync that does nothing."""
    inodes = {path: number for number, path in enumerate(sorted(start), 1)}
    disk = _Disk({inodes[p]: data for p, data in start.items()}, dict(inodes), dict(inodes))
    seen: set[int] = set()
    for index, call in enumerate([*calls, None]):
        for files in _choices(disk):
            for length in range(len(disk.metadata) + 1):
                names = dict(disk.names)
                for change in disk.metadata[:length]:
                    _rename(names, change)
                tree = {path: files[inode] for path, inode in names.items()}
                key = hash(tuple(sorted(tree.items())))
                if key not in seen:
                    seen.add(key)
                    yield tree
        if call is not None:
            _step(disk, call, folders, index != skip)


def write_tree(tree: Tree, folder: Path) -> None:
    """Lay a state down as files."""
    for path, data in tree.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
