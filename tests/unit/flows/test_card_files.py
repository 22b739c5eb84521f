"""`edgeedit card` from files: Delta, patch, folder and Bundle that belong together, and what is refused when they do not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edgeedit.catalog import load_profile, load_recipe
from edgeedit.cli.main import run
from edgeedit.delta import Delta, SparsePart, TensorDelta
from edgeedit.deploy.export import export_bundle
from edgeedit.digest import digest_file
from edgeedit.encoder.load import random_encoder
from edgeedit.flows.pack import pack
from edgeedit.patch.keys import load_private_key, new_key

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 28, "patch_size": 7}


def figures(name: str) -> dict[str, Any]:
    return {
        "name": name,
        "n": 40,
        **{"error_before": 0.45, "error_after": 0.2, "auc_before": None, "auc_after": None},
        **{"wrong_before": {"low": 0.3, "high": 0.6}, "wrong_after": {"low": 0.1, "high": 0.35}, "change": {"low": -0.4, "high": -0.1}},
        **{"fixed": 11, "broken": 1, "mcnemar_p": 0.00634765625},
    }


def delta_of(encoder: Any, seed: int = 7) -> Delta:
    name = encoder.fc1_name(0)
    shape = tuple(encoder.parameters_by_name()[name].shape)
    index = np.arange(0, int(np.prod(shape)), 10, dtype=np.int64)
    gate = {"verdict": "undecided", "reasons": ["too few images"], "limit": 0.02}
    metrics = {
        "target": figures("target"),
        "control": None,
        "unrelated": None,
        "gate": gate,
        "edit_seconds": None,
        "changed_count": index.size,
    }
    of = {"recipe": "dinov2", "source_digest": encoder.source_digest(), "precision": "float32", "blocks": 2, "heads": 4, "size": 28}
    info = {
        "encoder": of,
        "metrics": {**metrics, "changed_share": 0.0123, "outside_mask": 0, "total_weights": 33_000},
        "reader": {"kind": "linear", "digest": "cd" * 32, "classes": ["intact", "broken"]},
        "seed": seed, "survival": {"float32": 1.0}, "versions": {"torch": "2.10"}, "verdicts": [],
    }  # fmt: skip
    return Delta((TensorDelta(name, shape, SparsePart(index, np.full(index.size, 40, np.int16), 2.0**-7)),), info)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """result/ (fix.delta, fix.eep, run.json), bundle/, other/ (a Bundle of another encoder), ml.pub, stranger.pub."""
    root = tmp_path_factory.mktemp("card")
    encoder = random_encoder(load_recipe("dinov2"), SMALL, seed=3)
    bundle = export_bundle(encoder, root / "bundle", profile=load_profile("linux-cpu"), precision="float32")
    shutil.copytree(root / "bundle", root / "other")
    table = json.loads((root / "other" / "bundle.json").read_text())
    (root / "other" / "bundle.json").write_text(json.dumps({**table, "source_digest": "00" * 32}))
    new_key(root / "ml.key", root / "ml.pub")
    new_key(root / "stranger.key", root / "stranger.pub")
    (root / "result").mkdir()
    delta = delta_of(encoder)
    delta.save(root / "result" / "fix.delta")
    key = load_private_key(root / "ml.key")
    assert isinstance(key, Ed25519PrivateKey)
    pack(delta, bundle, [key], root / "result" / "fix.eep", encoder=encoder, accept_undecided="a trial line only")
    figures_of_device = {"seed": 7, "apply": {"swap_ms": 1.4}, "rollback_exact": True}
    (root / "result" / "run.json").write_text(json.dumps(figures_of_device))
    delta_of(encoder, seed=8).save(root / "another.delta")
    return root


def card(*arguments: Any) -> int:
    return run(["card", *map(str, arguments)])


def test_a_folder_with_its_bundle_gives_both_files(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, bom = tmp_path / "card.md", tmp_path / "bom.json"
    arguments = (made / "result", "--bundle", made / "bundle", "--trust", made / "ml.pub", "-o", out, "--bom", bom)
    assert card(*arguments, "--json") == 0
    assert json.loads(capsys.readouterr().out)["patch"] == digest_file(made / "result" / "fix.eep")
    text, value = out.read_text("utf-8"), json.loads(bom.read_text("utf-8"))
    manifest = json.loads((made / "bundle" / "bundle.json").read_text())
    for expected in (manifest["fingerprint"], manifest["graph_digest"], "a trial line only", "## On the device", "| 1.40 |", "torch 2.10"):
        assert expected in text, expected
    rows = {c["bom-ref"]: c for c in value["components"]}
    assert rows["bundle"]["hashes"][0]["content"] == digest_file(made / "bundle" / "model.onnx")
    assert rows["patch"]["hashes"][0]["content"] == digest_file(made / "result" / "fix.eep")
    assert "runtime-onnxruntime" in rows
    first = out.read_bytes(), bom.read_bytes()
    assert card(*arguments) == 0 and (out.read_bytes(), bom.read_bytes()) == first


def test_a_patch_alone_says_what_its_delta_says(made: Path, tmp_path: Path) -> None:
    pages = []
    for number, source in enumerate(("result/fix.delta", "result/fix.eep")):
        assert card(made / source, "--trust", made / "ml.pub", "-o", tmp_path / f"{number}.md") == 0
        text = (tmp_path / f"{number}.md").read_text("utf-8")
        pages.append(text[text.index("| set | images") : text.index("## Limitations")])
    assert pages[0] == pages[1] and "0.00635" in pages[0]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["{}/absent.delta", "-o", "{out}"], 2, "cannot read"),
        (["{}/result/run.json", "-o", "{out}"], 2, "expected a .delta file"),
        (["{}/bundle", "-o", "{out}"], 2, "holds no result"),
        (["{}/result/fix.eep", "-o", "{out}"], 2, "expected --trust KEY, got none"),
        (["{}/result", "-o", "{out}"], 2, "expected --trust KEY, got none"),
        (["{}/result/fix.eep", "--trust", "{}/stranger.pub", "-o", "{out}"], 5, "sign"),
        (["{}/result/fix.delta", "--bundle", "{}/result", "-o", "{out}"], 2, "cannot read"),
        (["{}/result/fix.delta", "--bundle", "{}/other", "-o", "{out}"], 4, "bundle is another one: expected the encoder"),
        (["{}/result/fix.delta"], 2, "nothing was asked for"),
        (["{}/result/fix.delta", "--date", "yesterday", "-o", "{out}"], 2, "date is not ISO 8601"),
        (["{}/result/fix.delta", "--date", "2026-11-26T09:00:00", "-o", "{out}"], 2, "date has no time zone"),
    ],
)
def test_wrong_input_is_one_sentence(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, message: str
) -> None:
    out = tmp_path / "card.md"
    assert card(*(a.replace("{out}", str(out)).replace("{}", str(made)) for a in arguments)) == code
    lines = capsys.readouterr().err.strip().splitlines()
    assert message in lines[0] and lines[0].startswith("error: ") and not lines[0].endswith(".") and len(lines) <= 2
    assert not out.exists()


def test_files_that_do_not_belong_together_are_refused(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, trust = tmp_path / "mixed", ("--trust", made / "ml.pub", "-o", tmp_path / "card.md")
    folder.mkdir()
    shutil.copy(made / "result" / "fix.eep", folder)
    shutil.copy(made / "another.delta", folder)
    assert card(folder, *trust) == 4
    assert "patch was not packed from the delta: expected the same seed" in capsys.readouterr().err
    shutil.copy(made / "result" / "fix.delta", folder)
    assert card(folder, *trust) == 2
    assert "is not one result: expected one .delta, got another.delta, fix.delta" in capsys.readouterr().err
    (folder / "another.delta").unlink()
    (folder / "run.json").write_text(json.dumps({"seed": 8, "apply": {}}))
    assert card(folder, *trust) == 2
    assert "is of another run: expected the figures of seed 7" in capsys.readouterr().err
    assert not (tmp_path / "card.md").exists()


def test_nothing_is_written_when_the_second_page_fails(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgeedit.errors import InputError
    from edgeedit.flows import card as flow

    def fails(_: Any) -> str:
        raise InputError("expected this")

    monkeypatch.setattr(flow, "render_bom", fails)
    out = tmp_path / "card.md"
    assert card(made / "result" / "fix.delta", "-o", out, "--bom", tmp_path / "bom.json") == 2
    assert not out.exists()
