"""Our TUF client behind the three commands that the public TUF conformance suite calls.

    python -m edgeedit.ota.client.conformance --metadata-dir DIR init ROOT
    … --metadata-dir DIR --metadata-url URL refresh
    … --metadata-dir DIR --metadata-url URL --target-name PATH --target-base-url URL --target-dir DIR download

Exit code 0 or 1, as that suite wants; not a command for users.  The floors and the two roles are not part of TUF and not in here.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from tuf.api.exceptions import LengthOrHashMismatchError

from edgeedit.errors import EdgeEditError, IntegrityError
from edgeedit.files import replace_file
from edgeedit.ota.client.download import fetch_file
from edgeedit.ota.client.link import Link
from edgeedit.ota.client.metadata import HISTORY, client_of
from edgeedit.ota.client.transport import open_transport

_ANCHOR = "initial"  # beside the root history, which holds what was trusted


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 0 when it succeeded fully, else 1."""
    parser = argparse.ArgumentParser(prog="edgeedit.ota.client.conformance")
    parser.add_argument("--metadata-dir", type=Path, required=True)
    for name in ("--metadata-url", "--target-name", "--target-base-url"):
        parser.add_argument(name, default="")
    parser.add_argument("--target-dir", type=Path)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("init").add_argument("root", type=Path)
    commands.add_parser("refresh")
    commands.add_parser("download")
    given = parser.parse_args(arguments)
    try:
        if given.command == "init":
            _init(given.metadata_dir, given.root)
        else:
            _update(given)
    except (EdgeEditError, OSError, LengthOrHashMismatchError) as error:
        print(error, file=sys.stderr)  # noqa: T201 - a command
        return 1
    return 0


def _init(folder: Path, root: Path) -> None:
    (folder / HISTORY).mkdir(parents=True, exist_ok=True)
    shutil.copyfile(root, folder / HISTORY / _ANCHOR)
    shutil.copyfile(root, folder / "root.json")


def _update(given: argparse.Namespace) -> None:
    folder: Path = given.metadata_dir
    metadata = open_transport(given.metadata_url, Link())
    targets = open_transport(given.target_base_url, Link())
    try:
        anchor = (folder / HISTORY / _ANCHOR).read_bytes()
        with client_of(folder, metadata, anchor, int(time.time()), base="") as client:
            client.refresh()
            if given.command != "download":
                return
            info = client.get_targetinfo(given.target_name)
        if info is None:
            raise IntegrityError(f"no target {given.target_name}: expected one that a role names")
        path, target = given.target_name, given.target_dir / quote(given.target_name, "")
        if client.consistent():
            folder_name, slash, name = path.rpartition("/")
            path = f"{folder_name}{slash}{next(iter(info.hashes.values()))}.{name}"
        if "sha256" in info.hashes:
            fetch_file(targets, path, info.hashes["sha256"], info.length, target)
        else:  # ours always have one; the suite also asks for others
            data = targets.read(path, info.length)
            info.verify_length_and_hashes(data)
            replace_file(target, data)
    finally:
        metadata.close()
        targets.close()


if __name__ == "__main__":
    sys.exit(main())
