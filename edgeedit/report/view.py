"""What the template shows, as plain strings and lists: one function per block of the report.

Guarantees: every figure comes from the Delta or from the caller's `cost` and `device`; a block without data is empty,
never guessed.  Does not format HTML: the template escapes every string.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from edgeedit.delta import Delta
from edgeedit.metrics import EditMetrics, SetResult
from edgeedit.report import words
from edgeedit.report.facts import (
    SETS,
    Confusion,
    Verdict,
    commonest_mistake,
    confusion,
    flips,
    worst_groups,
    wrong_count,
)
from edgeedit.report.pictures import thumbnail
from edgeedit.report.words import number

FLIPS_SHOWN = 24  # pictures per set
MATRIX_CLASSES = 8  # above this a confusion matrix does not fit the page
PAIRS_SHOWN = 12
EXAMPLES = 3
FEW = 30  # images below which a set is called small
HEADLINES = {
    "pass": ("Pass", "The repair works on held-out images, and no allowed limit was broken."),
    "fail": ("Fail", "This repair must not be released."),
    "undecided": ("Undecided", "The held-out images are not enough to say whether this repair may be released."),
    "": ("Not judged", "This change was never judged on held-out images."),
}
TITLES = {"target": "Target", "control": "Control", "unrelated": "Unrelated"}
MEANINGS = {
    "target": "images of the kind that was misread",
    "control": "images that were read well before and must stay so",
    "unrelated": "images of a different job",
}
FLIP_WORDS = {"broken": "newly wrong", "still": "wrong in another way", "fixed": "repaired"}
_FEED_LABELS = {
    "prepare_ms": "Preparation in the background",
    "swap_ms": "Swap between two frames",
    "probe_ms": "Proof by probe images",
    "rebuild_default_ms": "For comparison: rebuilding the session",
    "rebuild_noprepack_ms": "For comparison: rebuilding without prepacking",
}
_FRAME_LABELS = {
    "frames_served": "Frames answered meanwhile",
    "frames_lost": "Frames lost",
    "frames_torn": "Frames answered by a mix of old and new weights",
}
_FAILED = {
    "device_equals_server": "the device did not give the server's weights and verdicts",
    "rollback_exact": "the rollback did not bring the former weights back exactly",
}
_FRAMES_FAILED = {"frames_lost": "frames were lost during the swap", "frames_torn": "frames were answered by a mix of old and new weights"}
_CONFIRMED = {
    "device_equals_server": "Device gives the server's weights and verdicts",
    "rollback_exact": "Undone exactly, bit for bit, in the trial",
}
Rows = list[tuple[str, str]]


def judged_sets(metrics: EditMetrics | None) -> list[SetResult]:
    """The sets that were judged, in report order."""
    found = [metrics.target, metrics.control, metrics.unrelated] if metrics else []
    return [row for row in found if row is not None]


def of_set(verdicts: Sequence[Verdict], name: str) -> list[Verdict]:
    """The verdicts of one set."""
    return [row for row in verdicts if row.set == name]


def headline(metrics: EditMetrics | None) -> dict[str, Any]:
    """Verdict, its plain sentence and the reasons; for a pass the figures that carried it."""
    verdict = metrics.gate.verdict if metrics else ""
    word, sentence = HEADLINES.get(verdict, (verdict, "The gate gave a verdict that this report does not know."))
    reasons = list(metrics.gate.reasons) if metrics else []
    if metrics and not reasons:
        for row in judged_sets(metrics):
            reasons.append(
                f"{row.name} error {words.percent(row.error_before)} \N{RIGHTWARDS ARROW} {words.percent(row.error_after)}; "
                f"95% interval of the change {words.change_interval(row.change)}"
            )
    limit = f"Limit: the control and unrelated errors may rise by at most {100 * metrics.gate.limit:.1f} points." if metrics else ""
    return {"verdict": verdict or "none", "word": word, "sentence": sentence, "reasons": reasons, "limit": limit}


def warnings(metrics: EditMetrics | None, device: Mapping[str, Any] | None) -> list[str]:
    """Findings that outweigh the gate, whatever it said."""
    rows = []
    if metrics and metrics.outside_mask:
        rows.append(f"{words.count(metrics.outside_mask)} weights changed outside the places declared for the edit")
    rows += [text for key, text in _FAILED.items() if (device or {}).get(key) is False]
    for key, text in _FRAMES_FAILED.items():
        value = number(device, key)
        if value:
            rows.append(f"{words.count(value)} {text}")
    return rows


def _of(wrong: int | None, n: int) -> str:
    return f"{wrong} of {n}" if wrong is not None else f"n = {n}"


def story(delta: Delta, metrics: EditMetrics | None, verdicts: Sequence[Verdict]) -> list[tuple[str, str]]:
    """The page's plain-language paragraphs: (heading, text)."""
    rows: Rows = []
    if metrics:
        target = metrics.target
        wrong = wrong_count(target.wrong_before, target.n), wrong_count(target.wrong_after, target.n)
        mistake = commonest_mistake(of_set(verdicts, "target"))
        often = f" Most often {words.quoted(mistake[0])} was read as {words.quoted(mistake[1])} ({mistake[2]} images)." if mistake else ""
        before = f"The vision encoder misjudged {_of(wrong[0], target.n)} held-out target images"
        rows.append(("What was wrong", f"{before} (error {words.percent(target.error_before)}).{often}"))
        after = f"Now {_of(wrong[1], target.n)} are misjudged (error {words.percent(target.error_after)})"
        rows.append(("Effect", f"{after}: {target.fixed} verdicts repaired, {target.broken} newly wrong."))
        for result in judged_sets(metrics)[1:]:
            errors = f"Error {words.percent(result.error_before)} before, {words.percent(result.error_after)} after, on {result.n} images"
            rows.append((f"{TITLES[result.name]} images", f"{errors}: {result.broken} newly wrong, {result.fixed} repaired."))
    rows.append(("What changed", _changed(delta, metrics)))
    return rows


def _changed(delta: Delta, metrics: EditMetrics | None) -> str:
    tensors = f"{len(delta.tensors)} weight matri{'x' if len(delta.tensors) == 1 else 'ces'} of the vision encoder"
    rest = "The change names nothing else: the reader or language model behind the encoder stays as it is."
    if metrics is None:
        return f"Weights in {tensors}. {rest}"
    outside = f" {words.count(metrics.outside_mask)} outside the places declared for the edit." if metrics.outside_mask else ""
    changed = f"{words.count(metrics.changed_count)} of {words.count(metrics.total_weights)} weights"
    return f"{changed} ({words.small_percent(metrics.changed_share)}), in {tensors}.{outside} {rest}"


def tiles(metrics: EditMetrics | None, cost: Mapping[str, Any] | None, device: Mapping[str, Any] | None) -> list[tuple[str, str, str]]:
    """The three measures in large figures: (label, figure, note)."""
    rows = []
    for name in SETS:
        result = getattr(metrics, name) if metrics else None
        label = {"target": "Error on target", "control": "Error on control", "unrelated": "Error on unrelated"}[name]
        if result is None:
            rows.append((label, "\N{EM DASH}", "not tested"))
            continue
        figure = f"{100 * result.error_before:.1f} \N{RIGHTWARDS ARROW} {words.percent(result.error_after)}"
        rows.append((label, figure, f"change {words.change_interval(result.change)} (95%)"))
    swap, bytes_ = number(device, "swap_ms"), number(cost, "patch_bytes")
    if swap is not None:
        rows.append(("Swap on the device", words.milliseconds(swap), f"patch {words.size(bytes_)}" if bytes_ else "between two frames"))
    elif bytes_ is not None:
        rows.append(("Patch", words.size(bytes_), "sent to a device"))
    elif metrics:
        rows.append(("Weights changed", words.small_percent(metrics.changed_share), f"{words.count(metrics.changed_count)} weights"))
    return rows


def measure_rows(result: SetResult, confused: Confusion | None) -> list[tuple[str, str, str, str]]:
    """One set's table: (figure, before, after, difference)."""
    wrong = wrong_count(result.wrong_before, result.n), wrong_count(result.wrong_after, result.n)
    change = f"{words.points(result.error_after - result.error_before)} (95% {words.change_interval(result.change)})"
    shares = words.interval(result.wrong_before), words.interval(result.wrong_after)
    rows = [
        ("Error (mean over classes)", words.percent(result.error_before), words.percent(result.error_after), change),
        ("Images misjudged", _of(wrong[0], result.n), _of(wrong[1], result.n), f"{result.fixed} repaired, {result.broken} newly wrong"),
        ("Share misjudged, Wilson 95%", *shares, f"exact McNemar p {words.p_value(result.mcnemar_p)}"),
    ]
    if result.auc_before is not None or result.auc_after is not None:
        rows.append(
            (
                "AUC",
                words.decimal(result.auc_before),
                words.decimal(result.auc_after),
                words.difference(result.auc_before, result.auc_after),
            )
        )
    # A reader that calls everything defective has a fine AUC and a useless error: the three belong together.
    for (name, before), (_, after) in zip(result.shares_before[:4], result.shares_after[:4], strict=True):
        rows.append((f"Judged {name}", words.percent(before), words.percent(after), words.points(after - before)))
    if confused and confused.kappa_before is not None and confused.kappa_after is not None:
        kappas = words.decimal(confused.kappa_before, 2), words.decimal(confused.kappa_after, 2)
        rows.append(("Agreement with the truth, kappa", *kappas, ""))
    return rows


def _matrix(confused: Confusion) -> list[dict[str, Any]]:
    rows = []
    for i, truth in enumerate(confused.classes):
        before, after = confused.before[i], confused.after[i]
        pairs = enumerate(zip(before, after, strict=True))
        cells = [{"before": b, "after": a, "right": i == j, "difference": a - b} for j, (b, a) in pairs]
        total = sum(before)
        missed = [words.percent(1 - row[i] / total) if total else "\N{EM DASH}" for row in (before, after)]
        rows.append({"truth": truth, "n": total, "cells": cells, "missed": missed})
    return rows


def _pairs(confused: Confusion) -> list[tuple[str, str, int, int]]:
    pairs = [
        (truth, verdict, confused.before[i][j], confused.after[i][j])
        for i, truth in enumerate(confused.classes)
        for j, verdict in enumerate(confused.classes)
        if i != j and (confused.before[i][j] or confused.after[i][j])
    ]
    return sorted(pairs, key=lambda row: (-max(row[2], row[3]), row[0], row[1]))[:PAIRS_SHOWN]


def _card(row: Verdict) -> dict[str, Any]:
    known = row.score_before is not None and row.score_after is not None
    scores = f"{row.score_before:.2f} \N{RIGHTWARDS ARROW} {row.score_after:.2f}" if known else None
    return {
        "picture": thumbnail(row.image),
        "name": PurePath(row.image).name or row.image,
        "flip": row.flip or "none",
        "word": FLIP_WORDS.get(row.flip, "not repaired"),
        "label": row.label,
        "before": row.before,
        "after": row.after,
        "group": row.group,
        "scores": scores,
    }


def examples(verdicts: Sequence[Verdict]) -> list[dict[str, Any]]:
    """Up to three target images that were wrong before the edit, repaired ones first."""
    own = of_set(verdicts, "target")
    fixed = [row for row in flips(own) if row.flip == "fixed"]
    wrong = [row for row in own if row.before != row.label and row.flip != "fixed"]
    return [_card(row) for row in (fixed + wrong)[:EXAMPLES]]


def set_view(result: SetResult, verdicts: Sequence[Verdict], classes: Sequence[str]) -> dict[str, Any]:
    """Everything shown about one set."""
    own = of_set(verdicts, result.name)
    confused = confusion(own, classes) if own else None
    changed = flips(own)
    groups, group_count = worst_groups(own)
    fits = confused is not None and len(confused.classes) <= MATRIX_CLASSES
    return {
        "name": result.name,
        "title": TITLES[result.name],
        "meaning": MEANINGS[result.name],
        "n": result.n,
        "rows": measure_rows(result, confused),
        "classes": confused.classes if confused else (),
        "matrix": _matrix(confused) if confused and fits else [],
        "pairs": _pairs(confused) if confused and not fits else [],
        "cards": [_card(row) for row in changed[:FLIPS_SHOWN]],
        "flip_counts": [(word, times) for kind, word in FLIP_WORDS.items() if (times := sum(row.flip == kind for row in changed))],
        "rest": max(0, len(changed) - FLIPS_SHOWN),
        "listed": bool(own),
        "groups": groups if group_count < len(own) else (),
        "group_count": group_count,
    }


def cost_rows(metrics: EditMetrics | None, cost: Mapping[str, Any] | None, device: Mapping[str, Any] | None) -> Rows:
    """The cost table."""
    rows: Rows = []
    if metrics:
        if metrics.edit_seconds is not None:
            rows.append(("Edit on the server", f"{metrics.edit_seconds:.1f} s"))
        share = f"{words.small_percent(metrics.changed_share)} of {words.count(metrics.total_weights)}"
        rows.append(("Weights changed", f"{words.count(metrics.changed_count)} ({share})"))
        rows.append(("Weights changed outside the declared places", words.count(metrics.outside_mask)))
    patch, encoder = number(cost, "patch_bytes"), number(cost, "encoder_bytes")
    if patch is not None:
        share = f", {words.small_percent(patch / encoder)} of the encoder's {words.size(encoder)}" if encoder else ""
        rows.append(("Patch to transfer", f"{words.size(patch)} ({words.count(patch)} bytes){share}"))
    rows += [(label, words.milliseconds(number(device, key))) for key, label in _FEED_LABELS.items() if number(device, key) is not None]
    rows += [(label, words.count(number(device, key))) for key, label in _FRAME_LABELS.items() if number(device, key) is not None]
    return rows


def deployed_rows(delta: Delta, cost: Mapping[str, Any] | None, device: Mapping[str, Any] | None) -> Rows:
    """The table `as deployed`."""
    rows: Rows = []
    precision = section(delta.info, "encoder").get("precision")
    if precision:
        rows.append(("Precision that was judged", f"{precision}: the rounded weights, as a device computes them"))
    survival = section(delta.info, "survival")
    for kind in survival:
        note = " (the deployed precision)" if kind == precision else ""
        rows.append((f"Changes that survive rounding to {kind}{note}", words.percent(number(survival, kind))))
    tolerance = next((value for value in (number(source, "probe_tolerance") for source in (device, cost)) if value is not None), None)
    if tolerance is not None:
        rows.append(("Tolerance of the probes", f"{tolerance:.3g}"))
    said = {True: "yes", False: "NO"}
    for key, label in _CONFIRMED.items():
        value = (device or {}).get(key)
        if isinstance(value, bool):
            rows.append((label, said[value]))
    difference = number(device, "max_output_difference")
    if difference is not None:
        rows.append(("Largest difference of an output, device to server", f"{difference:.2g}"))
    return rows


def section(info: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """An object inside `info`, empty when it is missing or something else."""
    value = info.get(key)
    return value if isinstance(value, Mapping) else {}
