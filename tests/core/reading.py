"""What a scheduler's actions say."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from longspan.core.actions import Action, FreeKV, RunBatch, StopRequest


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
    return [action.request_id for action in actions if isinstance(action, StopRequest) and action.reason == "preempted"]


def freed(residence: int, request_id: str, instances: tuple[int, ...], reason: Any) -> list[Action]:
    """What becomes of a request's KV, and of the request."""
    return [FreeKV(residence, instances), StopRequest(request_id, instances, reason)]
