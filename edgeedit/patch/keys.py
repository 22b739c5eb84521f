"""Ed25519 keys: new pairs, PEM files, key ids and the set of keys that a reader trusts.

Guarantees: a key file is never overwritten; a private key file is readable by its owner only from the moment it exists.
Key id = SHA-256 of the raw public key (FORMAT 2).  There is no default trust.  Does not encrypt private keys.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from edgeedit.digest import digest_bytes
from edgeedit.errors import InputError
from edgeedit.files import fsync_dir

# Keys whose private half is public (tests/golden/generate.py); a device that trusted one would trust everybody.
TEST_KEY_IDS = frozenset(
    {
        "65b60673d6ed884bf01c2c222d82ada0740f29ac3355d6a925c81f17f47a27b8",
        "947561e3eb43b38b2d5f7c2f6a74f30b97a168a3d03916b4381066811319f9ea",
    }
)
_RAW_BYTES = 32


@dataclass(frozen=True)
class PublicKey:
    """A trusted key: 32 `raw` bytes and its `key_id` (computed when empty).  Raises InputError when they do not fit."""

    raw: bytes
    key_id: str = ""

    def __post_init__(self) -> None:
        if len(self.raw) != _RAW_BYTES:
            raise InputError(f"public key has the wrong length: expected {_RAW_BYTES} bytes, got {len(self.raw)}")
        computed = digest_bytes(self.raw)
        if self.key_id not in ("", computed):
            raise InputError(f"key id does not fit its key: expected {computed}, got {self.key_id}")
        object.__setattr__(self, "key_id", computed)

    def verifies(self, signature: bytes, message: bytes) -> bool:
        """Whether `signature` over `message` was made with this key."""
        try:
            Ed25519PublicKey.from_public_bytes(self.raw).verify(signature, message)
        except InvalidSignature:
            return False
        return True


def public_half(key: Ed25519PrivateKey) -> PublicKey:
    """The public key that belongs to a private one."""
    return PublicKey(key.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw))


def new_key(private: Path, public: Path) -> str:
    """Make a key pair: PKCS8 PEM of mode 0600 and public PEM; returns the key id.  Raises InputError (exit 2) and leaves
    everything as it was when a file already exists or cannot be written."""
    key = Ed25519PrivateKey.generate()
    secret = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    shown = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    _create(private, secret, 0o600)
    try:
        _create(public, shown, 0o644)
    except InputError:
        private.unlink()
        raise
    return public_half(key).key_id


def _create(path: Path, data: bytes, mode: int) -> None:
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    except FileExistsError as error:
        raise InputError(f"cannot write key {path}: it exists already", hint="choose another name; a key is never overwritten") from error
    except OSError as error:
        raise InputError(f"cannot write key {path}: {error.strerror or error}", hint="check the folder") from error
    try:
        with os.fdopen(handle, "wb") as stream:
            os.fchmod(stream.fileno(), mode)  # whatever the umask, or an inherited access list, says
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        fsync_dir(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            path.unlink()
        raise InputError(f"cannot write key {path}: {error.strerror or error}", hint="free disk space") from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read key {path}: {error.strerror or error}", hint="check the path") from error


def load_private_key(path: Path) -> Ed25519PrivateKey:
    """Read an unencrypted PKCS8 PEM; raises InputError (exit 2) when it is no Ed25519 private key."""
    try:
        key = serialization.load_pem_private_key(_read(path), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise InputError(
            f"cannot read key {path}: expected an unencrypted private key in PEM", hint="make one with `edgeedit keys new`"
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise InputError(f"cannot use key {path}: expected Ed25519, got {type(key).__name__}", hint="make one with `edgeedit keys new`")
    return key


def load_public_key(path: Path) -> PublicKey:
    """Read a public PEM; raises InputError (exit 2) when it is no Ed25519 public key."""
    try:
        key = serialization.load_pem_public_key(_read(path))
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise InputError(f"cannot read key {path}: expected a public key in PEM", hint="give the .pub file") from error
    if not isinstance(key, Ed25519PublicKey):
        raise InputError(f"cannot use key {path}: expected Ed25519, got {type(key).__name__}", hint="make one with `edgeedit keys new`")
    return PublicKey(key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw))


def load_trust(paths: Path | Sequence[Path]) -> tuple[PublicKey, ...]:
    """Public keys of files and folders (every `*.pub` in them), each once, ordered by key id.  May be empty, and then every
    verification fails.  Raises InputError when a path is missing or holds no public key."""
    given = [paths] if isinstance(paths, Path) else list(paths)
    files = [file for path in given for file in (sorted(path.glob("*.pub")) if path.is_dir() else [path])]
    keys = {key.key_id: key for key in map(load_public_key, files)}
    return tuple(keys[key_id] for key_id in sorted(keys))
