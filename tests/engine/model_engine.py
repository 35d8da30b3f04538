"""An engine whose workers are a model, reduced to what it has to get right: which tokens and which sampling a worker
knows, and what KV it holds, when a command comes.
"""

from __future__ import annotations

import itertools
import random
from collections import deque
from collections.abc import Collection
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import numpy as np

from longspan.config import SchedulerConfig
from longspan.core.hierarchy import make_scheduler
from longspan.core.policies import create_policy
from longspan.engine.engine_core import EngineCore
from longspan.engine.request import EngineRequest
from longspan.errors import LongspanError, RequestError
from longspan.executor.base import InstanceReport, LostInstance, NewInstance
from longspan.outputs import RequestOutput, RequestTimes
from longspan.sampling_params import SamplingParams
from longspan.worker.messages import (
    BatchDone,
    Cancel,
    Command,
    Forget,
    Free,
    Migrate,
    MigrationDone,
    Reply,
    Run,
    Settle,
    decode_command,
    encode,
)
from longspan.worker.sampling_state import SampledToken, SamplingState
from tests.core.cost_models import scaling_model

INSTANCES, KV_TOKENS, VOCAB = 3, 60, 1000


class ModelWorker:
    """One instance: commands first in, first out, but for the word that work is void, which comes at once."""

    def __init__(self, instance: int) -> None:
        self.instance = instance
        self.commands: deque[Command] = deque()
        self.void: set[int] = set()
        self.sampling: dict[str, SamplingState] = {}
        self.last_token: dict[str, int] = {}
        self.held: dict[int, set[int]] = {}
        self.done: dict[int, Run | Migrate] = {}

    def send(self, command: Command) -> None:
        if isinstance(command, Cancel):
            self.void.update(command.numbers)
        self.commands.append(command)

    def step(self) -> Reply | None:
        command = self.commands.popleft()
        match command:
            case Run(number=number) | Migrate(number=number) if number in self.void:
                return None
            case Run():
                return self._run(command)
            case Migrate(action):
                self.done[command.number] = command
                if action.target == self.instance:
                    for residence, ranges in action.parts:
                        self._store(residence, ranges)
                return MigrationDone(action.migration_id, self.instance)
            case _:
                self._note(command)
                return None

    def _note(self, command: Command) -> None:
        match command:
            case Settle(number):
                migrate = self.done.pop(number)
                assert isinstance(migrate, Migrate) and migrate.action.source == self.instance
                for residence, ranges in migrate.action.parts:
                    self._drop(residence, ranges)
            case Cancel(numbers):
                for number in sorted(self.done.keys() & set(numbers), reverse=True):
                    self._undo(self.done.pop(number))
                self.void.difference_update(numbers)
            case Free(action):
                if action.ranges:
                    self._drop(action.residence, action.ranges)
                else:
                    self.held.pop(action.residence, None)
            case Forget(request_id):
                self.sampling.pop(request_id, None)
                self.last_token.pop(request_id, None)

    def _run(self, run: Run) -> BatchDone:
        self.done[run.number] = run
        self.sampling.update(run.sampling)
        tokens = {}
        for segment in run.batch.segments:
            here = sum(
                len({position for position in self.held.get(residence, ()) if position < end})
                for residence, end in (*segment.earlier, (segment.residence, segment.start))
            )
            assert here == dict(segment.context).get(self.instance, 0), "what it holds is not what the plan says"
            for part in segment.store:
                if part.instance == self.instance:
                    self._store(segment.residence, [(part.start, part.end)])
            if self.instance in segment.compute and segment.request_id not in run.token_ids:
                assert segment.length == 1 and segment.request_id in self.last_token, "it does not know the token"
            if segment.emits and segment.emitter == self.instance:
                state = self.sampling[segment.request_id]
                token = int(state.uniform() * VOCAB)
                state.append(token)
                self.last_token[segment.request_id] = token
                tokens[segment.request_id] = SampledToken(token)
        return BatchDone(run.batch.batch_id, self.instance, tokens, 0.0, 0.0)

    def _undo(self, command: Run | Migrate) -> None:
        if isinstance(command, Migrate):
            if command.action.target == self.instance:
                for residence, ranges in command.action.parts:
                    self._drop(residence, ranges)
            return
        for segment in command.batch.segments:
            for part in segment.store:
                if part.instance == self.instance:
                    self._drop(segment.residence, [(part.start, part.end)])
            self.sampling.pop(segment.request_id, None)
            self.last_token.pop(segment.request_id, None)

    def _store(self, residence: int, ranges: Collection[tuple[int, int]]) -> None:
        new = set(itertools.chain.from_iterable(range(*each) for each in ranges))
        held = self.held.setdefault(residence, set())
        assert not held & new, "it has these already"
        held |= new
        assert sum(map(len, self.held.values())) <= KV_TOKENS

    def _drop(self, residence: int, ranges: Collection[tuple[int, int]]) -> None:
        gone = set(itertools.chain.from_iterable(range(*each) for each in ranges))
        assert gone <= self.held[residence]
        self.held[residence] -= gone
        if not self.held[residence]:
            del self.held[residence]


class ModelExecutor:
    """`Executor` over such workers. None: lost; not in `admitted`: its commands go nowhere."""

    def __init__(self) -> None:
        self.workers: list[ModelWorker | None] = [ModelWorker(i) for i in range(INSTANCES)]
        self.admitted = set(range(INSTANCES))
        self.ended: list[LostInstance] = []

    def submit(self, instance: int, command: Command) -> None:
        worker = self.workers[instance]
        if instance in self.admitted and worker is not None:
            worker.send(decode_command(encode(command)))

    def admit(self, instance: int) -> None:
        self.admitted.add(instance)

    def add(self) -> int:
        self.workers.append(None)
        return len(self.workers) - 1

    def restart(self, instance: int) -> None:
        assert self.workers[instance] is None

    def end(self, instance: int, why: str, *, again: bool) -> None:
        worker = self.workers[instance]
        assert worker is not None
        work = [command for command in worker.commands if isinstance(command, Run | Migrate)]
        assert all(command.number in worker.void for command in work), "it has work"
        while worker.commands:
            worker.step()
        assert not worker.held, "it holds KV"
        self.workers[instance] = None
        self.admitted.discard(instance)
        self.ended.append(LostInstance(instance, why, returns=again))

    def usage(self) -> tuple[()]:
        return ()

    def reports(self) -> list[InstanceReport]:
        return [InstanceReport(i, "serving" if worker else "missing") for i, worker in enumerate(self.workers)]


class Play:
    """An engine, its model workers, and what its clients have got."""

    def __init__(self, policy: str, seed: int) -> None:
        self.rng = random.Random(seed)
        self.executor = ModelExecutor()
        config = SchedulerConfig(num_instances=INSTANCES, kv_tokens=KV_TOKENS, policy=policy)
        self.now = 0.0
        self.core = EngineCore(
            make_scheduler(config, create_policy(policy), scaling_model(INSTANCES)), self.executor,  # type: ignore[arg-type]  # a model
            SimpleNamespace(token_bytes=bytes), self.clock,  # type: ignore[arg-type]  # all that is asked of it
        )  # fmt: skip
        self.core.fleet.can_change = True
        self.got: dict[str, list[int]] = {}
        self.errors: list[LongspanError] = []
        self.ended: set[str] = set()
        self.late: list[Reply] = []  # replies on their way, each after those of its instance before

    def clock(self) -> float:
        self.now += 1e-3
        return self.now

    def arrive(self, number: int) -> None:
        name = f"r{number}"
        length, wanted = self.rng.randint(1, 40), self.rng.randint(1, 12)
        self.got[name] = []
        params = SamplingParams(max_tokens=wanted, temperature=1.0, seed=number)
        self.core.add(
            EngineRequest(
                name, np.arange(length, dtype="<i4"), params, number, Counting(wanted),  # type: ignore[arg-type]  # no text
                RequestTimes(arrived=self.now), lambda news: self._hear(name, news),
            )
        )  # fmt: skip

    def _hear(self, name: str, news: RequestOutput | LongspanError) -> None:
        if isinstance(news, LongspanError):
            self.errors.append(news)
            return
        self.got[name] += news.token_ids
        if news.finished:
            self.ended.add(name)

    def step(self) -> bool:
        """Some worker does its next, or a reply arrives; tell whether there was anything."""
        while self.executor.ended:
            self.core.on_reply(self.executor.ended.pop())
        busy = [worker for worker in self.executor.workers if worker is not None and worker.commands]
        if self.late and (not busy or self.rng.random() < 0.5):
            self.core.on_reply(self.late.pop(0))
        elif busy:
            if (reply := self.rng.choice(busy).step()) is not None:
                self.late.append(reply)
        else:
            return False
        return True

    def states(self) -> list[str]:
        return [report.state for report in self.core.fleet.reports()]

    def lose(self, instance: int, returns: bool = True) -> None:
        self.executor.workers[instance] = None
        self.executor.admitted.discard(instance)
        self.late = [reply for reply in self.late if getattr(reply, "instance", None) != instance]
        self.core.on_reply(LostInstance(instance, f"worker {instance} is gone", returns))

    def disturb(self) -> None:
        """Lose one; or have one come back that the engine knows to be lost; or have one leave, or one more."""
        lost = sorted(self.core.fleet.missing)
        there = [i for i, worker in enumerate(self.executor.workers) if worker is not None and i not in lost]
        if lost and (not there or self.rng.random() < 0.5):
            self.return_(self.rng.choice(lost))
        elif self.rng.random() < 0.3 and there:
            with suppress(RequestError):  # the last one stays
                self.core.leave(self.rng.choice(there), self.rng.choice(("drain", "remove", "restart")))
        elif self.rng.random() < 0.1 and len(self.executor.workers) < 2 * INSTANCES:
            self.core.add_instance()
        elif there:
            self.lose(self.rng.choice(there))

    def return_(self, instance: int) -> None:
        self.executor.workers[instance] = ModelWorker(instance)
        self.core.on_reply(NewInstance(instance, KV_TOKENS))


class Counting:
    """In place of an `OutputProcessor`: the output ends at its length."""

    end_token_ids: frozenset[int] = frozenset()

    def __init__(self, wanted: int) -> None:
        self.left = wanted

    def push(self, token_id: int) -> Any:
        self.left -= 1
        return SimpleNamespace(
            text="", text_offset=0, stop_reason=None, finish_reason="length" if self.left == 0 else None
        )


def expected(number: int, count: int) -> list[int]:
    state = SamplingState.start(SamplingParams(temperature=1.0), number)
    tokens = []
    for _ in range(count):
        tokens.append(int(state.uniform() * VOCAB))
        state.append(tokens[-1])
    return tokens
