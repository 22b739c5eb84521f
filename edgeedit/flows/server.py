"""The server's single steps as functions: export, reader fit, edit, compare.  The command line calls one each.

Guarantees: the encoder that edits is the one the Bundle was exported from (checked by digest); a failed step writes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgeedit.bundle import Bundle, load_bundle, save_bundle
from edgeedit.catalog import load_profile, load_recipe
from edgeedit.delta import Delta, TensorDelta
from edgeedit.deploy.export import export_bundle
from edgeedit.deploy.lower import lower
from edgeedit.deploy.probes import deployed_encoder, deployed_values
from edgeedit.edit.budget import Choice, parse_bytes
from edgeedit.edit.controls import image_controls
from edgeedit.edit.evaluate import features, reader_labels
from edgeedit.edit.judging import Deployed
from edgeedit.edit.losses import TargetLoss
from edgeedit.edit.methods.budgeted import plan
from edgeedit.edit.methods.every import LOCAL
from edgeedit.edit.methods.local import Local
from edgeedit.edit.parallel import team
from edgeedit.edit.readers import Reader, fit_linear, fit_prototypes, load_reader, save_reader
from edgeedit.edit.run import EditResult, HeldOut, edit
from edgeedit.edit.shots import Shots, join_shots, load_pixels, load_shots, split_by_group
from edgeedit.edit.statistics import balanced_error
from edgeedit.edit.vlm import AnswerLoss, VlmReader, vlm_reader, with_unit
from edgeedit.encoder.encoder import Encoder
from edgeedit.encoder.load import load_encoder
from edgeedit.encoder.values import parameter_values, with_values
from edgeedit.errors import InputError, MismatchError
from edgeedit.flows.vlm.assets import language_of
from edgeedit.limits import MAX_PROBES
from edgeedit.rounding import apply_delta

Array = np.ndarray[Any, Any]


def export_model(
    model: str,
    recipe: str,
    device: str,
    out: Path,
    *,
    precision: str | None = None,
    size: int | None = None,
    probes: Path | None = None,
    seed: int = 0,
    onnx: Path | None = None,
) -> Bundle:
    """Load an encoder and write its Bundle; the Bundle remembers `model` so that later steps find the encoder again."""
    profile = load_profile(device)
    encoder = load_encoder(model, load_recipe(recipe), size=size)
    images = None
    if probes is not None:
        images = load_pixels(load_shots(probes), encoder.preprocess)[:MAX_PROBES]
    bundle = export_bundle(encoder, out, profile=profile, precision=precision or profile.precision, probes=images, seed=seed, ready=onnx)
    bundle = replace(bundle, source=model)
    save_bundle(bundle)
    return bundle


def encoder_of(bundle: Bundle) -> Encoder:
    """The torch encoder that a Bundle was exported from, with the weights of its patches where it was materialized from some; raises
    MismatchError (exit 4) when the encoder's own weights are others."""
    encoder = load_encoder(bundle.source, load_recipe(bundle.recipe), size=bundle.preprocess.size)
    expected = bundle.patched_from or bundle.source_digest
    if encoder.source_digest() != expected:
        raise MismatchError(
            f"encoder {bundle.source} does not match the bundle: expected {expected[:12]}, got {encoder.source_digest()[:12]}",
            hint="export the bundle again from this encoder",
        )
    return deployed_encoder(encoder, bundle, bundle.weights()) if bundle.patched_from else encoder


def named_by(bundle: Bundle, info: Mapping[str, Any]) -> dict[str, Any]:
    """The record of an edit with the Bundle's name for its encoder: of patched weights the digest is the deployed fingerprint."""
    behind = {"patched_from": bundle.patched_from} if bundle.patched_from else {}
    return {**info, "encoder": {**info["encoder"], "source_digest": bundle.source_digest, **behind}}


def in_codes(bundle: Bundle) -> Deployed | None:
    """For an int8 Bundle, what its codes stand for after a change of the float32 parameters; None for every other one, whose precision
    alone says what a device computes with.  The function raises InputError when a change moves no code."""
    if bundle.precision != "int8":
        return None
    base, made_for = bundle.weights(), {"source_digest": bundle.source_digest, "precision": bundle.precision}

    def deployed(values: Mapping[str, Array], tensors: Sequence[TensorDelta]) -> dict[str, Array]:
        new = lower(Delta(tuple(tensors), {"encoder": made_for}), bundle, base, values).new if tensors else {}
        return deployed_values(values, bundle, {**base, **new})

    return deployed


def fit_reader(images: Path, bundle: Path, out: Path, *, kind: str) -> tuple[Reader, float]:
    """Fit a linear head or prototypes on labelled images and save it; returns it with its balanced training error."""
    encoder, shots = encoder_of(load_bundle(bundle)), load_shots(images)
    if (shots.labels < 0).any():
        raise InputError(f"images have no labels: expected one folder per class or labels in {images}")
    rows = features(encoder, load_pixels(shots, encoder.preprocess))
    fit = fit_linear if kind == "linear" else fit_prototypes
    fitted: Reader = replace(fit(rows, shots.labels, shots.classes), preprocess=encoder.preprocess)
    save_reader(fitted, out)
    return fitted, balanced_error(shots.labels, fitted.logits_numpy(rows).argmax(1))


@dataclass(frozen=True)
class EditRequest:
    """What `edgeedit edit` was asked to do; None takes the method's default or splits what is there."""

    shots: Path
    bundle: Path
    reader_path: Path | None
    control: Path
    former: tuple[Path, ...] = ()
    heldout: Path | None = None
    heldout_control: Path | None = None
    unrelated: Path | None = None
    unrelated_reader: Path | None = None
    share: float | None = None
    heads: int | None = None
    steps: int | None = None
    method: str = "edgeedit"
    budget: str | None = None
    flips: bool = True
    vlm: str | None = None
    vlm_prompt: str | None = None
    vlm_loss: str = "answer"
    limit: float = 0.02
    seed: int = 0


def _sets(request: EditRequest) -> tuple[Shots, Shots, HeldOut]:
    shots, control = load_shots(request.shots), load_shots(request.control)
    if request.heldout is not None:
        target = load_shots(request.heldout)
    else:
        shots, target = split_by_group(shots, 0.5, request.seed)
    if request.heldout_control is not None:
        kept: Shots | None = load_shots(request.heldout_control)
    else:
        control, kept = split_by_group(control, 0.5, request.seed)
    if request.vlm is None and (request.unrelated is None) != (request.unrelated_reader is None):
        raise InputError("unrelated set is incomplete: expected --unrelated and --unrelated-reader together")
    unrelated = load_shots(request.unrelated) if request.unrelated else None
    reader = load_reader(request.unrelated_reader) if request.unrelated_reader else None
    return shots, control, HeldOut(target, kept, unrelated, reader)


def _method(request: EditRequest) -> Local:
    kinds = {kind.name: kind for kind in LOCAL}
    if request.method not in kinds:
        raise InputError(f"method is unknown: expected one of {', '.join(sorted(kinds))}, got {request.method}")
    names = ("share", "heads", "steps")
    chosen = {name: getattr(request, name) for name in names if getattr(request, name) is not None}
    kind = kinds[request.method]
    if request.steps is not None:
        # Of fewer steps than the method was made for at least half compute in floats.
        chosen["rounding_steps"] = min(kind.rounding_steps, max(request.steps, 0) // 2)
    return kind(**chosen, augment=request.flips)


def budget_rows(choices: tuple[Choice, ...], say: Callable[[str], None]) -> None:
    """Tell what each size buys: expected bytes, settings, and the share of the squared gradient that the mask holds."""
    say(f"{'bytes':>10} {'share':>8} {'heads':>6} {'rank':>5} {'bits':>5} {'first-order gain':>17}")
    for row in choices:
        of = row.settings
        say(f"{row.bytes:10d} {of.share:8.2%} {of.heads:6d} {of.rank:5d} {of.bits:5d} {row.gain:17.3f}")


def _silent(_: str) -> None:
    """Says nothing."""


def run_edit(
    request: EditRequest, out: Path, progress: Callable[[int, int, str], None], say: Callable[[str], None] = _silent
) -> EditResult:
    """Edit, evaluate and save.  A failed edit leaves no delta, only its figures as JSON (see `saving`); an undecided one
    leaves a delta that says so, which `pack` refuses unless a reason is given.  Of several processes the first one writes."""
    shots, control, heldout = _sets(request)
    former = join_shots([load_shots(path) for path in request.former]) if request.former else None
    bundle = load_bundle(request.bundle)
    encoder = encoder_of(bundle)
    reader, loss, heldout = _reader(request, encoder, (shots, control, former), heldout)
    method = _method(request)
    if request.budget is not None:
        size = parse_bytes(request.budget)
        precision = "float32" if bundle.precision == "int8" else bundle.precision
        method, choices = plan(encoder, shots, reader, method, precision=precision, budget=size)
        budget_rows(choices, say)
    result = edit(
        encoder,
        shots,
        control,
        reader,
        method=method,
        precision=bundle.precision,
        heldout=heldout,
        seed=request.seed,
        limit=request.limit,
        progress=progress,
        loss=loss,
        former=former,
        deployed=in_codes(bundle),
        device=team().device,
    )
    info = named_by(bundle, result.info)
    result = replace(result, info=info, patch=replace(result.delta, info=info))
    if isinstance(reader, VlmReader):
        result = with_controls(result, encoder, reader, heldout, bundle, request.seed)
    if team().rank == 0:
        result.save(out)
    return result


def _reader(
    request: EditRequest, encoder: Encoder, sets: tuple[Shots, Shots, Shots | None], heldout: HeldOut
) -> tuple[Reader, TargetLoss | None, HeldOut]:
    """The frozen reader, the loss through it (None: the reader's own) and the held-out sets; raises InputError."""
    if (request.reader_path is None) == (request.vlm is None):
        raise InputError("reader is not clear: expected either --reader or --vlm, got " + ("both" if request.vlm else "none"))
    if request.reader_path is not None:
        return load_reader(request.reader_path), None, heldout
    if request.unrelated_reader is not None and request.unrelated is None:
        raise InputError("unrelated set is incomplete: expected --unrelated with --unrelated-reader")
    side = language_of(str(request.vlm), encoder, request.vlm_prompt)
    known = [s for s in (*sets, heldout.target, heldout.control) if s is not None]
    reader = vlm_reader(side, encoder, known)
    reader = with_unit(reader, features(encoder, load_pixels(sets[1], encoder.preprocess)))
    if heldout.unrelated is not None and heldout.unrelated_reader is None:  # another task of the same model
        heldout = replace(heldout, unrelated_reader=vlm_reader(side, encoder, [heldout.unrelated]))
    return reader, AnswerLoss(reader, closed=request.vlm_loss == "closed"), heldout


def with_controls(result: EditResult, encoder: Encoder, reader: VlmReader, heldout: HeldOut, bundle: Bundle, seed: int) -> EditResult:
    """The result with the image controls of the base on the held-out control set, where it is labelled, and of the edited
    encoder on the target set, and the digest of the language side, in its record."""
    rows: dict[str, Any] = {"language_digest": reader.side.digest(), "prompt": reader.side.prompt}
    if heldout.control is not None and heldout.control.classes:
        labels = reader_labels(heldout.control, reader)
        rows["base_on_control"] = image_controls(encoder, reader, labels, result.features_before["control"], seed).to_json()
    if deployed := in_codes(bundle):
        new = deployed(parameter_values(encoder, "float32"), result.delta.tensors)
    else:
        values = parameter_values(encoder, bundle.precision)
        new = {**values, **{t.name: apply_delta(values[t.name], t) for t in result.delta.tensors}}
    edited = with_values(encoder, new)
    labels = reader_labels(heldout.target, reader)
    rows["edited_on_target"] = image_controls(edited, reader, labels, result.features_after["target"], seed).to_json()
    info = {**result.info, "vlm": rows}
    return replace(result, info=info, patch=replace(result.delta, info=info))
