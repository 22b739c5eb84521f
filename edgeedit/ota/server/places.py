"""Where a repository lies: a folder or an S3 bucket, behind five verbs.

Guarantees: `create` never changes an existing object; `swap` replaces one only when it still holds what the caller read, so of
two publishers one loses and knows it; a folder's files are replaced durably.  Names are relative, with `/`, and never leave the place.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from edgeedit.errors import InputError, RefusedError, UnreachableError
from edgeedit.files import replace_file

_NAME = re.compile(r"[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)*")


class Place(Protocol):
    """A flat store of named objects.  Raises RefusedError (exit 6) or UnreachableError (exit 8) when it cannot answer."""

    def read(self, name: str) -> bytes | None:
        """The whole object, or None when there is none."""

    def create(self, name: str, data: bytes) -> bool:
        """Write a new object; False, and nothing written, when one of that name exists."""

    def swap(self, name: str, data: bytes, expected: bytes | None) -> bool:
        """Replace the object when it holds `expected` (None: when there is none); else False and nothing written."""

    def names(self, prefix: str) -> list[str]:
        """Sorted names of all objects that start with `prefix`."""

    def delete(self, name: str) -> None:
        """Remove an object; absent ones are fine."""


def check_name(name: str) -> str:
    """The name, or InputError (exit 2) when it could leave the place."""
    if not _NAME.fullmatch(name) or any(part in (".", "..") for part in name.split("/")):
        raise InputError(f"name is not usable in a repository: expected letters, digits, `_.-` and single slashes, got {name!r}")
    return name


class FolderPlace:
    """A local folder, a mounted share or a stick."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __str__(self) -> str:
        return str(self.root)

    def read(self, name: str) -> bytes | None:
        """See `Place`."""
        try:
            return (self.root / check_name(name)).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise RefusedError(f"cannot read {self.root / name}: {error.strerror or error}", hint="check the folder") from error

    def create(self, name: str, data: bytes) -> bool:
        """See `Place`."""
        return self.swap(name, data, None)

    def swap(self, name: str, data: bytes, expected: bytes | None) -> bool:
        """See `Place`.  Publishers on one machine take turns under a file lock."""
        path = self.root / check_name(name)
        with self._lock():
            if self.read(name) != expected:
                return False
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise RefusedError(f"cannot write {path}: {error.strerror or error}", hint="check the folder") from error
            replace_file(path, data)
        return True

    def names(self, prefix: str) -> list[str]:
        """See `Place`."""
        files = (Path(folder) / file for folder, _, found in os.walk(self.root) for file in found)
        names = (path.relative_to(self.root).as_posix() for path in files)
        return sorted(name for name in names if name.startswith(prefix) and not name.endswith((".tmp", ".lock")))

    def delete(self, name: str) -> None:
        """See `Place`."""
        try:
            (self.root / check_name(name)).unlink(missing_ok=True)
        except OSError as error:
            raise RefusedError(f"cannot remove {self.root / name}: {error.strerror or error}", hint="check the folder") from error

    @contextmanager
    def _lock(self) -> Iterator[None]:
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.root / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise RefusedError(f"cannot write {self.root}: {error.strerror or error}", hint="check the folder") from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)


class S3Place:
    """A bucket and a prefix; `client` is a boto3 S3 client.  Needs a server that honours If-Match and If-None-Match on PutObject."""

    def __init__(self, bucket: str, prefix: str, client: Any) -> None:
        self.bucket, self.prefix, self._client = bucket, prefix.strip("/"), client
        self._etags: dict[str, tuple[bytes, str]] = {}

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}"

    def _key(self, name: str) -> str:
        return f"{self.prefix}/{check_name(name)}" if self.prefix else check_name(name)

    def read(self, name: str) -> bytes | None:
        """See `Place`."""
        answer = self._call("get_object", ("NoSuchKey", "404"), Key=self._key(name))
        if answer is None:
            return None
        data = bytes(answer["Body"].read())
        self._etags[name] = (data, str(answer["ETag"]))
        return data

    def create(self, name: str, data: bytes) -> bool:
        """See `Place`."""
        return self._put(name, data, {"IfNoneMatch": "*"})

    def swap(self, name: str, data: bytes, expected: bytes | None) -> bool:
        """See `Place`: the ETag that was read with `expected` must still be the object's."""
        if expected is None:
            return self.create(name, data)
        seen = self._etags.get(name)
        if seen is None or seen[0] != expected:
            if self.read(name) != expected:
                return False
            seen = self._etags[name]
        return self._put(name, data, {"IfMatch": seen[1]})

    def names(self, prefix: str) -> list[str]:
        """See `Place`."""
        found: list[str] = []
        more: dict[str, Any] = {}
        while True:
            answer = self._call("list_objects_v2", (), Prefix=f"{self.prefix}/{prefix}" if self.prefix else prefix, **more)
            if answer is None:
                return []
            found += [row["Key"][len(self.prefix) + 1 if self.prefix else 0 :] for row in answer.get("Contents", [])]
            if not answer.get("IsTruncated"):
                return sorted(found)
            more = {"ContinuationToken": answer["NextContinuationToken"]}

    def delete(self, name: str) -> None:
        """See `Place`."""
        self._call("delete_object", ("NoSuchKey", "404"), Key=self._key(name))

    def _put(self, name: str, data: bytes, condition: dict[str, str]) -> bool:
        lost = ("PreconditionFailed", "ConditionalRequestConflict", "412", "409")
        self._etags.pop(name, None)
        return self._call("put_object", lost, Key=self._key(name), Body=data, **condition) is not None

    def _call(self, verb: str, absent: tuple[str, ...], **arguments: Any) -> Any:
        """One request; None when the service answers one of `absent`."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            return getattr(self._client, verb)(Bucket=self.bucket, **arguments)
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", ""))
            if code in absent:
                return None
            if code in ("AccessDenied", "403", "NoSuchBucket", "InvalidAccessKeyId", "SignatureDoesNotMatch"):
                raise RefusedError(f"{self} refuses {verb}: got {code}", hint="check bucket, credentials and policy") from error
            raise UnreachableError(f"{self} does not answer {verb}: got {code or error}", hint="try again later") from error
        except BotoCoreError as error:
            raise UnreachableError(f"{self} cannot be reached: {error}", hint="check the network, then try again") from error


def open_place(where: str) -> Place:
    """`s3://bucket/prefix` (endpoint and credentials from the environment, as boto3 reads them) or a folder."""
    if where.startswith("s3://"):
        import boto3

        bucket, _, prefix = where[len("s3://") :].partition("/")
        if not bucket:
            raise InputError(f"not an S3 address: expected s3://bucket/prefix, got {where}")
        return S3Place(bucket, prefix, boto3.client("s3"))
    if "://" in where:
        raise InputError(
            f"cannot publish to {where}: expected a folder or s3://bucket/prefix", hint="publish to a folder and let a web server serve it"
        )
    return FolderPlace(Path(where))
