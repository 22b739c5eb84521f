"""`edgeedit pack --for mender|rauc|swupdate`: their own tools read, sign, verify and install what we write, on a sandboxed store.

The container formats are also read here without our writers (tarfile, configparser, cpio, unsquashfs).  Not run: `rauc install`, which
needs device-mapper; its handler runs as RAUC starts it, from the bundle that `rauc extract` has verified.
"""

from __future__ import annotations

import configparser
import gzip
import hashlib
import io
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from edgeedit.cli.main import run
from edgeedit.device.apply import stage_patch
from edgeedit.device.runtime import Runtime
from edgeedit.device.store import Store
from edgeedit.errors import RefusedError, RevertedError

pytestmark = pytest.mark.sysdeps


def tool(name: str) -> str:
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if found is None:
        pytest.skip(f"{name} is not installed: make test-deps")
    return found


def call(*words: object, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(w) for w in words],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **environment},
    )


@dataclass
class Camera:
    """A provisioned store, the settings that the hooks read, and patches that fit: `good`, then `bad` (its probes fail) on it."""

    at: Path
    good: Path
    bad: Path
    fingerprint: str

    @property
    def environment(self) -> dict[str, str]:
        return {"EDGEEDIT_ENGINE_CONF": str(self.at / "engine.conf")}

    def runs(self) -> str:
        with Store.open(self.at / "store") as store:
            assert store.trial() is None
            return store.head().patch

    def pack(self, engine: str, patch: Path, out: str, *more: object) -> Path:
        words = ["pack", patch, "--for", engine, "--trust", self.at / "ml.pub", "--compatible", "cam-a", *more, "-o", self.at / out]
        assert run([str(word) for word in words]) == 0
        return self.at / out


def digest_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def camera(world: Any, tmp_path: Path) -> Camera:
    good, bad = tmp_path / "good.eep", tmp_path / "bad.eep"
    good.write_bytes(world.patch(1))
    fingerprint = world.mark(world.weights)
    bad.write_bytes(world.patch(2, wrong_probe=True))
    Store.create(tmp_path / "store", world.bundle.path, [world.public], device="cam-1").close()
    # The command in words, as `runuser -u edgeedit -- …` would be.
    (tmp_path / "engine.conf").write_text(f"EDGEEDIT='{sys.executable} -m edgeedit.cli.main'\nEDGEEDIT_STORE={tmp_path}/store\n")
    return Camera(tmp_path, good, bad, fingerprint)


@pytest.fixture
def signer(tmp_path: Path) -> tuple[Path, Path]:
    """Certificate and key of the update engine's own signature."""
    certificate, key = tmp_path / "desk.pem", tmp_path / "desk.key"
    usage = ["-addext", "keyUsage=digitalSignature", "-addext", "extendedKeyUsage=emailProtection,codeSigning"]
    made = call(
        tool("openssl"), "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", certificate, "-days", 9,
        "-subj", "/CN=desk", *usage,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    return certificate, key


# Mender


def test_the_mender_artifact_read_without_our_writer(camera: Camera) -> None:
    """Version 3: the order of its parts, every digest of the manifest, the device type, and the patch byte for byte."""
    out = camera.pack("mender", camera.good, "fix.mender", "--as-version", "fix-7")
    with tarfile.open(out) as artifact:
        assert artifact.getnames() == ["version", "manifest", "header.tar.gz", "data/0000.tar.gz"]
        parts = {name: artifact.extractfile(name).read() for name in artifact.getnames()}  # type: ignore[union-attr]
    assert json.loads(parts["version"]) == {"format": "mender", "version": 3}
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(parts["header.tar.gz"]))) as header:
        assert header.getnames() == ["header-info", "headers/0000/type-info"]
        info, kind = (json.loads(header.extractfile(name).read()) for name in header.getnames())  # type: ignore[union-attr]
    assert info["artifact_provides"] == {"artifact_name": "fix-7"} and info["artifact_depends"] == {"device_type": ["cam-a"]}
    assert info["payloads"] == [{"type": "edgeedit"}] and kind["type"] == "edgeedit"
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(parts["data/0000.tar.gz"]))) as data:
        (name,) = data.getnames()
        patch = data.extractfile(name).read()  # type: ignore[union-attr]
    assert patch == camera.good.read_bytes() and name == f"{digest_of(camera.good)}.eep"
    sums = dict(reversed(line.split("  ")) for line in parts["manifest"].decode().splitlines())
    assert sums == {
        "version": hashlib.sha256(parts["version"]).hexdigest(),
        "header.tar.gz": hashlib.sha256(parts["header.tar.gz"]).hexdigest(),
        f"data/0000/{name}": hashlib.sha256(patch).hexdigest(),
    }
    assert camera.pack("mender", camera.good, "again.mender", "--as-version", "fix-7").read_bytes() == out.read_bytes()


class Mender:
    """The real client, standalone.  Its folders are fixed when it is built, so it sees ours in a mount namespace of its own."""

    def __init__(self, camera: Camera, key: Path) -> None:
        self._camera, at = camera, camera.at / "mender"
        for folder in ("modules", "etc", "data"):
            (at / folder).mkdir(parents=True)
        shutil.copy(camera.pack("mender", camera.good, "layout") / "edgeedit", at / "modules")
        (at / "etc" / "artifact_info").write_text("artifact_name=factory\n")
        (at / "type").write_text("device_type=cam-a\n")
        (at / "conf").write_text(json.dumps({"DeviceTypeFile": str(at / "type"), "ArtifactVerifyKey": str(key)}))
        self._script = at / "run.sh"
        self._script.write_text(
            f"mount --bind {at}/modules /usr/share/mender/modules/v3 && mount --bind {at}/etc /etc/mender && "
            f'exec {tool("mender")} --config {at}/conf --fallback-config {at}/none --data {at}/data --no-syslog "$@"\n'
        )

    def __call__(self, *words: object) -> subprocess.CompletedProcess[str]:
        """`mender WORDS`; skipped where the machine gives root no mount namespace."""
        namespace = [tool("unshare"), "-m"] if os.getuid() == 0 else [tool("unshare"), "-rm"]
        if call(*namespace, "true").returncode:
            pytest.skip("no mount namespace here")
        return call(*namespace, "sh", self._script, *words, **self._camera.environment)


def test_the_mender_client_installs_rolls_back_and_keeps_what_ran(camera: Camera) -> None:
    """Signed by mender-artifact; rolled back before commit; installed and committed; a patch that its probes reject changes nothing."""
    key, public = camera.at / "mender.key", camera.at / "mender.pub"
    assert call(tool("openssl"), "ecparam", "-genkey", "-name", "prime256v1", "-noout", "-out", key).returncode == 0
    assert call("openssl", "pkey", "-in", key, "-pubout", "-out", public).returncode == 0
    artifacts = {}
    for name in ("good", "bad"):
        artifacts[name] = camera.pack("mender", getattr(camera, name), f"{name}.mender")
        assert call(tool("mender-artifact"), "sign", artifacts[name], "-k", key).returncode == 0
        assert call("mender-artifact", "validate", artifacts[name], "-k", public).returncode == 0
    mender, good = Mender(camera, public), digest_of(camera.good)
    done = mender("install", artifacts["good"])
    assert done.returncode == 0 and camera.runs() == good, done.stdout + done.stderr
    assert mender("rollback").returncode == 0 and camera.runs() == ""
    assert mender("install", artifacts["good"]).returncode == 0 and mender("commit").returncode == 0
    assert camera.runs() == good and f"0.0.0+{good[:12]}" in mender("show-artifact").stdout
    done = mender("install", artifacts["bad"])
    assert done.returncode != 0 and "exit status 7" in done.stdout + done.stderr
    assert camera.runs() == good and f"0.0.0+{good[:12]}" in mender("show-artifact").stdout


# RAUC


def test_rauc_signs_verifies_and_its_handler_installs(camera: Camera, signer: tuple[Path, Path]) -> None:
    """Exit 0 when it runs, 0 again, 7 when the probes reject it, 4 when it does not fit, 5 when it was changed inside a good bundle."""
    certificate, key = signer
    outcomes = []
    for number, (patch, wanted) in enumerate([(camera.bad, 4), (camera.good, 0), (camera.good, 0), (camera.bad, 7)]):
        folder = camera.pack("rauc", patch, f"layout{number}")
        bundle, out = camera.at / f"{number}.raucb", camera.at / f"extracted{number}"
        made = call(tool("rauc"), "bundle", "--cert", certificate, "--key", key, folder, bundle)
        assert made.returncode == 0, made.stderr
        taken = call("rauc", "--keyring", certificate, "extract", bundle, out)
        assert taken.returncode == 0, taken.stderr
        assert (out / f"{digest_of(patch)}.eep").read_bytes() == patch.read_bytes()
        done = call(out / "install.sh", RAUC_BUNDLE_MOUNT_POINT=str(out), **camera.environment)
        outcomes.append((done.returncode, wanted))
    assert all(got == wanted for got, wanted in outcomes), outcomes
    assert camera.runs() == digest_of(camera.good)
    shown = json.loads(call("rauc", "--keyring", certificate, "info", "--output-format=json", camera.at / "1.raucb").stdout)
    assert shown["compatible"] == "cam-a" and shown["version"] == f"0.0.0+{digest_of(camera.good)[:12]}"
    changed = camera.at / "extracted1" / f"{digest_of(camera.good)}.eep"
    changed.write_bytes(changed.read_bytes()[:-1] + b"\0")
    done = call(camera.at / "extracted1" / "install.sh", RAUC_UPDATE_SOURCE=str(changed.parent), **camera.environment)
    assert done.returncode == 5 and camera.runs() == digest_of(camera.good)


def test_the_rauc_manifest_and_the_bare_squashfs(camera: Camera) -> None:
    folder = camera.pack("rauc", camera.good, "layout")
    manifest = configparser.ConfigParser()
    manifest.read_string((folder / "manifest.raucm").read_text())
    assert manifest["update"]["compatible"] == "cam-a" and manifest["handler"]["filename"] == "install.sh"
    assert manifest["bundle"]["format"] == "verity"
    assert stat.S_IMODE((folder / "install.sh").stat().st_mode) == 0o755
    image = camera.pack("rauc", camera.good, "fix.raucb")
    done = call(tool("unsquashfs"), "-d", camera.at / "root", image)
    assert done.returncode == 0, done.stderr
    assert {p.name: p.read_bytes() for p in (camera.at / "root").iterdir()} == {p.name: p.read_bytes() for p in folder.iterdir()}
    assert camera.pack("rauc", camera.good, "again.raucb").read_bytes() == image.read_bytes()


# SWUpdate


def test_the_swu_as_cpio_reads_it(camera: Camera) -> None:
    """First the description; every checksum right (`cpio -i --only-verify-crc`); the same files as the folder."""
    folder, image = camera.pack("swupdate", camera.good, "layout"), camera.pack("swupdate", camera.good, "fix.swu")
    assert image.read_bytes()[110:124] == b"sw-description" and len(image.read_bytes()) % 512 == 0
    with image.open("rb") as file:
        listed = subprocess.run(
            [tool("cpio"), "-i", "--only-verify-crc"], stdin=file, capture_output=True, text=True, check=False, timeout=60
        )
    assert listed.returncode == 0 and "checksum error" not in listed.stderr, listed.stderr
    (camera.at / "out").mkdir()
    with image.open("rb") as file:
        subprocess.run(["cpio", "-i", "--quiet"], stdin=file, cwd=camera.at / "out", check=True, timeout=60)
    assert {p.name: p.read_bytes() for p in (camera.at / "out").iterdir()} == {p.name: p.read_bytes() for p in folder.iterdir()}


def _signed_swu(folder: Path, patch: Path, signer: tuple[Path, Path]) -> Path:
    """As the printed step says: the description signed (CMS), everything into a cpio archive."""
    certificate, key = signer
    sign = ["cms", "-sign", "-in", "sw-description", "-out", "sw-description.sig", "-signer", certificate, "-inkey", key]
    assert call(tool("openssl"), *sign, "-outform", "DER", "-nosmimecap", "-binary", cwd=folder).returncode == 0
    names = f"sw-description\nsw-description.sig\ninstall.sh\n{digest_of(patch)}.eep\n".encode()
    out = folder.with_suffix(".swu")
    with out.open("wb") as file:
        subprocess.run([tool("cpio"), "-o", "-H", "crc", "--quiet"], cwd=folder, input=names, stdout=file, check=True, timeout=60)
    return out


def _swupdate(camera: Camera, certificate: Path, hardware: str, image: Path) -> str:
    """What the service says of one update.  As a service with its client: `swupdate -i` ends before a small image is installed."""
    place, log = camera.at / f"tmp-{image.stem}", camera.at / f"{image.stem}.log"
    place.mkdir()
    environment = {**os.environ, **camera.environment, "TMPDIR": str(place)}
    words = [tool("swupdate"), "-k", str(certificate), "-H", hardware, "-M", "-m", "-v"]
    with log.open("wb") as file:
        service = subprocess.Popen(
            words, env=environment, cwd=place, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
        )
    try:
        _until((place / "sockinstctrl").exists, log)
        subprocess.run([tool("swupdate-client"), image], env=environment, cwd=place, capture_output=True, check=False, timeout=60)
        _until(lambda: re.search(r"SWUPDATE (successful|failed \[1\])", log.read_text()) is not None, log)
    finally:
        os.killpg(service.pid, signal.SIGTERM)
        try:
            service.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(service.pid, signal.SIGKILL)
    return log.read_text()


def _until(true: Callable[[], bool], log: Path) -> None:
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.05)


def test_swupdate_verifies_and_installs(camera: Camera, signer: tuple[Path, Path]) -> None:
    """The real program: signed as the printed step says; another hardware is refused; probes that reject fail the update."""

    def install(patch: Path, name: str, hardware: str = "board:cam-a") -> str:
        folder = camera.pack("swupdate", patch, name, "--incoming", camera.at / "incoming")
        return _swupdate(camera, signer[0], hardware, _signed_swu(folder, patch, signer))

    said = install(camera.good, "hardware", "board:cam-b")
    assert "not compatible with hardware" in said and camera.runs() == "", said
    said = install(camera.good, "good")
    assert "SWUPDATE successful" in said and camera.runs() == digest_of(camera.good), said
    said = install(camera.bad, "bad")
    assert "SWUPDATE successful" not in said and "probe 0 is off" in said and camera.runs() == digest_of(camera.good), said
    assert list((camera.at / "incoming").iterdir()) == [], "patches were left behind"
    script = camera.at / "good" / "install.sh"
    assert call(script, "postfailure", **camera.environment).returncode == 0 and camera.runs() == ""
    assert call(script, "postfailure", **camera.environment).returncode == 0 and camera.runs() == ""


# The hook's other modes, and what is refused


def test_a_running_application_gives_the_verdict(camera: Camera) -> None:
    """`stage --wait`: confirmed and reverted by the application's Runtime; without one the trial is ended and the hook fails (6)."""
    with (camera.at / "engine.conf").open("a") as file:
        file.write("EDGEEDIT_MODE=stage\nEDGEEDIT_WAIT=1\n")
    layout = camera.pack("rauc", camera.good, "layout")
    done = call(layout / "install.sh", RAUC_BUNDLE_MOUNT_POINT=str(layout), **camera.environment)
    assert done.returncode == 6 and "verdict within 1 s" in done.stderr and camera.runs() == "", done.stderr
    stop = threading.Event()

    def application() -> None:
        with Runtime(camera.at / "store", threads=1, poll_seconds=0) as runtime:
            while not stop.wait(0.02):
                runtime.step()

    thread = threading.Thread(target=application, daemon=True)
    thread.start()
    try:
        assert stage_patch(camera.at / "store", camera.good, wait=30, poll=0.02).state == "confirmed"
        with pytest.raises(RevertedError, match="probe 0"):
            stage_patch(camera.at / "store", camera.bad, wait=30, poll=0.02)
    finally:
        stop.set()
        thread.join(30)
    assert camera.runs() == digest_of(camera.good)
    began = time.monotonic()
    with pytest.raises(RefusedError, match="verdict within"):
        stage_patch(camera.at / "store", camera.bad, wait=0.2, poll=0.02)
    assert time.monotonic() - began < 5 and camera.runs() == digest_of(camera.good)


def test_a_hook_without_the_command_or_with_a_wrong_mode_fails(camera: Camera) -> None:
    layout = camera.pack("rauc", camera.good, "layout")
    for settings, code in (("EDGEEDIT=/nowhere/edgeedit", 6), ("EDGEEDIT_MODE=maybe", 2), ("EDGEEDIT_MODE=native", 2)):
        (camera.at / "engine.conf").write_text(f"{settings}\n")
        done = call(layout / "install.sh", RAUC_BUNDLE_MOUNT_POINT=str(layout), **camera.environment)
        assert done.returncode == code, (settings, done.stderr)
    (layout / "another.eep").write_bytes(b"")
    assert call(layout / "install.sh", RAUC_BUNDLE_MOUNT_POINT=str(layout), **camera.environment).returncode == 5


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["good.eep", "--for", "rauc", "--compatible", "a"], 5, "0 trusted keys"),
        (["good.eep", "--for", "rauc", "--compatible", "a", "--trust", "other.pub"], 5, "trusted"),
        (["good.eep", "--for", "rauc", "--trust", "ml.pub"], 2, "no device"),
        (["good.eep", "--for", "rauc", "--trust", "ml.pub", "--compatible", "a", "--compatible", "b"], 2, "one --compatible"),
        (["good.eep", "--for", "swupdate", "--trust", "ml.pub", "--compatible", 'a"; x'], 2, "word of the payload"),
        (["good.eep", "--for", "mender", "--trust", "ml.pub", "--compatible", "a", "--as-version", "1\n2"], 2, "word of the payload"),
        (["good.eep", "--for", "swupdate", "--trust", "ml.pub", "--compatible", "a", "--incoming", "/tmp/$(id)"], 2, "plain absolute path"),
        (["good.eep"], 2, "a patch already"),
        (["cut.eep", "--for", "rauc", "--compatible", "a", "--trust", "ml.pub"], 5, ""),
        (["fix.delta", "--for", "rauc", "--compatible", "a"], 2, "--bundle and --key"),
    ],
)  # fmt: skip
def test_what_is_refused_writes_nothing(
    camera: Camera, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], code: int, said: str
) -> None:
    monkeypatch.chdir(camera.at)
    assert run(["keys", "new", "other.key"]) == 0
    (camera.at / "cut.eep").write_bytes(camera.good.read_bytes()[:-1])
    (camera.at / "fix.delta").write_bytes(b"PK")
    before = sorted(camera.at.iterdir())
    assert run(["pack", *words, "-o", "out"]) == code
    assert said in capsys.readouterr().err
    assert sorted(camera.at.iterdir()) == before


def test_a_folder_that_exists_and_a_missing_mksquashfs(camera: Camera, monkeypatch: pytest.MonkeyPatch) -> None:
    (camera.at / "out").mkdir()
    words = ["pack", str(camera.good), "--for", "rauc", "--trust", str(camera.at / "ml.pub"), "--compatible", "a", "-o"]
    assert run([*words, str(camera.at / "out")]) == 2
    monkeypatch.setenv("PATH", "")
    before = sorted(camera.at.iterdir())
    assert run([*words, str(camera.at / "x.raucb")]) == 6
    assert sorted(camera.at.iterdir()) == before
