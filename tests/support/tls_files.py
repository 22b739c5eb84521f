"""A small authority for tests of TLS: its certificate, one for a server on 127.0.0.1, one for a device, and those of a stranger."""

from __future__ import annotations

import datetime
import ipaddress
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


@dataclass(frozen=True)
class TlsFiles:
    """PEM files; a key lies beside its certificate as `.key`."""

    ca: Path
    server: Path
    device: Path

    @staticmethod
    def key(certificate: Path) -> Path:
        return certificate.with_suffix(".key")


def make_tls(folder: Path) -> TlsFiles:
    """Everything of one authority, in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    signer = ec.generate_private_key(ec.SECP256R1())
    issuer = _name(f"authority of {folder.name}")
    made = [folder / f"{name}.pem" for name in ("ca", "server", "device")]
    _write(made[0], _certificate(issuer, issuer, signer, signer, is_ca=True), signer)
    for path in made[1:]:
        key = ec.generate_private_key(ec.SECP256R1())
        _write(path, _certificate(_name(path.stem), issuer, key, signer, is_ca=False), key)
    return TlsFiles(*made)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _certificate(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, signer: ec.EllipticCurvePrivateKey, *, is_ca: bool
) -> x509.Certificate:
    now = datetime.datetime.now(datetime.timezone.utc)
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    usage = x509.KeyUsage(not is_ca, False, False, False, False, is_ca, is_ca, False, False)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(is_ca, None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    return (builder if is_ca else builder.add_extension(names, critical=False)).sign(signer, hashes.SHA256())


def _write(path: Path, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    TlsFiles.key(path).write_bytes(private)
    for made in (path, TlsFiles.key(path)):
        made.chmod(0o644)  # a server that gives up root reads them too
