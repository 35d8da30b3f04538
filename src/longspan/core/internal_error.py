"""The one error of the pure core: a part of Longspan broke a rule."""

from __future__ import annotations


class InternalError(AssertionError):
    """A bug of ours (policy, driver or scheduler), never a user's mistake. Nothing should catch it."""
