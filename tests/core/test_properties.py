"""Whatever arrives, in whatever order work completes: the books agree with the workers, and everyone gets an
end.

Hypothesis draws the cluster and the workload; a seed plays dice for the course of events (much faster than
drawing each step, and it replays as exactly). `test_machine` has Hypothesis choose every step of shorter runs
instead.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from longspan.config import SchedulerConfig
from longspan.core.actions import Action, StopRequest
from longspan.core.costs.cost_model import FittedCostModel
from longspan.core.events import Event

from .cost_models import cost_models
from .driver import Driver
from .random_policy import RandomPolicy
from .reading import batches

configs = st.builds(
    SchedulerConfig,
    num_instances=st.integers(1, 5),
    pp=st.sampled_from([1, 1, 1, 2, 3, 4]),
    kv_tokens=st.sampled_from([4, 9, 16, 40, 150]),
    max_waiting=st.sampled_from([3, 100]),
    max_batch_tokens=st.sampled_from([1, 8, 64]),
    max_batch_requests=st.sampled_from([1, 2, 3, 64]),
    min_tokens_per_instance=st.sampled_from([1, 4, 16]),
    decode_headroom=st.sampled_from([0, 1, 3, 16]),
    max_requests_per_master=st.sampled_from([1, 2, 16]),
    lookahead=st.booleans(),
)


@dataclass
class Workload:
    config: SchedulerConfig
    requests: list[tuple[int, int]]
    arrival: float
    abort: float
    stop: float
    seed: int


@st.composite
def workloads(draw: st.DrawFn) -> Workload:
    config = draw(configs)
    total = config.total_kv_tokens
    # Mostly what fits; some near the whole pool, some just beyond it.
    lengths = st.one_of(st.integers(1, min(12, total)), st.integers(1, max(1, total // 2)), st.integers(1, total + 1))
    return Workload(
        config=config,
        requests=draw(st.lists(st.tuples(lengths, st.integers(1, 12)), min_size=1, max_size=14)),
        arrival=draw(st.sampled_from([0.05, 0.3, 1.0])),  # 1.0 is one burst
        abort=draw(st.sampled_from([0.0, 0.0, 0.1])),
        stop=draw(st.sampled_from([0.0, 0.1, 0.5])),
        seed=draw(st.integers(0, 2**32)),
    )


def run(driver: Driver, workload: Workload) -> None:
    """Arrivals, aborts (also of the ended and the unknown) and completions in random order, until all is
    over."""
    rng, arrivals = driver.rng, list(workload.requests)
    while arrivals:
        if not driver.model.started or rng.random() < workload.arrival:
            driver.arrive(*arrivals.pop())
        else:
            driver.complete(rng.choice(driver.model.started), stop=workload.stop)
        if rng.random() < workload.abort:
            driver.abort(rng.choice([*driver.lives, "nobody"]))
    while workload.abort and driver.model.started and rng.random() < 0.9:
        driver.complete(rng.choice(driver.model.started), stop=workload.stop)
        if rng.random() < workload.abort:
            driver.abort(rng.choice([*driver.lives, "nobody"]))
    driver.finish(stop=workload.stop, in_order=False)


class FirstComeFirstServed(Driver):
    """Nobody starts while somebody who came before still waits (also one who was preempted)."""

    def handle(self, event: Event) -> list[Action]:
        actions = super().handle(event)
        order = {request_id: place for place, request_id in enumerate(self.lives)}
        waiting = [rid for rid in self.alive() if rid not in self.model.residences]
        preempted = [action.request_id for action in actions if isinstance(action, StopRequest)]
        started = [
            segment.request_id
            for batch in batches(actions)
            for segment in batch.segments
            if segment.start == 0
        ]
        for late in started:
            assert all(order[late] < order[rid] for rid in waiting if rid not in preempted)
        return actions


PREDICTING = ["loongserve", "loongserve_no_scale_up", "loongserve_reactive", "loongserve_single_master"]


class WorkConserving(FirstComeFirstServed):
    """No instance idles while the head of the queue could have it: at rest, nobody decodes on it, and there is room.

    For a while one may, while others that the head shall run on too end what they do.
    """

    MOST_EVENTS_IDLE = 25

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.idle_events = 0

    def handle(self, event: Event) -> list[Action]:
        actions = super().handle(event)
        state = self.scheduler._state
        head = state.waiting.first if state.waiting else None
        room = sum(max(0, instance.room) for instance in state.cluster.idle())
        growing = sum(request.max_kv_tokens for request in state.with_kv())
        could = (
            head is not None
            and head.num_tokens + state.headroom(head) <= room
            and head.max_kv_tokens + growing <= self.config.total_kv_tokens
            and not any(instance.ready for instance in state.cluster.idle())
        )
        self.idle_events = self.idle_events + 1 if could else 0
        assert self.idle_events <= self.MOST_EVENTS_IDLE, "instances idle while somebody waits who could use them"
        return actions


@settings(max_examples=200)
@given(workloads())
def test_elastic_fcfs(workload: Workload) -> None:
    run(FirstComeFirstServed(replace(workload.config, policy="elastic_fcfs"), seed=workload.seed), workload)


@pytest.mark.parametrize("policy", PREDICTING)
@settings(max_examples=100)
@given(workloads(), cost_models())
def test_policies_that_predict(policy: str, workload: Workload, cost_model: FittedCostModel) -> None:
    driver = WorkConserving(replace(workload.config, policy=policy), seed=workload.seed, cost_model=cost_model)
    run(driver, workload)


@pytest.mark.parametrize("policy", ["static_sp", "static_tp", "replicated"])
@settings(max_examples=80)
@given(workloads())
def test_baselines(policy: str, workload: Workload) -> None:
    side = Driver if policy == "replicated" else FirstComeFirstServed
    run(side(replace(workload.config, policy=policy), seed=workload.seed), workload)


@settings(max_examples=100)
@given(workloads(), cost_models())
def everybody_comes_to_an_end(policy: str, workload: Workload, cost_model: FittedCostModel) -> None:
    """For any policy, in whatever order it takes requests (docs/add_a_policy.md). policy: a name, or MODULE:CLASS."""
    run(Driver(replace(workload.config, policy=policy), seed=workload.seed, cost_model=cost_model), workload)


@settings(max_examples=200)
@given(workloads())
def test_arbitrary_policy(workload: Workload) -> None:
    run(Driver(workload.config, RandomPolicy(workload.seed), seed=workload.seed), workload)


class Machine(RuleBasedStateMachine):
    """The same, every step chosen by Hypothesis: slower, but a failure shrinks to the shortest story."""

    @initialize(config=configs)
    def begin(self, config: SchedulerConfig) -> None:
        self.driver = Driver(replace(config, policy="elastic_fcfs"))

    @rule(prompt=st.integers(1, 40), max_tokens=st.integers(1, 6))
    def arrive(self, prompt: int, max_tokens: int) -> None:
        self.driver.arrive(prompt, max_tokens)

    @precondition(lambda self: self.driver.alive())
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        self.driver.abort(data.draw(st.sampled_from(self.driver.alive())))

    @precondition(lambda self: self.driver.model.started)
    @rule(data=st.data(), stop=st.sampled_from([0.0, 0.5, 1.0]))
    def complete(self, data: st.DataObject, stop: float) -> None:
        self.driver.complete(data.draw(st.sampled_from(self.driver.model.started)), stop=stop)

    def teardown(self) -> None:
        if hasattr(self, "driver"):
            self.driver.finish()


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=60, stateful_step_count=30)
