"""Does a vision-language model look at the image?  The same questions with a blank image, and with another row's image.

Guarantees: accuracies are balanced over the right answers; in the shuffled control no row keeps its own image.  A model
whose accuracy does not fall is not called a VLM result.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from edgeedit.edit.evaluate import features
from edgeedit.edit.readers import Reader
from edgeedit.edit.statistics import balanced_error
from edgeedit.encoder.encoder import Encoder
from edgeedit.errors import InputError

Array = np.ndarray[Any, Any]
MARGIN = 0.10  # by how much accuracy must fall without the right image


@dataclass(frozen=True)
class ImageControls:
    """Balanced accuracies, 0..1, on the same `n` questions."""

    n: int
    accuracy: float
    blank: float
    shuffled: float

    @property
    def reads_images(self) -> bool:
        """Whether both controls are at least ten points lower."""
        return self.accuracy - max(self.blank, self.shuffled) >= MARGIN

    def sentence(self) -> str:
        """What the figures say, with all three."""
        figures = f"balanced accuracy {self.accuracy:.3f}, blank image {self.blank:.3f}, shuffled images {self.shuffled:.3f}, n {self.n}"
        if self.reads_images:
            return f"the answers use the image: {figures}"
        return f"NOT a VLM result, the answers do not depend on the image by {MARGIN:.0%}: {figures}"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON object."""
        return {**asdict(self), "reads_images": self.reads_images}


def image_controls(encoder: Encoder, reader: Reader, labels: Array, found: Array, seed: int) -> ImageControls:
    """Controls of one labelled set: `labels` (n,) class numbers, `found` features (n, width) of the encoder to be judged.

    The blank image is the preprocessing's mean colour.  Raises InputError without labels."""
    if not len(labels) or (labels < 0).any():
        raise InputError("image controls need labels: expected a right answer for every image")
    side = encoder.preprocess.size
    blank = np.repeat(features(encoder, np.zeros((1, 3, side, side), np.float32)), len(labels), axis=0)

    def accuracy(rows: Array) -> float:
        logits = reader.verdict_logits(reader.logits_numpy(rows), labels)
        return 1.0 - balanced_error(labels, logits.argmax(1))

    return ImageControls(len(labels), accuracy(found), accuracy(blank), accuracy(found[_others(labels, seed)]))


def _others(labels: Array, seed: int) -> Array:
    """Row numbers drawn from the whole set, so that the picture says nothing about the row that it is given to."""
    order: Array = np.random.default_rng(seed).permutation(len(labels))
    # A row that kept its own picture would be no control: it takes its neighbour's.
    same = np.flatnonzero(order == np.arange(len(labels)))
    order[same] = np.roll(np.arange(len(labels)), 1)[same]
    return order
