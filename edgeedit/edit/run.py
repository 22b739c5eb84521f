"""`edit`: locality -> train -> round -> evaluate exactly the rounded weights -> gate.

Guarantees: the weights that are judged are those a device will compute (one rounding rule, the deployed precision); no
element outside the declared locality differs (counted, not assumed); held-out images play no part before the judgement.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgeedit import __version__
from edgeedit.delta import Delta, TensorDelta
from edgeedit.digest import digest_file
from edgeedit.edit.drift import feature_movement
from edgeedit.edit.evaluate import features, judge, reader_labels, row_cosines
from edgeedit.edit.gate import decide
from edgeedit.edit.judging import Deployed
from edgeedit.edit.locality import Locality
from edgeedit.edit.losses import HeadLoss, TargetLoss
from edgeedit.edit.methods.method import Method, Task, Update
from edgeedit.edit.quantize import survival
from edgeedit.edit.readers import Reader
from edgeedit.edit.saving import save_judged
from edgeedit.edit.shots import Shots, load_pixels
from edgeedit.encoder.encoder import Encoder
from edgeedit.encoder.values import parameter_values, with_values
from edgeedit.errors import EdgeEditError, InputError
from edgeedit.metrics import EditMetrics, SetResult
from edgeedit.rounding import apply_delta, changed_elements

Array = np.ndarray[Any, Any]
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class HeldOut:
    """Images that only judge.  `control` may be unlabelled: then keeping the base's verdict counts as right."""

    target: Shots
    control: Shots | None = None
    unrelated: Shots | None = None
    unrelated_reader: Reader | None = None


@dataclass(frozen=True)
class EditResult:
    """What an edit gave: its metrics, and the features of every held-out set before and after (float32).

    `patch` is the Delta of a localized method, None for a rival; `info` is the record either way; `values` are a rival's
    whole new tensors (float32); `reader` is the one that judged afterwards; `payload` the bytes a device would receive."""

    patch: Delta | None
    metrics: EditMetrics
    features_before: Mapping[str, Array]
    features_after: Mapping[str, Array] = field(default_factory=dict)
    info: Mapping[str, Any] = field(default_factory=dict)
    values: Mapping[str, Array] = field(default_factory=dict)
    reader: Reader | None = None
    payload: int = 0

    @property
    def delta(self) -> Delta:
        """The Delta; raises InputError for a rival, which has none."""
        if self.patch is None:
            raise InputError("method has no delta: expected a localized method, got a rival that changes whole tensors or the reader")
        return self.patch

    def save(self, path: Path) -> None:
        """Write the Delta to `path`; after a failed gate only its figures, beside it (see `saving`).

        The same edit gives the same bytes.  Raises InputError for a rival."""
        save_judged(self.delta, self.metrics, path)


def _check(encoder: Encoder, sets: tuple[Shots, Shots, Shots | None], reader: Reader, heldout: HeldOut, limit: float) -> None:
    """All that can be refused before a minute of training; raises InputError."""
    shots, control, former = sets
    if not 0 <= limit <= 1:
        raise InputError(f"limit is out of range: expected a share in [0, 1], got {limit}")
    if (heldout.unrelated is None) != (heldout.unrelated_reader is None):
        raise InputError("unrelated set is incomplete: expected images and their reader together")
    for name, row in (("shots", shots), ("held-out target", heldout.target)):
        if (row.labels < 0).any():
            raise InputError(f"{name} have no labels: expected a label for every image")
        missing = sorted(set(row.classes) - _names(row))
        if missing or len(row.classes) < 2:
            raise InputError(f"{name} lack a class: expected at least two classes with images, got none of {missing or 'a second'}")
    pairs = [(row, reader) for row in (shots, heldout.target, heldout.control)] + [(heldout.unrelated, heldout.unrelated_reader)]
    for judged, own in pairs:
        if judged is not None and own is not None:
            if own.mean.size != encoder.width:
                raise InputError(f"reader does not fit the encoder: expected width {encoder.width}, got {own.mean.size}")
            if own.preprocess is not None and own.preprocess != encoder.preprocess:
                raise InputError(
                    f"reader was fitted under another normalisation: expected {own.preprocess}, got {encoder.preprocess}",
                    hint="fit the reader again with `edgeedit reader fit` on this Bundle",
                )
            reader_labels(judged, own)
    for name in sorted(_names(shots) ^ _names(heldout.target)):
        side = "the shots" if name in _names(shots) else "the held-out target images"
        raise InputError(f"label is only on one side: expected {name} in shots and held-out target images, got it in {side} only")
    if former is not None:
        _check_former(former, reader)
    _check_disjoint(shots, control, former, heldout)


def _names(shots: Shots) -> set[str]:
    return {shots.classes[i] for i in set(shots.labels.tolist())}


def _check_former(former: Shots, reader: Reader) -> None:
    if (former.labels < 0).any():
        raise InputError("shots of earlier edits have no labels: expected a label for every image")
    reader_labels(former, reader)


def _check_disjoint(shots: Shots, control: Shots, former: Shots | None, heldout: HeldOut) -> None:
    """Compares file contents: the same picture under another name is the same picture."""
    edited, kept, again, judged = (
        {digest_file(path): path for row in rows if row is not None for path in row.paths}
        for rows in ((shots,), (control,), (former,), (heldout.target, heldout.control, heldout.unrelated))
    )
    both = sorted(str(judged[content]) for content in {*edited, *kept, *again} & set(judged))
    if both:
        raise InputError(f"held-out images were also used to edit: expected none, got {len(both)}, for example {both[0]}")
    overlap = sorted(str(edited[content]) for content in set(edited) & set(kept))
    if overlap:
        raise InputError(f"shots overlap the control images: expected none, got {len(overlap)}, for example {overlap[0]}")


@dataclass(frozen=True)
class _Census:
    """Count of changed elements, of changed elements outside the declared locality, of all elements; survival shares."""

    changed: int
    outside: int
    total: int
    survival: Mapping[str, float]


def _census(old: Mapping[str, Array], new: Mapping[str, Array], locality: Locality) -> _Census:
    """Compares every parameter bit for bit, also those that no one meant to touch."""
    changed = outside = 0
    lived = {name: [0, 0] for name in ("float32", "float16", "bfloat16")}
    for name, before in old.items():
        bits = f"u{before.dtype.itemsize}"
        differ = before.view(bits) != new[name].view(bits)
        changed += int(differ.sum())
        declared = locality.declared(name, before.shape)
        outside += int((differ & ~declared).sum())
        for kind, counts in lived.items():
            kept, all_of = survival(before.astype(np.float32), new[name].astype(np.float32), kind)
            counts[0], counts[1] = counts[0] + kept, counts[1] + all_of
    shares = {kind: (kept / all_of if all_of else 0.0) for kind, (kept, all_of) in lived.items()}
    return _Census(changed, outside, sum(a.size for a in old.values()), shares)


def edit(
    encoder: Encoder,
    shots: Shots,
    control: Shots,
    reader: Reader,
    *,
    method: Method,
    precision: str,
    heldout: HeldOut,
    seed: int,
    limit: float,
    progress: Progress | None = None,
    loss: TargetLoss | None = None,
    stored: Shots | None = None,
    former: Shots | None = None,
    device: str = "cpu",
    judge_device: str = "cpu",
    deployed: Deployed | None = None,
) -> EditResult:
    """Edit `encoder` (left unchanged) from labelled `shots`; `control` images need no labels.

    `precision` is the deployed one; `limit` the allowed rise of an error (0..1); `loss` what the shots are trained on (default: cross-
    entropy of the reader); `stored` labelled images that the reader was fitted on, for the rival that fits it again; `former` labelled
    shots of earlier edits, trained on so that they are not unlearnt; `device` is where training runs, `judge_device` where held-out
    images are computed (the CPU, as in the field); `deployed` gives the weights that are judged where `precision` alone does not
    (int8).  Raises InputError for unusable sets."""
    _check(encoder, (shots, control, former), reader, heldout, limit)
    torch.manual_seed(seed)
    computed = precision if deployed is None else "float32"
    values: Mapping[str, Array] = parameter_values(encoder, computed)
    base = with_values(encoder, values)
    task = _task(base, values, (shots, control, stored, former), reader, loss or HeadLoss(reader), (seed, limit, device, progress))
    frozen, start = reader.digest(), time.perf_counter()
    update = method.update(task)
    seconds = time.perf_counter() - start
    values, new = _judged(values, update, deployed)
    base = base.to("cpu") if deployed is None else with_values(encoder, values)
    edited = with_values(encoder, new)
    locality = update.locality or Locality({}, {}, np.zeros((base.blocks, base.heads)), np.zeros((base.blocks, base.heads), bool))
    # Read back from the encoder that is judged, not from what was meant to be put into it.
    census = _census(values, parameter_values(edited, computed), locality)
    after_reader = update.reader or reader
    if reader.digest() != frozen:
        raise EdgeEditError("reader changed during the edit: expected its weights to stay frozen, got another digest")
    results, before, after, rows = _evaluate(base.to(judge_device), edited.to(judge_device), (reader, after_reader), heldout, progress)
    judged = results["target"], results.get("control"), results.get("unrelated")
    gate = decide(*judged, limit)
    metrics = EditMetrics(*judged, gate, seconds, census.changed, census.changed / census.total, census.outside, census.total)
    info = {
        **_provenance(base, encoder, shots, control, reader, method, precision, seed),
        **_sets_info(heldout, former),
        "locality": {**_locality_info(base, locality, update.tensors), "importance": update.importance},
        "metrics": {**metrics.to_json(), "edit_seconds": None},  # no clock in a Delta: the same edit, the same bytes
        "survival": dict(census.survival),
        **rows,
        "payload": {"bytes": update.payload, **update.notes},
        "licence_notes": [],
    }
    patch = Delta(update.tensors, info) if update.tensors else None
    return EditResult(patch, metrics, before, after, info, update.values, after_reader, update.payload)


def _judged(values: Mapping[str, Array], update: Update, deployed: Deployed | None) -> tuple[Mapping[str, Array], Mapping[str, Array]]:
    """The weights before and after that a device computes with."""
    if deployed is None:
        new = {**values, **{t.name: apply_delta(values[t.name], t) for t in update.tensors}}
        return values, new | {name: value.astype(values[name].dtype) for name, value in update.values.items()}
    if update.values:
        raise InputError(
            "cannot judge int8 codes of whole tensors: expected a method that changes chosen weights", hint="judge it in float32"
        )
    return deployed(values, ()), deployed(values, update.tensors)


def _task(
    base: Encoder,
    values: Mapping[str, Array],
    sets: tuple[Shots, Shots, Shots | None, Shots | None],
    reader: Reader,
    loss: TargetLoss,
    run: tuple[int, float, str, Progress | None],
) -> Task:
    (shots, control, stored, former), (seed, limit, device, progress) = sets, run

    def pixels(of: Shots) -> torch.Tensor:
        return torch.from_numpy(load_pixels(of, base.preprocess)).to(device)

    def labels(of: Shots) -> torch.Tensor:
        return torch.from_numpy(reader_labels(of, reader)).to(device)

    task = Task(base.to(device), values, pixels(shots), labels(shots), pixels(control), reader, loss, seed, limit, progress=progress)
    if former is not None:
        task = replace(task, former=(pixels(former), labels(former)))
    known = stored or (control if control.classes else None)
    return task if known is None else replace(task, stored_pixels=pixels(known), stored_labels=labels(known))


def _evaluate(
    base: Encoder, edited: Encoder, readers: tuple[Reader, Reader], heldout: HeldOut, progress: Progress | None
) -> tuple[dict[str, SetResult], dict[str, Array], dict[str, Array], dict[str, Any]]:
    sets = [
        ("target", heldout.target, *readers),
        ("control", heldout.control, *readers),
        ("unrelated", heldout.unrelated, heldout.unrelated_reader, heldout.unrelated_reader),
    ]
    results: dict[str, SetResult] = {}
    before: dict[str, Array] = {}
    after: dict[str, Array] = {}
    rows: list[dict[str, Any]] = []
    for number, (name, shots, own, later) in enumerate(sets):
        if shots is None or own is None or later is None:
            continue
        if progress is not None:
            progress(number, len(sets), f"judging {len(shots.paths)} held-out {name} images")
        pixels = load_pixels(shots, base.preprocess)
        before[name], after[name] = features(base, pixels), features(edited, pixels)
        logits = own.logits_numpy(before[name]), later.logits_numpy(after[name])
        labels = reader_labels(shots, own)
        logits = own.verdict_logits(logits[0], labels), later.verdict_logits(logits[1], labels)
        labels = labels if shots.classes else logits[0].argmax(1)
        results[name] = judge(name, shots, labels, own, *logits)
        cosines = row_cosines(before[name], after[name])
        rows += [{**row, "cosine": c} for row, c in zip(_verdict_rows(name, shots, labels, own, *logits), cosines, strict=True)]
    if progress is not None:
        progress(len(sets), len(sets), "judged")
    return results, before, after, {"verdicts": rows, "movement": feature_movement(before, after)}


def _verdict_rows(name: str, shots: Shots, labels: Array, reader: Reader, before: Array, after: Array) -> list[dict[str, Any]]:
    def probability(logits: Array) -> Array:
        shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
        result: Array = (shifted / shifted.sum(axis=1, keepdims=True))[np.arange(len(labels)), labels]
        return result

    scores = probability(before), probability(after)
    return [
        {
            "set": name,
            "image": str(path),
            "group": group,
            "label": reader.classes[labels[i]],
            "before": reader.classes[int(before[i].argmax())],
            "after": reader.classes[int(after[i].argmax())],
            "score_before": round(float(scores[0][i]), 4),
            "score_after": round(float(scores[1][i]), 4),
        }
        for i, (path, group) in enumerate(zip(shots.paths, shots.groups, strict=True))
    ]


def _provenance(
    base: Encoder, encoder: Encoder, shots: Shots, control: Shots, reader: Reader, method: Method, precision: str, seed: int
) -> dict[str, Any]:
    return {
        "encoder": {
            "recipe": base.recipe.name,
            "source_digest": encoder.source_digest(),
            "precision": precision,
            "blocks": base.blocks,
            "heads": base.heads,
            "size": base.preprocess.size,
        },
        "reader": {"kind": reader.kind, "digest": reader.digest(), "classes": list(reader.classes)},
        "shots": {"digest": shots.digest, "n": len(shots.paths), "classes": list(shots.classes)},
        "control": {"digest": control.digest, "n": len(control.paths)},
        "method": {"name": method.name, **asdict(method)},
        "seed": seed,
        "versions": {
            "edgeedit": __version__,
            "torch": str(torch.__version__),
            "transformers": version("transformers"),
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
    }


def _sets_info(heldout: HeldOut, former: Shots | None) -> dict[str, Any]:
    sets = {"target": heldout.target, "control": heldout.control, "unrelated": heldout.unrelated}
    rows = {"heldout": {name: {"digest": row.digest, "n": len(row.paths)} for name, row in sets.items() if row is not None}}
    if former is None:
        return rows
    return {**rows, "former": {"digest": former.digest, "n": len(former.paths), "classes": list(former.classes)}}


def _locality_info(encoder: Encoder, locality: Locality, tensors: tuple[TensorDelta, ...]) -> dict[str, Any]:
    shares = {t.name: float(changed_elements(t).mean()) for t in tensors}
    blocks = []
    for block in range(encoder.blocks):
        heads = [
            {"head": head, "score": float(locality.head_scores[block, head]), "chosen": bool(locality.chosen[block, head])}
            for head in range(encoder.heads)
        ]
        blocks.append({"block": block, "fc1_share": shares.get(encoder.fc1_name(block), 0.0), "heads": heads})
    return {"blocks": blocks}
