"""FastServe: a skip-join multi-level feedback queue (arXiv 2305.05920; NSDI'26).

Queue p has a quantum of base x ratio^p seconds. A job joins the first queue whose quantum covers its prefill, and skips
those above; each iteration goes to the first jobs of the highest queues; a job that has used up its quantum goes down
one queue; one that has not run for long goes to the top.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from longspan.config import check_seconds
from longspan.core.books.cluster import Instance
from longspan.core.books.request import Request, RequestStatus
from longspan.core.costs.cost_model import Chunk
from longspan.core.decision import Decision
from longspan.core.news import News
from longspan.core.policies.parts.data_parallel import DataParallel
from longspan.core.policies.parts.lanes import Lane, Rank
from longspan.core.policies.parts.mixed_batch import MixedBatch
from longspan.core.state import SchedulerState
from longspan.errors import ConfigError


@dataclass(slots=True)
class Job:
    """A job's place in the queues.

    queue: its number, 0 is the highest. entered: when it came there, counted in such moments.
    served_s: of its quantum there. ran: when it last ran, or arrived; time. began: when its batch was issued; None if
    it is in none.
    """

    queue: int
    entered: int
    ran: float
    served_s: float = 0.0
    began: float | None = None

    @property
    def rank(self) -> Rank:
        return (self.queue, self.entered)


class FastServe(DataParallel):
    """Preemption at every iteration, of whole prompts and single tokens; prompts are not chunked.

    There is no swapping here. The KV of a paused job stays where it is, and a new job for which there is no memory
    waits, and with it those that wait below it. Only if no decode at all finds a slot is the last job in rank computed
    again. Every iteration generates a token, and none is ever lost, so this comes to an end.

    No job starves: a job that has not run for `starvation_s` goes to the end of the highest queue, and each job before
    it there leaves that queue after a quantum, or an iteration.
    """

    @dataclass(frozen=True)
    class Options(DataParallel.Options):
        """By default as in the released code (fastserve/scheduler.py).

        quantum_s: of the highest queue, seconds. ratio: of each queue's quantum to that of the one above.
        starvation_s: a job that has not run for so many seconds goes to the top.
        """

        quantum_s: float = 0.01
        ratio: float = 2.0
        starvation_s: float = 3.0

        def __post_init__(self) -> None:
            check_seconds("quantum_s", self.quantum_s)
            check_seconds("starvation_s", self.starvation_s, may_be_0=True)
            if not 1.0 < self.ratio < float("inf"):
                raise ConfigError(f"ratio is {self.ratio}, but must be above 1")

    name = "fastserve"
    needs_cost_model = True
    options: Options

    def __init__(self, **options: object) -> None:
        super().__init__(**options)
        self._jobs: dict[str, Job] = {}
        self._moments = 0
        self._began_to_wait: deque[tuple[float, Request]] = deque()

    def schedule(self, state: SchedulerState, news: News, now: float) -> None:
        self._promote_who_waits(state, now)
        super().schedule(state, news, now)

    def quantum(self, queue: int) -> float:
        """Return the quantum of a queue, in seconds."""
        return self.options.quantum_s * self.options.ratio**queue

    def rank(self, state: SchedulerState, request: Request, now: float) -> Rank:
        """Return the rank by skip-join; a preempted request keeps its place."""
        self._began_to_wait.append((now, request))
        job = self._jobs.get(request.id)
        if job is None:
            chunk = Chunk(request.num_tokens - request.num_known, request.num_known)
            prefill_s = state.cost_model.prefill((chunk,), 1)
            queue = 0
            while self.quantum(queue) < prefill_s:
                queue += 1
            job = self._jobs[request.id] = Job(queue, self._moment(), now)
            state.explain(Decision("join", (request.id,), predicted={"queue": queue, "prefill_s": prefill_s}))
        return job.rank

    def let_go(self, request: Request) -> None:
        super().let_go(request)
        del self._jobs[request.id]

    def may_start(
        self, state: SchedulerState, instance: Instance, lane: Lane, request: Request, taken: int = 0
    ) -> bool:
        return state.need(request, [instance.id]) <= instance.room - taken

    def iterate(self, state: SchedulerState, instance: Instance, lane: Lane, now: float) -> None:
        self._charge(state, lane, now)
        self._promote(state, lane, now)
        batch = self._fill(state, instance, lane)
        while not batch and not instance.is_working:
            self.preempt(state, max(lane.running.values(), key=self._key), now)
            batch = self._fill(state, instance, lane)
        for request in batch.requests:
            if request.status is RequestStatus.WAITING:
                lane.start(request)
            self._jobs[request.id].began = now
        batch.run()

    def _key(self, request: Request) -> Rank:
        return self._jobs[request.id].rank

    def _moment(self) -> int:
        self._moments += 1
        return self._moments

    # from queue to queue

    def _charge(self, state: SchedulerState, lane: Lane, now: float) -> None:
        """Whoever comes out of a batch has used up of its quantum what that took."""
        for request in lane.runnable():
            job = self._jobs[request.id]
            if job.began is not None:
                job.ran = now
                job.served_s += now - job.began
                job.began = None
                if job.served_s > self.quantum(job.queue):
                    self._move(state, request, job.queue + 1, "demote")

    def _promote(self, state: SchedulerState, lane: Lane, now: float) -> None:
        """Whoever has KV, and has not run for long."""
        for request in lane.runnable():
            job = self._jobs[request.id]
            if job.queue and now - job.ran >= self.options.starvation_s:
                self._move(state, request, 0, "promote")

    def _promote_who_waits(self, state: SchedulerState, now: float) -> None:
        while self._began_to_wait and now - self._began_to_wait[0][0] >= self.options.starvation_s:
            since, request = self._began_to_wait.popleft()
            job = self._jobs.get(request.id)
            if job is not None and request.status is RequestStatus.WAITING and job.queue and job.ran <= since:
                self._move(state, request, 0, "promote")
                self._lane_of[request.id].wait(request, job.rank)

    def _move(self, state: SchedulerState, request: Request, queue: int, step: str) -> None:
        job = self._jobs[request.id]
        state.explain(Decision(step, (request.id,), predicted={"queue": queue, "served_s": job.served_s}))
        job.queue, job.entered, job.served_s = queue, self._moment(), 0.0

    # the next iteration

    def _fill(self, state: SchedulerState, instance: Instance, lane: Lane) -> MixedBatch:
        """In order of rank, as many as the batch holds; decodes as long as there are slots."""
        batch = MixedBatch(state, instance, instance.free)
        jobs = [*lane.runnable(), *self._newcomers(state, instance, lane)]
        for request in sorted(jobs, key=self._key)[: state.config.max_batch_requests]:
            batch.add(request)
        return batch

    def _newcomers(self, state: SchedulerState, instance: Instance, lane: Lane) -> list[Request]:
        """Those that wait and have room when all decodes have theirs; nobody passes one that has none."""
        newcomers: list[Request] = []
        taken = sum(not request.promised for request in lane.running.values())
        tokens = 0
        for request in lane:
            tokens += request.tokens_to_compute
            if (newcomers and tokens > state.config.max_batch_tokens) or not self.may_start(
                state, instance, lane, request, taken
            ):
                break
            taken += state.need(request, [instance.id])
            newcomers.append(request)
        return newcomers
