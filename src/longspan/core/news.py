"""What is new to a policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from longspan.core.actions import RunBatch
from longspan.core.books.changes import Changes
from longspan.core.books.request import Request


@dataclass(frozen=True, slots=True)
class News:
    """The changes by the present event, beside what `SchedulerState` shows.

    arrived: requests that have just joined the queue. ended: requests that finished or were aborted, to learn from and
    to forget. completed: batches that have run, of which a policy may know what it expected. fleet: what has become of
    requests and batches as instances came and went; `SchedulerState.cluster` has those that serve now.
    """

    arrived: Sequence[Request]
    ended: Sequence[Request]
    completed: Sequence[RunBatch] = ()
    fleet: Changes = field(default_factory=Changes)
