"""A signed patch as a payload of Mender, RAUC or SWUpdate: their layout, and the hook that hands it to edgeedit on the device.

The patch is carried as it was signed; the device trusts its signature alone.  The engine's own signature around it is made by the
engine's own tool, with its own keys: `next_step` says how.  Formats: Mender artifact version 3 (documentation of mender-artifact), RAUC
manifest with a handler (RAUC reference), SWUpdate's sw-description with a shellscript (SWUpdate documentation).
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeedit.catalog import engine_script
from edgeedit.digest import digest_bytes
from edgeedit.errors import InputError
from edgeedit.files import fsync_dir, replace_file
from edgeedit.ota.server.containers import Entry, make_cpio, make_squashfs, make_tar

SUFFIXES = {"mender": ".mender", "rauc": ".raucb", "swupdate": ".swu"}
MODULE = "edgeedit"  # the type of a Mender payload and the name of its update module
INCOMING = "/var/lib/edgeedit/incoming"
_RAUC_BLOCK = 4096
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9 ._+-]{0,126}[A-Za-z0-9])?")
_FOLDER = re.compile(r"(?:/[A-Za-z0-9._-]+)+")


@dataclass(frozen=True)
class Payload:
    """A patch file's bytes for an engine.  `compatible` are the device types (Mender), the compatible string (RAUC, exactly one) or the
    hardware revisions (SWUpdate) that may take it; `version` the artifact's name or the bundle's version; `incoming` the device's
    folder where SWUpdate lays the patch down.  Raises InputError for words that the formats cannot carry."""

    engine: str
    data: bytes
    compatible: tuple[str, ...]
    version: str = ""
    incoming: str = INCOMING

    def __post_init__(self) -> None:
        if self.engine not in SUFFIXES:
            raise InputError(f"update engine is unknown: expected one of {', '.join(SUFFIXES)}, got {self.engine}")
        if not self.compatible or (self.engine == "rauc" and len(self.compatible) > 1):
            raise InputError(
                f"payload names no device: expected {'one' if self.engine == 'rauc' else 'at least one'} --compatible, "
                f"got {len(self.compatible)}",
                hint="give the device type (Mender), the compatible string (RAUC) or the hardware revision (SWUpdate)",
            )
        for word in (*self.compatible, self.named_version):
            if not _NAME.fullmatch(word):
                raise InputError(f"word of the payload is wrong: expected letters, digits, spaces and . _ + -, got {word!a}")
        if not _FOLDER.fullmatch(self.incoming) or ".." in self.incoming:
            raise InputError(f"folder on the device is wrong: expected a plain absolute path, got {self.incoming!a}")

    @property
    def digest(self) -> str:
        """SHA-256 of the patch: its name in the payload."""
        return digest_bytes(self.data)

    @property
    def named_version(self) -> str:
        """The version that was given, else one that the digest makes (a semantic version, which all three engines take)."""
        return self.version or f"0.0.0+{self.digest[:12]}"


def write_payload(payload: Payload, out: Path) -> str:
    """Write the engine's file where `out` has its suffix, else a new folder with the layout for the engine's own tool; what to do next.

    Raises InputError when the folder exists, RefusedError when the disk refuses or mksquashfs is missing; nothing is left then."""
    entries = _LAYOUTS[payload.engine](payload)
    if out.suffix == SUFFIXES[payload.engine]:
        _write_file(payload, entries, out)
    else:
        if out.exists():
            raise InputError(f"cannot write {out}: expected a new folder or a file ending with {SUFFIXES[payload.engine]}")
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as temporary:
            made = Path(temporary) / "layout"
            _write_folder(entries, made)
            made.rename(out)
        fsync_dir(out.parent)
    return next_step(payload, out)


def next_step(payload: Payload, out: Path) -> str:
    """How the engine's own signature is made around what `write_payload` wrote."""
    packed, name = out.suffix == SUFFIXES[payload.engine], f"{payload.digest}.eep"
    types = " ".join(f"-t '{word}'" for word in payload.compatible)
    steps = {
        ("mender", True): f"not signed for Mender yet: mender-artifact sign {out} -k KEY",
        ("mender", False): (
            f"copy {out}/{MODULE} to /usr/share/mender/modules/v3/ of the device, once; sign and pack: mender-artifact write module-image "
            f"-T {MODULE} -n '{payload.named_version}' {types} -f {out}/{name} -k KEY -o NAME.mender"
        ),
        ("rauc", True): "not signed: a bare squashfs, which RAUC refuses; write a folder and pack it with `rauc bundle`",
        ("rauc", False): f"not signed for RAUC yet: rauc bundle --cert CERT --key KEY {out} NAME.raucb",
        ("swupdate", True): "not signed for SWUpdate; where the device asks for it write a folder and sign its sw-description",
        ("swupdate", False): (
            f"not signed for SWUpdate yet, in {out}: openssl cms -sign -in sw-description -out sw-description.sig -signer CERT -inkey KEY "
            f"-outform DER -nosmimecap -binary; printf '%s\\n' sw-description sw-description.sig install.sh {name} | "
            "cpio -o -H crc > NAME.swu"
        ),
    }
    return steps[payload.engine, packed]


def _script(engine: str, **words: str) -> bytes:
    text = engine_script("install") + engine_script(engine)
    for key, value in words.items():
        text = text.replace(f"@{key}@", value)
    return text.encode()


def _mender(payload: Payload) -> list[Entry]:
    return [Entry(f"{payload.digest}.eep", payload.data), Entry(MODULE, _script("mender"), 0o755)]


def _rauc(payload: Payload) -> list[Entry]:
    manifest = (
        f"[update]\ncompatible={payload.compatible[0]}\nversion={payload.named_version}\n"
        f"description=edgeedit patch {payload.digest}\n\n[bundle]\nformat=verity\n\n[handler]\nfilename=install.sh\n"
    )
    entries = [
        Entry("manifest.raucm", manifest.encode()),
        Entry("install.sh", _script("rauc"), 0o755),
        Entry(f"{payload.digest}.eep", payload.data),
    ]
    if len(payload.data) < _RAUC_BLOCK:
        # `rauc bundle` refuses a squashfs of one block, which a very small patch would make; bytes that do not compress fill a second.
        entries.append(Entry("padding", b"".join(hashlib.sha256(bytes([n])).digest() for n in range(_RAUC_BLOCK // 32))))
    return entries


def _swupdate(payload: Payload) -> list[Entry]:
    script = _script("swupdate", DIGEST=payload.digest, INCOMING=payload.incoming)
    revisions = ", ".join(f'"{word}"' for word in payload.compatible)
    description = f"""software =
{{
    version = "{payload.named_version}";
    description = "edgeedit patch {payload.digest}";
    hardware-compatibility: [ {revisions} ];
    files: (
        {{
            filename = "{payload.digest}.eep";
            path = "{payload.incoming}/{payload.digest}.eep";
            sha256 = "{payload.digest}";
            properties: {{ create-destination = "true"; }};
        }}
    );
    scripts: (
        {{
            filename = "install.sh";
            type = "shellscript";
            sha256 = "{digest_bytes(script)}";
        }}
    );
}};
"""
    return [
        Entry("sw-description", description.encode()),
        Entry("install.sh", script, 0o755),
        Entry(f"{payload.digest}.eep", payload.data),
    ]


_LAYOUTS: dict[str, Callable[[Payload], list[Entry]]] = {"mender": _mender, "rauc": _rauc, "swupdate": _swupdate}


def _mender_artifact(payload: Payload, patch: Entry) -> bytes:
    """Version 3: version, manifest of digests, gzipped header, gzipped data, in this order."""
    key = f"rootfs-image.{MODULE}"
    info = {
        "payloads": [{"type": MODULE}],
        "artifact_provides": {"artifact_name": payload.named_version},
        "artifact_depends": {"device_type": list(payload.compatible)},
    }
    kind = {
        "type": MODULE,
        "artifact_provides": {f"{key}.version": payload.named_version},
        "clears_artifact_provides": [f"{key}.*"],
    }
    version = _json({"format": "mender", "version": 3})
    header = make_tar([Entry("header-info", _json(info), 0o600), Entry("headers/0000/type-info", _json(kind), 0o600)], zipped=True)
    sums = {f"data/0000/{patch.name}": payload.digest, "header.tar.gz": digest_bytes(header), "version": digest_bytes(version)}
    manifest = "".join(f"{digest}  {name}\n" for name, digest in sums.items()).encode()
    return make_tar(
        [
            Entry("version", version, 0o600),
            Entry("manifest", manifest, 0o600),
            Entry("header.tar.gz", header),
            Entry("data/0000.tar.gz", make_tar([patch], zipped=True)),
        ]
    )


def _write_file(payload: Payload, entries: Sequence[Entry], out: Path) -> None:
    if payload.engine == "mender":
        replace_file(out, _mender_artifact(payload, entries[0]))
    elif payload.engine == "swupdate":
        replace_file(out, make_cpio(entries))
    else:
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as temporary:
            folder, image = Path(temporary) / "layout", Path(temporary) / "image"
            _write_folder(entries, folder)
            make_squashfs(folder, image)
            replace_file(out, image.read_bytes())


def _write_folder(entries: Sequence[Entry], folder: Path) -> None:
    folder.mkdir(mode=0o755)
    for entry in entries:
        replace_file(folder / entry.name, entry.data)
        (folder / entry.name).chmod(entry.mode)


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
