"""The rival `none`: the encoder as it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from edgeedit.edit.methods.method import Task, Update


@dataclass(frozen=True)
class NoEdit:
    """Changes nothing."""

    name: ClassVar[str] = "none"
    local: ClassVar[bool] = False

    def update(self, task: Task) -> Update:
        """An update without content."""
        del task
        return Update(payload=0)
