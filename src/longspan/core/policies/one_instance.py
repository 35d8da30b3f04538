"""Baselines without sequence parallelism: each request lives wholly on one instance.

`static_tp`: tensor parallelism alone, such as TP8. An instance is a tensor-parallel group, so the baseline of the
papers is one instance of all devices (`--instances 1 --tp 8`). With several instances there is one queue before all
of them, and its head goes to the emptiest that is idle.

`replicated`: data parallelism behind a blind router. The i-th request belongs to instance i mod n, come what may, and
each instance serves its own in order.

A request that no instance can hold alone is refused: that is what these baselines cannot do.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator

from longspan.core.books.cluster import Instance
from longspan.core.books.request import Request
from longspan.core.news import News
from longspan.core.policies.base import Policy
from longspan.core.policies.parts.adoption import adopt_each, with_prefix_first
from longspan.core.policies.parts.decode_batch import decode_each
from longspan.core.policies.parts.patience import somebody_is_overdue
from longspan.core.policies.parts.prefill_batch import run_prefill
from longspan.core.policies.parts.refusal import refuse_the_too_long
from longspan.core.state import SchedulerState


class OneInstanceEach(Policy):
    """Prefills first, but an overdue decode before them; when an instance is full, its latest request is preempted."""

    keeps_on_one_instance = True
    adopts = True
    """Whether requests take over what others have computed."""

    def schedule(self, state: SchedulerState, news: News, now: float) -> None:
        refuse_the_too_long(state, news)
        if not somebody_is_overdue(state):
            for instance in self.order(state):
                prompts = self._gather(state, instance)
                if prompts:
                    if self.adopts:
                        adopt_each(state, prompts, [instance.id])
                    kept = {request.id: [(instance.id, request.tokens_to_compute)] for request in prompts}
                    run_prefill(state, prompts, [instance.id], kept)
        decode_each(state)

    def _gather(self, state: SchedulerState, instance: Instance) -> list[Request]:
        """The queue's head and those behind it that fit into the instance and one batch."""
        gathered: list[Request] = []
        room, tokens = instance.room, 0
        for request in self.queue(state, instance):
            room -= state.need(request, [instance.id] if self.adopts else [])
            tokens += request.tokens_to_compute
            if room < 0 or (gathered and tokens > state.config.max_batch_tokens):
                break
            gathered.append(request)
        return gathered

    def order(self, state: SchedulerState) -> list[Instance]:
        """Return the idle instances as they shall get prompts: the emptiest first."""
        return sorted(state.cluster.idle(), key=lambda instance: (-instance.room, instance.id))

    @abstractmethod
    def queue(self, state: SchedulerState, instance: Instance) -> Iterator[Request]:
        """Return the waiting requests that may run on the instance, in order."""


class StaticTP(OneInstanceEach):
    """Whole prompts, first come first served, each on one instance: where its prefix is, or else where there is room
    first."""

    name = "static_tp"

    def order(self, state: SchedulerState) -> list[Instance]:
        emptiest = super().order(state)
        return with_prefix_first(state, state.waiting.first, emptiest) if state.waiting else emptiest

    def queue(self, state: SchedulerState, instance: Instance) -> Iterator[Request]:
        return iter(state.waiting)


class Replicated(OneInstanceEach):
    """Whole prompts, dealt out over the instances in turn; each instance serves its own, first come first served."""

    name = "replicated"

    def queue(self, state: SchedulerState, instance: Instance) -> Iterator[Request]:
        instances = state.cluster.instances
        return (request for request in state.waiting if instances[request.arrival_index % len(instances)] is instance)
