"""What workers would do with the actions, reduced to KV slots: an independent check of the scheduler's books.

Each instance does its actions first in, first out. A batch or a migration starts when it is first at all of
its instances, and stays first there until the driver completes it. Nothing here reads the scheduler's state.

With several pipeline stages that is the first one. A batch that leaves it comes to the end of another line, the later
stages', and is through when it is first in that at all of its instances. Slots are counted in the first stage. As many
batches may be in flight as there are stages, and one more where there are four or more.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field

from longspan.core.actions import FreeKV, MigrateKV, RunBatch, Segment, StopRequest

Item = RunBatch | MigrateKV | FreeKV


@dataclass(eq=False)
class Residence:
    """A request's KV from its first prefill to its FreeKV: token -> owner. number: what the actions call it."""

    request_id: str
    number: int
    owner: dict[int, int] = field(default_factory=dict)

    def counts(self, end: int | None = None) -> Counter[int]:
        return Counter(instance for token, instance in self.owner.items() if end is None or token < end)


class WorkerModel:
    def __init__(self, num_instances: int, capacity: int, stages: int = 1) -> None:
        self.stages = stages
        self.most_in_flight = stages + 1 if stages >= 4 else stages
        self.later: list[deque[RunBatch]] = [deque() for _ in range(num_instances)]
        self.capacity = capacity
        self.used = [0] * num_instances
        self.queues: list[deque[tuple[Item, Residence | None]]] = [deque() for _ in range(num_instances)]
        self.residences: dict[str, Residence] = {}
        self.started: list[RunBatch | MigrateKV] = []
        self._residence_of: dict[int, dict[str, Residence]] = {}
        self._freed: tuple[str, tuple[int, ...]] | None = None
        self._num_begun = 0

    @property
    def is_empty(self) -> bool:
        places = (self.used, self.queues, self.later)
        return not any(map(any, places)) and not self.residences and not self.started

    def submit(self, action: Item | StopRequest) -> None:
        if isinstance(action, StopRequest):
            self._stop(action)
        elif isinstance(action, FreeKV):
            self._submit_free(action)
        elif isinstance(action, MigrateKV):
            self._check_queue_is_legal(action, (action.source, action.target))
            self._enqueue(action, (action.source, action.target), [(action.request_id, action.residence)])
        else:
            self._check_queue_is_legal(action, action.group)
            named = [(segment.request_id, segment.residence) for segment in action.segments]
            self._enqueue(action, action.group, named)
        self.advance()

    def in_first_stage(self, action: RunBatch | MigrateKV) -> bool:
        """Whether it has yet to leave that, before it can complete."""
        in_later = action in self.later[instances_of(action)[0]]
        return self.stages > 1 and isinstance(action, RunBatch) and not in_later

    def leave_first_stage(self, batch: RunBatch) -> None:
        self.started.remove(batch)
        for instance in batch.group:
            assert self.queues[instance].popleft()[0] is batch
            self.later[instance].append(batch)
            assert len(self.later[instance]) <= self.most_in_flight
        self.advance()

    def complete(self, action: RunBatch | MigrateKV) -> None:
        assert not self.in_first_stage(action)
        self.started.remove(action)
        for instance in instances_of(action):
            through = self.later[instance].popleft() if action in self.later[instance] else None
            assert action is (through or self.queues[instance].popleft()[0])
        if isinstance(action, MigrateKV):
            owner = self._residence_of[id(action)][action.request_id].owner
            for start, end in action.ranges:
                for token in range(start, end):
                    owner[token] = action.target
            self.used[action.source] -= action.num_tokens
        del self._residence_of[id(action)]
        self.advance()

    def advance(self) -> None:
        """Do everything that is first in line."""
        changed = True
        while changed:
            changed = False
            for instance, queue in enumerate(self.queues):
                if not queue:
                    continue
                action, residence = queue[0]
                if isinstance(action, FreeKV):
                    assert residence is not None
                    self._free(instance, residence)
                    queue.popleft()
                    changed = True
                elif action not in self.started and all(
                    self.queues[other] and self.queues[other][0][0] is action for other in instances_of(action)
                ):
                    self._start(action)
                    changed = True

        for line in self.later:
            if line and line[0] not in self.started and all(self.later[i][0] is line[0] for i in line[0].group):
                self.started.append(line[0])

    def _stop(self, action: StopRequest) -> None:
        """Right after its KV is freed, on the same instances."""
        freed, self._freed = self._freed, None
        assert freed == (action.request_id, action.instances)

    def _enqueue(
        self, action: RunBatch | MigrateKV, instances: tuple[int, ...], named: list[tuple[str, int]]
    ) -> None:
        residences = {}
        for request_id, number in named:
            if request_id not in self.residences:  # numbers count up as residences begin
                assert number == self._num_begun
                self._num_begun += 1
            residence = residences[request_id] = self.residences.setdefault(request_id, Residence(request_id, number))
            assert residence.number == number
        self._residence_of[id(action)] = residences
        for instance in instances:
            self.queues[instance].append((action, None))

    def _submit_free(self, action: FreeKV) -> None:
        """Exactly the instances that hold the residence, once for each."""
        assert not action.ranges and self._freed is None
        (request_id,) = [name for name, residence in self.residences.items() if residence.number == action.residence]
        residence = self.residences.pop(request_id)
        self._freed = request_id, action.instances
        assert set(action.instances) == set(residence.counts()) and action.instances
        assert all(residence not in touched.values() for touched in self._residence_of.values())
        for instance in action.instances:
            self.queues[instance].append((action, residence))

    def _check_queue_is_legal(self, action: RunBatch | MigrateKV, instances: tuple[int, ...]) -> None:
        """At most one batch behind a running one, both decodes of the very same group."""
        for instance in instances:
            assert len(self.later[instance]) < self.most_in_flight, "too many in flight"
            ahead = [item for item, _ in self.queues[instance] if not isinstance(item, FreeKV)]
            if not ahead:
                continue
            assert len(ahead) == 1, "a third in line"
            assert self.stages == 1, "queued in a pipeline"
            assert isinstance(action, RunBatch) and isinstance(ahead[0], RunBatch), "queued at a migration"
            assert action.group == ahead[0].group, "queued behind another group"
            assert all(segment.length == 1 for segment in (*action.segments, *ahead[0].segments))

    def _start(self, action: RunBatch | MigrateKV) -> None:
        self.started.append(action)
        residences = self._residence_of[id(action)]
        if isinstance(action, RunBatch):
            for segment in action.segments:
                self._store(segment, residences[segment.request_id].owner)
            return
        owner = residences[action.request_id].owner
        for start, end in action.ranges:
            assert all(owner[token] == action.source for token in range(start, end))
        self._take(action.target, action.num_tokens)

    def _store(self, segment: Segment, owner: dict[int, int]) -> None:
        held = Counter(instance for token, instance in owner.items() if token < segment.start)
        assert sum(held.values()) == segment.start, "the context has holes"
        assert segment.context == tuple(sorted(held.items()))
        for kept in segment.store:
            for token in range(kept.start, kept.end):
                assert token not in owner, "a token has two owners"
                owner[token] = kept.instance
            self._take(kept.instance, kept.length)
        assert all(token in owner for token in range(segment.end))

    def _free(self, instance: int, residence: Residence) -> None:
        mine = [token for token, holder in residence.owner.items() if holder == instance]
        assert mine, "nothing to free"
        for token in mine:
            del residence.owner[token]
        self.used[instance] -= len(mine)

    def _take(self, instance: int, tokens: int) -> None:
        self.used[instance] += tokens
        assert self.used[instance] <= self.capacity, "out of slots"


def instances_of(action: RunBatch | MigrateKV) -> tuple[int, ...]:
    return action.group if isinstance(action, RunBatch) else (action.source, action.target)
