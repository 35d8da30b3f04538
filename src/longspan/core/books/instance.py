"""An instance, and the work that occupies it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic, TypeVar

from longspan.core.actions import MigrateKV, RunBatch
from longspan.core.books.request import Request

WorkT = TypeVar("WorkT", RunBatch, MigrateKV)


@dataclass(frozen=True, slots=True, eq=False)
class Work(Generic[WorkT]):
    """A batch or a migration: occupies its instances from the moment it is issued until it completes.

    With several pipeline stages a batch occupies them until it is about to leave the first stage.
    """

    action: WorkT
    instances: tuple[int, ...]
    is_decode: bool = False
    """Every segment is one decode token, so its instances come back soon."""
    is_repair: bool = False
    """It computes lost tokens again: the policy did not ask for it, and is not told of it."""


@dataclass(slots=True, eq=False)
class Instance:
    """One elastic instance.

    used: slots taken, also by batches that have yet to fill them and by migrations on their way here.
    cached: slots of tokens that no request refers to; they count as free, and are emptied when they are needed.
    promised: free slots that the requests at home here may count on for their coming tokens.
    reserved: free slots set aside for requests' coming tokens by plan; unlike a promise, kept from all other requests.
    stages: of its pipeline; about as many batches may be in flight, see `most_in_flight`.
    running: the work that its devices have begun last; with several stages, what is in the first.
    later: batches that have left the first stage or are about to, oldest first.
    queued: the next decode iteration, behind the running one of the very same group.
    ready: requests with KV here that nothing touches, longest ready first.
    flowing: prefills with KV here whose next chunk may follow those that are in later stages.
    is_held: it is to begin something that another instance takes part in, which is busy yet; so it counts as busy.
    is_leaving: it is being emptied. It has no room for requests that begin, which all its slots are promised away for;
        those that are there may grow.
    """

    id: int
    capacity: int
    stages: int = 1
    used: int = 0
    cached: int = 0
    promised: int = 0
    reserved: int = 0
    running: Work[RunBatch] | Work[MigrateKV] | None = None
    later: list[Work[RunBatch]] = field(default_factory=list)
    queued: Work[RunBatch] | None = None
    ready: dict[str, Request] = field(default_factory=dict)
    flowing: dict[str, Request] = field(default_factory=dict)
    is_held: bool = False
    is_leaving: bool = False

    @property
    def free(self) -> int:
        return self.capacity - self.used

    @property
    def vacant(self) -> int:
        """Free slots with nothing in them."""
        return self.capacity - self.used - self.cached

    @property
    def unreserved(self) -> int:
        """Free slots that any request may take."""
        return self.capacity - self.used - self.reserved

    @property
    def room(self) -> int:
        """Free slots that no request counts on; below zero when more is promised than there is."""
        return self.capacity - self.used - self.reserved - self.promised

    @property
    def is_idle(self) -> bool:
        """Whether it can begin something now: its first stage is free or about to be, and not too much is in flight."""
        return self.running is None and not self.is_held and len(self.later) < self.most_in_flight

    @property
    def most_in_flight(self) -> int:
        """How many batches may be on their way through its stages.

        A batch for each stage keeps all stages busy, but for the time in which the host hears that one is through and
        prepares the next. With four stages or more one batch more hides that. With fewer it would cost too much: a
        decode waits for its turn behind all that is in flight, with two stages for half as long again.
        """
        return self.stages + (self.stages >= 4)

    @property
    def is_working(self) -> bool:
        """Whether something is on its way through it, in whatever stage."""
        return self.running is not None or bool(self.later)

    @property
    def in_flight(self) -> list[Work[RunBatch] | Work[MigrateKV]]:
        """All work that it has, in the order in which it was issued."""
        return [*self.later, *([] if self.running is None else [self.running]),
                *([] if self.queued is None else [self.queued])]  # fmt: skip

    @property
    def is_decoding(self) -> bool:
        return self.running is not None and self.running.is_decode
