"""Questions about real solar cells and about synthetic shapes, for the offline vision-language model.

The projector has seen only MONOcrystalline cells of seed 0's train blocks and easy-vqa's own train images; every set that
judges is disjoint from them.  No polycrystalline cell takes part before an edit's shots.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeedit.edit.shots import Shots, make_shots
from edgeedit.flows import elpv

DEFECT, SHAPE, COLOUR = "Is this solar cell intact or defective?", "What shape is in the image?", "What color is the shape?"
DEFECT_ANSWERS = ("intact", "defective")
PROJECTOR_SEED = 0  # of the blocks of mono cells that the projector may see


@dataclass(frozen=True)
class Example:
    """One image with a question and its answer; `group` never straddles a split."""

    path: Path
    question: str
    answer: str
    group: str


def shots_of(examples: list[Example], *, labelled: bool = True) -> Shots:
    """A set whose labels are `question answer`, as a `.jsonl` with both fields gives; unlabelled on request."""
    names = [f"{e.question} {e.answer}" for e in examples]
    classes = tuple(sorted(set(names))) if labelled else ()
    numbers = [classes.index(name) if labelled else -1 for name in names]
    pairs = sorted({(f"{e.question} {e.answer}", (e.question, e.answer)) for e in examples}) if labelled else []
    own = [e.group for e in examples]
    return make_shots([e.path for e in examples], np.array(numbers, dtype=np.int64), classes, own, [pair for _, pair in pairs])


def cells(kind: str) -> list[elpv.Cell]:
    """All cells of `mono` or `poly` that the experts were sure of."""
    return [cell for cell in elpv.read_cells() if cell.kind == kind]


def mono_halves() -> tuple[list[elpv.Cell], list[elpv.Cell]]:
    """(what the projector may see, what judges), the same for every seed: there is one projector."""
    return elpv.halves(cells("mono"), np.random.RandomState(PROJECTOR_SEED))


def asked(chosen: list[elpv.Cell]) -> list[Example]:
    """The defect question about each cell."""
    return [Example(c.path, DEFECT, DEFECT_ANSWERS[c.label], c.group) for c in chosen]


def shapes(part: str) -> list[Example]:
    """Shape and colour of easy-vqa's `train` or `test` images as two questions each, in a fixed shuffled order of images."""
    data = elpv.package_folder("easy_vqa") / "data" / part
    found: dict[int, dict[str, str]] = {}
    for question, answer, image in json.loads((data / "questions.json").read_text("utf-8")):
        if answer in elpv.SHAPES:
            found.setdefault(image, {})[SHAPE] = answer
        elif question.startswith("what") and "color" in question:
            found.setdefault(image, {})[COLOUR] = answer
    whole = sorted(image for image, answers in found.items() if len(answers) == 2)
    order = [whole[i] for i in np.random.RandomState(0).permutation(len(whole))]
    return [
        Example(data / "images" / f"{image}.png", question, found[image][question], f"{part}-{image}")
        for image in order
        for question in (SHAPE, COLOUR)
    ]
