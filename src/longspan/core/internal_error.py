"""The one error of the pure core: a part of Longspan broke a rule."""

from __future__ import annotations


class InternalError(AssertionError):
    """A bug of ours (policy, driver or scheduler), never a user's mistake. Nothing should catch it."""


def require(holds: bool, message: str, *told: object) -> None:
    """Raise InternalError unless it holds. told: what goes into the message, which is written only where it is needed,
    for invariants are checked all the time."""
    if not holds:
        raise InternalError(message % told)
