"""A lane: one instance's share of the requests, where each request belongs to one instance from its arrival on."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator

from longspan.core.books.request import Request
from longspan.core.books.waiting_queue import WaitingQueue

Rank = tuple[float, ...]
"""The lowest goes first."""

_WAITING_WEIGHT = 4


class Lane:
    """One instance's requests: those that wait, by rank, then by arrival; and those that run, with KV or about to.

    by_arrival: the waiting ones, once more.
    """

    def __init__(self) -> None:
        self.by_arrival = WaitingQueue()
        self.running: dict[str, Request] = {}
        self._ranked: list[tuple[Rank, int, Request]] = []
        self._ranks: dict[str, Rank] = {}

    def __len__(self) -> int:
        """Return how many wait."""
        return len(self._ranked)

    def __iter__(self) -> Iterator[Request]:
        return (request for _, _, request in self._ranked)

    @property
    def first(self) -> Request:
        return self._ranked[0][2]

    def runnable(self) -> list[Request]:
        """Return those that run and are in no batch now, or are prompts in a pipeline whose next chunk may follow."""
        return [request for request in self.running.values() if request.can_run]

    def may_yield(self, request: Request) -> bool:
        """Tell whether dropping its KV, for want of a slot, lets another go on: it is at rest, and not alone.

        One that runs alone lacks only slots of those that have ended in a later pipeline stage; these come back.
        """
        return request.is_ready and len(self.running) > 1

    @property
    def load(self) -> int:
        """vLLM's measure of load, by which its front end chooses among data-parallel engines."""
        return _WAITING_WEIGHT * len(self) + len(self.running)

    def rank_of(self, request: Request) -> Rank:
        """Return the rank of a request that waits."""
        return self._ranks[request.id]

    def wait(self, request: Request, rank: Rank) -> None:
        """Let it wait; if it did already, from now on with this rank."""
        self.drop(request)
        self.by_arrival.add(request)
        self._ranks[request.id] = rank
        insort(self._ranked, (rank, request.arrival_index, request), key=_place)

    def start(self, request: Request) -> None:
        self.drop(request)
        self.running[request.id] = request

    def drop(self, request: Request) -> None:
        """Drop the request: it neither waits nor runs any more."""
        self.running.pop(request.id, None)
        rank = self._ranks.pop(request.id, None)
        if rank is not None:
            self.by_arrival.remove(request)
            del self._ranked[bisect_left(self._ranked, (rank, request.arrival_index), key=_place)]


def _place(entry: tuple[Rank, int, Request]) -> tuple[Rank, int]:
    return entry[0], entry[1]
