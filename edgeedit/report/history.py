"""The history of a chain of updates for people: lines on a terminal, or one page with a curve and a table.

Guarantees: shows the figures that it is given and no other; one file without script or network; equal input gives equal bytes.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeedit.files import replace_file

HEAD = ("#", "update", "error before", "after", "gain", "forgotten", "mean error", "control", "shift", "lowest CKA")
_KEYS = ("before", "after", "gain", "forgotten", "mean_error", "control", "shift", "cka")
_SIGNED = ("gain", "forgotten")
_INK, _OURS, _OTHER = "#1d242c", "#12507b", "#c4541a"


def rows(view: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """(head, one row for each update); a column that no update has is left out."""
    updates = view["updates"]
    kept = [n for n, key in enumerate(_KEYS) if any(row[key] is not None for row in updates)]
    head = (*HEAD[:2], *(HEAD[2 + n] for n in kept))
    return head, tuple(
        (str(number), str(row["name"]), *(_cell(_KEYS[n], row[_KEYS[n]]) for n in kept)) for number, row in enumerate(updates, 1)
    )


def _cell(key: str, value: float | None) -> str:
    return "" if value is None else f"{value:+.3f}" if key in _SIGNED else f"{value:.3f}"


def notes(view: Mapping[str, Any]) -> list[str]:
    """The figures of the whole chain in sentences; none for a chain that was not judged."""
    if not view["measured"]:
        return []
    found, (value, low, high) = view["summary"], view["bwt"]
    lines = [
        f"Mean error of all sessions {view['base']['mean_error']:.3f} before, {1 - found['acc']:.3f} now; "
        f"control error {view['base']['control']:.3f} before, {view['base']['control'] + found['control_change']:.3f} now.",
    ]
    if view["length"] > 1:
        lines.append(
            f"Backward transfer {value:+.3f} (95 % {low:+.3f} .. {high:+.3f}); forgetting from the best state {found['forgetting']:.3f}."
        )
    for row in view["pace"]:
        rate = "no drift" if row["rate"] is None else f"{row['rate']:.2f} for each unit of drift"
        lines.append(f"Up to update {row['after']}: gain {row['gain']:+.3f} an update, drift {row['drift']:+.3f}: {rate}.")
    return lines


def as_text(view: Mapping[str, Any]) -> str:
    """The table, the figures of the chain, and what to do."""
    head, body = rows(view)
    widths = [max(len(row[n]) for row in (head, *body)) for n in range(len(head))]
    lines = ["  ".join(_pad(cell, widths[n], left=n == 1) for n, cell in enumerate(row)).rstrip() for row in (head, *body)]
    lines += notes(view)
    lines += [f"{row['action']}: {row['reason']}{rhythm(row)}" for row in view["advice"]]
    return "\n".join(lines)


def rhythm(advice: Mapping[str, Any]) -> str:
    """How many mistakes to collect for one update, where one each is too fast."""
    return f"; collect {advice['every']} mistakes for one update" if advice["action"] == "slower" else ""


def _pad(cell: str, width: int, *, left: bool) -> str:
    return cell.ljust(width) if left else cell.rjust(width)


def save_history(view: Mapping[str, Any], path: Path) -> None:
    """Write one HTML page; raises RefusedError when the disk refuses."""
    import jinja2
    from markupsafe import Markup

    loader = jinja2.PackageLoader("edgeedit.report", "templates")
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    head, body = rows(view)
    chart = Markup(_chart(view))  # noqa: S704 - drawn here, and holds no text of a user
    page = environment.get_template("history.html.j2").render(
        view=view, head=head, rows=body, notes=notes(view), chart=chart, rhythm=rhythm
    )
    replace_file(path, page.encode("utf-8"))


def _chart(view: Mapping[str, Any]) -> str:
    """The curve as an inline SVG."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    buffer = io.StringIO()
    # A fixed salt and no date: ids and metadata are otherwise new in every run.
    with matplotlib.rc_context({"svg.hashsalt": "edgeedit", "svg.fonttype": "path"}):
        FigureCanvasSVG(curve(view)).print_svg(buffer, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def curve(view: Mapping[str, Any]) -> Any:
    """Gain and forgetting per update, errors, drift: a matplotlib figure."""
    from matplotlib.figure import Figure

    updates = view["updates"]
    places = list(range(1, len(updates) + 1))
    panels = 3 if view["measured"] else 1
    figure = Figure(figsize=(3.4 * max(panels, 2), 2.9), layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    axes[0].bar(places, [row["gain"] for row in updates], color=_OURS, width=0.7, label="gain")
    if view["measured"]:
        axes[0].plot(places, [row["forgotten"] for row in updates], color=_OTHER, marker=".", linewidth=1, label="forgotten since")
        _line(axes[1], "mean_error", view, "all sessions", _OURS)
        _line(axes[1], "control", view, "control", _OTHER)
        axes[2].plot([0, *places], [0.0, *(row["shift"] for row in updates)], color=_OURS, marker=".")
        axes[2].set_title("shift of the features", fontsize=9)
        axes[1].set_title("error", fontsize=9)
        axes[1].legend(fontsize=7, frameon=False)
    axes[0].legend(fontsize=7, frameon=False)
    axes[0].set_title("fall of an update's own error", fontsize=9)
    for axis in axes:
        axis.axhline(0, color=_INK, linewidth=0.6)
        axis.set_xlabel("updates", fontsize=8)
        axis.tick_params(labelsize=7)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    return figure


def _line(axis: Any, key: str, view: Mapping[str, Any], label: str, colour: str) -> None:
    values: Sequence[float] = [view["base"][key], *(row[key] for row in view["updates"])]
    axis.plot(range(len(values)), values, color=colour, marker=".", linewidth=1.2, label=label)
