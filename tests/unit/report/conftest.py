"""A synthetic edit: metrics that follow from its verdicts, a few generated images, no real data."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgeedit.delta import Delta, SparsePart, TensorDelta
from edgeedit.report.settings import ReportSettings, read_settings

Row = dict[str, Any]
Z = 1.959963984540054


def wilson(wrong: int, n: int) -> dict[str, float]:
    share, z2 = wrong / n, Z * Z
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return {"low": max(0.0, centre - half), "high": min(1.0, centre + half)}


def make_set(name: str, rows: list[Row], change: tuple[float, float]) -> Row:
    wrong = [[r[key] != r["label"] for r in rows] for key in ("before", "after")]
    labels = [r["label"] for r in rows]
    classes = sorted(set(labels))
    errors = [float(np.mean([np.mean([w for w, own in zip(side, labels, strict=True) if own == c]) for c in classes])) for side in wrong]
    return {
        "name": name, "n": len(rows), "error_before": errors[0], "error_after": errors[1], "auc_before": 0.7132, "auc_after": 0.9341,
        "wrong_before": wilson(sum(wrong[0]), len(rows)), "wrong_after": wilson(sum(wrong[1]), len(rows)),
        "fixed": sum(b and not a for b, a in zip(*wrong, strict=True)), "broken": sum(a and not b for b, a in zip(*wrong, strict=True)),
        "mcnemar_p": 0.0123, "change": {"low": change[0], "high": change[1]},
    }  # fmt: skip


def make_rows(name: str, n: int, wrong: int, fixed: int, broken: int, picture: Callable[[str], str], labels: tuple[str, str]) -> list[Row]:
    rows = []
    for i in range(n):
        label = labels[i % 2]
        other = labels[1 - i % 2]
        before = other if i < wrong else label
        after = label if i < fixed or wrong <= i < n - broken else other
        scores = (0.2 if before != label else 0.9, 0.8 if after == label else 0.3)
        rows.append({"set": name, "image": picture(f"{name}-{i:03d}.png"), "group": f"module-{i // 10}", "label": label,
                     "before": before, "after": after, "score_before": scores[0], "score_after": scores[1],
                     "cosine": round(0.99 - 0.003 * (i % 17) * (3 if name == "target" else 1), 6)})  # fmt: skip
    return rows


def make_movement(rng: np.random.Generator) -> Row:
    sizes = {"target": (60, 0.0612, 0.004975), "control": (80, -0.0021, 0.6119), "unrelated": (40, -0.0017, 0.81592)}
    places = {name: {when: rng.normal(size=(n, 2)).round(3).tolist() for when in ("before", "after")} for name, (n, *_) in sizes.items()}
    return {name: {"n": n, "explained": [0.3121, 0.1107], "mmd": v, "p": p, **places[name]} for name, (n, v, p) in sizes.items()}


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 noise images: the largest thumbnails there are."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for i in range(60):
        Image.fromarray(rng.integers(0, 255, (224, 224, 3), dtype=np.uint8)).save(folder / f"target-{i:03d}.png", compress_level=0)
    return folder


@pytest.fixture(scope="session")
def delta(pictures: Path) -> Delta:
    """60 target images (26 wrong, 20 repaired, 1 broken), 80 control (2 broken, 1 repaired), 40 unrelated (0 flips)."""
    rng = np.random.default_rng(0)
    target = make_rows("target", 60, 26, 20, 1, lambda name: str(pictures / name), ("intact", "defective"))
    control = make_rows("control", 80, 5, 1, 2, lambda name: f"/nowhere/{name}", ("intact", "defective"))
    unrelated = make_rows("unrelated", 40, 3, 0, 0, lambda name: f"/nowhere/{name}", ("circle", "square"))
    metrics = {
        "target": make_set("target", target, (-0.42, -0.21)), "control": make_set("control", control, (-0.01, 0.031)),
        "unrelated": make_set("unrelated", unrelated, (0.0, 0.0)),
        "gate": {"verdict": "undecided", "reasons": ["control error may have risen by up to 0.031: the limit is 0.020"], "limit": 0.02},
        "edit_seconds": 41.3, "changed_count": 81234, "changed_share": 0.00371, "outside_mask": 0, "total_weights": 21895926,
    }  # fmt: skip
    heads = [[{"head": j, "score": float(rng.random()), "chosen": (i * 7 + j) % 5 == 0} for j in range(6)] for i in range(12)]
    info = {
        "encoder": {"recipe": "dinov2", "source_digest": "ab" * 32, "precision": "float32", "blocks": 12, "heads": 6, "size": 224},
        "reader": {"kind": "linear", "digest": "cd" * 32, "classes": ["intact", "defective"]},
        "shots": {"digest": "ef" * 32, "n": 40, "classes": ["intact", "defective"]},
        "former": {"digest": "56" * 32, "n": 24, "classes": ["intact", "defective"]},
        "control": {"digest": "12" * 32, "n": 256},
        "heldout": {"target": {"digest": "3" * 64, "n": 60}, "control": {"digest": "4" * 64, "n": 80}},
        "method": {"name": "lorsu", "share": 0.1, "heads": 2, "steps": 60, "learning_rate": 0.0005, "bits": 7},
        "seed": 0, "versions": {"edgeedit": "0.1.0", "torch": "2.13.0", "numpy": "2.3.0", "python": "3.11.9"},
        "locality": {"blocks": [{"block": i, "fc1_share": float(rng.random() / 50), "heads": heads[i]} for i in range(12)]},
        "metrics": metrics, "verdicts": [*control, *target, *unrelated], "movement": make_movement(rng),
        "survival": {"float32": 1.0, "float16": 0.93, "bfloat16": 0.412}, "licence_notes": ["sample images: made by a random generator"],
    }  # fmt: skip
    part = SparsePart(np.array([1, 5], dtype=np.int64), np.array([3, -2], dtype=np.int16), 0.001)
    return Delta((TensorDelta("encoder.layer.3.mlp.fc1.weight", (4, 4), sparse=part),), info)


@pytest.fixture(scope="session")
def settings() -> ReportSettings:
    change = {
        "id": "CR-2026-041",
        "product": "Cell 6x10",
        "station": "EL tester 2",
        "reason": "New lamp since May; intact cells were rejected.",
        "requested_by": "Line 3",
        "made_by": "Vision team",
        "made_on": "2026-05-04",
        "approved_by": "Quality",
        "approved_on": "2026-05-06",
        "expires": "2026-11-06",
    }
    costs = {
        "currency": "EUR",
        "cameras": 40,
        "server_hour": 2.5,
        "megabyte": 0.01,
        "downtime_minute": 180,
        "rebuild_minutes": 4.5,
        "truck_roll": 420,
        "truck_rolls_avoided": 2,
    }
    return read_settings({"change": change, "gauge": {"defective": ["defective"]}, "costs": costs})


@pytest.fixture(scope="session")
def explanation(pictures: Path) -> Row:
    """What `edgeedit explain` writes, with invented figures."""
    rng = np.random.default_rng(1)
    components = [
        {
            "name": f"block {i // 3} {('head 2', 'head 4', 'fc1')[i % 3]}",
            "kind": "head",
            "block": i // 3,
            "head": 2,
            "changed": 40 + i,
            "energy_share": float(rng.random() / 12),
            "score": None,
            "target": {"loss_rise": float(rng.normal() / 9), "margin_fall": 0.01, "more_misjudged": int(rng.integers(-2, 3))},
            "control": {"loss_rise": float(rng.normal() / 90), "margin_fall": 0.0, "more_misjudged": 0},
        }
        for i in range(12)
    ]
    images = [str(pictures / f"target-{i:03d}.png") for i in range(3)]
    maps = [
        {
            "image": name,
            "label": "intact",
            "verdict_before": "defective",
            "verdict_after": "intact",
            **{when: rng.normal(size=(7, 7)).round(4).tolist() for when in ("before", "after")},
        }
        for name in images
    ]
    near = [
        {
            "image": name,
            "label": "intact",
            **{
                when: [
                    {"image": images[j], "label": ("intact", "defective")[(j + k) % 2], "labelled": True, "cosine": 0.9 - j / 10}
                    for j in range(3)
                ]
                for k, when in enumerate(("before", "after"))
            },
        }
        for name in images
    ]
    return {
        "schema_version": 1,
        "importance": {"covered": 0.412, "random_mean": 0.113, "random_high": 0.121, "blocks": []},
        "census": {"tensors": [], "tensors_in_encoder": 150, "elements": 21895926, "changed": 81234, "outside": 0},
        "sets": {},
        "components": components,
        "drift": {
            name: {"n": 48, "cka": [0.999, 0.9731, 0.981], "shift": 0.2134, "cosine": 0.0311} for name in ("target", "control", "probes")
        },
        "saliency": {"unit": "logits", "window_pixels": 32, "limit": 2.731, "images": maps, "caution": "It does not prove why."},
        "neighbours": {"searched": 128, "agree_before": 0.44, "agree_after": 0.78, "images": near},
    }
