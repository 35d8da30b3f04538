"""The engine: lets the scheduler decide, has the executor do it, and turns tokens into output.

One event goes in, and its actions go out, before anything else is done with the event's news: instances get their
next batch first, readers their text after. All methods run on one thread.

Whatever is raised on the way ends as little as is provably enough. What only concerns one request's output ends that
request, and the scheduler is told so. Anything else (the policy, the scheduler, a command that cannot be sent) leaves
books that cannot be trusted, and ends the engine: every request is told, and no new one is taken.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace

from longspan.core.actions import (
    Action,
    CancelBatch,
    FreeKV,
    InstanceDrained,
    MigrateKV,
    RefuseRequest,
    RunBatch,
    StopRequest,
)
from longspan.core.costs.cost_model import CostModel
from longspan.core.decision import PROMISED, SERVED_LATE, Decision
from longspan.core.estimate import Estimate
from longspan.core.events import (
    BatchCompleted,
    Event,
    FirstStageFree,
    InstanceJoined,
    InstanceLeaving,
    InstanceLost,
    KVMigrated,
    RequestAborted,
    RequestArrived,
)
from longspan.core.hierarchy import AnyScheduler
from longspan.core.progress import Progress
from longspan.engine.beginnings import Beginnings
from longspan.engine.detokenizer import Detokenizer
from longspan.engine.dispatch import Dispatch
from longspan.engine.fleet import Fleet, Purpose
from longspan.engine.observer.observation import Observation
from longspan.engine.output_maker import OutputMaker, take_scores
from longspan.engine.records import Records
from longspan.engine.refusals import check_it_travels, refusal
from longspan.engine.request import EngineRequest
from longspan.engine.watchdog import Watchdog
from longspan.errors import (
    EngineDeadError,
    LongspanError,
    RequestError,
    RequestFailedError,
)
from longspan.executor.base import Executor, LeavingInstance, LostInstance, NewInstance, News
from longspan.metrics.ended_request import EndedRequest
from longspan.metrics.iterations import Iterations
from longspan.outputs import EngineStats, Quote, RequestOutput
from longspan.worker.messages import BatchDone, FirstStageDone, MigrationDone

logger = logging.getLogger(__name__)

REST_S = 5.0
"""Requests are there and nothing runs: after so many seconds it is the policy's fault, which is not asked again."""

MOST_FAILURES = 3
"""So many workers may fail while they run a request; then it is taken for the cause, and ends."""

STALL_AFTER_S = 60.0
_QUOTED = ("median_s", "quote_s", "promised_s", "deadline_s")  # as `Quote` has them


class EngineCore:
    """Drives one scheduler and one executor.

    clock: seconds, monotonic. stall_after_s: how much longer than it should a batch may take before `stalled` tells.
    on_idle, to be set: called whenever no request is left, and none of its batches. on_dead, to be set: called once,
    when the engine has ended by an error. on_ended: of each request that has ended.
    num_served_late: requests that the policy serves though their first token will come later than it promises.
    num_looked_up, num_found: see `EngineStats`. records: of every call of the scheduler.
    """

    def __init__(
        self,
        scheduler: AnyScheduler,
        executor: Executor,
        detokenizer: Detokenizer,
        clock: Callable[[], float],
        observation: Observation | None = None,
        cost_model: CostModel | None = None,
        stall_after_s: float = STALL_AFTER_S,
    ) -> None:
        self.scheduler = scheduler
        self.executor = executor
        self.detokenizer = detokenizer
        self.clock = clock
        self.records = Records(observation)
        self.watchdog = Watchdog(cost_model, stall_after_s)
        self.on_idle: Callable[[], None] = lambda: None
        self.on_dead: Callable[[], None] = lambda: None
        self.on_ended: Callable[[EndedRequest], None] | None = None
        self.requests: dict[str, EngineRequest] = {}
        self.dispatch = Dispatch(
            executor, self.requests, self.watchdog, has_stages=scheduler.config.pp > 1
        )
        self.in_flight = self.dispatch.in_flight
        self.outputs = OutputMaker(detokenizer)
        self.error: str | None = None
        self.num_batches = 0
        self.model_seconds = 0.0
        self.beginnings = Beginnings()
        self.iterations = Iterations()
        self.num_served_late = 0
        self.num_looked_up = self.num_found = 0
        self.fleet = Fleet(executor, scheduler.config.num_instances)
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
        check_it_travels(request)
        self.requests[request.request_id] = request
        length, params = len(request.prompt_token_ids), request.params
        keys = b"" if request.known is None else request.known.keys
        self._handle(RequestArrived(request.request_id, length, request.params.max_tokens, params.service, keys))

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

    def progress(self, request_id: str) -> Progress | None:
        """Return how far the request is; None if it has ended, or is unknown."""
        request = self.requests.get(request_id)
        if request is None or self.error is not None:
            return None
        found = self.scheduler.progress(request_id, self.clock())
        if found is None or request.times.scheduled is None:
            return found
        return replace(found, num_cached_tokens=request.num_cached_tokens)

    def stalled(self) -> str | None:
        """Return a sentence about decided work that does not end, or requests with nothing done for them; else None."""
        now = self.clock()
        if self.error is not None:
            return None
        missing = self.fleet.missing
        if self.fleet.none_serves:
            return f"no instance serves: {'; '.join(missing.values())}"
        if missing:  # what rests may need more room than is left
            return self.watchdog.overdue(now)
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
                scheduler, num_running=0, num_waiting=0, kv_tokens_used=(0,) * len(scheduler.kv_tokens_used),
                kv_tokens_cached=(),
            )  # fmt: skip
        return EngineStats(
            num_running=scheduler.num_running,
            num_waiting=scheduler.num_waiting,
            kv_tokens_used=sum(scheduler.kv_tokens_used),
            kv_tokens_total=self.scheduler.config.total_kv_tokens,
            num_instances=self.fleet.num_instances,
            num_preemptions=scheduler.num_preemptions,
            num_migrations=scheduler.num_migrations,
            kv_tokens_used_by_instance=scheduler.kv_tokens_used,
            num_batches=self.num_batches,
            model_seconds=self.model_seconds,
            num_bad_logits=self.outputs.num_bad_logits,
            event_log_errors=self.records.observation.num_errors,
            kv_tokens_cached=sum(scheduler.kv_tokens_cached),
            num_looked_up=self.num_looked_up,
            num_found=self.num_found,
            kv_tokens_cached_by_instance=scheduler.kv_tokens_cached,
            iterations=self.iterations,
            elasticity=self.dispatch.elasticity,
            num_groups=len({running.batch.group for running in self.in_flight.batches.values()}),
            num_recomputed=self.dispatch.num_recomputed,
            num_lost=self.fleet.num_tokens_lost,
            num_losses=self.fleet.num_losses,
            num_missing=self.fleet.num_missing,
            workers=self.executor.usage(),
        )

    def leave(self, instance: int, purpose: Purpose, *, passing: bool = False) -> None:
        """Empty an instance while its requests go on, and then do with it what is wanted.

        passing: as of `Fleet.leave`. Raises EngineDeadError; or RequestError: it cannot leave.
        """
        if self.error is not None:
            raise EngineDeadError(self.error)
        if self.fleet.leave(instance, purpose, passing=passing):
            self._handle(InstanceLeaving(instance))

    def add_instance(self) -> int:
        """Have one instance more, and return its number. Raises EngineDeadError; or RequestError: it cannot be."""
        if self.error is not None:
            raise EngineDeadError(self.error)
        return self.fleet.add()

    # -- the executor's news --------------------------------------------------------------------------------------

    def on_reply(self, news: News) -> None:
        """Take what a worker reports, or the executor of a whole instance."""
        if self.error is not None:
            return
        with self._failing_loudly("a %s was taken in", type(news).__name__):
            match news:
                case BatchDone():
                    self._on_batch_part(news)
                case FirstStageDone(batch_id, instance):
                    self._on_first_stage(batch_id, instance)
                case MigrationDone(migration_id, instance):
                    self._on_migration_part(migration_id, instance)
                case LostInstance():
                    self._on_loss(news)
                case NewInstance(instance, kv_tokens):
                    leaves = self.fleet.join(instance)
                    self._handle(InstanceJoined(instance, kv_tokens))
                    if leaves:
                        self._handle(InstanceLeaving(instance))
                case LeavingInstance(instance):
                    with suppress(RequestError):  # it is missing, or the last: its machine waits, and goes all the same
                        self.leave(instance, "remove", passing=True)
                case _:
                    raise AssertionError(f"unexpected {news!r}")

    def fail(self, message: str) -> None:
        """End the engine: every request gets to know why."""
        if self.error is not None:
            return
        self.error = message
        self.records.flush()
        requests = list(self.requests.values())
        self.requests.clear()
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
        if self.on_ended is not None and (isinstance(news, LongspanError) or news.finished):
            self.on_ended(request.ended(news, self.clock()))
        try:
            request.sink(news)
        except Exception:
            logger.exception("nobody could be told of request %s", request.request_id, extra=request.log_fields())
            if self.requests.get(request.request_id) is request:
                del self.requests[request.request_id]
                if self.on_ended is not None:
                    self.on_ended(request.ended(None, self.clock()))
                self._handle(RequestAborted(request.request_id))

    def _on_loss(self, lost: LostInstance) -> None:
        instance = lost.instance
        if instance >= self.fleet.num_instances:  # it was being added
            self.fleet.missing[instance] = lost.message
            return
        suspects = self._suspects(instance) if lost.failed else []
        held = self.scheduler.stats().kv_tokens_used[instance]
        was_there = instance not in self.fleet.missing
        is_unwanted = self.fleet.lose(lost, held)
        if was_there:
            self.dispatch.lose(instance)
        if is_unwanted:
            logger.error(
                "with instance %d goes the KV of %d tokens; %d requests go on", instance, held, len(self.requests)
            )
        self._handle(InstanceLost(instance, lost.returns))
        for request in suspects:
            if request.num_failures >= MOST_FAILURES and self.requests.pop(request.request_id, None) is not None:
                self._handle(RequestAborted(request.request_id))
                message = f"{MOST_FAILURES} workers have failed while they ran this request; the last: {lost.message}"
                self._tell(request, RequestFailedError(message))

    def _suspects(self, instance: int) -> list[EngineRequest]:
        """Requests that a worker ran when it failed, each of which may be the cause, and not all of which are."""
        names = {
            segment.request_id
            for running in self.in_flight.batches.values() if instance in running.batch.group
            for segment in running.batch.segments
        }  # fmt: skip
        suspects = [request for name, request in self.requests.items() if name in names]
        for request in suspects:
            request.num_failures += 1
        return suspects

    def _on_migration_part(self, migration_id: int, instance: int) -> None:
        running = self.in_flight.migration(migration_id)
        if running is None:
            return
        running.missing.discard(instance)
        if not running.missing:
            self.dispatch.settle(migration_id)
            self._handle(KVMigrated(migration_id))

    def _on_first_stage(self, batch_id: int, instance: int) -> None:
        running = self.in_flight.batches.get(batch_id)
        if running is None or instance not in running.in_first_stage:
            return  # the last stage's word came first: they come by different ways
        running.in_first_stage.discard(instance)
        if not running.in_first_stage:
            self._handle(FirstStageFree(batch_id))

    def _on_batch_part(self, done: BatchDone) -> None:
        running = self.in_flight.batch(done.batch_id)
        if running is None:
            return
        running.add(done)
        take_scores(self.requests, done)
        if running.missing:
            return
        if running.in_first_stage:
            running.in_first_stage.clear()
            self._handle(FirstStageFree(done.batch_id))
        del self.in_flight.batches[done.batch_id]
        self.watchdog.end("batch", done.batch_id)
        self.num_batches += 1
        self.model_seconds += running.model_s
        whole = self.scheduler.config.pp == 1  # else the time is that of the last stage alone
        self.iterations.note(running.shape, running.model_s, running.predicted_s if whole else None)
        now = self.clock()
        outputs, news = self.outputs.of_batch(running, self.requests, now)
        self._handle(BatchCompleted(done.batch_id, tuple(outputs)))
        self.dispatch.note_pauses(running.batch, now)
        for request, item in news:
            self._tell(request, item)

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
        self._heed(self.scheduler.decisions)
        self.records.add(now, event, actions, self.scheduler.decisions)
        self._note_rest(now)

    def _heed(self, decisions: Sequence[Decision]) -> None:
        """Keep what clients and metrics are told of."""
        for decision in decisions:
            if decision.step == SERVED_LATE:
                self.num_served_late += 1
            elif decision.step == PROMISED and decision.predicted.keys() >= set(_QUOTED):
                for request_id in decision.request_ids:
                    if (request := self.requests.get(request_id)) is not None:
                        tpot_s = request.params.service.tpot_s or self.scheduler.config.tpot_slo_s
                        request.quote = Quote(
                            **{name: decision.predicted[name] for name in _QUOTED}, tpot_s=tpot_s
                        )

    def _decide(self, event: Event, now: float) -> list[Action]:
        try:
            return self.scheduler.handle(event, now)
        except BaseException:
            self.records.add(now, event, (), ())  # so that a replay meets the same error
            raise

    def _do(self, action: Action, now: float) -> None:
        match action:
            case RunBatch():
                for request, tokens in self.dispatch.run(action, now):
                    self.beginnings.note(now)
                    self._note_found(request, tokens)
            case MigrateKV():
                self.dispatch.migrate(action, now)
            case CancelBatch():
                self.dispatch.cancel(action)
            case InstanceDrained(instance):
                self.fleet.drained(instance)
            case FreeKV():
                self.dispatch.free(action)
            case StopRequest(request_id, instances):
                self.dispatch.stop(request_id, instances, now)
            case RefuseRequest(request_id):
                self._tell(self.requests.pop(request_id), refusal(action, self.beginnings.next_s(now)))

    def _note_rest(self, now: float) -> None:
        """Requests may be there while nothing runs; or there are none, and the engine is idle."""
        rests = not (self.in_flight or self.scheduler.idle())
        self._resting_since = (now if self._resting_since is None else self._resting_since) if rests else None
        if self.scheduler.idle():
            self.records.flush()
            self.on_idle()

    def _note_found(self, request: EngineRequest, tokens: int) -> None:
        """A request begins, and so many of its tokens were computed before."""
        request.num_cached_tokens = tokens
        if request.known is not None:
            self.num_looked_up += len(request.prompt_token_ids)
            self.num_found += tokens
