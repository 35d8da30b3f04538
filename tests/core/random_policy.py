"""A policy that makes arbitrary legal choices, to exercise the state independently of any real policy."""

from __future__ import annotations

import random

from longspan.core.actions import Segment
from longspan.core.books.cluster import Instance
from longspan.core.books.request import Request, RequestStatus
from longspan.core.news import News
from longspan.core.policies.base import Policy
from longspan.core.state import SchedulerState


class RandomPolicy(Policy):
    """Chunks, rings, retention splits, masters, migrations, preemptions and refusals at random."""

    name = "random"

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.rng = random.Random(seed)
        self.rng_of_copies = random.Random(seed)

    def schedule(self, state: SchedulerState, news: News, now: float) -> None:
        acts = (self._batch, self._batch, self._batch, self._migrate, self._preempt, self._refuse)
        self._copy(state)
        for _ in range(self.rng.randrange(4)):
            self.rng.choice(acts)(state)
        if not any(instance.is_working for instance in state.cluster.instances):
            self._make_progress(state)

    def _batch(self, state: SchedulerState) -> None:
        """Some requests, on some of the idle instances; prefill chunks and decodes may share the batch."""
        idle = self._some(state.cluster.idle())
        if not idle:
            return
        segments: list[Segment] = []
        ring = [instance.id for instance in idle][: self.rng.randint(1, 4)]
        chosen = self._some([*_ready(state), *_flowing(state), *state.waiting])[: self.rng.randint(1, 5)]
        self._adopt(state, chosen, [instance.id for instance in idle])
        free = {instance.id: instance.unreserved for instance in idle}
        for request in chosen:
            if set(state.placement.holders(request.id)) <= free.keys():
                segment = self._segment(state, request, ring, free)
                if segment is not None:
                    segments.append(segment)
        if segments:
            state.run_batch(_members(segments), segments)
        for request in chosen:
            state.disown(request)

    def _adopt(self, state: SchedulerState, requests: list[Request], instances: list[int]) -> None:
        """Mostly those that start take over what these instances have of their tokens."""
        for request in requests:
            if request.prefix_keys and self.rng.random() < 0.8:
                state.adopt(request, instances)

    def _segment(
        self, state: SchedulerState, request: Request, ring: list[int], free: dict[int, int]
    ) -> Segment | None:
        """A decode token or a chunk; `free` is what is left for the batch."""
        if request.status is RequestStatus.DECODING:
            able = [number for number, slots in free.items() if slots > 0]
            if not able:
                return None
            master = self.rng.choice(able)
            free[master] -= 1
            return state.decode_segment(request, master)
        shift = self.rng.randrange(len(ring))
        compute = ring[shift:] + ring[:shift] if self.rng.random() < 0.7 else [self.rng.choice(ring)]
        left = request.num_tokens - request.num_stored
        length = min(self._chunk(left), sum(free[number] for number in compute))
        if length == 0:
            return None
        retention = self._keep(request.num_stored, length, compute, free)
        for number, share in retention:
            free[number] -= share
        if not retention:
            return None
        compute, cuts = self._lay_out(request.num_stored, sum(share for _, share in retention), compute)
        return state.prefill_segment(request, compute, retention, cuts)

    def _lay_out(self, start: int, length: int, compute: list[int]) -> tuple[list[int], list[int]]:
        """Who computes in which order, and where the tokens are cut: here nowhere, they are striped."""
        return compute, []

    def _chunk(self, left: int) -> int:
        """How many of a prompt's tokens that are left come next."""
        return self.rng.choice((left, self.rng.randint(1, left)))

    def _keep(self, start: int, length: int, compute: list[int], free: dict[int, int]) -> list[tuple[int, int]]:
        """Who keeps how many of the tokens from `start` on, in order; maybe not all of them."""
        retention: list[tuple[int, int]] = []
        for number in self.rng.sample(compute, len(compute)):
            most = min(length, free[number])
            share = most if self.rng.random() < 0.5 else self.rng.randint(0, most)
            if share:
                retention.append((number, share))
                length -= share
        return retention

    def _migrate(self, state: SchedulerState) -> None:
        """Random pieces of what a ready request has on one idle instance, to another."""
        ready = _ready(state)
        if not ready:
            return
        request = self.rng.choice(ready)
        idle = state.cluster.idle()
        sources = [instance.id for instance in idle if instance.id in state.placement.holders(request.id)]
        targets = [instance for instance in idle if instance.id not in sources[:1] and instance.unreserved > 0]
        if not sources or not targets:
            return
        target, slots = targets[0].id, targets[0].unreserved
        ranges: list[tuple[int, int]] = []
        for piece in state.placement.ranges(request.id):
            if piece.instance == sources[0] and slots > 0:
                start = self.rng.randint(piece.start, piece.end - 1)
                end = min(self.rng.randint(start + 1, piece.end), start + slots)
                ranges.append((start, end))
                slots -= end - start
        state.migrate(request.id, sources[0], target, ranges)

    def _copy(self, state: SchedulerState) -> None:
        """Now and then what one idle instance has of a waiting request's prefix, to another."""
        idle = [instance.id for instance in state.cluster.idle() if not instance.is_leaving]
        waiting = [request for request in state.waiting if state.cached(request)]
        if len(idle) > 1 and waiting and self.rng_of_copies.random() < 0.3:
            source, target = self.rng_of_copies.sample(idle, 2)
            state.copy(self.rng_of_copies.choice(waiting), source, target)

    def _preempt(self, state: SchedulerState) -> None:
        ready = _ready(state)
        if ready and self.rng.random() < 0.1:
            state.preempt(self.rng.choice(ready).id)

    def _refuse(self, state: SchedulerState) -> None:
        if state.waiting and self.rng.random() < 0.05:
            state.refuse(self.rng.choice(list(state.waiting)).id, "The dice said no.")

    def _make_progress(self, state: SchedulerState) -> None:
        """Nothing runs: let the oldest request go on alone, with all the room there is."""
        oldest = min([*_ready(state), *state.waiting], key=lambda r: r.arrival_index, default=None)
        if oldest is None:
            return
        for request in _ready(state):
            if request is not oldest and self.rng.random() < 0.5:
                state.preempt(request.id)
        self._adopt(state, [oldest], [instance.id for instance in state.cluster.instances])
        length = self._chunk(oldest.num_tokens - oldest.num_stored)
        while sum(i.unreserved for i in state.cluster.instances) < length:
            state.preempt(max((r for r in _ready(state) if r is not oldest), key=lambda r: r.arrival_index).id)
        instances = sorted(state.cluster.instances, key=lambda instance: -instance.unreserved)
        if oldest.status is RequestStatus.DECODING:
            segment = state.decode_segment(oldest, instances[0].id)
        else:
            segment = state.prefill_segment(oldest, [i.id for i in instances], _fill(length, instances))
        state.run_batch(_members([segment]), [segment])

    def _some(self, items: list) -> list:  # type: ignore[type-arg]
        return self.rng.sample(items, self.rng.randint(1, len(items))) if items else []


def _fill(left: int, instances: list[Instance]) -> list[tuple[int, int]]:
    kept = []
    for instance in instances:
        share = min(left, instance.unreserved)
        left -= share
        if share:
            kept.append((instance.id, share))
    return kept


def _ready(state: SchedulerState) -> list[Request]:
    ready = {r.id: r for instance in state.cluster.instances for r in instance.ready.values()}
    return sorted(ready.values(), key=lambda request: request.arrival_index)


def _flowing(state: SchedulerState) -> list[Request]:
    flowing = {r.id: r for instance in state.cluster.instances for r in instance.flowing.values()}
    return sorted(flowing.values(), key=lambda request: request.arrival_index)


def _members(segments: list[Segment]) -> tuple[int, ...]:
    members: set[int] = set()
    for segment in segments:
        members.update(segment.compute, (i for i, _ in segment.context), (r.instance for r in segment.store))
    return tuple(sorted(members))
