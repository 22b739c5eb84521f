"""`edgeedit edit --vlm` from the command line on a small LLaVA: export, edit, pack, and what is refused with exit 2."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgeedit.cli.main import run
from edgeedit.digest import digest_file
from edgeedit.flows.server import EditRequest
from edgeedit.flows.vlm import assets, data
from edgeedit.flows.vlm.demo import vlm_scenario
from tests.support.families import SIDE
from tests.support.tiny_vlm import PROMPT, questions, save_tiny_llava


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vlm")
    save_tiny_llava(folder / "model")
    for number, (name, count) in enumerate({"shots": 16, "base": 16, "other": 6}.items()):
        questions(folder / "images", name, count, second=name == "other", start=number)
    for recipe in ("llava-tokens", "llava"):
        command = ["export", str(folder / "model"), "--recipe", recipe, "--device", "linux-cpu", "--size", str(SIDE)]
        assert run([*command, "-o", str(folder / recipe)]) == 0
    return folder


def _edit(made: Path, out: Path, *more: str, bundle: str = "llava-tokens") -> int:
    images = made / "images"
    command = ["edit", str(images / "shots.jsonl"), "--control", str(images / "base.jsonl"), "--bundle", str(made / bundle)]
    return run([*command, "--method", "lorsu", "--steps", "2", "--heads", "1", "--limit", "1", "-o", str(out), "--json", *more])


def test_edit_with_a_language_model_gives_a_delta_that_packs(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "fix.delta"
    more = ["--vlm", str(made / "model"), "--vlm-prompt", PROMPT, "--unrelated", str(made / "images" / "other.jsonl")]
    code = _edit(made, out, *more)
    told = capsys.readouterr().out.splitlines()
    value = json.loads(told[0])
    assert code in (0, 3) and value["metrics"]["outside_mask"] == 0 < value["metrics"]["changed_count"]
    assert value["metrics"]["unrelated"]["n"] == 6 and len(value["vlm"]["language_digest"]) == 64
    controls = value["vlm"]["edited_on_target"]
    assert controls["reads_images"] == (controls["accuracy"] - max(controls["blank"], controls["shuffled"]) >= 0.1)
    assert controls["blank"] == 0.5, "one blank image cannot be both intact and defective"
    if value["metrics"]["gate"]["verdict"] != "fail":
        assert run(["keys", "new", str(tmp_path / "ml.key")]) == 0
        packed = ["pack", str(out), "--bundle", str(made / "llava-tokens"), "--key", str(tmp_path / "ml.key")]
        assert run([*packed, "--accept-undecided", "a test", "-o", str(tmp_path / "fix.eep")]) == 0


def test_the_default_method_edits_beside_a_language_model_too(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ["--vlm", str(made / "model"), "--vlm-prompt", PROMPT, "--method", EditRequest.method, "--steps", "12", "--share", "0.5"]
    assert _edit(made, tmp_path / "fix.delta", *more) in (0, 3)
    assert json.loads(capsys.readouterr().out.splitlines()[0])["metrics"]["changed_count"] > 0


def test_former_shots_may_ask_another_question(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ["--vlm", str(made / "model"), "--vlm-prompt", PROMPT, "--former", str(made / "images" / "other.jsonl")]
    assert _edit(made, tmp_path / "fix.delta", *more) in (0, 3)
    assert json.loads(capsys.readouterr().out.splitlines()[0])["metrics"]["changed_count"] > 0


@pytest.mark.parametrize(
    ("more", "bundle", "message"),
    [
        ([], "llava-tokens", "expected either --reader or --vlm, got none"),
        (["--vlm", "{model}", "--reader", "{model}"], "llava-tokens", "expected either --reader or --vlm, got both"),
        (["--vlm", "{model}", "--vlm-prompt", "no marks"], "llava-tokens", "expected <image> exactly once"),
        (["--vlm", "{model}"], "llava", "expected a recipe with output patch-tokens|expected output patch-tokens"),
        (["--vlm", "smollm2-elpv"], "llava-tokens", "expected a Bundle of recipe dinov2-tokens"),
        (["--vlm", "{model}/nothing"], "llava-tokens", "cannot load"),
    ],
)
def test_bad_input_ends_with_exit_2(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], bundle: str, message: str
) -> None:
    import re

    code = _edit(made, tmp_path / "fix.delta", *(part.replace("{model}", str(made / "model")) for part in more), bundle=bundle)
    assert code == 2 and re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "fix.delta").exists()


def test_the_projector_is_the_recorded_one_and_saw_nothing_that_judges() -> None:
    assert digest_file(assets.PROJECTOR) == assets.PROJECTOR_SHA256
    assert assets.PROJECTOR_SHA256 in (assets.PROJECTOR.parent / "PROJECTOR.md").read_text("utf-8")
    sets = vlm_scenario(3)
    seen = {c.path for c in data.mono_halves()[0]} | {e.path for e in data.shapes("train")}
    judged = {*sets.target_heldout.paths, *sets.control_heldout.paths, *sets.unrelated_heldout.paths}
    assert not seen & judged and not set(sets.shots.paths) & (seen | judged)
    assert {p.parent.parent.name for p in sets.unrelated_heldout.paths} == {"test"}
