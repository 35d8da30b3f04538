"""The fair sojourn protocol, as PSBS has it (Dell'Amico, Carra, Michiardi, arXiv 1506.09158; the authors' simulator,
bigfootproject/schedsim, has it without weights as `FSP_plus_PS`).

Prompts are served one after the other, in the order in which processor sharing would end them. So each ends no later
than if all were served alike (the paper's theorem on Pri), and deadlines are nobody's concern.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from longspan.core.books.request import Request, RequestStatus
from longspan.core.news import News
from longspan.core.policies.chunked.adaptive import AdaptiveChunks
from longspan.core.policies.chunked.priority import N, Standing
from longspan.core.policies.chunked.ranking import Backlog
from longspan.core.policies.rivals.served import prefill_seconds
from longspan.core.policies.rivals.sharing import VirtualSharing
from longspan.core.state import SchedulerState
from longspan.errors import ConfigError

_MOST_PRIORITY = 20  # weights stay numbers


class Fsp(AdaptiveChunks):
    """FSP with PSBS's late set: who should have ended under processor sharing, but has not, is served before others.

    A job is a prompt's prefill, its size the predicted seconds alone. The paper's weights come from priorities, which
    here give a larger share, and no strict precedence.

    It departs from PSBS in this:

    - Processor sharing advances by the work that is done, not by the clock. It is as fast as the real server by
      definition, while nobody knows how fast that is beside decodes. So it is not errors of sizes that make jobs late,
      as in the paper, but instances, memory, and work that is done twice.
    - Late jobs share in turns, chunk by chunk: first goes who has got least since it should have ended, over its
      weight; it counts from the moment when that was, so that who was late first is somewhat ahead.
    - All instances are one server. What the first in rank leaves of an iteration goes to those behind.

    Nobody starves: a newcomer ends, under processor sharing, later than the work done until now; each job is late
    after a bounded amount of work, and then outranked by the late ones before it alone.
    """

    @dataclass(frozen=True)
    class Options(AdaptiveChunks.Options):
        """weight_step: a priority higher by one multiplies a request's share by so much; 1 makes all alike."""

        weight_step: float = 2.0

        def __post_init__(self) -> None:
            super().__post_init__()
            if not 1.0 <= self.weight_step <= 1000.0:
                raise ConfigError(f"weight_step is {self.weight_step}, but must be at least 1, and 1000 at most")

    name = "fsp"
    options: Options

    def __init__(self, **options: object) -> None:
        super().__init__(**options)
        self._backlog = Backlog(by_priority=False)
        self._sharing = VirtualSharing()
        self._alive: dict[str, Request] = {}
        self._ends: dict[str, float] = {}
        self._late: dict[str, float] = {}  # seconds of its work that were done when it should have ended

    def observe(self, state: SchedulerState, news: News, now: float) -> None:
        super().observe(state, news, now)
        predictor = self._predictor(state)
        done_s = sum([prefill_seconds(predictor, batch) for batch in news.completed])
        for name in self._sharing.work(done_s):
            request = self._alive.get(name)
            if request is not None:
                decodes = request.status is RequestStatus.DECODING  # it is done, unless it is preempted
                self._late[name] = 0.0 if decodes else predictor.prefill(request.num_stored)
        for request in news.ended:
            if request.end_reason == "aborted":
                self._sharing.leave(request.id)
            for known in (self._alive, self._ends, self._late):
                known.pop(request.id, None)
        if not self._alive:
            self._sharing.clear()
        for request in news.arrived:
            size_s = predictor.remaining(request)
            self._alive[request.id] = request
            self._ends[request.id] = self._sharing.arrive(request.id, size_s, self._weight(request))

    def _weight(self, request: Request) -> float:
        return self.options.weight_step ** max(-_MOST_PRIORITY, min(_MOST_PRIORITY, request.service.priority))

    def standing(self, state: SchedulerState, request: Request, now: float) -> Standing[float]:
        return replace(super().standing(state, request, now), tag=self._ends[request.id])

    def rule(self, standing: Standing[N]) -> N:
        """Order by the end under processor sharing; of those that wait, the late ones are first by that already."""
        return standing.tag

    def _key(self, request: Request, standing: Standing[float]) -> tuple[float, ...]:
        late_from_s = self._late.get(request.id)
        if late_from_s is None:
            return (1.0, standing.tag, request.arrival_index)
        got_s = max(0.0, standing.total_s - standing.remaining_s - late_from_s)
        return (0.0, standing.tag + got_s / self._weight(request), request.arrival_index)
