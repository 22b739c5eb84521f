"""S3 sources by boto3 (extra `ota-s3`); credentials, region and endpoint come from boto3's own configuration."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from edgeedit.errors import InputError, UnreachableError
from edgeedit.ota.client.link import Link, Pace
from edgeedit.ota.client.transport import CHUNK, MissingError, Stream, join

_MISSING = ("NoSuchKey", "404", "403", "AccessDenied", "NoSuchBucket")
_CHANGED = ("PreconditionFailed", "412", "InvalidRange", "416")


class S3Transport:
    """One bucket and prefix."""

    def __init__(self, source: str, link: Link, client: Any = None) -> None:
        parts = urlsplit(source)
        self._bucket, self._prefix, self._link = parts.netloc, parts.path.strip("/"), link
        self._client = client or _client(link)

    def read(self, path: str, max_bytes: int) -> bytes:
        """See `Transport`."""
        with self.stream(path, 0, "") as stream:
            return join(stream.chunks, path, max_bytes)

    @contextmanager
    def stream(self, path: str, start: int, validator: str) -> Iterator[Stream]:
        """See `Transport`."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            begin, answer = self._get(path, start, validator)
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", ""))
            kind = MissingError if code in _MISSING else UnreachableError
            raise kind(f"source has no {path}: got {code}", hint="check bucket, prefix and permissions") from error
        except BotoCoreError as error:
            raise UnreachableError(f"cannot reach the bucket: {error}", hint="try again later") from error
        body = answer["Body"]
        try:
            yield Stream(begin, begin + int(answer["ContentLength"]), answer.get("ETag", ""), self._chunks(body, path))
        finally:
            body.close()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _get(self, path: str, start: int, validator: str) -> tuple[int, Any]:
        from botocore.exceptions import ClientError

        place = {"Bucket": self._bucket, "Key": f"{self._prefix}/{path}" if self._prefix else path}
        if start:
            condition = {"IfMatch": validator} if validator else {}
            try:
                return start, self._client.get_object(**place, Range=f"bytes={start}-", **condition)
            except ClientError as error:
                if str(error.response.get("Error", {}).get("Code", "")) not in _CHANGED:
                    raise
        return 0, self._client.get_object(**place)

    def _chunks(self, body: Any, path: str) -> Iterator[bytes]:
        from botocore.exceptions import BotoCoreError, HTTPClientError

        pace = Pace(self._link)
        try:
            while chunk := body.read(CHUNK):
                yield chunk
                pace.took(len(chunk))
        except (BotoCoreError, HTTPClientError, OSError) as error:
            raise UnreachableError(f"{path} was cut: {error}", hint="try again later") from error


def _client(link: Link) -> Any:
    try:
        import boto3
        from botocore.config import Config
    except ImportError as error:
        raise InputError("cannot read S3: expected boto3, got none", hint="pip install 'edgeedit[ota-s3]'") from error
    proxies = {"proxies": {"http": link.proxy, "https": link.proxy}} if link.proxy else {}
    settings = Config(connect_timeout=link.timeout, read_timeout=link.timeout, retries={"max_attempts": 2}, **proxies)
    return boto3.client("s3", config=settings, verify=str(link.ca) if link.ca else None)
