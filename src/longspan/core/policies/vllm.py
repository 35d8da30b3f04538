"""vLLM's scheduler: iterations of a fixed number of tokens, first come first served, recompute when memory is full.

The scheduler of its V1 engine (vllm/v1/core/sched/scheduler.py), with the defaults of version 0.33. The version that
LoongServe compares itself with, 0.3.0, did not chunk prompts: it prefilled whole ones, before any decode, as the policy
`static_tp` does; there it ran as one instance of all devices.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

from longspan.config import check_count
from longspan.core.actions import KVRange
from longspan.core.books.cluster import Instance
from longspan.core.books.request import Request
from longspan.core.policies.parts.adoption import adopt_each
from longspan.core.policies.parts.data_parallel import DataParallel
from longspan.core.policies.parts.lanes import Lane
from longspan.core.policies.parts.mixed_batch import MixedBatch
from longspan.core.state import SchedulerState


class FilledBatches(DataParallel):
    """A frame. An iteration: first those that run, decodes before the prompt that is half done, then those that wait.

    Waiting requests are admitted in order, if all their known tokens have room (`scheduler_reserve_full_isl`); here
    they are set aside. If decodes outnumber the free slots, the latest arrival goes back to its place in the queue, and
    none is admitted in this iteration. So the oldest request on an instance always goes on, and comes to its end.
    """

    @abstractmethod
    def budget(self, state: SchedulerState) -> int:
        """Return how many tokens a batch has."""

    def piece(self, state: SchedulerState) -> int | None:
        """Return how many tokens of one prompt a batch has, at most."""
        return None

    def iterate(self, state: SchedulerState, instance: Instance, lane: Lane, now: float) -> None:
        preempted = self.make_room(state, instance, lane, now)
        batch = MixedBatch(state, instance, self.budget(state))
        for request in sorted(lane.runnable(), key=_decodes_first):
            batch.add(request, self.piece(state))
        while not preempted and lane and batch.left:
            request = self.first(lane, now)
            if not self.may_start(state, instance, lane, request, batch.slots):
                break
            self.admit(state, instance, lane, request)
            batch.add(request, self.piece(state))
        batch.run()

    def may_start(
        self, state: SchedulerState, instance: Instance, lane: Lane, request: Request, taken: int = 0
    ) -> bool:
        if len(lane.running) >= state.config.max_batch_requests:
            return False
        return state.need(request, [instance.id]) - state.headroom(request) <= instance.unreserved - taken

    def admit(self, state: SchedulerState, instance: Instance, lane: Lane, request: Request) -> None:
        """Admit it to this very iteration. All its tokens have their slots, so its prefill can always go on."""
        lane.start(request)
        adopt_each(state, [request], [instance.id])
        state.reserve(request.id, [KVRange(instance.id, request.num_stored, request.num_tokens)])

    def make_room(self, state: SchedulerState, instance: Instance, lane: Lane, now: float) -> bool:
        """Find a slot for every decode; returns whether a request was preempted for that."""
        preempted = False
        while sum(not request.reserved for request in lane.runnable()) > instance.unreserved:
            latest = max(lane.running.values(), key=lambda request: request.arrival_index)
            if not lane.may_yield(latest):
                break  # Slots, or itself, come back from a later pipeline stage; the oldest take what there is.
            self.preempt(state, latest, now)
            preempted = True
        return preempted


class Vllm(FilledBatches):
    """vLLM's scheduler: so many tokens in each iteration, first come first served, each request on one instance.

    Its `max_num_seqs` is the knob max_batch_requests.
    """

    @dataclass(frozen=True)
    class Options(FilledBatches.Options):
        """token_budget: tokens in a batch: vLLM's `max_num_batched_tokens`, and its default where nothing sets it."""

        token_budget: int = 2048

        def __post_init__(self) -> None:
            check_count("token_budget", self.token_budget)

    name = "vllm"
    options: Options

    def budget(self, state: SchedulerState) -> int:
        return self.options.token_budget


def _decodes_first(request: Request) -> tuple[bool, int]:
    return request.tokens_to_compute > 1, request.arrival_index
