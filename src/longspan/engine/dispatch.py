"""What was decided becomes commands to instances, with the tokens and the sampling that only the engine knows."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from longspan.core.actions import CancelBatch, FreeKV, MigrateKV, RunBatch
from longspan.core.costs.batch_shape import BatchShape
from longspan.engine.in_flight import InFlight, RunningBatch, RunningMigration
from longspan.engine.request import EngineRequest
from longspan.engine.watchdog import Watchdog
from longspan.executor.base import Executor
from longspan.metrics.elasticity import Elasticity
from longspan.worker.messages import Cancel, Forget, Free, Migrate, Run, Settle


class Dispatch:
    """Sends commands, and keeps what is on its way.

    requests: those that are alive, by id. has_stages: an instance has several pipeline stages.
    emitters: instances that have sampling state of a request, beside those that hold its KV.
    num_recomputed: tokens that were sent to be computed again, after a loss or a preemption.
    """

    def __init__(
        self, executor: Executor, requests: dict[str, EngineRequest], watchdog: Watchdog, *, has_stages: bool
    ) -> None:
        self._executor = executor
        self._requests = requests
        self._watchdog = watchdog
        self._has_stages = has_stages
        self.in_flight = InFlight()
        self.emitters: dict[str, set[int]] = {}
        self.num_recomputed = 0
        self.elasticity = Elasticity()

    def run(self, batch: RunBatch, now: float) -> list[tuple[EngineRequest, int]]:
        """Send a batch. Returns the requests that begin with it, and how many of their tokens were computed before."""
        first = set(batch.group) if self._has_stages else set()
        shape = BatchShape.of(batch)
        predicted_s = self._watchdog.begin(batch, now, shape)
        number = self.in_flight.next_number()
        self.in_flight.batches[batch.batch_id] = RunningBatch(
            batch, number, set(batch.group), first, shape, predicted_s
        )
        oldest = self.in_flight.oldest_batch()
        commands = {instance: Run(batch, {}, {}, {}, {}, number, oldest) for instance in batch.group}
        begin = []
        for segment in batch.segments:
            request = self._requests[segment.request_id]
            self.elasticity.begin(request.course, batch, segment, now)
            if request.times.scheduled is None:
                request.times.scheduled = now
                begin.append((request, segment.start))
            self.num_recomputed += request.note_computed(segment.start, segment.end)
            token_ids = request.token_bytes(segment.start, segment.end)
            if token_ids is not None:
                for instance in segment.compute:
                    commands[instance].token_ids[segment.request_id] = token_ids
                    commands[instance].prompt_tokens[segment.request_id] = len(request.prompt_token_ids)
            if (scoring := request.scoring(segment.start, segment.end)) is not None:
                for instance in segment.compute:
                    commands[instance].scoring[segment.request_id] = scoring
            if segment.emits and segment.emitter != request.emitter:
                request.emitter = segment.emitter
                self.emitters.setdefault(segment.request_id, set()).add(segment.emitter)
                commands[segment.emitter].sampling[segment.request_id] = request.sampling_state()
        for instance, command in commands.items():
            self._executor.submit(instance, command)
        return begin

    def note_pauses(self, batch: RunBatch, now: float) -> None:
        """A batch is through, and what comes next is decided: parts of prompts that do not go on, pause."""
        for segment in batch.segments:
            if not segment.emits and (request := self._requests.get(segment.request_id)) is not None:
                self.elasticity.rest(request.course, segment, now)

    def migrate(self, action: MigrateKV, now: float) -> None:
        self._watchdog.begin(action, now)
        number, ends = self.in_flight.next_number(), (action.source, action.target)
        self.in_flight.migrations[action.migration_id] = RunningMigration(action, number, set(ends))
        for instance in ends:
            self._executor.submit(instance, Migrate(action, number))

    def settle(self, migration_id: int) -> None:
        """A migration is through at both ends: its source may give up what has moved."""
        running = self.in_flight.migrations.pop(migration_id)
        self._watchdog.end("migration", migration_id)
        self._executor.submit(running.action.source, Settle(running.number))

    def cancel(self, action: CancelBatch) -> None:
        """Have work that is void dropped wherever it is. How its requests are sampled is told anew."""
        numbers, names = self.in_flight.cancel(action)
        for batch_id in action.batch_ids:
            self._watchdog.end("batch", batch_id)
        for migration_id in action.migration_ids:
            self._watchdog.end("migration", migration_id)
        self._tell_anew(self._requests[name] for name in names if name in self._requests)
        for instance in action.instances:
            self._executor.submit(instance, Cancel(numbers))

    def lose(self, instance: int) -> None:
        """What an instance knew of sampling is gone with it."""
        self._tell_anew(request for request in self._requests.values() if request.emitter == instance)
        for emitters in self.emitters.values():
            emitters.discard(instance)

    def free(self, action: FreeKV) -> None:
        for instance in action.instances:
            self._executor.submit(instance, Free(action))

    def stop(self, request_id: str, instances: Collection[int], now: float) -> None:
        """Have instances forget a request that has come to its end, or is to begin anew."""
        for instance in sorted({*instances, *self.emitters.pop(request_id, ())}):
            self._executor.submit(instance, Forget(request_id))
        request = self._requests.get(request_id)
        if request is not None:  # preempted: it starts again, and its state goes wherever that is
            request.emitter = None
            request.num_preemptions += 1
            self.elasticity.drop(request.course, now)

    def _tell_anew(self, requests: Iterable[EngineRequest]) -> None:
        for request in requests:
            request.emitter = None
