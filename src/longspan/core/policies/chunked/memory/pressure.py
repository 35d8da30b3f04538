"""Memory pressure: which request gives way to which when slots are short.

No request goes round in circles:

- For a waiting request, only half-done prefills below it in rank give way, and only if they would still be below it
  with all their work undone. Of any two requests, one gives way to the other at most once, and never the other way
  round afterwards; so n requests make at most n (n - 1) / 2 such moves.
- For a decode that finds no slot, only requests junior to it give way: of lower priority, or of the same and later
  arrived. The most senior request that holds KV never does, so it comes to its end, then the next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from longspan.core.books.request import Request, RequestStatus
from longspan.core.policies.chunked.memory.clearing import Clearing, shard_slots
from longspan.core.policies.chunked.priority import Standing
from longspan.core.policies.chunked.ranking import Candidate, Stand
from longspan.core.state import SchedulerState


class Concessions:
    """The pairs of requests of which one has given way to the other, a waiting one."""

    def __init__(self) -> None:
        self._beneficiaries: dict[Request, set[Request]] = {}

    def allow(self, victim: Request, beneficiary: Request) -> bool:
        known = self._beneficiaries
        return beneficiary not in known.get(victim, ()) and victim not in known.get(beneficiary, ())

    def note(self, victim: Request, beneficiary: Request, state: SchedulerState) -> None:
        alive: dict[Request, set[Request]] = {}
        for mine, theirs in self._beneficiaries.items():
            if _is_alive(mine, state) and (left := {other for other in theirs if _is_alive(other, state)}):
                alive[mine] = left
        self._beneficiaries = alive
        alive.setdefault(victim, set()).add(beneficiary)


def _is_alive(request: Request, state: SchedulerState) -> bool:
    """Whether it holds KV, or waits in the queue."""
    if request.status is RequestStatus.WAITING:
        return request in state.waiting
    return request.status is not RequestStatus.ENDED


def junior_victim(state: SchedulerState, decodes: Sequence[Request]) -> Request | None:
    """Choose whose KV to drop for decodes that find no slot on any instance: the most junior of all that can run."""
    if any([instance.unreserved for instance in state.cluster.instances]):
        return None
    growing = [request for request in decodes if not request.reserved]
    if not growing:
        return None
    senior = min(map(_seniority, growing))
    victim = max((request for request in state.with_kv() if request.can_run), key=_seniority)
    return victim if _seniority(victim) > senior else None


def _seniority(request: Request) -> tuple[int, int]:
    return (-request.service.priority, request.arrival_index)


class Relief:
    """Finds the request that gives way to a waiting one.

    rank: a candidate's key, from a request and its standing. yields: whether one so standing may lose its work to
    another.
    """

    def __init__(
        self,
        state: SchedulerState,
        concessions: Concessions,
        stand: Stand,
        rank: Callable[[Request, Standing[float]], tuple[float, ...]],
        yields: Callable[[Standing[float], Standing[float]], bool],
    ) -> None:
        self.state = state
        self.concessions = concessions
        self.stand = stand
        self.rank = rank
        self.yields = yields

    def preempt_for(self, blocked: Candidate) -> Request | None:
        """Choose a half-done prefill whose slots, perhaps with those of more, make room: the least work lost."""
        beneficiary = blocked.request
        rooms = sum(instance.room for instance in self.state.cluster.instances)
        deficit = self.state.need(beneficiary) - rooms
        victims = self._victims(blocked, self.state.cluster.prefills())
        if deficit <= 0 or sum([request.slots for request in victims]) < deficit:
            return None
        enough = [request for request in victims if request.slots >= deficit]
        if enough:
            return min(enough, key=lambda request: (request.num_stored, -request.arrival_index))
        return victims[-1]

    def clear_for(self, scattered: Candidate, migration_s: Callable[[int], float]) -> Clearing | None:
        """Return a shard of a half-done prefill to move, so that one instance has room for the waiting request.

        None if there is none, or if moving takes longer than the request has. migration_s: seconds for so many tokens.
        """
        need = self.state.need(scattered.request)
        rooms = {instance.id: instance.room for instance in self.state.cluster.instances}
        for victim in reversed(self._victims(scattered, self.state.cluster.ready_prefills.values())):
            held = dict(self.state.placement.context(victim.id))
            for source in sorted({*held, *(planned.instance for planned in victim.reserved)}):
                slots = shard_slots(self.state, victim, source)
                target = max(rooms, key=lambda number: (number != source, rooms[number], -number))
                fits = rooms[source] + slots >= need and rooms[target] >= slots and target != source
                if fits and migration_s(held.get(source, 0)) <= max(0.0, scattered.standing.slack_s):
                    return Clearing(source, target, victim.id)
        return None

    def _victims(self, beneficiary: Candidate, requests: Iterable[Request]) -> list[Request]:
        """Of these, all prefills that can run, those below the beneficiary in rank, as if none of their work was done;
        the lowest last."""
        ranked = []
        for request in requests:
            if self.concessions.allow(request, beneficiary.request):
                standing = self.stand(request)
                undone = self.rank(request, replace(standing, remaining_s=standing.total_s))
                is_below = undone > beneficiary.key and self.rank(request, standing) > beneficiary.key
                if is_below and self.yields(standing, beneficiary.standing):
                    ranked.append((undone, request))
        return [request for _, request in sorted(ranked, key=lambda pair: pair[0])]
