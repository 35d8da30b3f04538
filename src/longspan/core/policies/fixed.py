"""A policy that does as it is told: for measurements, and for tests of single mechanisms.

One batch at a time over chosen instances; nothing adapts to load. Not in the registry: give it to `LLM(policy=...)`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from longspan.core.actions import Segment
from longspan.core.books.request import Request
from longspan.core.news import News
from longspan.core.policies.base import Policy
from longspan.core.policies.parts.adoption import adopt_each
from longspan.core.state import SchedulerState


class FixedPolicy(Policy):
    """Prefill striped over `compute`, KV kept evenly by `keepers`, decode by `masters`.

    masters: called with the number of the decode iteration, so that they may change in mid-decode. The requests of
        an iteration are dealt out over them in turn.
    migrations: called with the number of the iteration before it runs; (source, target) moves every token that the
        first ready request holds at source. None moves nothing.
    """

    name = "fixed"

    def __init__(
        self,
        compute: Sequence[int],
        keepers: Sequence[int] | None = None,
        masters: Callable[[int], Sequence[int]] | None = None,
        migrations: Callable[[int], tuple[int, int] | None] = lambda _: None,
        max_prefill_tokens: int = 4096,
    ) -> None:
        super().__init__()
        self.compute = tuple(compute)
        self.keepers = tuple(keepers if keepers is not None else compute)
        self.masters = masters or (lambda _: self.keepers[:1])
        self.migrations = migrations
        self.max_prefill_tokens = max_prefill_tokens
        self.iteration = 0
        self._migrated_for = -1

    def schedule(self, state: SchedulerState, news: News, now: float) -> None:
        if len(state.cluster.idle()) < len(state.cluster):
            return
        if len(state.waiting):
            self._prefill(state)
        elif (ready := _ready(state)) and not self._migrate(state, ready[0]):
            self._decode(state, ready)

    def _prefill(self, state: SchedulerState) -> None:
        batch: list[Request] = []
        tokens = 0
        for request in state.waiting:
            if batch and tokens + request.tokens_to_compute > self.max_prefill_tokens:
                break
            batch.append(request)
            tokens += request.tokens_to_compute
        adopt_each(state, batch, self.compute)
        segments = [
            state.prefill_segment(
                request, _turned(self.compute, place), _evenly(request.tokens_to_compute, self.keepers)
            )
            for place, request in enumerate(batch)
        ]
        state.run_batch(_members(segments), segments)

    def _migrate(self, state: SchedulerState, request: Request) -> bool:
        move = self.migrations(self.iteration)
        if move is None or self._migrated_for == self.iteration:
            return False
        self._migrated_for = self.iteration
        source, target = move
        ranges = state.placement.held(request.id, source)
        if ranges:
            state.migrate(request.id, source, target, ranges)
        return bool(ranges)

    def _decode(self, state: SchedulerState, ready: list[Request]) -> None:
        masters = self.masters(self.iteration)
        self.iteration += 1
        segments = [
            state.decode_segment(request, masters[place % len(masters)]) for place, request in enumerate(ready)
        ]
        state.run_batch(_members(segments), segments)


def _ready(state: SchedulerState) -> list[Request]:
    ready = {r.id: r for instance in state.cluster.instances for r in instance.ready.values()}
    return sorted(ready.values(), key=lambda request: request.arrival_index)


def _members(segments: Sequence[Segment]) -> tuple[int, ...]:
    """Everyone who computes, stores or holds context."""
    members = {i for s in segments for i in s.compute}
    members |= {r.instance for s in segments for r in s.store}
    members |= {i for s in segments for i, _ in s.context}
    return tuple(sorted(members))


def _turned(instances: tuple[int, ...], places: int) -> tuple[int, ...]:
    turn = places % len(instances)
    return instances[turn:] + instances[:turn]


def _evenly(tokens: int, keepers: tuple[int, ...]) -> list[tuple[int, int]]:
    """Shares of the tokens, in order; the first ones are one larger where they must be."""
    share, rest = divmod(tokens, len(keepers))
    shares = [(keeper, share + (place < rest)) for place, keeper in enumerate(keepers)]
    return [(keeper, size) for keeper, size in shares if size]
