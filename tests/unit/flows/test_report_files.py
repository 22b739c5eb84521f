"""`edgeedit report` from files: delta, patch, Bundle, explanation, device, settings; and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_page import check_numbers

from edgeedit.bundle import Bundle, save_bundle
from edgeedit.catalog import load_profile, load_recipe
from edgeedit.cli.main import run
from edgeedit.delta import Delta, SparsePart, TensorDelta
from edgeedit.deploy.export import export_bundle
from edgeedit.digest import digest_file
from edgeedit.encoder.load import load_encoder
from edgeedit.flows.pack import pack
from edgeedit.patch.keys import load_private_key, load_trust, new_key
from edgeedit.patch.read import load_patch
from tests.support.families import SIDE, save_checkpoint

GATE = {"verdict": "undecided", "reasons": ["no control images were held out: retention is not known"], "limit": 0.02}


def delta_of(encoder: Any, seed: int) -> Delta:
    name = encoder.fc1_name(0)
    shape = tuple(encoder.parameters_by_name()[name].shape)
    index = np.arange(0, int(np.prod(shape)), 10, dtype=np.int64)
    interval = {"low": 0.1, "high": 0.3}
    row = {
        "name": "target",
        "n": 40,
        "error_before": 0.45,
        "error_after": 0.2,
        "auc_before": None,
        "auc_after": None,
        "fixed": 11,
        "broken": 1,
    }
    target = {**row, "wrong_before": interval, "wrong_after": interval, "change": {"low": -0.4, "high": -0.1}, "mcnemar_p": 0.006}
    counted = {"changed_count": index.size, "changed_share": 0.01, "outside_mask": 0, "total_weights": 33_000, "edit_seconds": None}
    info = {
        "encoder": {"recipe": "dinov2", "source_digest": encoder.source_digest(), "precision": "float32", "blocks": 2},
        "metrics": {"target": target, "control": None, "unrelated": None, "gate": GATE, **counted},
        "method": {"name": "lorsu", "share": 0.1},
        "seed": seed,
        "verdicts": [],
    }
    return Delta((TensorDelta(name, shape, SparsePart(index, np.full(index.size, 40, np.int16), 2.0**-7)),), info)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """fix.delta, fix.eep, another.delta, bundle/, other/ (of another encoder), ml.pub, stranger.pub."""
    root = tmp_path_factory.mktemp("report")
    save_checkpoint("dinov2", root / "model")
    encoder = load_encoder(str(root / "model"), load_recipe("dinov2"), size=SIDE)
    for name in ("bundle", "other"):
        bundle = export_bundle(encoder, root / name, profile=load_profile("linux-cpu"), precision="float32")
        save_bundle(Bundle(**{**bundle.__dict__, "source": str(root / "model")}))
    table = json.loads((root / "other" / "bundle.json").read_text())
    (root / "other" / "bundle.json").write_text(json.dumps({**table, "source_digest": "00" * 32}))
    new_key(root / "ml.key", root / "ml.pub")
    new_key(root / "stranger.key", root / "stranger.pub")
    delta_of(encoder, 7).save(root / "fix.delta")
    delta_of(encoder, 8).save(root / "another.delta")
    pack(
        delta_of(encoder, 7),
        bundle,
        [load_private_key(root / "ml.key")],
        root / "fix.eep",
        encoder=encoder,
        accept_undecided="a trial line",
    )
    return root


def report(*arguments: object) -> int:
    return run(["report", *map(str, arguments)])


def test_a_report_of_all_files_shows_what_they_say(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    device = {"generation": 1, "state": "confirmed", "swap": {"prepare_ms": 31.5, "swap_ms": 1.25, "probe_ms": 8.0, "state": "confirmed"}}
    (tmp_path / "device.json").write_text(json.dumps(device))
    (tmp_path / "report.toml").write_text('[change]\nid = "CR-7"\n[costs]\ncurrency = "EUR"\ncameras = 12\nmegabyte = 0.5\n')
    options = ("--patch", made / "fix.eep", "--trust", made / "ml.pub", "--bundle", made / "bundle", "--language", "de")
    files = ("--device", tmp_path / "device.json", "--settings", tmp_path / "report.toml")
    assert report(made / "fix.delta", *options, *files, "-o", tmp_path / "r.html", "--json") == 0
    assert json.loads(capsys.readouterr().out)["bytes"] == (tmp_path / "r.html").stat().st_size
    value = json.loads((tmp_path / "report.json").read_text("utf-8"))
    page = check_numbers((tmp_path / "r.html").read_text("utf-8"), value)
    patch = load_patch(made / "fix.eep", load_trust(made / "ml.pub"))
    cost = value["cost"]
    assert cost["patch_digest"] == digest_file(made / "fix.eep")
    assert cost["patch_bytes"] == (made / "fix.eep").stat().st_size
    assert cost["signers"] == list(patch.signers)
    assert cost["encoder_bytes"] == (made / "bundle" / "weights.bin").stat().st_size
    assert cost["tensor_bytes"] == {
        value["tensors"][0]: sum(s.length for s in patch.manifest.sections) - patch.manifest.probe.section.length
    }
    assert value["where"]["blocks"][0]["bytes"] == cost["tensor_bytes"][value["tensors"][0]]
    assert 0 <= cost["compare"]["max_abs"] < 1e-3
    assert cost["engine"]["max_abs"] < 1e-3
    assert value["account"]["patch"] == pytest.approx(12 * cost["patch_bytes"] / 1e6 * 0.5)
    for text in ("CR-7", "1.25 ms", "Nicht entschieden", patch.signers[0][:12], "Torch against the exported graph"):
        assert text in page.words, text


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (
            ("another.delta", "--patch", "fix.eep", "--trust", "ml.pub"),
            4,
            "patch was packed from another delta: expected its seed to be 8, got 7",
        ),
        (("fix.delta", "--patch", "fix.eep"), 2, "expected --trust"),
        (("fix.delta", "--patch", "fix.eep", "--trust", "stranger.pub"), 5, ""),
        (("fix.delta", "--bundle", "other"), 4, "delta does not belong to the bundle"),
        (("fix.delta", "--explain", "fix.delta"), 2, "expected a JSON object"),
        (("fix.delta", "--device", "absent.json"), 2, "cannot read"),
        (("fix.delta", "--settings", "fix.delta"), 2, "expected a TOML file"),
    ],
)
def test_files_that_do_not_belong_together_are_refused(
    made: Path,
    tmp_path: Path,
    options: tuple[str, ...],
    code: int,
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(made)
    assert report(*options, "-o", tmp_path / "r.html") == code
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
