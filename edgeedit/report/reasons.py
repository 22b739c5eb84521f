"""The gate's reasons as kinds, so that page one can say them in its language with the figures of the record.

Guarantees: a sentence that the gate is not known to say keeps its own words and the kind `other`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_KINDS = (
    ("not_fallen", re.compile(r"(?P<set>target) error did not fall: ")),
    ("not_certain", re.compile(r"(?P<set>target) improvement is not certain: ")),
    ("chance", re.compile(r"(?P<set>target) improvement may be chance: ")),
    ("rose", re.compile(r"(?P<set>control|unrelated) error rose by at least ")),
    ("may_have_risen", re.compile(r"(?P<set>control|unrelated) error may have risen by up to ")),
    ("no_control", re.compile(r"no (?P<set>control) images were held out: ")),
)


def reason_rows(reasons: Sequence[str]) -> list[dict[str, str]]:
    """{kind, set, text} of each sentence, in their order; `set` is empty for the kind `other`."""
    rows = []
    for text in reasons:
        found = next(((kind, match) for kind, pattern in _KINDS if (match := pattern.match(text))), None)
        rows.append({"kind": found[0] if found else "other", "set": found[1]["set"] if found else "", "text": text})
    return rows
