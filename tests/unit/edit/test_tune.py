"""The search: a validation split only, a study that goes on, a front that no trial beats; and the judge of imported tensors."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeedit.edit import tune as module
from edgeedit.edit.evaluate import features
from edgeedit.edit.judging import judge_tensors
from edgeedit.edit.lorsu import Lorsu
from edgeedit.edit.readers import fit_linear
from edgeedit.edit.run import HeldOut, edit
from edgeedit.edit.shots import Shots, load_pixels
from edgeedit.encoder.encoder import Encoder
from edgeedit.errors import UnreachableError


def test_the_front_is_not_beaten_and_the_study_goes_on(encoder: Encoder, sets: dict[str, Shots], tmp_path: Path) -> None:
    base = sets["base"]
    reader = fit_linear(features(encoder, load_pixels(base, encoder.preprocess)), base.labels, base.classes)
    search = module.Search(3, f"sqlite:///{tmp_path / 's.db'}", "t", 0, (2, 4))
    for total in (3, 6):
        front, points = module.tune(encoder, sets["shots"], base, reader, search, precision="float32")
        assert len(points) == total
        values = [(p.target_error, p.control_rise, p.bytes) for p in points]
        expected = {v for v in values if not any(all(a <= b for a, b in zip(o, v, strict=True)) and o != v for o in values)}
        assert {(p.target_error, p.control_rise, p.bytes) for p in front} == expected
    module.save_plot(front, points, tmp_path / "p.png")
    assert (tmp_path / "p.png").stat().st_size > 1000
    with pytest.raises(UnreachableError, match="database"):
        module.tune(encoder, sets["shots"], base, reader, module.Search(1, f"sqlite:///{tmp_path}/no/where.db", "t"), precision="float32")


def test_imported_tensors_are_judged_as_the_edit_judges(encoder: Encoder, sets: dict[str, Shots]) -> None:
    base = sets["base"]
    reader = fit_linear(features(encoder, load_pixels(base, encoder.preprocess)), base.labels, base.classes)
    method = Lorsu(share=0.1, heads=1, rank=2, lr=3e-3, lr_low_rank=1e-2, steps=4, batch=8, patterns=2)
    held = HeldOut(sets["target"], base)
    made = edit(encoder, sets["shots"], sets["control"], reader, method=method, precision="float16", heldout=held, seed=0, limit=0.5)
    found = judge_tensors(encoder, made.delta.tensors, reader, sets["target"], base, precision="float16", limit=0.5)
    assert (found.target, found.control, found.gate) == (made.metrics.target, made.metrics.control, made.metrics.gate)
    assert found.changed_count == made.metrics.changed_count
