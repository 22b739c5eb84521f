"""The report's charts as SVG data URIs.

Guarantees: drawn without a display and without matplotlib's global state; equal input gives equal bytes; no text of a
user enters a chart.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from edgeedit.errors import InputError
from edgeedit.metrics import Interval, SetResult
from edgeedit.report import words
from edgeedit.report.facts import wrong_count

BEFORE, AFTER, BAD, INK, RULE = "#8a929c", "#12507b", "#a3271d", "#1d242c", "#d5dae0"
_LABEL = {"facecolor": "white", "edgecolor": "none", "pad": 0.8, "alpha": 0.85}  # keeps a figure readable on a line


def _svg(figure: Figure) -> str:
    buffer = io.BytesIO()
    # A fixed salt and no date: ids and metadata are otherwise new in every run.
    with matplotlib.rc_context({"svg.hashsalt": "edgeedit", "svg.fonttype": "path"}):
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None, "Creator": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _bare(axes: Axes) -> None:
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(BEFORE)
    axes.tick_params(colors=INK, labelsize=8, length=0)
    axes.grid(axis="x", color=RULE, linewidth=0.6)
    axes.set_axisbelow(True)


def _write(axes: Axes, text: str, at: tuple[float, float], colour: str) -> None:
    """Put a figure above its mark."""
    axes.annotate(text, at, xytext=(0, 6.5), textcoords="offset points", ha="center", fontsize=7.5, color=colour, bbox=_LABEL)


def _share(axes: Axes, at: float, wilson: Interval, n: int, colour: str, marker: str) -> None:
    axes.plot([100 * wilson.low, 100 * wilson.high], [at, at], color=colour, linewidth=2.2, solid_capstyle="butt")
    wrong = wrong_count(wilson, n)
    if wrong is None:
        return
    share = 100 * wrong / n
    axes.plot([share], [at], marker=marker, color=colour, markersize=7)
    _write(axes, f"{share:.1f}%", (share, at), colour)


def effect_chart(sets: Sequence[SetResult], limit: float) -> str:
    """Left: share misjudged before and after with Wilson 95 % intervals.  Right: paired change with 95 % interval."""
    figure = Figure(figsize=(7.4, 0.75 + 0.72 * len(sets)), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.5, 1), sharey=True)
    for row, result in enumerate(sets):
        _share(left, row - 0.2, result.wrong_before, result.n, BEFORE, "o")
        _share(left, row + 0.2, result.wrong_after, result.n, AFTER, "D")
        change = 100 * (result.error_after - result.error_before)
        low, high = 100 * result.change.low, 100 * result.change.high
        colour = BAD if (result.name != "target" and high > 100 * limit) or (result.name == "target" and high >= 0) else AFTER
        right.plot([low, high], [row, row], color=colour, linewidth=2.2, solid_capstyle="butt")
        right.plot([change], [row], marker="D", color=colour, markersize=7)
        _write(right, words.points(change / 100), (change, row), colour)
    left.set_yticks(range(len(sets)), [f"{result.name}\nn = {result.n}" for result in sets])
    left.set_ylim(len(sets) - 0.45, -0.65)
    left.set_xlim(left=min(0.0, left.get_xlim()[0]))
    right.margins(x=0.16)
    right.axvline(0, color=INK, linewidth=0.8, zorder=1)
    right.axvline(100 * limit, color=BAD, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
    for axes, title in ((left, "images misjudged, %"), (right, "change of the error, points")):
        _bare(axes)
        axes.set_xlabel(title, fontsize=8, color=INK)
    return _svg(figure)


def where_chart(locality: Mapping[str, Any] | None) -> str | None:
    """Heat map of head scores (blocks x heads, chosen heads outlined) and the share of first-FFN weights that changed
    per block; None without locality.  Raises InputError when the locality is malformed."""
    blocks = (locality or {}).get("blocks") or []
    if not blocks:
        return None
    try:
        scores = np.array([[float(head["score"]) for head in block["heads"]] for block in blocks], dtype=np.float64)
        chosen = np.array([[bool(head["chosen"]) for head in block["heads"]] for block in blocks], dtype=bool)
        shares = np.array([float(block["fc1_share"]) for block in blocks], dtype=np.float64)
        names = [int(block["block"]) for block in blocks]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"cannot report: expected a locality of blocks and heads, got {error!r}") from error
    if scores.ndim != 2 or not scores.size:
        return None
    figure = Figure(figsize=(7.4, 1.0 + 0.21 * len(names)), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.25, 1), sharey=True)
    _heads(figure, left, scores, chosen, names)
    right.barh(range(len(names)), 100 * np.nan_to_num(shares), color=AFTER, height=0.62)
    for row, value in enumerate(shares):
        if math.isfinite(value) and value > 0:
            at, text = (100 * value, row), f"{100 * value:.2g}%"
            right.annotate(text, at, xytext=(3, 0), textcoords="offset points", va="center", fontsize=7, color=INK)
    _bare(right)
    right.margins(x=0.14)
    right.set_xlabel("first feed-forward weights changed, %", fontsize=8, color=INK)
    return _svg(figure)


def _heads(figure: Figure, axes: Axes, scores: np.ndarray[Any, Any], chosen: np.ndarray[Any, Any], names: Sequence[int]) -> None:
    image = axes.imshow(np.ma.masked_invalid(scores), aspect="auto", cmap="Blues", interpolation="nearest")
    for row, head in np.argwhere(chosen):
        axes.add_patch(Rectangle((head - 0.46, row - 0.44), 0.92, 0.88, fill=False, edgecolor="#c4541a", linewidth=1.6))
    axes.set_yticks(range(len(names)), [str(name) for name in names])
    axes.set_xticks(range(scores.shape[1]))
    axes.tick_params(colors=INK, labelsize=7.5, length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.set_xlabel("attention head", fontsize=8, color=INK)
    axes.set_ylabel("block", fontsize=8, color=INK)
    bar = figure.colorbar(image, ax=axes, fraction=0.045, pad=0.02)
    bar.ax.tick_params(labelsize=6.5, length=0, colors=INK)
    bar.outline.set_visible(False)
