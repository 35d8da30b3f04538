"""Data parallelism: a request belongs to one instance, and each instance serves its own as if it were alone."""

from __future__ import annotations

from abc import abstractmethod

from longspan.core.books.cluster import Instance
from longspan.core.books.request import Request, RequestStatus
from longspan.core.decision import Decision
from longspan.core.news import News
from longspan.core.policies.base import Policy
from longspan.core.policies.parts.lanes import Lane, Rank
from longspan.core.policies.parts.refusal import refuse_the_too_long
from longspan.core.state import SchedulerState


class DataParallel(Policy):
    """A frame: newcomers go to the instance with the least load, in requests; subclasses say what an instance runs.

    A request that no instance can hold alone is refused.
    """

    keeps_on_one_instance = True

    def __init__(self, **options: object) -> None:
        super().__init__(**options)
        self._lanes: dict[int, Lane] = {}
        self._lane_of: dict[str, Lane] = {}
        self._open: list[Lane] = []

    def schedule(self, state: SchedulerState, news: News, now: float) -> None:
        for request in news.ended:
            self.let_go(request)
        self._follow_fleet(state, news, now)
        self._take_in(state, news, now)
        for instance in state.cluster.idle():
            lane = self._lanes[instance.id]
            if lane or lane.running:
                self.iterate(state, instance, lane, now)

    def looks_ahead(self, state: SchedulerState, now: float) -> bool:
        return not self._somebody_could_start(state, now) and super().looks_ahead(state, now)

    @abstractmethod
    def iterate(self, state: SchedulerState, instance: Instance, lane: Lane, now: float) -> None:
        """Run the next batch on an idle instance: something, if it is not at work, and its lane is not empty."""

    @abstractmethod
    def may_start(
        self, state: SchedulerState, instance: Instance, lane: Lane, request: Request, taken: int = 0
    ) -> bool:
        """Tell whether there is a place for a waiting request. taken: free slots that go to requests before it."""

    def rank(self, state: SchedulerState, request: Request, now: float) -> Rank:
        """Rank a request that begins to wait, new or preempted: first come first served."""
        return ()

    def first(self, lane: Lane, now: float) -> Request:
        """Return the waiting request that goes next."""
        return lane.first

    def let_go(self, request: Request) -> None:
        """Forget the request: it has finished, or was aborted."""
        self._lane_of.pop(request.id).drop(request)

    def preempt(self, state: SchedulerState, request: Request, now: float) -> None:
        """Drop its KV, to be computed again when its turn comes."""
        state.explain(Decision("preempt", (request.id,), state.placement.holders(request.id)))
        state.preempt(request.id)
        self._wait_again(request, self.rank(state, request, now))

    def _wait_again(self, request: Request, rank: Rank) -> None:
        """Let a preempted request wait where it was, unless nothing begins there any more."""
        lane = self._lane_of[request.id]
        if lane in self._open:
            lane.wait(request, rank)
        else:
            lane.drop(request)
            self._enter(request, rank)

    def _follow_fleet(self, state: SchedulerState, news: News, now: float) -> None:
        """Give each instance a lane; those that wait where nothing is to begin any more are dealt out anew."""
        for request in news.fleet.returned:
            if request.status is RequestStatus.WAITING:
                self._wait_again(request, self.rank(state, request, now))
        if not news.fleet.is_other and self._lanes and not news.fleet.moved:
            return
        before = self._lanes
        self._lanes = {instance.id: before.get(instance.id, Lane()) for instance in state.cluster.instances}
        staying = [self._lanes[each.id] for each in state.cluster.instances if not each.is_leaving]
        self._open = staying or list(self._lanes.values())
        for request in news.fleet.moved:
            if request.id in state.placement:
                self._lane_of[request.id].drop(request)
                lane = self._lane_of[request.id] = self._lanes[state.placement.last_holder(request.id)]
                lane.start(request)
        left = [request for lane in before.values() if lane not in self._open for request in lane]
        for request in sorted(left, key=lambda request: request.arrival_index):
            rank = self._lane_of[request.id].rank_of(request)
            self._lane_of[request.id].drop(request)
            self._enter(request, rank)

    def _enter(self, request: Request, rank: Rank) -> None:
        """Let it wait where the load is least."""
        lane = self._lane_of[request.id] = min(self._open, key=lambda lane: lane.load)
        lane.wait(request, rank)

    def _take_in(self, state: SchedulerState, news: News, now: float) -> None:
        refuse_the_too_long(state, news)
        for newcomer in news.arrived:
            if newcomer.status is RequestStatus.WAITING:
                self._enter(newcomer, self.rank(state, newcomer, now))

    def _somebody_could_start(self, state: SchedulerState, now: float) -> bool:
        """On an instance whose next iteration could be queued ahead; it would put off the newcomer's first."""
        return any(
            instance.queued is None
            and len(lane := self._lanes[instance.id]) > 0
            and self.may_start(state, instance, lane, self.first(lane, now))
            for instance in state.cluster.decoding()
        )
