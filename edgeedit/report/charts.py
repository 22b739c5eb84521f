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

from edgeedit.report import words

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


def _share(axes: Axes, at: float, wilson: Mapping[str, Any], wrong: int | None, n: int, look: tuple[str, str]) -> None:
    colour, marker = look
    if wilson["low"] is None or wilson["high"] is None:
        return
    axes.plot([100 * wilson["low"], 100 * wilson["high"]], [at, at], color=colour, linewidth=2.2, solid_capstyle="butt")
    if wrong is None:
        return
    share = 100 * wrong / n
    axes.plot([share], [at], marker=marker, color=colour, markersize=7)
    _write(axes, f"{share:.1f}%", (share, at), colour)


def _change(axes: Axes, row: int, result: Mapping[str, Any], change: float | None, limit: float) -> None:
    low, high = result["change"]["low"], result["change"]["high"]
    if low is None or high is None or change is None:
        return
    bad = (result["name"] != "target" and high > limit) or (result["name"] == "target" and high >= 0)
    colour = BAD if bad else AFTER
    axes.plot([100 * low, 100 * high], [row, row], color=colour, linewidth=2.2, solid_capstyle="butt")
    axes.plot([100 * change], [row], marker="D", color=colour, markersize=7)
    _write(axes, words.points(change), (100 * change, row), colour)


def effect_chart(report: Mapping[str, Any]) -> str:
    """Left: share misjudged before and after with Wilson 95 % intervals.  Right: paired change with 95 % interval."""
    metrics, sets = report["metrics"], list(report["sets"])
    limit = metrics["gate"]["limit"] or 0.0
    figure = Figure(figsize=(7.4, 0.75 + 0.72 * len(sets)), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.5, 1), sharey=True)
    for row, name in enumerate(sets):
        result, own = metrics[name], report["sets"][name]
        _share(left, row - 0.2, result["wrong_before"], own["misjudged_before"], own["n"], (BEFORE, "o"))
        _share(left, row + 0.2, result["wrong_after"], own["misjudged_after"], own["n"], (AFTER, "D"))
        _change(right, row, result, own["error_change"], limit)
    left.set_yticks(range(len(sets)), [f"{name}\nn = {report['sets'][name]['n']}" for name in sets])
    left.set_ylim(len(sets) - 0.45, -0.65)
    left.set_xlim(left=min(0.0, left.get_xlim()[0]))
    right.margins(x=0.16)
    right.axvline(0, color=INK, linewidth=0.8, zorder=1)
    right.axvline(100 * limit, color=BAD, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
    for axes, title in ((left, "images misjudged, %"), (right, "change of the error, points")):
        _bare(axes)
        axes.set_xlabel(title, fontsize=8, color=INK)
    return _svg(figure)


def drift_chart(drift: Mapping[str, Any]) -> str:
    """Histogram of cosine(base, patched) per set, share of the set's images in each bin, one row a set."""
    sets = drift["sets"]
    edges = np.array(drift["edges"], dtype=np.float64)
    figure = Figure(figsize=(7.4, 0.55 + 0.72 * len(sets)), layout="constrained")
    rows = np.atleast_1d(figure.subplots(len(sets), 1, sharex=True))
    for axes, (name, row) in zip(rows, sets.items(), strict=True):
        shares = 100 * np.array(row["counts"], dtype=np.float64) / max(1, row["n"])
        axes.bar(edges[:-1], shares, np.diff(edges), align="edge", color=AFTER if name == "target" else BEFORE, linewidth=0)
        axes.axvline(row["median"], color=BAD, linewidth=1.1)
        _bare(axes)
        axes.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8, color=INK)
        axes.set_yticks([float(shares.max())], [f"{shares.max():.0f}%"], fontsize=7)
        axes.set_ylim(0, 1.12 * max(1e-9, float(shares.max())))
    rows[-1].set_xlabel("cosine of the features, base and patched (red: median)", fontsize=8, color=INK)
    return _svg(figure)


def plane_chart(movement: Mapping[str, Any]) -> str:
    """Each set's images on the plane of its two main directions, before and after, with a line from the mean of one to the other."""
    figure = Figure(figsize=(7.4, 2.9), layout="constrained")
    axes_of = np.atleast_1d(figure.subplots(1, len(movement)))
    for axes, (name, row) in zip(axes_of, movement.items(), strict=True):
        places = [np.array(row[when], dtype=np.float64) for when in ("before", "after")]
        for own, colour, marker in zip(places, (BEFORE, AFTER), ("o", "D"), strict=True):
            axes.plot(own[:, 0], own[:, 1], marker, color=colour, markersize=2.2, alpha=0.55, markeredgewidth=0)
        centres = np.array([own.mean(axis=0) for own in places])
        axes.plot(centres[:, 0], centres[:, 1], color=BAD, linewidth=1.4)
        axes.plot(*centres[1], "D", color=BAD, markersize=4.5)
        _bare(axes)
        axes.grid(axis="y", color=RULE, linewidth=0.6)
        axes.set_title(name, fontsize=8, color=INK)
        axes.set_xlabel("first direction", fontsize=8, color=INK)
    axes_of[0].set_ylabel("second direction", fontsize=8, color=INK)
    return _svg(figure)


def _side_bars(axes: Axes, values: np.ndarray[Any, Any], texts: Sequence[str], title: str) -> None:
    axes.barh(range(len(values)), np.nan_to_num(values), color=AFTER, height=0.62)
    for row, (value, text) in enumerate(zip(values, texts, strict=True)):
        if math.isfinite(value) and value > 0:
            axes.annotate(text, (value, row), xytext=(3, 0), textcoords="offset points", va="center", fontsize=6.5, color=INK)
    _bare(axes)
    axes.margins(x=0.3)
    axes.locator_params(axis="x", nbins=4)
    axes.tick_params(axis="x", labelsize=6.5)
    axes.set_xlabel(title, fontsize=8, color=INK)


def where_chart(where: Mapping[str, Any]) -> str | None:
    """Heat map of head scores (blocks x heads, chosen heads outlined), the share of first-FFN weights that changed, and bytes (entries
    without a patch) per block; None without head scores of one shape."""
    blocks = [row for row in where["blocks"] if row["heads"]]
    if not blocks or len({len(row["heads"]) for row in blocks}) != 1:
        return None
    scores = np.array([[math.nan if head["score"] is None else head["score"] for head in row["heads"]] for row in blocks])
    chosen = np.array([[head["chosen"] for head in row["heads"]] for row in blocks], dtype=bool)
    shares = np.array([100 * (row["fc1_share"] or 0.0) for row in blocks])
    key = "bytes" if where["measured"] else "entries"
    sizes = np.array([row[key] or 0 for row in blocks], dtype=np.float64) / 1000
    names = [row["block"] for row in blocks]
    figure = Figure(figsize=(7.4, 1.0 + 0.21 * len(names)), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=(1.35, 0.8, 0.8), sharey=True)
    _heads(figure, left, scores, chosen, names)
    _side_bars(middle, shares, [f"{value:.2g}%" for value in shares], "first FFN changed, %")
    _side_bars(right, sizes, [f"{value:.3g}" for value in sizes], "patch, kB" if where["measured"] else "weights, thousands")
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
