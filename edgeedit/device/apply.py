"""Apply a patch by hand: verify, stage, try it in an engine of its own, confirm or revert; or leave that to the running application."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeedit.device.memory import check_start
from edgeedit.device.runtime import Runtime, Swap
from edgeedit.device.state import Generation
from edgeedit.device.store import Store
from edgeedit.errors import EdgeEditError, IntegrityError, MismatchError, RefusedError, RevertedError, UnreachableError
from edgeedit.limits import MAX_PATCH_BYTES

_NEVER_SWAPPED: Mapping[int, type[EdgeEditError]] = {kind.exit_code: kind for kind in (MismatchError, IntegrityError, RefusedError)}


@dataclass(frozen=True)
class ApplyResult:
    """`state` is confirmed, or already applied; `swap` holds the timings when an engine was started."""

    generation: int
    state: str
    swap: Swap | None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON object."""
        return {"generation": self.generation, "state": self.state, "swap": self.swap.to_json() if self.swap else None}


def read_patch_file(path: Path) -> bytes:
    """The bytes of a patch file; raises UnreachableError when it cannot be read, IntegrityError when it is too large."""
    try:
        size = path.stat().st_size
        if size > MAX_PATCH_BYTES:
            raise IntegrityError(f"patch is too large: expected at most {MAX_PATCH_BYTES} bytes, got {size}")
        return path.read_bytes()
    except OSError as error:
        raise UnreachableError(f"cannot read {path}: {error.strerror or error}", hint="check the path or the medium") from error


def stage_patch(store_path: Path, patch_path: Path, *, wait: float = 0, poll: float = 0.5) -> Generation:
    """Stage a patch for the running application; with `wait` (seconds) until its Runtime has confirmed it.

    Raises what `Store.stage` raises; with `wait` also RevertedError (exit 7), and RefusedError (exit 6) when no verdict came in time:
    the trial is then ended, so that what the caller takes for a failure is not confirmed later."""
    with Store.open(store_path) as store:
        found = store.stage(read_patch_file(patch_path))
        end = time.monotonic() + wait
        while wait and found.state in ("staged", "trying"):
            if time.monotonic() > end and store.revert(found.id, f"no verdict within {wait:g} s"):
                raise RefusedError(
                    f"patch was not tried: expected a verdict within {wait:g} s, got none", hint="is the application running on this store?"
                )
            time.sleep(poll)
            found = store.generation(found.id)
    if wait and found.state != "confirmed":
        raise RevertedError(f"patch was applied, then reverted: {found.reason}", hint="the store runs what it ran before")
    return found


def apply_patch(store_path: Path, patch_path: Path, *, threads: int = 0) -> ApplyResult:
    """Stage and try a patch.  Raises RevertedError (exit 7) when its probes fail, what `Store.stage` raises, and the error (4 to
    6) for which a patch was never swapped in; the store then runs what it ran before."""
    with Store.open(store_path) as store:
        data = read_patch_file(patch_path)
        # Before anything is staged: a device that cannot start an engine must not be left with a trial.
        check_start(store.bundle, store.chain_bytes(store.head().id) + len(data))
        generation = store.stage(data)
        if generation.state == "confirmed":
            return ApplyResult(generation.id, "already applied", None)
        with Runtime(store_path, threads=threads, poll_seconds=0) as runtime:
            swap = runtime.step()
            if swap is not None and swap.generation != generation.id:
                swap = runtime.step()  # the head moved while the engine started; that came first
        found = store.generation(generation.id)
    if found.state == "confirmed":
        return ApplyResult(found.id, found.state, swap)
    if found.state != "reverted":
        raise RefusedError("patch is being tried by a running application", hint="look at `edgeedit status`")
    if swap is not None and swap.exit_code in _NEVER_SWAPPED:
        raise _NEVER_SWAPPED[swap.exit_code](f"patch was not applied: {found.reason}", hint="the store runs what it ran before")
    raise RevertedError(f"patch was applied, then reverted: {found.reason}", hint="the store runs what it ran before")
