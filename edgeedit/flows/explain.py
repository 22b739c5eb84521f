"""Explaining an edit from its files: the Bundle's encoder, the delta, the reader and the images.

Guarantees: the encoder is the one that the Bundle was exported from; nothing is written but the explanation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeedit.bundle import load_bundle
from edgeedit.delta import load_delta
from edgeedit.deploy.lower import check_encoder
from edgeedit.edit.explain import Sample, Subject, explain
from edgeedit.edit.readers import Reader, load_reader
from edgeedit.edit.shots import load_shots
from edgeedit.edit.vlm import vlm_reader
from edgeedit.errors import InputError
from edgeedit.files import write_json
from edgeedit.flows.server import encoder_of
from edgeedit.flows.vlm.assets import language_of

PROBES = 16  # of the Bundle's probes, at most


@dataclass(frozen=True)
class ExplainRequest:
    """What `edgeedit explain` was asked: files, and how many images to look at."""

    delta: Path
    bundle: Path
    heldout: Path
    reader_path: Path | None = None
    vlm: str | None = None
    vlm_prompt: str | None = None
    heldout_control: Path | None = None
    stored: tuple[Path, ...] = ()
    images: int = 48
    maps: int = 6


def explain_files(request: ExplainRequest, out: Path | None, progress: Callable[[int, int, str], None]) -> dict[str, Any]:
    """The explanation of a stored delta, written to `out` if given; raises InputError, MismatchError or IntegrityError."""
    if (request.reader_path is None) == (request.vlm is None):
        raise InputError("reader is not clear: expected either --reader or --vlm, got " + ("both" if request.vlm else "none"))
    delta, bundle = load_delta(request.delta), load_bundle(request.bundle)
    check_encoder(delta, bundle)
    target = load_shots(request.heldout)
    control = load_shots(request.heldout_control) if request.heldout_control else None
    stored = tuple(load_shots(path) for path in request.stored)
    encoder = encoder_of(bundle)
    reader: Reader
    if request.reader_path is not None:
        reader = load_reader(request.reader_path)
    else:
        side = language_of(str(request.vlm), encoder, request.vlm_prompt)
        reader = vlm_reader(side, encoder, [s for s in (target, control, *stored) if s is not None])
    subject = Subject(target, control, stored, bundle.probes()[:PROBES])
    sample = Sample(images=request.images, maps=request.maps)
    value = explain(encoder, delta, reader, subject, precision=bundle.precision, sample=sample, progress=progress)
    if out is not None:
        write_json(out, value)
    return value
