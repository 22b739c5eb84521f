"""A camera as the TUF library's own client sees a repository: an independent reader, with requests and bytes counted."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from pathlib import Path

from tuf.api.exceptions import DownloadHTTPError
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig

from edgeedit.ota.server.places import Place


class MemoryPlace:
    """A Place in a dict, for cases with ten thousand files."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}

    def read(self, name: str) -> bytes | None:
        return self.files.get(name)

    def create(self, name: str, data: bytes) -> bool:
        return self.swap(name, data, None)

    def swap(self, name: str, data: bytes, expected: bytes | None) -> bool:
        if self.files.get(name) != expected:
            return False
        self.files[name] = data
        return True

    def names(self, prefix: str) -> list[str]:
        return sorted(name for name in self.files if name.startswith(prefix))

    def delete(self, name: str) -> None:
        self.files.pop(name, None)


class PlaceFetcher(FetcherInterface):
    """Reads `place:NAME` addresses out of a Place."""

    def __init__(self, place: Place) -> None:
        self.place, self.requests, self.bytes = place, 0, 0
        self.names: list[str] = []

    def _fetch(self, url: str) -> Iterator[bytes]:
        name = url.removeprefix("place:")
        self.requests += 1
        self.names.append(name)
        data = self.place.read(name)
        if data is None:
            raise DownloadHTTPError("absent", 404)
        self.bytes += len(data)
        return iter([data])


class Camera:
    """One trusted cache.  `refresh` and `find` raise what the library raises."""

    def __init__(self, place: Place, cache: Path, root: bytes | None = None) -> None:
        self.place, self.cache = place, cache
        self.root = root if root is not None else place.read("metadata/1.root.json")
        cache.mkdir(exist_ok=True)
        self.fetcher = PlaceFetcher(place)

    def find(self, *paths: str, now: datetime.datetime | None = None) -> list[str | None]:
        """SHA-256 of each target as the roles name it, after one refresh."""
        self.fetcher = PlaceFetcher(self.place)
        updater = Updater(
            str(self.cache),
            "place:metadata/",
            str(self.cache),
            "place:targets/",
            self.fetcher,
            UpdaterConfig(),
            bootstrap=self.root,
        )
        if now is not None:
            updater._trusted_set.reference_time = now
        updater.refresh()
        found = [updater.get_targetinfo(path) for path in paths]
        return [None if target is None else target.hashes["sha256"] for target in found]
