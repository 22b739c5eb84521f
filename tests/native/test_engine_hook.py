"""The update engines' hook in its native mode: `edgeedit-apply` only, a generation for each patch, and back."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import native_cases as cases
import pytest

from edgeedit.deploy.materialize import write_tensors
from edgeedit.ota.server.engines import Payload, write_payload


@pytest.fixture
def camera(native: Path, tmp_path: Path) -> Path:
    """A folder with a Bundle, a trusted key, the settings, and the program on a PATH of its own."""
    (tmp_path / "trust.pub").write_bytes(cases.public_pem())
    (tmp_path / "bin").mkdir()
    shutil.copy(native / "edgeedit-apply", tmp_path / "bin")
    (tmp_path / "engine.conf").write_text(
        f"EDGEEDIT_MODE=native\nEDGEEDIT_BUNDLE={tmp_path}/bundle\nEDGEEDIT_TRUST={tmp_path}/trust.pub\nEDGEEDIT_WEIGHTS={tmp_path}/weights\n"
    )
    return tmp_path


def module(camera: Path, patch: bytes, state: str = "ArtifactInstall") -> int:
    """The Mender module's exit code in a state of the update with that patch."""
    digest = hashlib.sha256(patch).hexdigest()
    layout = camera / "layouts" / digest
    if not layout.exists():
        write_payload(Payload("mender", patch, ("cam",)), layout)
        (layout / "files").mkdir()
        (layout / f"{digest}.eep").rename(layout / "files" / f"{digest}.eep")
    environment = {**os.environ, "PATH": f"{camera}/bin:/usr/bin:/bin", "EDGEEDIT_ENGINE_CONF": str(camera / "engine.conf")}
    return subprocess.run([layout / "edgeedit", state, layout], env=environment, capture_output=True, check=False).returncode


def test_a_chain_is_built_left_and_built_again(camera: Path) -> None:
    """After every step `current/weights.bin` is byte for byte what Python materialises; a refused patch leaves everything as it was."""
    bundle, weights = cases.make_bundle(camera / "bundle", "float32", 7)
    rows = sorted(bundle.tensor_map.tensors, key=lambda tensor: tensor.offset)
    chain, wanted, place = list[bytes](), list[bytes](), camera / "weights"
    for number in range(3):
        data, weights = cases.make_patch(weights, "float32", number)
        write_tensors(camera / "expected.bin", [(row.offset, weights[row.name]) for row in rows])
        chain.append(data)
        wanted.append((camera / "expected.bin").read_bytes())

    def runs() -> bytes | None:
        file = place / "current" / "weights.bin"
        return file.read_bytes() if file.exists() else None

    assert module(camera, chain[1]) == 4 and runs() is None, "a patch before its parent"
    for patch, weights in zip(chain, wanted, strict=True):
        assert module(camera, patch) == 0 and runs() == weights
        assert module(camera, patch) == 0 and runs() == weights
    damaged = chain[2][:-1] + bytes([chain[2][-1] ^ 1])
    assert module(camera, damaged) == 5 and runs() == wanted[2]
    assert module(camera, damaged, "ArtifactRollback") == 0 and runs() == wanted[2], "a patch that does not run was left"
    for number in (2, 1, 0):
        assert module(camera, chain[number], "ArtifactRollback") == 0
        assert runs() == (wanted[number - 1] if number else None)
    assert module(camera, chain[0]) == 0 and runs() == wanted[0]
    assert not list(place.glob("*.new"))
