"""The demo's scenario made of a user's own images: labelled shots of the mistake and labelled base images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from edgeedit.edit.shots import load_shots, make_shots, split_by_group
from edgeedit.errors import InputError
from edgeedit.flows.elpv import Scenario, scenario


def own_scenario(shots_path: Path, control_path: Path, seed: int) -> Scenario:
    """Shots and control are each split by group: one half to learn from, one half held out; raises InputError.

    The unrelated set stays the demo's own (synthetic shapes), so damage to another task is seen as well."""
    shots, control = load_shots(shots_path), load_shots(control_path)
    if shots.classes != control.classes:
        raise InputError(
            f"classes differ: expected {list(control.classes)} as in {control_path}, got {list(shots.classes)} in {shots_path}"
        )
    edit_shots, target = split_by_group(shots, 0.5, seed)
    reader_train, kept = split_by_group(control, 0.5, seed)
    unlabelled = make_shots(reader_train.paths, np.full(len(reader_train.paths), -1, dtype=np.int64), (), reader_train.groups)
    return replace(
        scenario(seed), reader_train=reader_train, shots=edit_shots, control=unlabelled, target_heldout=target, control_heldout=kept
    )
