"""The engine: lets the scheduler decide, has the executor do it, and turns tokens into output.

One event goes in, and its actions go out, before anything else is done with the event's news: instances get their
next batch first, readers their text after. All methods run on one thread.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from longspan.core.actions import FreeKV, MigrateKV, RefuseRequest, RunBatch
from longspan.core.events import (
    BatchCompleted,
    Event,
    FirstStageFree,
    KVMigrated,
    RequestAborted,
    RequestArrived,
    TokenOutput,
)
from longspan.core.scheduler import Scheduler
from longspan.engine.detokenizer import Detokenizer
from longspan.engine.request import EngineRequest
from longspan.errors import EngineDeadError, QueueFullError, RequestError
from longspan.executor.base import Executor
from longspan.metrics.event_log import EventLogWriter
from longspan.outputs import EngineStats, PositionLogprobs, RequestOutput, TokenLogprob
from longspan.worker.messages import BatchDone, FirstStageDone, Free, Migrate, MigrationDone, Reply, Run
from longspan.worker.sampling_state import SampledLogprobs, SampledToken

RETRY_AFTER_S = 1.0  # what clients are told when the queue is full


@dataclass(slots=True)
class _RunningBatch:
    """A batch on its way: which instances have not reported yet; the tokens and the longest time of those that have.

    in_first_stage: instances that have not reported that it left their first stage; none where there is but one.
    """

    batch: RunBatch
    missing: set[int]
    in_first_stage: set[int]
    tokens: dict[str, SampledToken] = field(default_factory=dict)
    model_s: float = 0.0


class EngineCore:
    """Drives one scheduler and one executor.

    clock: seconds, monotonic. on_idle, to be set: called whenever no request is left, and none of its batches.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        executor: Executor,
        detokenizer: Detokenizer,
        clock: Callable[[], float],
        event_log: EventLogWriter | None = None,
    ) -> None:
        self.scheduler = scheduler
        self.executor = executor
        self.detokenizer = detokenizer
        self.clock = clock
        self.event_log = event_log
        self.on_idle: Callable[[], None] = lambda: None
        self.requests: dict[str, EngineRequest] = {}
        self.running: dict[int, _RunningBatch] = {}
        self.migrating: dict[int, set[int]] = {}
        # Instances that have sampling state of a request, beside those that hold its KV.
        self.emitters: dict[str, set[int]] = {}
        self.error: str | None = None
        self.num_batches = 0
        self.model_seconds = 0.0

    # -- requests -------------------------------------------------------------------------------------------------

    def add(self, request: EngineRequest) -> None:
        """Take in a validated request; its output goes to its sink."""
        if self.error is not None:
            raise EngineDeadError(self.error)
        assert request.params.max_tokens is not None, "max_tokens is resolved by now"
        self.requests[request.request_id] = request
        self._handle(
            RequestArrived(
                request.request_id, len(request.prompt_token_ids), request.params.max_tokens, request.params.service
            )
        )

    def abort(self, request_id: str) -> None:
        """End a request and free its KV; unknown ids are ignored."""
        request = self.requests.pop(request_id, None)
        if request is not None and self.error is None:
            self._handle(RequestAborted(request_id))
            request.times.finished = self.clock()
            request.sink(request.output(finish_reason="abort"))

    def stats(self) -> EngineStats:
        """A snapshot for gauges."""
        scheduler = self.scheduler.stats()
        return EngineStats(
            num_running=scheduler.num_running,
            num_waiting=scheduler.num_waiting,
            kv_tokens_used=sum(scheduler.kv_tokens_used),
            kv_tokens_total=self.scheduler.config.total_kv_tokens,
            num_instances=self.scheduler.config.num_instances,
            num_preemptions=scheduler.num_preemptions,
            num_migrations=scheduler.num_migrations,
            kv_tokens_used_by_instance=scheduler.kv_tokens_used,
            num_batches=self.num_batches,
            model_seconds=self.model_seconds,
        )

    # -- the executor's news --------------------------------------------------------------------------------------

    def on_reply(self, reply: Reply) -> None:
        """A worker reports."""
        if self.error is not None:
            return
        match reply:
            case BatchDone():
                self._on_batch_part(reply)
            case FirstStageDone(batch_id, instance):
                self._on_first_stage(batch_id, instance)
            case MigrationDone(migration_id, instance):
                missing = self.migrating[migration_id]
                missing.discard(instance)
                if not missing:
                    del self.migrating[migration_id]
                    self._handle(KVMigrated(migration_id))
            case _:
                raise AssertionError(f"unexpected {reply!r}")

    def fail(self, message: str) -> None:
        """The workers are gone: every request gets to know why."""
        if self.error is not None:
            return
        self.error = message
        requests, self.requests = list(self.requests.values()), {}
        for request in requests:
            request.sink(EngineDeadError(message))
        self.on_idle()

    def _on_first_stage(self, batch_id: int, instance: int) -> None:
        running = self.running.get(batch_id)
        if running is None or instance not in running.in_first_stage:
            return  # the last stage's word came first: they come by different ways
        running.in_first_stage.discard(instance)
        if not running.in_first_stage:
            self._handle(FirstStageFree(batch_id))

    def _on_batch_part(self, done: BatchDone) -> None:
        running = self.running[done.batch_id]
        running.missing.discard(done.instance)
        running.tokens.update(done.tokens)
        running.model_s = max(running.model_s, done.model_s)
        if running.missing:
            return
        if running.in_first_stage:
            running.in_first_stage.clear()
            self._handle(FirstStageFree(done.batch_id))
        del self.running[done.batch_id]
        self.num_batches += 1
        self.model_seconds += running.model_s
        now = self.clock()
        outputs, news = [], []
        for segment in running.batch.segments:
            if not segment.emits:
                continue
            request = self.requests.get(segment.request_id)
            if request is None:  # aborted, or ended with the batch before
                outputs.append(TokenOutput(segment.request_id))
                continue
            output = self._take_token(request, running.tokens[segment.request_id], now)
            outputs.append(TokenOutput(segment.request_id, output.finish_reason))
            news.append((request, output))
        self._handle(BatchCompleted(done.batch_id, tuple(outputs)))
        for request, output in news:
            request.sink(output)

    def _take_token(self, request: EngineRequest, token: SampledToken, now: float) -> RequestOutput:
        request.output_token_ids.append(token.token_id)
        if request.times.first_token is None:
            request.times.first_token = now
        request.times.last_token = now
        delta = request.processor.push(token.token_id)
        if delta.finish_reason is not None:
            request.times.finished = now
            del self.requests[request.request_id]
        return request.output(
            token_ids=(token.token_id,),
            text=delta.text,
            logprobs=self._logprobs(token.token_id, token.logprobs) if token.logprobs else None,
            finish_reason=delta.finish_reason,
            stop_reason=delta.stop_reason,
        )

    def _logprobs(self, token_id: int, sampled: SampledLogprobs) -> tuple[PositionLogprobs, ...]:
        text = self.detokenizer.token_text
        chosen = TokenLogprob(token_id, text(token_id), sampled.logprob, sampled.rank)
        best = zip(sampled.top_token_ids, sampled.top_logprobs, strict=True)
        top = tuple(TokenLogprob(i, text(i), logprob, rank) for rank, (i, logprob) in enumerate(best, start=1))
        return (PositionLogprobs(chosen, top),)

    # -- decide, then do ------------------------------------------------------------------------------------------

    def _handle(self, event: Event) -> None:
        now = self.clock()
        actions = self.scheduler.handle(event, now)
        for action in actions:
            match action:
                case RunBatch():
                    self._run(action, now)
                case MigrateKV():
                    self.migrating[action.migration_id] = {action.source, action.target}
                    for instance in (action.source, action.target):
                        self.executor.submit(instance, Migrate(action))
                case FreeKV(request_id, instances):
                    self._free(request_id, instances)
                case RefuseRequest(request_id, message, reason):
                    full = reason == "queue_full"
                    error = QueueFullError(message, retry_after_s=RETRY_AFTER_S) if full else RequestError(message)
                    self.requests.pop(request_id).sink(error)
        if self.event_log is not None:
            self.event_log.write(now, event, actions, self.scheduler.decisions)
        if self.scheduler.idle():
            if self.event_log is not None:
                self.event_log.flush()
            self.on_idle()

    def _run(self, batch: RunBatch, now: float) -> None:
        first = set(batch.group) if self.scheduler.config.pp > 1 else set()
        self.running[batch.batch_id] = _RunningBatch(batch, set(batch.group), first)
        commands = {instance: Run(batch, {}, {}) for instance in batch.group}
        for segment in batch.segments:
            request = self.requests[segment.request_id]
            if request.times.scheduled is None:
                request.times.scheduled = now
            token_ids = request.token_bytes(segment.start, segment.end)
            if token_ids is not None:
                for instance in segment.compute:
                    commands[instance].token_ids[segment.request_id] = token_ids
            if segment.emits and segment.emitter != request.emitter:
                request.emitter = segment.emitter
                self.emitters.setdefault(segment.request_id, set()).add(segment.emitter)
                commands[segment.emitter].sampling[segment.request_id] = request.sampling_state()
        for instance, command in commands.items():
            self.executor.submit(instance, command)

    def _free(self, request_id: str, instances: Collection[int]) -> None:
        for instance in sorted({*instances, *self.emitters.pop(request_id, ())}):
            self.executor.submit(instance, Free(request_id))
        request = self.requests.get(request_id)
        if request is not None:  # preempted: it starts again, and its state goes wherever that is
            request.emitter = None
