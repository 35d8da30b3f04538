"""The engine: lets the scheduler decide, has the executor do it, and turns tokens into output.

One event goes in, and its actions go out, before anything else is done with the event's news: instances get their
next batch first, readers their text after. All methods run on one thread.

Whatever is raised on the way ends as little as is provably enough. What only concerns one request's output ends that
request, and the scheduler is told so. Anything else (the policy, the scheduler, a command that cannot be sent) leaves
books that cannot be trusted, and ends the engine: every request is told, and no new one is taken.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import msgspec

from longspan.core.actions import Action, FreeKV, MigrateKV, RefuseRequest, RunBatch, StopRequest
from longspan.core.costs.cost_model import CostModel
from longspan.core.decision import SERVED_LATE
from longspan.core.estimate import Estimate
from longspan.core.events import (
    BatchCompleted,
    Event,
    FirstStageFree,
    KVMigrated,
    RequestAborted,
    RequestArrived,
    TokenOutput,
)
from longspan.core.hierarchy import AnyScheduler
from longspan.engine.detokenizer import Detokenizer
from longspan.engine.request import EngineRequest
from longspan.engine.watchdog import Watchdog
from longspan.errors import (
    EngineDeadError,
    LongspanError,
    ModelOutputError,
    OverloadedError,
    QueueFullError,
    RequestError,
    RequestFailedError,
)
from longspan.executor.base import Executor
from longspan.metrics.event_log import EventLogWriter
from longspan.outputs import EngineStats, PositionLogprobs, RequestOutput, TokenLogprob
from longspan.worker.messages import (
    BatchDone,
    FirstStageDone,
    Forget,
    Free,
    Migrate,
    MigrationDone,
    Reply,
    Run,
    decode_command,
    encode,
)
from longspan.worker.sampling_state import SampledLogprobs, SampledToken, SamplingState

logger = logging.getLogger(__name__)

REST_S = 5.0
"""Requests are there and nothing runs: after so many seconds it is the policy's fault, which is not asked again."""

RETRY_AFTER_S = 1.0  # what clients are told when the queue is full, and when the policy does not say
STALL_AFTER_S = 60.0


@dataclass(slots=True)
class _RunningBatch:
    """A batch on its way: which instances have not reported yet; the tokens and the longest time of those that have.

    in_first_stage: instances that have not reported that it left their first stage; none where there is but one.
    """

    batch: RunBatch
    missing: set[int]
    in_first_stage: set[int]
    tokens: dict[str, SampledToken] = field(default_factory=dict)
    not_finite: set[str] = field(default_factory=set)
    model_s: float = 0.0


class EngineCore:
    """Drives one scheduler and one executor.

    clock: seconds, monotonic. stall_after_s: how much longer than it should a batch may take before `stalled` tells.
    on_idle, to be set: called whenever no request is left, and none of its batches. on_dead, to be set: called once,
    when the engine has ended by an error.
    num_served_late: requests that the policy serves though their first token will come later than it promises.
    """

    def __init__(
        self,
        scheduler: AnyScheduler,
        executor: Executor,
        detokenizer: Detokenizer,
        clock: Callable[[], float],
        event_log: EventLogWriter | None = None,
        cost_model: CostModel | None = None,
        stall_after_s: float = STALL_AFTER_S,
    ) -> None:
        self.scheduler = scheduler
        self.executor = executor
        self.detokenizer = detokenizer
        self.clock = clock
        self.event_log = event_log
        self.watchdog = Watchdog(cost_model, stall_after_s)
        self.on_idle: Callable[[], None] = lambda: None
        self.on_dead: Callable[[], None] = lambda: None
        self.requests: dict[str, EngineRequest] = {}
        self.running: dict[int, _RunningBatch] = {}
        self.migrating: dict[int, set[int]] = {}
        # Instances that have sampling state of a request, beside those that hold its KV.
        self.emitters: dict[str, set[int]] = {}
        self.error: str | None = None
        self.num_batches = 0
        self.model_seconds = 0.0
        self.num_bad_logits = 0
        self.num_served_late = 0
        self._resting_since: float | None = None  # requests are alive, and nothing runs

    # -- requests -------------------------------------------------------------------------------------------------

    def add(self, request: EngineRequest) -> None:
        """Take in a validated request; its output goes to its sink.

        Raises EngineDeadError; or RequestError: its id is in use, or it holds what cannot be sent to a worker.
        """
        if self.error is not None:
            raise EngineDeadError(self.error)
        assert request.params.max_tokens is not None, "max_tokens is resolved by now"
        if request.request_id in self.requests or self.scheduler.knows(request.request_id):
            raise RequestError(f"a request with id {request.request_id!r} is running already", param="request_id")
        _check_it_travels(request)
        self.requests[request.request_id] = request
        self._handle(
            RequestArrived(
                request.request_id, len(request.prompt_token_ids), request.params.max_tokens, request.params.service
            )
        )

    def abort(self, request: EngineRequest) -> None:
        """End a request and free its KV; nothing, if it has ended."""
        if self.requests.get(request.request_id) is not request:
            return
        del self.requests[request.request_id]
        if self.error is None:
            self._handle(RequestAborted(request.request_id))
            request.times.finished = self.clock()
            self._tell(request, request.output(finish_reason="abort"))

    def estimate(self, request_id: str) -> Estimate | None:
        """Return when the request gets its first token; None if it has it or has ended, or nobody can say."""
        return None if self.error is not None else self.scheduler.estimate(request_id, self.clock())

    def stalled(self) -> str | None:
        """Return a sentence about decided work that does not end, or requests with nothing done for them; else None."""
        now = self.clock()
        if self.error is not None:
            return None
        if self._resting_since is not None and now - self._resting_since > min(REST_S, self.watchdog.slack_s):
            return (
                f"the policy {self.scheduler.policy.name!r} has started nothing for {now - self._resting_since:.0f} s, "
                f"though {len(self.requests)} requests are there"
            )
        return self.watchdog.overdue(now)

    def stats(self) -> EngineStats:
        """Return a snapshot for gauges. A dead engine runs nothing."""
        scheduler = self.scheduler.stats()
        if self.error is not None:
            scheduler = replace(
                scheduler, num_running=0, num_waiting=0, kv_tokens_used=(0,) * len(scheduler.kv_tokens_used)
            )
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
            num_bad_logits=self.num_bad_logits,
            event_log_errors=0 if self.event_log is None else self.event_log.errors,
        )

    # -- the executor's news --------------------------------------------------------------------------------------

    def on_reply(self, reply: Reply) -> None:
        """Take what a worker reports."""
        if self.error is not None:
            return
        with self._failing_loudly("a %s was taken in", type(reply).__name__):
            match reply:
                case BatchDone():
                    self._on_batch_part(reply)
                case FirstStageDone(batch_id, instance):
                    self._on_first_stage(batch_id, instance)
                case MigrationDone(migration_id, instance):
                    self._on_migration_part(migration_id, instance)
                case _:
                    raise AssertionError(f"unexpected {reply!r}")

    def fail(self, message: str) -> None:
        """End the engine: every request gets to know why."""
        if self.error is not None:
            return
        self.error = message
        if self.event_log is not None:
            self.event_log.flush()
        requests, self.requests = list(self.requests.values()), {}
        for request in requests:
            self._tell(request, EngineDeadError(message))
        self.on_idle()
        self.on_dead()

    @contextmanager
    def _failing_loudly(self, when: str, what: object) -> Iterator[None]:
        """Whatever is raised inside ends the engine. That goes for what asyncio and the interpreter would take for
        their own, too, such as a policy's CancelledError or SystemExit; only Ctrl-C goes on to its reader.

        when: says what was done, with a place for `what`, which is written out only where it is needed.
        """
        try:
            yield
        except BaseException as error:
            done = when % (what,)
            logger.exception("the engine failed when %s", done)
            self.fail(f"the engine failed when {done}: {type(error).__name__}: {error}")
            if isinstance(error, KeyboardInterrupt):
                raise

    def _tell(self, request: EngineRequest, news: RequestOutput | LongspanError) -> None:
        """Hand over a request's output; a reader that cannot take it loses its request, and nobody else's."""
        try:
            request.sink(news)
        except Exception:
            logger.exception("nobody could be told of request %s", request.request_id)
            if self.requests.get(request.request_id) is request:
                del self.requests[request.request_id]
                self._handle(RequestAborted(request.request_id))

    def _on_migration_part(self, migration_id: int, instance: int) -> None:
        missing = self.migrating[migration_id]
        missing.discard(instance)
        if not missing:
            del self.migrating[migration_id]
            self.watchdog.end("migration", migration_id)
            self._handle(KVMigrated(migration_id))

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
        running.not_finite.update(done.not_finite)
        running.model_s = max(running.model_s, done.model_s)
        if running.missing:
            return
        if running.in_first_stage:
            running.in_first_stage.clear()
            self._handle(FirstStageFree(done.batch_id))
        del self.running[done.batch_id]
        self.watchdog.end("batch", done.batch_id)
        self.num_batches += 1
        self.model_seconds += running.model_s
        now = self.clock()
        outputs: list[TokenOutput] = []
        news: list[tuple[EngineRequest, RequestOutput | LongspanError]] = []
        for segment in running.batch.segments:
            if not segment.emits:
                continue
            request = self.requests.get(segment.request_id)
            if request is None:  # aborted, or ended with the batch before
                outputs.append(TokenOutput(segment.request_id))
                continue
            if segment.request_id in running.not_finite:
                outputs.append(TokenOutput(segment.request_id, "abort"))
                news.append((request, self._without_token(request, now)))
                continue
            token = running.tokens[segment.request_id]
            try:
                output = self._take_token(request, token, now)
            except Exception as error:  # of this request's text or log probabilities: the others have their own
                logger.exception("request %s: its output cannot be made of token %s", request.request_id, token)
                self.requests.pop(request.request_id, None)
                outputs.append(TokenOutput(segment.request_id, "abort"))
                news.append((request, RequestFailedError(f"the server failed on this answer: {type(error).__name__}")))
                continue
            outputs.append(TokenOutput(segment.request_id, output.finish_reason))
            news.append((request, output))
        self._handle(BatchCompleted(done.batch_id, tuple(outputs)))
        for request, item in news:
            self._tell(request, item)

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
            logprobs=self._logprobs(token.token_id, token.logprobs, delta.text_offset) if token.logprobs else None,
            finish_reason=delta.finish_reason,
            stop_reason=delta.stop_reason,
        )

    def _without_token(self, request: EngineRequest, now: float) -> ModelOutputError:
        """End a request whose logits are not finite."""
        request.times.finished = now
        del self.requests[request.request_id]
        self.num_bad_logits += 1
        message = (
            f"the model's logits for token {len(request.output_token_ids) + 1} of the answer are not finite, so none "
            "can be chosen; other prompts are served as before (if it happens often, the weights are damaged, or need "
            "--dtype float32)"
        )
        logger.warning("request %s: %s", request.request_id, message)
        return ModelOutputError(message)

    def _logprobs(self, token_id: int, sampled: SampledLogprobs, text_offset: int) -> tuple[PositionLogprobs, ...]:
        raw = self.detokenizer.token_bytes
        chosen = TokenLogprob(token_id, raw(token_id), sampled.logprob, sampled.rank)
        best = zip(sampled.top_token_ids, sampled.top_logprobs, strict=True)
        top = tuple(TokenLogprob(i, raw(i), logprob, rank) for rank, (i, logprob) in enumerate(best, start=1))
        return (PositionLogprobs(chosen, top, text_offset),)

    # -- decide, then do ------------------------------------------------------------------------------------------

    def _handle(self, event: Event) -> None:
        if self.error is not None:
            return
        with self._failing_loudly("the scheduler was told %s", event):
            self._decide_and_do(event)

    def _decide_and_do(self, event: Event) -> None:
        now = self.clock()
        actions = self._decide(event, now)
        for action in actions:
            self._do(action, now)
        if self.event_log is not None:
            self.event_log.write(now, event, actions, self.scheduler.decisions)
        self.num_served_late += sum([decision.step == SERVED_LATE for decision in self.scheduler.decisions])
        self._note_rest(now)

    def _decide(self, event: Event, now: float) -> list[Action]:
        try:
            return self.scheduler.handle(event, now)
        except BaseException:
            if self.event_log is not None:
                self.event_log.write(now, event, ())  # so that a replay meets the same error
            raise

    def _do(self, action: Action, now: float) -> None:
        match action:
            case RunBatch():
                self._run(action, now)
            case MigrateKV():
                self._migrate(action, now)
            case FreeKV():
                for instance in action.instances:
                    self.executor.submit(instance, Free(action))
            case StopRequest(request_id, instances):
                self._stop(request_id, instances)
            case RefuseRequest(request_id):
                self._tell(self.requests.pop(request_id), _refusal(action))

    def _note_rest(self, now: float) -> None:
        """Requests may be there while nothing runs; or there are none, and the engine is idle."""
        rests = not (self.running or self.migrating or self.scheduler.idle())
        self._resting_since = (now if self._resting_since is None else self._resting_since) if rests else None
        if self.scheduler.idle():
            if self.event_log is not None:
                self.event_log.flush()
            self.on_idle()

    def _run(self, batch: RunBatch, now: float) -> None:
        first = set(batch.group) if self.scheduler.config.pp > 1 else set()
        self.running[batch.batch_id] = _RunningBatch(batch, set(batch.group), first)
        self.watchdog.begin(batch, now)
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

    def _migrate(self, action: MigrateKV, now: float) -> None:
        self.migrating[action.migration_id] = {action.source, action.target}
        self.watchdog.begin(action, now)
        for instance in (action.source, action.target):
            self.executor.submit(instance, Migrate(action))

    def _stop(self, request_id: str, instances: Collection[int]) -> None:
        for instance in sorted({*instances, *self.emitters.pop(request_id, ())}):
            self.executor.submit(instance, Forget(request_id))
        request = self.requests.get(request_id)
        if request is not None:  # preempted: it starts again, and its state goes wherever that is
            request.emitter = None


def _check_it_travels(request: EngineRequest) -> None:
    """Raises RequestError, before anything is known of the request, if its workers could not read it."""
    state = SamplingState(request.params, request.seed)
    try:
        decode_command(encode(Run(RunBatch(0, (), ()), {}, {request.request_id: state})))
    except (msgspec.MsgspecError, TypeError, ValueError, OverflowError) as error:
        raise RequestError(f"the request holds a value that cannot be handed on: {error}") from error


def _refusal(action: RefuseRequest) -> LongspanError:
    retry_after_s = RETRY_AFTER_S if action.retry_after_s is None else action.retry_after_s
    match action.reason:
        case "queue_full":
            return QueueFullError(action.message, retry_after_s=retry_after_s)
        case "late":
            return OverloadedError(action.message, retry_after_s=retry_after_s)
        case "too_long":
            return RequestError(action.message, param="max_tokens", code="context_length_exceeded")
