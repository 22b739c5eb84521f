"""Probation: the first frames that a new generation answers, judged in rounds against its parent in shadow.

The frames kept of clean days are few, so a patch that changes a little more than it may passes them.  Where the parent says that the
world is the one it knew, frames of now count like those of clean days: each round adds as many, and the test gets sharper.
Guarantees: holds at most one round of packed pictures; ends after `ROUNDS` rounds, or when the parent cannot be asked.  It is not kept
over a restart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from edgeedit.device.monitor.baseline import Clean
from edgeedit.device.monitor.cause import LEVEL, Harm
from edgeedit.errors import EdgeEditError
from edgeedit.mmd import mmd_test

Array = np.ndarray[Any, Any]
ROUNDS = 8
FRAMES = 192  # of a round
_BYTES = 16 << 20  # of packed pictures of a round


class Probation:
    """`ask` gives what the parent says of packed pictures, `clean` is what it said of clean days, `harm` what is known of the patch."""

    def __init__(self, ask: Callable[[Sequence[bytes]], Clean], clean: Clean, harm: Harm) -> None:
        self._ask, self._clean, self._harm = ask, clean, harm
        self._pictures: list[bytes] = []
        self._verdicts: list[int] = []
        self._rounds = 0

    def window(self, pictures: Sequence[bytes], verdicts: Array) -> Harm | None:
        """Take a window of packed pictures with the new generation's verdicts int64 (n,).  Where it ends a round in a world that the
        parent knows: all flips so far, else None.  Raises what `ask` raises, once."""
        if self._rounds >= ROUNDS:
            return None
        self._pictures += pictures
        self._verdicts += verdicts.tolist()
        if len(self._pictures) < FRAMES and sum(map(len, self._pictures)) < _BYTES:
            return None
        asked, after = self._pictures, np.array(self._verdicts)
        self._pictures, self._verdicts, self._rounds = [], [], self._rounds + 1
        try:
            said = self._ask(asked)
        except EdgeEditError:
            self._rounds = ROUNDS
            raise
        if mmd_test(self._clean.rows, said.rows)[1] <= LEVEL:
            return None
        flips = self._harm.flips + int((said.verdicts != after).sum())
        self._harm = replace(self._harm, flips=flips, frames=self._harm.frames + len(after))
        return self._harm
