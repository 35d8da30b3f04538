"""vLLM's scheduler, which carries out what the policy decides.

vLLM's own code makes every step: blocks, prefix cache, grammars, adapters, drafts go on as they are. It is only told
who may begin, by what stands in its `waiting` queue while it schedules, and how many tokens of each prompt at most, by
the methods that it asks last how long a chunk is. A prompt that pauses has 0: it stays in `running`, keeps its blocks,
and is passed over. Where nothing is planned, vLLM decides as it would alone.

This module imports vLLM; `longspan.integrations.vllm` imports it when a class is asked for.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vllm.logger import init_logger
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.request_queue import FCFSRequestQueue
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request, RequestStatus

from longspan.config import SchedulerConfig
from longspan.integrations.vllm.decider import Decider, EndReason, Plan, Room, Scheduled
from longspan.integrations.vllm.limits import check_config, check_hooks
from longspan.integrations.vllm.requests import service_level
from longspan.integrations.vllm.settings import read_settings

logger = init_logger("vllm.longspan")

_MOST_WAIT_S = 600.0
"""Between a request's arrival at the API server and here: more is a clock's error."""
_LOOKED_UP = 4
"""Requests that wait, each time: the prefix cache is asked anew for so many."""


class LongspanScheduler(Scheduler):
    """For `--scheduler-cls`. Where vLLM schedules asynchronously, what is made is an `AsyncLongspanScheduler`."""

    waiting: Any

    def __new__(cls, *args: Any, **kwargs: Any) -> LongspanScheduler:
        config = kwargs["vllm_config"] if "vllm_config" in kwargs else args[0]
        is_async = cls is LongspanScheduler and config.scheduler_config.async_scheduling
        return object.__new__(AsyncLongspanScheduler if is_async else cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Raises ConfigError: vLLM, or what is set for Longspan, is configured in a way that does not go together."""
        config = kwargs["vllm_config"] if "vllm_config" in kwargs else args[0]
        settings = read_settings(config.additional_config)
        check_hooks(Scheduler)
        check_config(config, settings)
        super().__init__(*args, **kwargs)
        pool = self.kv_cache_manager.block_pool
        # A token takes a slot in a block of each group; block 0 is nobody's.
        self._slots_per_block = self.block_size / max(1, len(self.kv_cache_config.kv_cache_groups))
        self._decider = Decider(
            SchedulerConfig(
                num_instances=1, kv_tokens=max(1, int((pool.num_gpu_blocks - 1) * self._slots_per_block)),
                max_batch_tokens=self.max_num_scheduled_tokens, max_waiting=1 << 30,
            ),
            settings,
        )  # fmt: skip
        self._most: dict[str, int] | None = None  # of each prompt, tokens in this step; None: vLLM decides
        self._set_aside = 0  # requests that are out of `waiting` while a step is made
        self._kept_back: list[str] = []
        self._plans_nothing = False
        self._finishing = False
        self._was_ready = False
        self._to_look_up: list[str] = []
        if self._decider.log_path is not None:
            logger.info("Longspan's event log is %s", self._decider.log_path)

    # a step

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        now = time.monotonic()
        with self._carried_out(self._plan(now)):
            output = super().schedule(*args, **kwargs)
        self._note_issued(output, now)
        return output

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        self._finishing = True
        try:
            outputs = super().update_from_output(scheduler_output, model_runner_output)
        finally:
            self._finishing = False
        if scheduler_output.num_scheduled_tokens:
            self._decider.completed(time.monotonic())
            self._tell_readiness()
        return outputs

    def _plan(self, now: float) -> Plan | None:
        """What the policy wants; None where vLLM shall decide."""
        decider = self._decider
        self._admit_unblocked()
        if not decider.is_ready or self._plans_nothing or self.pause_state != PauseState.UNPAUSED:
            self._plans_nothing = False
            return None
        self._look_up()
        free = self.kv_cache_manager.block_pool.get_num_free_blocks()
        seats = self.max_num_active_reqs - len(self.running) - self.num_waiting_for_streaming_input
        kept_back = [name for name in self._kept_back if name in decider.view.requests and decider.is_queued(name)]
        plan = decider.plan(Room(int(free * self._slots_per_block), seats), now, kept_back)
        if free < 2 * len(self.running) + len(plan.begin) + self.max_num_scheduled_tokens // self.block_size:
            self.running.sort(key=self._seniority)  # of whom memory is taken, is the last
        return plan

    @contextmanager
    def _carried_out(self, plan: Plan | None) -> Iterator[None]:
        if plan is None:
            yield
            return
        for request_id in plan.preempt:
            victim = self.requests[request_id]
            self.running.remove(victim)
            self._preempt_request(victim, time.monotonic())
        all_waiting = self.waiting
        chosen = [self.requests[request_id] for request_id in plan.begin]
        chosen += [request for request in all_waiting if request.resumable] if self._has_sessions() else []
        for request in chosen:
            all_waiting.remove_request(request)
        self._set_aside = len(all_waiting)
        self.waiting = FCFSRequestQueue(chosen)
        self._most = dict(plan.chunks)
        try:
            yield
        finally:
            left, self.waiting = list(self.waiting), all_waiting
            for request in reversed(left):
                all_waiting.prepend_request(request)
            self._most, self._set_aside = None, 0
            self._kept_back = [request.request_id for request in left if request in self.deferred_waiting]

    def _note_issued(self, output: Any, now: float) -> None:
        requests, cached = self.requests, output.scheduled_cached_reqs
        new, lengths = output.scheduled_new_reqs, output.num_scheduled_tokens
        self._decider.issued(
            Scheduled(
                [*cached.req_ids, *[one.req_id for one in new]],
                [*cached.num_computed_tokens, *[one.num_computed_tokens for one in new]],
                [*cached.num_output_tokens, *[requests[one.req_id].num_output_tokens for one in new]],
                lengths, lambda name: requests[name].is_prefill_chunk,
            ),
            now,
        )  # fmt: skip
        # Nothing at all, though somebody is there: perhaps memory lacks that the policy counts on. vLLM goes on then.
        self._plans_nothing = not lengths and not self._decider.num_in_flight and bool(requests)

    # how many tokens of a prompt

    def _cap(self, request: Request, num_new_tokens: int) -> int:
        if self._most is None:
            return num_new_tokens
        return min(num_new_tokens, self._most.get(request.request_id, num_new_tokens))

    def _reserve_prefill_lookahead(self, request: Request, num_computed_tokens: int, num_new_tokens: int) -> int:
        most = self._most  # asked for each decode, too
        if most and (cap := most.get(request.request_id)) is not None and cap < num_new_tokens:
            num_new_tokens = cap
        if self.num_prefill_lookahead:
            return super()._reserve_prefill_lookahead(request, num_computed_tokens, num_new_tokens)
        return num_new_tokens

    def _try_schedule_encoder_inputs(
        self, request: Request, num_computed_tokens: int, num_new_tokens: int, *args: Any, **kwargs: Any
    ) -> Any:
        capped = self._cap(request, num_new_tokens)
        return super()._try_schedule_encoder_inputs(request, num_computed_tokens, capped, *args, **kwargs)

    def _mamba_block_aligned_split(self, request: Request, num_new_tokens: int, *args: Any, **kwargs: Any) -> int:
        capped = self._cap(request, num_new_tokens)
        if 0 < capped < num_new_tokens and self._most is not None:
            # Chunks end where states are kept: a whole block, or the prompt would never come further.
            capped = self._most[request.request_id] = min(num_new_tokens, max(capped, self.cache_config.block_size))
        return super()._mamba_block_aligned_split(request, capped, *args, **kwargs)

    # who comes and goes

    def add_request(self, request: Request) -> None:
        is_new = request.request_id not in self.requests
        super().add_request(request)
        if not is_new or request.resumable:
            return  # sessions of streamed input are vLLM's own
        now = time.monotonic()
        waited_s = time.time() - request.arrival_time
        service = service_level(getattr(request.sampling_params, "extra_args", None), request.priority)
        self._decider.arrive(
            request.request_id, request.num_prompt_tokens, max(1, request.max_tokens), service,
            now - waited_s if 0.0 < waited_s < _MOST_WAIT_S else now, now,
        )  # fmt: skip
        if not self._is_blocked_waiting_status(request.status):
            self._decider.ready(request.request_id, self._num_found(request))

    def _preempt_request(self, request: Request, *args: Any, **kwargs: Any) -> None:
        super()._preempt_request(request, *args, **kwargs)
        if self._decider.knows(request.request_id):
            self._decider.preempted(request.request_id, request.num_output_tokens)

    def _free_request(self, request: Request, *args: Any, **kwargs: Any) -> Any:
        freed = super()._free_request(request, *args, **kwargs)
        if self._decider.knows(request.request_id):
            self._decider.end(request.request_id, self._end_reason(request), time.monotonic())
        return freed

    def shutdown(self) -> None:
        super().shutdown()
        self._decider.close()

    def get_request_counts(self) -> tuple[int, int]:
        running, waiting = super().get_request_counts()
        return running, waiting + self._set_aside

    # inside

    def _end_reason(self, request: Request) -> EndReason:
        if not self._finishing or request.status not in (
            RequestStatus.FINISHED_STOPPED, RequestStatus.FINISHED_LENGTH_CAPPED, RequestStatus.FINISHED_REPETITION,
        ):  # fmt: skip
            return "abort"
        return "length" if request.status == RequestStatus.FINISHED_LENGTH_CAPPED else "stop"

    def _admit_unblocked(self) -> None:
        """Let those begin that waited for their grammar.

        vLLM may have found it ready already, in a step of its own, and had no memory for the request then.
        """
        decider = self._decider
        for request in list(self.deferred_waiting):
            name = request.request_id
            if not decider.knows(name) or decider.is_queued(name):
                continue
            if self._handle_blocked_waiting_request(request):
                self.deferred_waiting.discard(request)
                decider.ready(name, self._num_found(request))

    def _num_found(self, request: Request) -> int:
        """Return how many of its first tokens the prefix cache holds."""
        if self.enable_kv_cache_events and getattr(request, "kv_cache_report_mode", "") == "full":
            return 0  # to ask would be told to who listens
        return int(self.kv_cache_manager.get_computed_blocks(request)[1])

    def _look_up(self) -> None:
        """Ask the prefix cache about a few of those that wait, in turn: what others compute becomes theirs."""
        if not self.cache_config.enable_prefix_caching:
            return
        if not self._to_look_up:
            self._to_look_up = [request.id for request in self._decider.view.waiting]
        looked_up, self._to_look_up = self._to_look_up[:_LOOKED_UP], self._to_look_up[_LOOKED_UP:]
        for name in looked_up:
            if name in self._decider.view.requests and self._decider.is_queued(name):
                self._decider.found(name, self._num_found(self.requests[name]))

    def _has_sessions(self) -> bool:
        return len(self.requests) != len(self._decider.view.requests)

    def _seniority(self, request: Request) -> tuple[int, float, int]:
        known = self._decider.view.requests.get(request.request_id)
        return (request.priority, request.arrival_time, -1 if known is None else known.arrival_index)

    def _tell_readiness(self) -> None:
        if self._decider.is_ready and not self._was_ready:
            self._was_ready = True
            logger.info("Longspan decides from now on: %s", self._decider.told())


class AsyncLongspanScheduler(LongspanScheduler, AsyncScheduler):
    """Where vLLM makes a step while the one before runs."""
