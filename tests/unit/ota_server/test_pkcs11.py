"""A key that never leaves its token: the patches of a profile are published with a PKCS#11 key of SoftHSM."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from tuf.api.metadata import Metadata, Targets

from edgeedit.cli.main import run

pytestmark = pytest.mark.sysdeps
LIBRARY = Path("/usr/lib/softhsm/libsofthsm2.so")
PIN = "1234"


@pytest.fixture
def token(tmp_path: Path) -> dict[str, str]:
    """The environment in which one token, `desk`, holds an EC key of number 2; `release.pub` is its public half."""
    tool = shutil.which("softhsm2-util")
    if tool is None or not LIBRARY.exists():
        pytest.skip("softhsm2 is not installed: make test-deps")
    (tmp_path / "tokens").mkdir()
    (tmp_path / "softhsm.conf").write_text(f"directories.tokendir = {tmp_path}/tokens\nobjectstore.backend = file\nlog.level = ERROR\n")
    environment = {**os.environ, "SOFTHSM2_CONF": str(tmp_path / "softhsm.conf"), "PYKCS11LIB": str(LIBRARY), "EDGEEDIT_PIN": PIN}
    key = ec.generate_private_key(ec.SECP256R1())
    pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    (tmp_path / "import.pem").write_bytes(key.private_bytes(pem, form, serialization.NoEncryption()))
    public = key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "release.pub").write_bytes(public)
    for words in (
        ["--init-token", "--free", "--label", "desk", "--pin", PIN, "--so-pin", "5678"],
        ["--import", str(tmp_path / "import.pem"), "--token", "desk", "--label", "release", "--id", "02", "--pin", PIN],
    ):
        done = subprocess.run([tool, *words], env=environment, capture_output=True, text=True, check=False, timeout=30)
        assert done.returncode == 0, done.stderr
    (tmp_path / "import.pem").unlink()
    return environment


def command(environment: dict[str, str], *words: object) -> subprocess.CompletedProcess[str]:
    """A process of its own: a PKCS#11 library is loaded once for each process."""
    line = [sys.executable, "-m", "edgeedit.cli.main", *map(str, words)]
    return subprocess.run(line, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=60)


def test_a_role_is_signed_by_a_token_and_a_wrong_pin_signs_nothing(token: dict[str, str], tmp_path: Path) -> None:
    repo, keys, public = tmp_path / "repo", tmp_path / "keys", tmp_path / "release.pub"
    hsm = f"hsm:2?label=desk,{public}"
    made = ["repo", "init", str(repo), "--keys", str(keys), "--profile", "linux-cpu", "--site", "plant"]
    assert run(made) == 0
    before = (repo / "metadata" / "timestamp.json").read_bytes()
    grant = ["repo", "grant", repo, "rollouts-plant", public, "--key", keys, "--key"]
    wrong = command({**token, "EDGEEDIT_PIN": "9999"}, *grant, hsm)
    assert wrong.returncode == 6 and "Traceback" not in wrong.stderr and "Pin" in wrong.stderr, wrong.stderr
    gone = command({**token, "PYKCS11LIB": "/nowhere.so"}, *grant, hsm)
    assert gone.returncode == 6 and "Traceback" not in gone.stderr, gone.stderr
    assert (repo / "metadata" / "timestamp.json").read_bytes() == before
    done = command(token, *grant, hsm, "--json")
    assert done.returncode == 0, done.stderr
    newest = max((repo / "metadata").glob("*.rollouts-plant.json"), key=lambda path: int(path.name.split(".")[0]))
    role = Metadata[Targets].from_file(str(newest))
    top = max((repo / "metadata").glob("*.targets.json"), key=lambda path: int(path.name.split(".")[0]))
    signed = Metadata[Targets].from_file(str(top)).signed
    signed.verify_delegate("rollouts-plant", role.signed_bytes, role.signatures)
    (keyid,) = signed.delegations.roles["rollouts-plant"].keyids  # type: ignore[index,union-attr]
    assert signed.delegations.keys[keyid].scheme == "ecdsa-sha2-nistp256"  # type: ignore[union-attr]
    assert json.loads(done.stdout)["schema_version"] == 1
