"""The gate: pass, fail or undecided from held-out figures; a sentence for every reason."""

from __future__ import annotations

from edgeedit.metrics import GateVerdict, SetResult

LEVEL = 0.05  # two-sided level of the exact McNemar test


def decide(target: SetResult, control: SetResult | None, unrelated: SetResult | None, limit: float) -> GateVerdict:
    """Fail: the target did not improve, or even the lower bound of a retained set's rise is above `limit`.  Pass: the
    target's change is below zero with its whole interval, its flips are no chance (exact McNemar, two-sided 5 %), and every
    rise with its whole interval is at most `limit`.  Undecided: the images do not say."""
    fails, open_questions = [], []
    if target.error_after >= target.error_before:
        fails.append(f"target error did not fall: {target.error_before:.3f} -> {target.error_after:.3f}")
    elif target.change.high >= 0:
        open_questions.append(f"target improvement is not certain: 95% of the change {target.change.low:+.3f}..{target.change.high:+.3f}")
    elif target.fixed <= target.broken or target.mcnemar_p > LEVEL:
        open_questions.append(
            f"target improvement may be chance: {target.fixed} images repaired, {target.broken} broken, McNemar p {target.mcnemar_p:.3f}"
        )
    for row in (control, unrelated):
        if row is None:
            continue
        if row.change.low > limit:
            fails.append(f"{row.name} error rose by at least {row.change.low:.3f}: the limit is {limit:.3f}")
        elif row.change.high > limit:
            open_questions.append(f"{row.name} error may have risen by up to {row.change.high:.3f}: the limit is {limit:.3f}")
    if control is None:
        open_questions.append("no control images were held out: retention is not known")
    verdict = "fail" if fails else "undecided" if open_questions else "pass"
    return GateVerdict(verdict, tuple(fails + open_questions), limit)
