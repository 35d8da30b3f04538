"""What workers would do with the actions, reduced to KV slots: an independent check of the scheduler's books.

It knows whose token each slot was computed for. So a request that refers to what others have computed is found out if
these had other tokens before it, or if the slot has been freed meanwhile.

Each instance does its actions first in, first out. A batch or a migration starts when it is first at all of
its instances, and stays first there until the driver completes it. Nothing here reads the scheduler's state.

With several pipeline stages that is the first one. A batch that leaves it comes to the end of another line, the later
stages', and is through when it is first in that at all of its instances. Slots are counted in the first stage. As many
batches may be in flight as there are stages, and one more where there are four or more.

An instance that is lost has nothing any more. Void work is undone; it must be just what cannot go on.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from longspan.core.actions import CancelBatch, FreeKV, MigrateKV, RunBatch, Segment, StopRequest

Item = RunBatch | MigrateKV | FreeKV


@dataclass(eq=False)
class Residence:
    """KV from its first prefill to its FreeKV. number: what the actions call it.

    owner, writer: of the token at each position, the instance, and the request for which it was computed.
    """

    number: int
    owner: dict[int, int] = field(default_factory=dict)
    writer: dict[int, str] = field(default_factory=dict)

    def counts(self, start: int = 0, end: int | None = None) -> Counter[int]:
        """How many tokens each instance has, of those at positions [start, end)."""
        if end is None:
            return Counter(self.owner.values())
        found = Counter(map(self.owner.get, range(start, end)))
        del found[None]
        return found  # type: ignore[return-value]  # None is gone

    def store(self, tokens: range, instance: int, request_id: str) -> None:
        assert not any(map(self.owner.__contains__, tokens)), "a token has two owners"
        self.owner.update(dict.fromkeys(tokens, instance))
        self.writer.update(dict.fromkeys(tokens, request_id))

    def has(self, tokens: range) -> bool:
        return all(map(self.owner.__contains__, tokens))


Chain = list[tuple[Residence, int, int]]
"""The residences of a request, with the positions in each that are its own: [start, end)."""


class WorkerModel:
    def __init__(self, num_instances: int, capacity: int, stages: int = 1) -> None:
        self.stages = stages
        self.most_in_flight = stages + 1 if stages >= 4 else stages
        self.later: list[deque[RunBatch]] = [deque() for _ in range(num_instances)]
        self.capacity = capacity
        self.used = [0] * num_instances
        self.queues: list[deque[tuple[Item, int]]] = [deque() for _ in range(num_instances)]
        self.residences: dict[str, Chain] = {}  # of the requests that refer to some
        self.started: list[RunBatch | MigrateKV] = []
        self.tokens: dict[str, list[int]] = {}  # as far as somebody says
        self._numbered: dict[int, Residence] = {}
        self._chains: dict[int, dict[str, Chain]] = {}
        self._freed: tuple[int, tuple[int, ...]] | None = None
        self._num_begun = 0
        self._stored: dict[int, list[tuple[Residence, range]]] = {}  # by batch that has begun, and is not through
        self.serving = set(range(num_instances))
        self.reserves = True  # whether requests may have slots set aside, of which nothing is known here

    @property
    def is_empty(self) -> bool:
        """Whether nothing is to be done, and no request refers to anything."""
        return not any(map(any, (self.queues, self.later))) and not self.residences and not self.started

    def submit(self, action: Item | StopRequest) -> None:
        if isinstance(action, StopRequest):
            self._stop(action)
        elif isinstance(action, FreeKV):
            self._submit_free(action)
        elif isinstance(action, MigrateKV):
            self._check_queue_is_legal(action, (action.source, action.target))
            self._enqueue(action, (action.source, action.target), [action])
        else:
            self._check_queue_is_legal(action, action.group)
            self._enqueue(action, action.group, action.segments)
        self.advance()

    def join(self, instance: int) -> None:
        assert instance not in self.serving and instance <= len(self.used)
        if instance == len(self.used):
            self.used.append(0)
            self.queues.append(deque())
            self.later.append(deque())
        self.serving.add(instance)

    def leave(self, instance: int) -> None:
        assert not self.used[instance] and not self.queues[instance] and not self.later[instance]
        self.serving.remove(instance)

    def lose(self, instance: int, cancel: CancelBatch | None) -> None:
        """The instance is gone, and with it what `cancel` says."""
        self.serving.remove(instance)
        void = self._void(instance)
        named = [work for work in self._in_flight() if cancel is not None and self._is_named(work, cancel)]
        assert all(work in named for work in void), "what cannot go on is not void"
        assert self.reserves or len(named) == len(void), "void without need"
        self.reserves = True  # for what is to be repaired
        if cancel is not None:
            assert len(named) == len(cancel.batch_ids) + len(cancel.migration_ids) > 0
            assert {member for work in named for member in instances_of(work)} - {instance} == set(cancel.instances)
        for work in named:
            self._undo(work)
        self.used[instance] = 0
        self.queues[instance].clear()
        assert not self.later[instance]
        for residence in self._numbered.values():
            for token in [token for token, owner in residence.owner.items() if owner == instance]:
                del residence.owner[token], residence.writer[token]
        self.advance()  # what is freed behind void work

    def _in_flight(self) -> list[RunBatch | MigrateKV]:
        found: dict[int, RunBatch | MigrateKV] = {}
        for line in self.later:
            found.update({id(batch): batch for batch in line})
        for queue in self.queues:
            found.update({id(work): work for work, _ in queue if not isinstance(work, FreeKV)})
        return list(found.values())

    def _is_named(self, work: RunBatch | MigrateKV, cancel: CancelBatch) -> bool:
        if isinstance(work, RunBatch):
            return work.batch_id in cancel.batch_ids
        return work.migration_id in cancel.migration_ids

    def _void(self, instance: int) -> list[RunBatch | MigrateKV]:
        """What is on the instance, and what is behind that, anywhere; all of requests that lose something."""
        void: list[RunBatch | MigrateKV] = []
        losing = {name for name, chain in self.residences.items() if any(r.counts(a, b)[instance] for r, a, b in chain)}
        in_flight = self._in_flight()
        found = [work for work in in_flight if instance in instances_of(work) or losing & self._chains[id(work)].keys()]
        while found:
            work = found.pop()
            if work in void:
                continue
            void.append(work)
            found += [each for each in in_flight if self._chains[id(each)].keys() & self._chains[id(work)].keys()]
            for member in instances_of(work):
                line = [*self.later[member], *[each for each, _ in self.queues[member]]]
                found += [each for each in line[line.index(work) + 1 :] if not isinstance(each, FreeKV)]
        return void

    def _undo(self, work: RunBatch | MigrateKV) -> None:
        has_begun = work in self.started or any(work in line for line in self.later)
        if work in self.started:
            self.started.remove(work)
        for member in instances_of(work):
            if work in self.later[member]:
                self.later[member].remove(work)  # type: ignore[arg-type]  # only batches are there
            else:
                self.queues[member] = deque(each for each in self.queues[member] if each[0] is not work)
        if has_begun and isinstance(work, MigrateKV):
            self.used[work.target] -= work.num_tokens
        for residence, tokens in self._stored.pop(id(work), []):
            for token in tokens:
                self.used[residence.owner.pop(token)] -= 1
                del residence.writer[token]
        del self._chains[id(work)]

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
            (chain,) = self._chains[id(action)].values()
            copy = Residence(action.into) if action.is_copy else None
            for start, end in action.ranges:
                for token in range(start, end):
                    if copy is not None:
                        copy.store(range(token, token + 1), action.target, of(chain, token).writer[token])
                    else:
                        of(chain, token).owner[token] = action.target
            if copy is not None:
                self._numbered[copy.number] = copy
            else:
                self.used[action.source] -= action.num_tokens
        self._stored.pop(id(action), None)
        del self._chains[id(action)]
        self.advance()

    def advance(self) -> None:
        """Do everything that is first in line."""
        changed = True
        while changed:
            changed = False
            for instance, queue in enumerate(self.queues):
                if not queue:
                    continue
                action, freed = queue[0]
                if isinstance(action, FreeKV):
                    self.used[instance] -= freed
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
        """Where it held KV. Without keys that has just been freed, on the same instances."""
        chain = self.residences.pop(action.request_id)
        assert all(action.request_id not in chains for chains in self._chains.values())
        held = sum([residence.counts(start, end) for residence, start, end in chain], Counter())
        if not chain[-1][0].owner and self._freed is None:  # all is lost, or nothing was stored
            assert not action.instances or action.request_id in self.tokens
            if not any(each is chain[-1][0] for other in self.residences.values() for each, _, _ in other):
                self._numbered.pop(chain[-1][0].number, None)
        elif action.request_id not in self.tokens:
            assert self._freed == (chain[-1][0].number, action.instances)
            assert chain[-1][0].number not in self._numbered
        elif self._freed is None:
            assert set(action.instances) == set(held)
        self._freed = None

    def _enqueue(
        self, action: RunBatch | MigrateKV, instances: tuple[int, ...], named: Sequence[Segment | MigrateKV]
    ) -> None:
        if isinstance(action, MigrateKV) and not action.request_id:
            self._chains[id(action)] = {f"migration {action.migration_id}": self._cached_chain(action)}
        else:
            self._chains[id(action)] = {each.request_id: self._chain(each) for each in named}
        for instance in instances:
            self.queues[instance].append((action, 0))

    def _cached_chain(self, action: MigrateKV) -> Chain:
        """What moves of a prefix, and what is before it: it is there, and no request refers to what moves."""
        chain: Chain = []
        for number, end in (*action.earlier, (action.residence, action.ranges[-1][1])):
            begin = chain[-1][2] if chain else 0
            assert begin < end and self._numbered[number].has(range(begin, end))
            chain.append((self._numbered[number], begin, end))
        if action.is_copy:  # numbers count up as residences begin
            assert action.into == self._num_begun
            self._num_begun += 1
            return chain
        moving = {(id(of(chain, token)), token) for start, end in action.ranges for token in range(start, end)}
        for theirs in self.residences.values():
            for residence, start, end in theirs:
                last = max(end, 1 + max(residence.owner, default=-1)) if residence is theirs[-1][0] else end
                assert moving.isdisjoint((id(residence), token) for token in range(start, last))
        return chain

    def _chain(self, named: Segment | MigrateKV) -> Chain:
        """The residences of a request that begins, or of one that goes on in them."""
        before = self.residences.get(named.request_id)
        for place, (residence, _, _) in enumerate(before[:-1] if before else ()):
            if residence.number == named.residence:  # what it has adopted is computed again
                assert [(each[0].number, each[2]) for each in before[:place]] == list(named.earlier)
                return before[: place + 1]
        chain: Chain = []
        position = 0
        for number, end in named.earlier:
            chain.append((self._numbered[number], position, end))
            assert position < end
            position = end
        if named.residence not in self._numbered:  # numbers count up as residences begin
            assert named.residence == self._num_begun and before is None
            self._num_begun += 1
            self._numbered[named.residence] = Residence(named.residence)
        end = max(named.end if isinstance(named, Segment) else 0, before[-1][2] if before else 0)
        chain.append((self._numbered[named.residence], position, end))
        if before is not None:
            assert [(each[0], each[1]) for each in before] == [(each[0], each[1]) for each in chain]
        writers = [other for other, theirs in self.residences.items() if theirs[-1][0] is chain[-1][0]]
        assert writers in ([], [named.request_id]), "two requests write one residence"
        self.residences[named.request_id] = chain
        return chain

    def _submit_free(self, action: FreeKV) -> None:
        """Exactly the instances that hold it, once for each; and no request refers to it, or it has just ended."""
        residence = self._numbered[action.residence]
        ranges = action.ranges or ((0, 1 + max(residence.owner, default=-1)),)
        held = sum([residence.counts(start, end) for start, end in ranges], Counter())
        assert set(action.instances) == set(held) and action.instances
        for chains in self._chains.values():
            for chain in chains.values():
                for theirs, start, end in chain:
                    assert theirs is not residence or all(end <= low or start >= high for low, high in ranges)
        if not action.ranges:
            del self._numbered[action.residence]
        self._freed = action.residence, action.instances
        for token in [token for token in residence.owner if any(low <= token < high for low, high in ranges)]:
            del residence.owner[token], residence.writer[token]
        for instance in action.instances:
            self.queues[instance].append((action, held[instance]))

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
        chains = self._chains[id(action)]
        if isinstance(action, RunBatch):
            for segment in action.segments:
                self._store(action, segment, chains[segment.request_id])
            return
        (chain,) = chains.values()
        assert action.parts == _parts(action, chain)
        for start, end in action.ranges:
            assert all(of(chain, token).owner[token] == action.source for token in range(start, end))
        self._take(action.target, action.num_tokens)

    def _store(self, action: RunBatch, segment: Segment, chain: Chain) -> None:
        own, request_id = chain[-1][0], segment.request_id
        before = parts(chain, segment.start)
        held = sum([residence.counts(tokens.start, tokens.stop) for residence, tokens in before], Counter())
        assert sum(held.values()) == segment.start, "the context has holes"
        assert segment.context == tuple(sorted(held.items()))
        self._check_it_is_of_these_tokens(segment, chain)
        for kept in segment.store:
            tokens = range(kept.start, kept.end)
            own.store(tokens, kept.instance, request_id)
            self._stored.setdefault(id(action), []).append((own, tokens))
            self._take(kept.instance, kept.length)
        assert all(residence.has(tokens) for residence, tokens in parts(chain, segment.end))

    def _check_it_is_of_these_tokens(self, segment: Segment, chain: Chain) -> None:
        """A token's KV depends on all tokens before it: what others have computed is right if they began alike."""
        last: dict[str, int] = {}
        for residence, tokens in parts(chain, segment.start):
            last |= zip(map(residence.writer.__getitem__, tokens), tokens, strict=True)
        for writer, token in last.items():
            if writer != segment.request_id:
                mine, theirs = self.tokens[segment.request_id], self.tokens[writer]
                assert len(theirs) > token and mine[: token + 1] == theirs[: token + 1], "the KV of other tokens"

    def _take(self, instance: int, tokens: int) -> None:
        self.used[instance] += tokens
        assert self.used[instance] <= self.capacity, "out of slots"


def parts(chain: Chain, end: int) -> list[tuple[Residence, range]]:
    """Where the tokens before position `end` are; those beyond all residences are to be in the last one."""
    last, start, _ = chain[-1]
    return [(each, range(begin, min(stop, end))) for each, begin, stop in chain[:-1]] + [(last, range(start, end))]


def of(chain: Chain, token: int) -> Residence:
    """The residence of a request that has the token at this position, or will have it."""
    return next((residence for residence, start, end in chain if start <= token < end), chain[-1][0])


def _parts(action: MigrateKV, chain: Chain) -> list[tuple[int, tuple[tuple[int, int], ...]]]:
    """By residence, token by token."""
    tokens: dict[int, list[tuple[int, int]]] = {}
    for start, end in action.ranges:
        for token in range(start, end):
            pieces = tokens.setdefault(of(chain, token).number, [])
            if pieces and pieces[-1][1] == token and token != start:
                pieces[-1] = (pieces[-1][0], token + 1)
            else:
                pieces.append((token, token + 1))
    return [(number, tuple(pieces)) for number, pieces in tokens.items()]


def instances_of(action: RunBatch | MigrateKV) -> tuple[int, ...]:
    return action.group if isinstance(action, RunBatch) else (action.source, action.target)
