"""Ship what the encoder says of clean images in the Bundle, so that a camera's clean days can be compared with the server's."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np

from edgeedit.bundle import REFERENCE_FILE, load_bundle, save_bundle
from edgeedit.device.monitor.projection import Projection
from edgeedit.digest import digest_file
from edgeedit.edit.evaluate import features
from edgeedit.edit.shots import load_pixels, load_shots, make_shots
from edgeedit.errors import InputError
from edgeedit.files import replace_file
from edgeedit.flows.server import encoder_of
from edgeedit.limits import MAX_REFERENCE_ROWS

LEAST = 32  # images


def ship_reference(images: Path, bundle: Path) -> int:
    """Write the projected features of at most MAX_REFERENCE_ROWS of `images`, spread over them, into the Bundle; returns their count.

    Weights and fingerprint stay, so patches fit as before.  Raises InputError for fewer than LEAST images."""
    found, shots = load_bundle(bundle), load_shots(images)
    count = min(len(shots.paths), MAX_REFERENCE_ROWS)
    if count < LEAST:
        raise InputError(f"too few images for a reference: expected at least {LEAST}, got {count}", hint="give it the control images")
    chosen = np.linspace(0, len(shots.paths) - 1, count).astype(int)
    some = make_shots(
        [shots.paths[i] for i in chosen], np.full(count, -1, dtype=np.int64), (), [shots.groups[i] for i in chosen]
    )  # fmt: skip
    encoder = encoder_of(found)
    rows = Projection(found.output_width)(features(encoder, load_pixels(some, encoder.preprocess)))
    data = io.BytesIO()
    np.save(data, rows.astype(np.float32), allow_pickle=False)
    replace_file(bundle / REFERENCE_FILE, data.getvalue())
    save_bundle(replace(found, reference_digest=digest_file(bundle / REFERENCE_FILE)))
    return count
