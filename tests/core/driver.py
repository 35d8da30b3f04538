"""Plays everything around the scheduler: clients, clock, workers. Chooses what happens next at random.

It shares nothing with the simulator's driver, which knows one order in which work ends: that of its durations. Here
whatever the worker model has started may end next, at any time, as it may on real workers.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np

from longspan.config import SchedulerConfig
from longspan.core.actions import (
    Action,
    CancelBatch,
    InstanceDrained,
    MigrateKV,
    RefuseRequest,
    RunBatch,
    StopRequest,
)
from longspan.core.costs.cost_model import CostModel
from longspan.core.decision import Decision
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
    TokenOutput,
)
from longspan.core.hierarchy import make_scheduler
from longspan.core.policies.base import Policy
from longspan.prefix_keys import PrefixHasher
from longspan.service_level import DEFAULT_SERVICE, ServiceLevel

from .random_policy import RandomPolicy
from .worker_model import WorkerModel


@dataclass
class Life:
    """What the client side knows of a request. `ended` is set exactly once."""

    prompt: int
    max_tokens: int
    outputs: int = 0
    ended: str | None = None
    hasher: PrefixHasher | None = None

    @property
    def known(self) -> int:
        return self.prompt + self.outputs

    def end(self, why: str) -> None:
        assert self.ended is None, f"ended twice: {self.ended}, then {why}"
        self.ended = why


class Driver:
    """`check` runs after every call: the books agree with themselves, and with the worker model."""

    def __init__(
        self,
        config: SchedulerConfig,
        policy: Policy | None = None,
        *,
        seed: int = 0,
        cost_model: CostModel | None = None,
    ) -> None:
        self.config = config
        self.policy_may_rest = False
        self.scheduler = make_scheduler(config, policy, cost_model)
        self.model = WorkerModel(config.num_instances, config.kv_tokens, config.pp)
        self.model.reserves = not isinstance(policy, RandomPolicy)
        self.rng = random.Random(seed)
        self.now = 0.0
        self.lives: dict[str, Life] = {}
        self.log: list[tuple[float, Event, list[Action]]] = []
        self.why: list[tuple[Decision, ...]] = []
        self.absent: set[int] = set()  # lost, and expected back
        self.leaving: set[int] = set()
        self.drained: set[int] = set()

    # What can happen. Each returns the actions it led to.

    def arrive(
        self, prompt: int | list[int], max_tokens: int, request_id: str | None = None,
        service: ServiceLevel = DEFAULT_SERVICE,
    ) -> list[Action]:  # fmt: skip
        """prompt: so many tokens that nobody has had before; or tokens, whose KV is found again."""
        request_id = request_id or f"r{len(self.lives)}"
        if isinstance(prompt, int):
            self.lives[request_id] = Life(prompt, max_tokens)
            return self.handle(RequestArrived(request_id, prompt, max_tokens, service))
        hasher = PrefixHasher(b"of the tests", self.config.prefix_block)
        self.lives[request_id] = Life(len(prompt), max_tokens, hasher=hasher)
        self.model.tokens[request_id] = list(prompt)
        keys = hasher.push(np.array(prompt, dtype="<i4").tobytes())
        return self.handle(RequestArrived(request_id, len(prompt), max_tokens, service, keys))

    def abort(self, request_id: str) -> list[Action]:
        life = self.lives.get(request_id)
        if life is not None and life.ended is None:
            life.end("abort")
        return self.handle(RequestAborted(request_id))

    def lose(self, instance: int, returns: bool = True) -> list[Action]:
        """returns: whether it is said to be expected back."""
        (self.absent.add if returns else self.absent.discard)(instance)
        self.leaving.discard(instance)
        self.drained.discard(instance)
        return self.handle(InstanceLost(instance, returns))

    def join(self, instance: int) -> list[Action]:
        self.absent.discard(instance)
        self.model.join(instance)
        return self.handle(InstanceJoined(instance, self.config.kv_tokens))

    def leave(self, instance: int) -> list[Action]:
        self.leaving.add(instance)
        return self.handle(InstanceLeaving(instance))

    def complete(self, work: RunBatch | MigrateKV | None = None, *, stop: float | set[str] = 0.0) -> list[Action]:
        """Finish `work`, or the first that runs. `stop`: probability, or requests, to end early.

        A batch in the first of several stages leaves that, and is to be finished again.
        """
        work = work or self.model.started[0]
        if self.model.in_first_stage(work):
            assert isinstance(work, RunBatch)
            self.model.leave_first_stage(work)
            return self.handle(FirstStageFree(work.batch_id))
        self.model.complete(work)
        if isinstance(work, MigrateKV):
            return self.handle(KVMigrated(work.migration_id))
        emitting = [segment.request_id for segment in work.segments if segment.emits]
        return self.handle(BatchCompleted(work.batch_id, tuple(self._sample(rid, stop) for rid in emitting)))

    def finish(self, *, stop: float = 0.0, in_order: bool = True, max_steps: int = 20_000) -> None:
        """Complete what runs until nothing does; then everyone has ended and nothing is left."""
        for _ in range(max_steps):
            while not self.model.started and (self.drained or self.absent):
                if self.drained:
                    self.lose(min(self.drained))
                else:
                    self.join(min(self.absent))
            if not self.model.started:
                break
            self.complete(None if in_order else self.rng.choice(self.model.started), stop=stop)
        assert all(life.ended for life in self.lives.values()), "stuck, or going round in circles"
        assert self.model.is_empty
        assert self.scheduler.idle()
        stats = self.scheduler.stats()
        assert sum(stats.kv_tokens_used) == 0
        assert self.model.used == list(stats.kv_tokens_cached)

    def handle(self, event: Event) -> list[Action]:
        self.now += self.rng.choice((0.0, 0.001, 0.1 * self.rng.random()))
        actions = self.scheduler.handle(event, self.now)
        self.log.append((self.now, event, actions))
        self.why.append(self.scheduler.decisions)
        if isinstance(event, InstanceLost) and event.instance in self.model.serving:
            cancel = actions[0] if actions and isinstance(actions[0], CancelBatch) else None
            self.model.lose(event.instance, cancel)
            actions_left = actions if cancel is None else actions[1:]
        else:
            actions_left = actions
        for action in actions_left:
            self._submit(action)
        self._check()
        return actions

    def alive(self) -> list[str]:
        return [request_id for request_id, life in self.lives.items() if life.ended is None]

    def _submit(self, action: Action) -> None:
        if isinstance(action, RefuseRequest):
            self.lives[action.request_id].end("refused")
            return
        if isinstance(action, InstanceDrained):
            self.leaving.remove(action.instance)
            self.model.leave(action.instance)
            self.drained.add(action.instance)
            return
        if isinstance(action, RunBatch):
            assert self.model.serving.issuperset(action.group)
            for segment in action.segments:
                life = self.lives[segment.request_id]
                assert life.ended is None, "a batch for an ended request"
                # A looked-ahead token is not known yet: then exactly one more batch is on its way before this
                # one.
                lookahead = segment.end - life.known
                assert lookahead <= 1 and segment.emits == (lookahead >= 0)
                assert life.outputs + max(lookahead, 0) < life.max_tokens, "a token too many"
        elif isinstance(action, MigrateKV) and not action.request_id:
            assert (action.is_copy or action.source in self.leaving) and action.target not in self.leaving
        elif isinstance(action, MigrateKV):
            assert self.lives[action.request_id].ended is None
        elif isinstance(action, StopRequest):
            assert (self.lives[action.request_id].ended is None) == (action.reason == "preempted")
        assert not isinstance(action, CancelBatch)
        self.model.submit(action)

    def _sample(self, request_id: str, stop: float | set[str]) -> TokenOutput:
        life = self.lives[request_id]
        if life.ended is not None:
            return TokenOutput(request_id)
        life.outputs += 1
        keys = self._push(request_id, life, self.rng.randrange(3)) if life.hasher else b""
        stops = request_id in stop if isinstance(stop, set) else self.rng.random() < stop
        if life.outputs == life.max_tokens:
            life.end("length")
            return TokenOutput(request_id, "length")
        if stops:
            life.end("stop")
            return TokenOutput(request_id, "stop")
        return TokenOutput(request_id, None, keys)

    def _all_lack_instances(self) -> bool:
        """Whether nobody would fit into the instances that serve and stay, even alone."""
        staying = len(self.model.serving - self.leaving)
        if staying == len(self.model.used):
            return False
        on_one = self.scheduler.policy.keeps_on_one_instance
        most = self.config.kv_tokens * (min(1, staying) if on_one else staying)
        lives = [self.lives[request_id] for request_id in self.alive()]
        growth = self.config.decode_headroom
        return all(
            life.known + min(growth, life.prompt + life.max_tokens - 1 - life.known) > most for life in lives
        )

    def _push(self, request_id: str, life: Life, token: int) -> bytes:
        assert life.hasher is not None
        self.model.tokens[request_id].append(token)
        return life.hasher.push(np.array([token], dtype="<i4").tobytes())

    def _check(self) -> None:
        self.scheduler.check_invariants()
        if self.alive() and not self.policy_may_rest and not self._all_lack_instances():
            assert self.model.started, "requests are alive, but nothing runs"
        # The books run ahead of the workers: slots of what is queued are taken, slots of what drains are
        # free.
        if all(len(queue) <= 1 for queue in self.model.queues):
            stats = self.scheduler.stats()
            in_slots = zip(stats.kv_tokens_used, stats.kv_tokens_cached, strict=True)
            assert self.model.used == [used + cached for used, cached in in_slots]
