"""What a scheduler's actions say."""

from __future__ import annotations

from collections.abc import Iterable

from longspan.core.actions import Action, FreeKV, RunBatch


def batches(actions: Iterable[Action]) -> list[RunBatch]:
    return [action for action in actions if isinstance(action, RunBatch)]


def batch(actions: Iterable[Action]) -> RunBatch:
    """The only one."""
    (found,) = batches(actions)
    return found


def lengths(actions: Iterable[Action]) -> dict[str, int]:
    """Request -> tokens, of the only batch."""
    return {segment.request_id: segment.length for segment in batch(actions).segments}


def preempted(actions: Iterable[Action]) -> list[str]:
    """Requests."""
    return [action.request_id for action in actions if isinstance(action, FreeKV) and action.reason == "preempted"]
