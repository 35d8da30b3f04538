"""The policy that runs an episode, step by step, and takes the time of each."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from longspan.core.actions import MigrateKV, RunBatch, Segment
from longspan.core.books.cluster import Work
from longspan.core.books.request import RequestStatus
from longspan.core.books.rules import involved_instances
from longspan.core.costs.episode import Episode, Iterate, Move, Step, Timed
from longspan.core.news import News
from longspan.core.policies.base import Policy
from longspan.core.state import SchedulerState


class EpisodePolicy(Policy):
    """Waits for all requests of an episode, then does exactly what it says. One episode at a time.

    Where the scheduler looks ahead, the iterations of a step that decodes are queued behind one another, as they are
    when it serves; the first of them alone waits for its decision. Where there is company, its first token comes first.
    """

    name = "episode"

    def __init__(self) -> None:
        super().__init__()
        self._episode = Episode((), 1, ())
        self._ids: tuple[str, ...] = ()
        self._other: str | None = None
        self._all_are_here = False
        self._work: Work[RunBatch] | Work[MigrateKV] | None = None
        self._begun = 0.0
        self._seconds: list[list[float]] = []

    def begin(self, episode: Episode, request_ids: Sequence[str], other: str | None = None) -> None:
        """Begin an episode, before its requests arrive. other: the request that is `beside` it."""
        self._episode, self._ids, self._other = episode, tuple(request_ids), other
        self._all_are_here = False
        self._seconds = [[]]

    def timed(self) -> list[Timed]:
        """Return what has run of the present episode, in its order."""
        works = [work for work, _ in self._episode.work()]
        return [
            Timed(work, statistics.fmean(seconds[1:]), seconds[0]) if len(seconds) > 1 else Timed(work, seconds[0])
            for work, seconds in zip(works, self._seconds, strict=False)
            if seconds
        ]

    def schedule(self, state: SchedulerState, news: News, now: float) -> None:
        self._follow(state, now)
        if any(request.id == self._other for request in news.ended):
            self._other = None  # in a small pool it may come to its end too early: the rest runs alone
        expected = len(self._ids) + (self._other is not None)
        self._all_are_here = self._all_are_here or len(state.waiting) == expected
        goes_on = self._all_are_here and len(self._seconds) <= len(self._episode.steps)
        if goes_on and self._work is None and self._has_company(state):
            step = self._step
            if isinstance(step, Move):
                self._move(state, step)
            else:
                self._iterate(state, step)
            self._follow(state, now)
        if goes_on and self._other is not None:
            self._occupy_other(state, self._other)

    def looks_ahead(self, state: SchedulerState, now: float) -> bool:
        """Tell whether to look ahead: not beyond the last iteration of a step."""
        is_last = self._work is not None and len(self._seconds[-1]) + 1 == _times(self._step)
        return not is_last and super().looks_ahead(state, now)

    @property
    def _step(self) -> Step:
        return self._episode.steps[len(self._seconds) - 1]

    def _follow(self, state: SchedulerState, now: float) -> None:
        """What ran has ended, or something begins to run."""
        instances = state.cluster.instances[: self._episode.instances]
        work = next((i.running or i.later[0] for i in instances if i.is_working), None)
        if work is not self._work:
            if self._work is not None:
                self._take_time(now - self._begun)
            self._work, self._begun = work, now

    def _take_time(self, seconds: float) -> None:
        """A step that has run as often as it should makes room for the next."""
        times = _times(self._step)
        self._seconds[-1].append(seconds)
        if len(self._seconds[-1]) == times:
            self._seconds.append([])

    def _iterate(self, state: SchedulerState, step: Iterate) -> None:
        instances = tuple(range(self._episode.instances))
        segments: list[Segment] = []
        for place, (request, tokens) in enumerate(step.chunks):
            turn = place % len(instances)  # so that not all leave their remainders to the same instance
            ring = instances[turn:] + instances[:turn]
            keep = _evenly(tokens, instances)
            segments.append(state.prefill_segment(state.request(self._ids[request]), ring, keep))
        for place, request in enumerate(step.decodes):
            segments.append(state.decode_segment(state.request(self._ids[request]), place % step.masters))
        state.run_batch(tuple(sorted(involved_instances(segments))), segments)

    def _has_company(self, state: SchedulerState) -> bool:
        """As it should, or it should have none."""
        return self._other is None or state.request(self._other).num_output_tokens > 0

    def _occupy_other(self, state: SchedulerState, request_id: str) -> None:
        """The last instance has something to do at every moment."""
        instance, request = state.cluster.instances[-1], state.request(request_id)
        if not instance.is_idle:
            return
        if self._episode.beside == "prefill" and request.is_ready:
            state.preempt(request_id)
        if request.status is RequestStatus.WAITING:
            kept = ((instance.id, request.tokens_to_compute),)
            state.run_batch((instance.id,), [state.prefill_segment(request, (instance.id,), kept)])
        elif request.is_ready:
            state.run_batch((instance.id,), [state.decode_segment(request, instance.id)])

    def _move(self, state: SchedulerState, step: Move) -> None:
        request_id = self._ids[step.request]
        held = state.placement.held(request_id, step.source)
        state.migrate(request_id, step.source, step.target, held)


def _times(step: Step) -> int:
    return step.times if isinstance(step, Iterate) else 1


def _evenly(tokens: int, instances: Sequence[int]) -> list[tuple[int, int]]:
    """Shares of the tokens, in order; the first ones are one larger where they must be."""
    share, rest = divmod(tokens, len(instances))
    shares = [(instance, share + (instance < rest)) for instance in instances]
    return [(instance, size) for instance, size in shares if size]
