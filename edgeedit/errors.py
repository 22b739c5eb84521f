"""The error tree, divided by who must act; each branch has one exit code.

    EdgeEditError (1, unexpected)
    ├── InputError (2)        the user: wrong usage or unusable input data
    ├── GateError (3)         the engineer: the quality gate failed or is undecided; nothing deployable was written
    ├── MismatchError (4)     whoever chose the file: it belongs to another base, device, source or place in the order
    ├── IntegrityError (5)    whoever sent the file: signature, digest or format is wrong
    ├── RefusedError (6)      the device's owner: memory, disk, missing engine, a session that cannot be patched
    ├── RevertedError (7)     the engineer: the patch was applied and then reverted by its probes
    └── UnreachableError (8)  nobody: try again later

A message is one sentence `what failed: expected X, got Y` without a full stop; `hint` says what to do.
"""

from __future__ import annotations


class EdgeEditError(Exception):
    """Base of every error raised on purpose; `hint` is printed on its own line."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class InputError(EdgeEditError):
    """Wrong usage or unusable input data."""

    exit_code = 2


class GateError(EdgeEditError):
    """The quality gate failed or is undecided."""

    exit_code = 3


class MismatchError(EdgeEditError):
    """Base, device, source or order does not match."""

    exit_code = 4


class IntegrityError(EdgeEditError):
    """Signature, digest or format is wrong."""

    exit_code = 5


class RefusedError(EdgeEditError):
    """The device or the runtime refuses."""

    exit_code = 6


class RevertedError(EdgeEditError):
    """The patch was applied, then reverted by its probes."""

    exit_code = 7


class UnreachableError(EdgeEditError):
    """A source cannot be reached now."""

    exit_code = 8
