"""Tables of held-out figures on a terminal: error, AUC and share of each verdict are always shown together."""

from __future__ import annotations

from edgeedit.metrics import EditMetrics, SetResult

SHOWN = 4  # classes whose shares are printed; --json has all


def judged_lines(metrics: EditMetrics) -> list[str]:
    """One line of errors for each held-out set, and under it AUC, McNemar and the share of each verdict."""
    lines = [f"{'':10} {'n':>5} {'before':>8} {'after':>8}   95% of the change"]
    for row in (metrics.target, metrics.control, metrics.unrelated):
        if row is not None:
            lines += set_lines(row)
    return lines


def set_lines(row: SetResult) -> list[str]:
    """The two or three lines of one set."""
    head = f"{row.name:10} {row.n:5d} {row.error_before:8.3f} {row.error_after:8.3f}   {row.change.low:+.3f} .. {row.change.high:+.3f}"
    lines = [head]
    if row.auc_before is not None and row.auc_after is not None:
        lines.append(f"{'  AUC':16} {row.auc_before:8.3f} {row.auc_after:8.3f}")
    for (name, before), (_, after) in zip(row.shares_before[:SHOWN], row.shares_after[:SHOWN], strict=True):
        lines.append(f"{'  judged ' + name:16} {before:8.3f} {after:8.3f}")
    if len(row.shares_before) > SHOWN:
        lines.append(f"  and {len(row.shares_before) - SHOWN} more classes (--json)")
    lines.append(f"  {row.fixed} repaired, {row.broken} newly wrong; exact McNemar p {row.mcnemar_p:.3g}")
    return lines
