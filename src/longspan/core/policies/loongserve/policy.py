"""LoongServe: the four steps, at every event."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Literal

from longspan.config import check_count
from longspan.core.decision import Decision
from longspan.core.news import News
from longspan.core.policies.base import Policy
from longspan.core.policies.loongserve.allocation import Allocation, allocate, could_pay
from longspan.core.policies.loongserve.batching import (
    Batching,
    BatchPlan,
    Objective,
    Prompts,
    plan_batches,
    plan_one_batch,
)
from longspan.core.policies.loongserve.decoding import DecodeScaling, start_decodes
from longspan.core.policies.loongserve.dispatching import Dispatch, dispatch
from longspan.core.policies.loongserve.joining import MAX_BATCHING, Queue
from longspan.core.policies.loongserve.migrations import empty, scale_down_afterwards
from longspan.core.policies.loongserve.prefill_times import PrefillTimes
from longspan.core.policies.loongserve.scaling import Kept, compute_bound_requests, keep_everywhere, keep_on_fewest
from longspan.core.policies.loongserve.survey import Prompt, Survey, survey
from longspan.core.policies.parts.patience import somebody_is_overdue
from longspan.core.policies.parts.predictions import OutputLengths, longest_prefix, peak_kv
from longspan.core.policies.parts.prefill_batch import run_prefill
from longspan.core.state import SchedulerState
from longspan.errors import ConfigError

Retention = Callable[[Sequence[Prompt], Mapping[int, int]], Kept]
"""Prompts of a batch, room of its instances -> who keeps what."""


@dataclass(frozen=True, slots=True)
class Gathering:
    """Dispatched prompts wait for instances: for decode iterations to end, or for KV to move away.

    before: decode batches from this number on are not waited for. So a gathering ends: those before it do, and
    nothing is added to an instance that is being emptied.
    """

    before: int
    allocation: Allocation


class LoongServe(Policy):
    """LoongServe's four steps (section 5), whenever anything happens, not once per macro-iteration.

    No request starves:

    - The queue is strictly first come first served. Its head is dispatched once there is memory for it on idle
      instances, at the latest when all requests that hold KV have ended.
    - Prefills go first, but a paused request that watched too many pass stops them until it had its turn.
    - A gathering waits only for what was issued before it.
    - A preempted request is computed again when its turn comes, and then gains at least one token.
    """

    @dataclass(frozen=True)
    class Options(Policy.Options):
        """objective: what batching minimises: the sum of input latencies, or each divided by its prompt's length.

        The others take one mechanism away each, to see what it is worth:
        splits_batches: whether prompts dispatched together may be several batches (section 5.3). Those of the released
            code never are: its dynamic program prunes the axis of instances from the wrong side.
        scale_up: whether a decode group may get an instance that it did not have (figure 13); else, when its slots run
            out, its latest request is preempted.
        scale_down: proactive, a prefill's KV is kept by the fewest instances that hold it (section 4.1); reactive, it
            stays on the whole group, and migrates afterwards.
        max_masters: of a decode batch (section 4.2, figure 14), unless they lack the slots; none sets no limit.
        min_efficiency: a prefill takes more than eight instances only if it uses at least this share of their time
            for what fewer could do; 0 is the paper's, which takes all that make it faster.
        """

        objective: Objective = "latency"
        splits_batches: bool = True
        scale_up: bool = True
        scale_down: Literal["proactive", "reactive"] = "proactive"
        max_masters: int | None = None
        min_efficiency: float = 0.5

        def __post_init__(self) -> None:
            if not 0.0 <= self.min_efficiency <= 1.0:
                raise ConfigError(f"min_efficiency is {self.min_efficiency}, but must be 0 to 1")
            if self.max_masters is not None:
                check_count("max_masters", self.max_masters)

    name = "loongserve"
    needs_cost_model = True
    options: Options

    def __init__(self, **options: object) -> None:
        super().__init__(**options)
        self._batching: Batching = plan_batches if self.options.splits_batches else plan_one_batch
        self._is_reactive = self.options.scale_down == "reactive"
        self._retention: Retention = keep_everywhere if self._is_reactive else keep_on_fewest
        self._gathering: Gathering | None = None
        self._known: tuple[PrefillTimes, DecodeScaling] | None = None
        self._queue: Queue | None = None
        self._queue_changes = 0

    def schedule(self, state: SchedulerState, news: News, now: float) -> None:
        if news.fleet.is_other:
            self._gathering = self._known = self._queue = None
        self._step(state)
        if state.waiting and len(state.cluster.idle()) == len(state.cluster):
            self._step(state)  # the only one that decoded was preempted: its turn has come again

    def _step(self, state: SchedulerState) -> None:
        times, scaling = self._predictions(state)
        if somebody_is_overdue(state):
            self._gathering = None
            held: Collection[int] = ()
        else:
            held = self._start_prefills(state, times)
        if self._is_reactive:
            scale_down_afterwards(state, held)
        start_decodes(state, scaling, held)

    def _start_prefills(self, state: SchedulerState, times: PrefillTimes) -> Collection[int]:
        """Steps 1 to 4 until nobody more can be dispatched. Returns instances that shall not decode now."""
        while state.waiting:
            queue = self._fitting_queue(state, times)
            if not queue.prompts:
                break
            lengths = OutputLengths.seen(state)
            before = state.num_batches if self._gathering is None else self._gathering.before
            found = survey(state, lengths, before)
            chosen = dispatch(queue, found, state.cluster.largest_capacity)
            if (fitting := _num_growing(state, chosen.prompts, lengths)) < len(chosen.prompts):
                chosen = dispatch(queue.first(fitting), found, state.cluster.largest_capacity)
            allocation = self._allocate(state, chosen, found, times) if chosen.prompts else None
            if allocation is None:
                break
            empty(state, [n for n in allocation.emptied if n not in chosen.rooms], allocation.targets)
            needed = {*chosen.rooms, *allocation.emptied, *allocation.targets}
            if not needed <= state.cluster.idle_numbers:
                self._gather(state, chosen, found, Gathering(before, allocation), needed)
                return needed
            self._gathering = None
            if chosen.lacking:
                break  # what was to be emptied could not be
            self._start(state, chosen, times)
        self._gathering = None
        return ()

    def _fitting_queue(self, state: SchedulerState, times: PrefillTimes) -> Queue:
        """The first waiting requests that instances which are idle, or decode and soon will be, have room for now."""
        if self._queue is None or self._queue_changes != state.waiting.changes:
            prompts = [
                Prompt(
                    request.id, request.num_tokens - request.num_known, request.slots_to_take + state.headroom(request)
                )
                for request in islice(state.waiting, MAX_BATCHING)
            ]
            self._queue = Queue.of(prompts, times, state.config.max_batch_tokens)
            self._queue_changes = state.waiting.changes
        joining, room = self._queue.joining, 0
        for instance in chain(state.cluster.idle(), state.cluster.decoding()):
            room += max(0, instance.room)
            if room >= joining.needed:
                break
        return self._queue.first(joining.fitting(room))

    def _allocate(
        self, state: SchedulerState, chosen: Dispatch, found: Survey, times: PrefillTimes
    ) -> Allocation | None:
        """Step 2; emptying instances, once begun, goes on as it was decided."""
        if self._gathering is not None and self._gathering.allocation.emptied:
            return self._gathering.allocation
        migration_s = state.cost_model.migration
        if not chosen.lacking and not could_pay(chosen.prompts, len(chosen.rooms), times, migration_s):
            return Allocation()
        others = [batch for batch in found.batches if batch not in chosen.paused]
        lacking = len(chosen.lacking)
        return allocate(chosen.prompts, len(chosen.rooms), lacking, others, times, migration_s)

    def _gather(
        self, state: SchedulerState, chosen: Dispatch, found: Survey, gathering: Gathering, needed: Collection[int]
    ) -> None:
        if self._gathering is None or self._gathering.allocation.emptied != gathering.allocation.emptied:
            instances = tuple(sorted(needed))
            state.explain(Decision("gather", tuple(prompt.id for prompt in chosen.prompts), instances))
            for batch in found.batches:
                if not batch.rooms.keys().isdisjoint(needed):
                    state.explain(Decision("hold", tuple(request.id for request in batch.requests), instances))
            for decision in gathering.allocation.decisions:
                state.explain(decision)
        self._gathering = gathering

    def _start(self, state: SchedulerState, chosen: Dispatch, times: PrefillTimes) -> None:
        """Steps 3 and 4 for those dispatched, in the order of arrival as far as limits allow."""
        for decision in chosen.decisions:
            state.explain(decision)
        instances = sorted(chosen.rooms, key=lambda number: (-chosen.rooms[number], number))
        prompts, plan = self._batch(state, chosen, [chosen.rooms[number] for number in instances], times)
        for batch in plan.batches:
            members: Sequence[Prompt] = prompts[batch.first : batch.last]
            group = sorted(instances[batch.begin : batch.end])
            rooms = {number: chosen.rooms[number] for number in group}
            members = _adopt(state, members, rooms)
            kept = self._retention(members, rooms)
            requests = sorted((state.request(prompt.id) for prompt in members), key=lambda r: r.arrival_index)
            ids = tuple(request.id for request in requests)
            state.explain(Decision("batch", ids, tuple(group), {"prefill_s": batch.seconds}))
            keepers = tuple(sorted({number for pieces in kept.values() for number, _ in pieces}))
            if len(keepers) < len(group):
                state.explain(Decision("scale down", ids, keepers, {"slots": sum(prompt.need for prompt in members)}))
            run_prefill(state, requests, group, kept)

    def _batch(
        self, state: SchedulerState, chosen: Dispatch, rooms: Sequence[int], times: PrefillTimes
    ) -> tuple[list[Prompt], BatchPlan]:
        """Step 3. Limits may forbid what dispatching let through: then the last to arrive waits for the next round."""
        for count in range(len(chosen.prompts), 0, -1):
            prompts = sorted(chosen.prompts[:count], key=lambda prompt: -prompt.tokens)
            columns = Prompts(
                [prompt.tokens for prompt in prompts],
                [prompt.need for prompt in prompts],
                [times.work(prompt.tokens) for prompt in prompts],
            )
            # So few tokens for each instance, or so much waste, only where memory asks for it.
            least, efficiency = state.config.min_tokens_per_instance, self.options.min_efficiency
            for fewest, wanted in ((least, efficiency), (least, 0.0), (0, 0.0)):
                most = state.config.max_batch_tokens
                plan = self._batching(columns, rooms, times.fixed, most, fewest, self.options.objective, wanted)
                if plan is not None:
                    return prompts, plan
        raise AssertionError("dispatching let a prompt through that has no room")

    def _predictions(self, state: SchedulerState) -> tuple[PrefillTimes, DecodeScaling]:
        if self._known is None:
            per_master = compute_bound_requests(state.cost_model, state.config.max_requests_per_master)
            scaling = DecodeScaling(state.cost_model, per_master, self.options.scale_up, self.options.max_masters)
            self._known = PrefillTimes(state.cost_model, len(state.cluster)), scaling
        return self._known


def _adopt(state: SchedulerState, prompts: Sequence[Prompt], rooms: dict[int, int]) -> Sequence[Prompt]:
    """Let prompts take over what the instances of their batch have; returns what is left of them. rooms: lowered."""
    if not any([state.request(prompt.id).prefix_keys for prompt in prompts]):
        return prompts
    left = []
    for prompt in prompts:
        request = state.request(prompt.id)
        before = {number: state.cluster[number].used for number in rooms}
        state.adopt(request, list(rooms), rooms)
        for number in rooms:
            rooms[number] -= state.cluster[number].used - before[number]
        need = request.slots_to_take + state.headroom(request)
        left.append(Prompt(prompt.id, request.tokens_to_compute, need))
    return left


def _num_growing(state: SchedulerState, prompts: Sequence[Prompt], lengths: OutputLengths) -> int:
    """How many prompts the pool has room for even when all have grown, so that nobody need be evicted.

    As far as output lengths can be predicted; a request that is alone always has room.
    """
    total = state.cluster.total_capacity
    requests = [state.request(prompt.id) for prompt in prompts]
    if state.tokens_when_grown + sum([request.tokens_when_grown for request in requests]) <= total:
        return len(prompts)  # even if each generates all that it may
    running, new = lengths.growth(state.with_kv()), lengths.growth(requests)
    if sum(map(sum, running)) + sum(map(sum, new)) <= total:
        return len(prompts)
    fitting = longest_prefix(prompts, lambda count: peak_kv(running + new[:count]) <= total)
    return fitting if running or fitting else min(1, len(prompts))  # in a fleet that has shrunk
