"""The policy that runs an episode, step by step, and takes the time of each."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from longspan.core.actions import Segment
from longspan.core.batch_rules import involved_instances
from longspan.core.episode import Episode, Iterate, Move, Timed
from longspan.core.state import SchedulerState


class EpisodePolicy:
    """Waits for all requests of an episode, then does exactly what it says. One episode at a time.

    Needs a scheduler that does not look ahead.
    """

    name = "episode"
    needs_cost_model = False

    def __init__(self) -> None:
        self._episode = Episode((), 1, ())
        self._ids: tuple[str, ...] = ()
        self._all_are_here = False
        self._begun: float | None = None
        self._seconds: list[list[float]] = []

    def begin(self, episode: Episode, request_ids: Sequence[str]) -> None:
        """To be called before its requests arrive."""
        self._episode, self._ids = episode, tuple(request_ids)
        self._all_are_here = False
        self._seconds = [[]]

    def timed(self) -> list[Timed]:
        """What has run of the present episode, in its order."""
        works = [work for work, _ in self._episode.work()]
        return [
            Timed(work, statistics.median(seconds[1:] or seconds))
            for work, seconds in zip(works, self._seconds, strict=False)
            if seconds
        ]

    def schedule(self, state: SchedulerState, now: float) -> None:
        if any(instance.is_working for instance in state.cluster.instances):
            return
        if self._begun is not None:
            self._take_time(now - self._begun)
            self._begun = None
        self._all_are_here = self._all_are_here or len(state.waiting) == len(self._ids)
        if self._all_are_here and len(self._seconds) <= len(self._episode.steps):
            step = self._episode.steps[len(self._seconds) - 1]
            if isinstance(step, Move):
                self._move(state, step)
            else:
                self._iterate(state, step)
            self._begun = now

    def _take_time(self, seconds: float) -> None:
        """A step that has run as often as it should makes room for the next."""
        step = self._episode.steps[len(self._seconds) - 1]
        self._seconds[-1].append(seconds)
        if len(self._seconds[-1]) == (step.times if isinstance(step, Iterate) else 1):
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

    def _move(self, state: SchedulerState, step: Move) -> None:
        request_id = self._ids[step.request]
        ranges = [(r.start, r.end) for r in state.placement.ranges(request_id) if r.instance == step.source]
        state.migrate(request_id, step.source, step.target, ranges)


def _evenly(tokens: int, instances: Sequence[int]) -> list[tuple[int, int]]:
    """Shares of the tokens, in order; the first ones are one larger where they must be."""
    share, rest = divmod(tokens, len(instances))
    shares = [(instance, share + (instance < rest)) for instance in instances]
    return [(instance, size) for instance, size in shares if size]
