"""`explain`: what an edit touched, what each part of it does, what else moved, and what the verdicts lean on before and after.

Guarantees: every figure is measured on the given encoder, Delta and images; nothing here changes a weight that is kept; the result is
plain JSON that the report shows.  Costs some thousand passes of single images, so the images are a stated, evenly spaced sample.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgeedit.delta import Delta
from edgeedit.edit.components import Component, Effect, Judged, Judgement, components_of, judge_rows, leave_one_out
from edgeedit.edit.drift import drift
from edgeedit.edit.entries import entry_rows
from edgeedit.edit.evaluate import features, reader_labels
from edgeedit.edit.readers import Reader
from edgeedit.edit.saliency import CAUTION, nearest, occlusion, spread_over, window_of
from edgeedit.edit.shots import Shots, load_pixels, make_shots
from edgeedit.encoder.encoder import Encoder
from edgeedit.encoder.values import parameter_values, with_values
from edgeedit.errors import InputError
from edgeedit.rounding import apply_delta, changed_elements, widen

Array = np.ndarray[Any, Any]
Progress = Callable[[int, int, str], None]
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Sample:
    """How much is looked at: images per set for leaving out and for drift, repaired images with maps, stored images searched."""

    images: int = 48
    maps: int = 6
    stored: int = 128
    neighbours: int = 3

    def __post_init__(self) -> None:
        if min(self.images, self.stored, self.neighbours) < 2 or self.maps < 0:
            raise InputError(f"sample is too small: expected at least 2 images of each kind and 0 maps, got {self}")


@dataclass(frozen=True)
class Subject:
    """What is explained: labelled held-out `target`, `control` (unlabelled: the base's verdicts count as right), the `shots` and
    control images that the edit saw as `stored`, and normalised `probes` float32 (n, 3, s, s)."""

    target: Shots
    control: Shots | None
    stored: tuple[Shots, ...]
    probes: Array | None = None


def explain(
    encoder: Encoder,
    delta: Delta,
    reader: Reader,
    subject: Subject,
    *,
    precision: str,
    sample: Sample | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """One JSON object about `delta` on `encoder`; raises InputError for unlabelled target images and IntegrityError when the delta
    does not fit the encoder."""
    if (subject.target.labels < 0).any():
        raise InputError("held-out target has no labels: expected a label for every image")
    size = sample or Sample()
    values = parameter_values(encoder, precision)
    absent = [t.name for t in delta.tensors if t.name not in values]
    if absent:
        raise InputError(f"delta does not fit the encoder: expected a weight named {absent[0]}, got none")
    new = {**values, **{t.name: apply_delta(values[t.name], t) for t in delta.tensors}}
    base, edited = with_values(encoder, values), with_values(encoder, new)
    wide = {t.name: (widen(values[t.name]), widen(new[t.name])) for t in delta.tensors}
    parts = components_of(base, {n: v[0] for n, v in wide.items()}, {n: v[1] for n, v in wide.items()})
    sets = [_judged("target", subject.target, base, reader, size.images)]
    if subject.control is not None:
        sets.append(_judged("control", subject.control, base, reader, size.images))
    whole = {s.name: (judge_rows(features(base, s.pixels), s), judge_rows(features(edited, s.pixels), s)) for s in sets}
    old = {n: v[0] for n, v in wide.items()}
    effects = leave_one_out(edited, old, parts, sets, progress)
    shown = {s.name: s.pixels for s in sets} | (
        {"probes": subject.probes} if subject.probes is not None and len(subject.probes) > 1 else {}
    )
    moved = {name: drift(base, edited, pixels) for name, pixels in shown.items()}
    if progress is not None:
        progress(1, 2, "occlusion maps and nearest images")
    return {
        "schema_version": SCHEMA_VERSION,
        "importance": (delta.info.get("locality") or {}).get("importance"),
        "census": census(encoder, delta, values, new),
        "sets": {s.name: _whole(s, *whole[s.name]) for s in sets},
        "components": component_rows(effects, {s.name: whole[s.name][1] for s in sets}, delta.info),
        "entries": entry_rows(edited, old, parts, sets[0], whole["target"][1]),
        "drift": {name: {"n": len(shown[name]), "cka": list(d.cka), "shift": d.shift, "cosine": d.cosine} for name, d in moved.items()},
        **looks(base, edited, reader, delta, subject, size),
    }


def _judged(name: str, shots: Shots, base: Encoder, reader: Reader, limit: int) -> Judged:
    """An evenly spaced sample in which the classes have the same number of images where there are enough."""
    labels = shots.labels
    rows: list[int] = []
    for number in np.unique(labels):
        own = np.flatnonzero(labels == number)
        rows += [int(own[i]) for i in spread_over(len(own), max(1, limit // len(np.unique(labels))))]
    part = make_shots([shots.paths[i] for i in rows], labels[rows], shots.classes, [shots.groups[i] for i in rows], shots.pairs)
    pixels = load_pixels(part, base.preprocess)
    known = reader_labels(part, reader) if shots.classes else reader.logits_numpy(features(base, pixels)).argmax(1)
    return Judged(name, pixels, known, reader)


def _whole(judged: Judged, before: Judgement, after: Judgement) -> dict[str, Any]:
    return {
        "n": len(judged.pixels),
        "loss_before": before.loss,
        "loss_after": after.loss,
        "misjudged_before": before.wrong,
        "misjudged_after": after.wrong,
        "margin_before": before.margin,
        "margin_after": after.margin,
    }


def census(encoder: Encoder, delta: Delta, old: Mapping[str, Array], new: Mapping[str, Array]) -> dict[str, Any]:
    """Every parameter compared bit for bit with what the delta declares; `outside` counts elements that differ although the delta
    does not name them, or that lie in the rows of a head that was not chosen."""
    declared = {t.name: changed_elements(t) for t in delta.tensors}
    chosen = chosen_heads(delta.info)
    rows, outside, changed = [], 0, 0
    for name, before in old.items():
        bits = f"u{before.dtype.itemsize}"
        differ = before.view(bits) != new[name].view(bits)
        allowed = declared.get(name, np.zeros(before.shape, bool)) & _heads_mask(encoder, name, before.shape, chosen)
        strays = int((differ & ~allowed).sum())
        count = int(differ.sum())
        changed, outside = changed + count, outside + strays
        if count or name in declared:
            rms = float(np.sqrt(np.mean((widen(new[name]) - widen(before))[differ] ** 2))) if count else 0.0
            spread = float(np.sqrt(np.mean(widen(before).astype(np.float64) ** 2)))
            row = {"name": name, "elements": before.size, "declared": int(declared[name].sum()) if name in declared else 0}
            rows.append({**row, "changed": count, "outside": strays, "rms_change": rms, "rms_weight": spread})
    total = sum(v.size for v in old.values())
    return {"tensors": rows, "tensors_in_encoder": len(old), "elements": total, "changed": changed, "outside": outside}


def chosen_heads(info: Mapping[str, Any]) -> dict[int, set[int]] | None:
    """Block -> heads that the edit chose; None where the Delta does not say."""
    blocks = (info.get("locality") or {}).get("blocks")
    if not blocks or not any(head["chosen"] for row in blocks for head in row["heads"]):
        return None
    return {int(row["block"]): {int(h["head"]) for h in row["heads"] if h["chosen"]} for row in blocks}


def _heads_mask(encoder: Encoder, name: str, shape: tuple[int, ...], chosen: Mapping[int, set[int]] | None) -> Array:
    mask = np.ones(shape, bool)
    for block in range(encoder.blocks) if chosen is not None else ():
        if chosen is not None and name in encoder.qkv_names(block):
            mask[:] = False
            for head in chosen.get(block, ()):
                mask[encoder.head_rows(head)] = True
    return mask


def component_rows(effects: Sequence[Effect], whole: Mapping[str, Judgement], info: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Components by the size of the change of the target loss without them, largest first, whatever its sign: what carries the
    repair (`loss_rise` above zero) and what works against it (below zero) both stand on top."""
    energy = sum(e.component.energy for e in effects) or 1.0
    blocks = {int(row["block"]): row for row in (info.get("locality") or {}).get("blocks") or ()}
    rows = []
    for effect in effects:
        own = effect.component
        row: dict[str, Any] = {"name": own.name, "kind": own.kind, "block": own.block, "head": own.head, "changed": own.changed}
        row |= {"energy_share": own.energy / energy, "score": _score(own, blocks)}
        for name, kept in whole.items():
            without = effect.sets[name]
            row[name] = {
                "loss_rise": without.loss - kept.loss,
                "margin_fall": kept.margin - without.margin,
                "more_misjudged": without.wrong - kept.wrong,
            }
        rows.append(row)
    return sorted(rows, key=lambda row: (-abs(row["target"]["loss_rise"]), row["name"]))


def _score(component: Component, blocks: Mapping[int, Any]) -> float | None:
    if component.kind != "head" or component.block is None or component.block not in blocks:
        return None
    return float(blocks[component.block]["heads"][component.head]["score"])


def looks(base: Encoder, edited: Encoder, reader: Reader, delta: Delta, subject: Subject, size: Sample) -> dict[str, Any]:
    """`saliency` and `neighbours` of repaired target images (their verdict was wrong and is right now)."""
    repaired = [r for r in delta.info.get("verdicts") or () if r["set"] == "target" and r["before"] != r["label"] == r["after"]]
    known = {str(path): i for i, path in enumerate(subject.target.paths)}
    repaired = [row for row in repaired if str(row["image"]) in known][: size.maps]
    if not repaired:
        return {"saliency": None, "neighbours": None}
    numbers = [known[str(row["image"])] for row in repaired]
    target = subject.target
    part = make_shots([target.paths[i] for i in numbers], target.labels[numbers], target.classes, [target.groups[i] for i in numbers])
    pixels, labels = load_pixels(part, base.preprocess), reader_labels(part, reader)
    maps = [occlusion(tower, reader, pixels, labels) for tower in (base, edited)]
    images = [
        {
            "image": r["image"],
            "label": r["label"],
            "verdict_before": r["before"],
            "verdict_after": r["after"],
            "before": _grid(b),
            "after": _grid(a),
        }
        for r, b, a in zip(repaired, *maps, strict=True)
    ]
    limit = max(float(np.abs(m).max()) for m in maps)
    saliency = {"unit": "logits", "window_pixels": window_of(base), "limit": limit, "images": images, "caution": CAUTION}
    return {"saliency": saliency, "neighbours": _neighbours(base, edited, reader, subject, pixels, repaired, size)}


def _grid(values: Array) -> list[list[float]]:
    return [[round(float(v), 4) for v in row] for row in values]


def _neighbours(
    base: Encoder, edited: Encoder, reader: Reader, subject: Subject, pixels: Array, repaired: Sequence[Mapping[str, Any]], size: Sample
) -> dict[str, Any] | None:
    """Nearest of the images that the edit saw, before and after; an unlabelled one carries the verdict of the encoder at hand."""
    if not subject.stored:
        return None
    paths, names = [], []
    for shots in subject.stored:
        for i in spread_over(len(shots.paths), max(2, size.stored // len(subject.stored))):
            paths.append(shots.paths[i])
            names.append(shots.classes[int(shots.labels[i])] if shots.labels[i] >= 0 else None)
    stored = load_pixels(make_shots(paths, np.full(len(paths), -1), (), [str(p) for p in paths]), base.preprocess)
    rows: list[dict[str, Any]] = [{"image": row["image"], "label": row["label"]} for row in repaired]
    agree = []
    for when, tower in (("before", base), ("after", edited)):
        kept, own = features(tower, stored), features(tower, pixels)
        verdicts = reader.logits_numpy(kept).argmax(1)
        named = [name or reader.classes[int(verdicts[i])] for i, name in enumerate(names)]
        found = nearest(own, kept, kept.mean(axis=0, dtype=np.float64), size.neighbours)
        for row, best in zip(rows, found, strict=True):
            row[when] = [{"image": str(paths[i]), "label": named[i], "labelled": names[i] is not None, "cosine": c} for i, c in best]
        agree.append(sum(n["label"] == row["label"] for row in rows for n in row[when]) / max(1, sum(len(row[when]) for row in rows)))
    return {"searched": len(paths), "agree_before": agree[0], "agree_after": agree[1], "images": rows}


def summary_lines(value: Mapping[str, Any], shown: int = 8) -> list[str]:
    """The explanation on a terminal."""
    lines = []
    found = value.get("importance")
    if found:
        text = f"importance covered {found['covered']:.1%}; the same budget at random {found['random_mean']:.1%}"
        lines.append(f"{text} (99% below {found['random_high']:.1%})")
    count = value["census"]
    lines.append(f"changed {count['changed']} of {count['elements']} weights, outside the declared places {count['outside']}")
    lines.append(f"{'left out':24} {'target loss':>12} {'margin':>8} {'misjudged':>10} {'control loss':>13}")
    for row in value["components"][:shown]:
        control = f"{row['control']['loss_rise']:+13.4f}" if "control" in row else f"{'not given':>13}"
        own = row["target"]
        lines.append(f"{row['name']:24} {own['loss_rise']:+12.4f} {-own['margin_fall']:+8.3f} {own['more_misjudged']:+10d} {control}")
    if len(value["components"]) > shown:
        lines.append(f"and {len(value['components']) - shown} more components (-o writes all)")
    entries = value["entries"]
    if entries["top"]:
        held = f"{entries['share']:.1%} of all effects, as many at random {entries['share_at_random']:.1%}"
        lines.append(f"{len(entries['top'])} of {entries['changed']} changed weights hold {held}; most of all:")
    for row in entries["top"][:3]:
        lines.append(f"{row['component']:24} {row['loss_rise']:+12.4f}  {row['name']} {row['index']}")
    for name, row in value["drift"].items():
        low = min(range(len(row["cka"])), key=row["cka"].__getitem__)
        lines.append(f"{name:10} CKA lowest {row['cka'][low]:.4f} (block {low}), features moved by {row['shift']:.3f} of their spread")
    near = value.get("neighbours")
    if near:
        lines.append(f"nearest stored images carry the right label: before {near['agree_before']:.0%}, after {near['agree_after']:.0%}")
    return lines
