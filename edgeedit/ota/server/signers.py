"""Keys of a repository: public keys with their ids, and what signs: PEM files or signer URIs (PKCS#11, KMS).

Guarantees: the id of an Ed25519 key is the SHA-256 of its raw bytes, the same as in patches and receipts; a private key is read from
a file only to sign and is never written.  A signer whose public key does not fit its private one is refused.
"""

from __future__ import annotations

import getpass
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey
from securesystemslib.exceptions import Error as SignerLibraryError
from securesystemslib.signer import CryptoSigner, Signer, SSlibKey

from edgeedit.digest import digest_bytes
from edgeedit.errors import InputError, RefusedError

Keyring = Mapping[str, Signer]
_PUBLIC = (Ed25519PublicKey, EllipticCurvePublicKey, RSAPublicKey)
_PRIVATE = (Ed25519PrivateKey, EllipticCurvePrivateKey, RSAPrivateKey)


def as_repository_key(key: Ed25519PublicKey | EllipticCurvePublicKey | RSAPublicKey) -> SSlibKey:
    """A TUF key whose id is the SHA-256 of the raw bytes (Ed25519) or of the DER SubjectPublicKeyInfo (others)."""
    if isinstance(key, Ed25519PublicKey):
        raw = key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    else:
        raw = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return SSlibKey.from_crypto(key, keyid=digest_bytes(raw))


def load_device_public(path: Path) -> SSlibKey:
    """Read the public PEM of a device's key, with the id that its receipts carry."""
    return SSlibKey.from_crypto(_read_public(path))


def load_public(path: Path) -> SSlibKey:
    """Read a public PEM (Ed25519, ECDSA, RSA); raises InputError (exit 2) when it is none."""
    return as_repository_key(_read_public(path))


def _read_public(path: Path) -> Ed25519PublicKey | EllipticCurvePublicKey | RSAPublicKey:
    try:
        key = serialization.load_pem_public_key(path.read_bytes())
    except OSError as error:
        raise InputError(f"cannot read key {path}: {error.strerror or error}", hint="check the path") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise InputError(f"cannot read key {path}: expected a public key in PEM", hint="give the .pub file") from error
    if not isinstance(key, _PUBLIC):
        raise InputError(f"cannot use key {path}: expected Ed25519, ECDSA or RSA, got {type(key).__name__}")
    return key


def _load_private(path: Path) -> Signer:
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except OSError as error:
        raise InputError(f"cannot read key {path}: {error.strerror or error}", hint="check the path") from error
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise InputError(
            f"cannot read key {path}: expected an unencrypted private key in PEM", hint="make one with `edgeedit keys new`"
        ) from error
    if not isinstance(key, _PRIVATE):
        raise InputError(f"cannot use key {path}: expected Ed25519, ECDSA or RSA, got {type(key).__name__}")
    return CryptoSigner(key, as_repository_key(key.public_key()))


def _from_uri(reference: str) -> Signer:
    """`URI,PUBLIC.pem`: a signer of securesystemslib, e.g. `hsm:2?label=x,release.pub` or `awskms:ARN,release.pub`."""
    uri, comma, public = reference.rpartition(",")
    if not comma:
        raise InputError(f"signer lacks its public key: expected URI,PUBLIC.pub, got {reference}", hint="export the public half as PEM")
    key = load_public(Path(public))
    try:
        return Signer.from_priv_key_uri(uri, key, lambda secret: os.environ.get("EDGEEDIT_PIN") or getpass.getpass(f"{secret} of {uri}: "))
    except (SignerLibraryError, ValueError, OSError) as error:
        raise RefusedError(f"signer {uri} cannot be used: {error}", hint="check the token, its module and its credentials") from error
    except ImportError as error:
        raise RefusedError(
            f"signer {uri} lacks its library: {error}", hint="pip install 'securesystemslib[hsm]' or the cloud's extra"
        ) from error


def load_keyring(references: Iterable[str]) -> Keyring:
    """Signers by key id, of PEM files, folders (every `*.key` in them) and `URI,PUBLIC.pub`; raises InputError or RefusedError."""
    found: dict[str, Signer] = {}
    for reference in references:
        path = Path(reference)
        if path.is_dir():
            signers = [_load_private(file) for file in sorted(path.glob("*.key"))]
        elif ":" in reference and not path.exists():
            signers = [_from_uri(reference)]
        else:
            signers = [_load_private(path)]
        found.update({signer.public_key.keyid: signer for signer in signers})
    return found
