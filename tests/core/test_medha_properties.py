"""Medha and its baselines under any workload, in any order of completion; and how often anybody gives way."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longspan.config import SchedulerConfig
from longspan.core.actions import Action, FreeKV, MigrateKV, RunBatch, StopRequest
from longspan.core.books.request import Request
from longspan.core.costs.cost_model import Chunk, FittedCostModel
from longspan.core.costs.load import batch_seconds
from longspan.core.events import Event, RequestArrived
from longspan.core.policies.chunked.memory.pressure import Concessions
from longspan.core.policies.chunked.predictor import MAX_FIXED_SHARE, Predictor
from longspan.core.policies.medha.policy import Medha
from longspan.core.scheduler import Scheduler
from longspan.service_level import DEFAULT_SERVICE, ServiceLevel
from longspan.simulator.driver import Work
from longspan.simulator.playback import play

from .cost_models import cost_models, scaling_model
from .driver import Driver
from .reading import batches, freed, preempted
from .settings import configured, with_options
from .test_properties import Workload, run, workloads

POLICIES = ["longspan", "medha", "sarathi", "fcfs", "edf", "srpt", "least_slack", "fsp", "preflow", "qoserve"]
settings_of_chunking = st.fixed_dictionaries(
    {
        "tpot_slo_s": st.sampled_from([1e-6, 1e-3, 0.05, 10.0]),
        "chunk_size": st.sampled_from([1, 5, 512]),
        "max_space_share": st.sampled_from([0.0, 0.4]),
        "kvp_tokens_per_shard": st.sampled_from([None, 1, 3, 20]),
    }
)


class Tally(Driver):
    """Counts who moved or was preempted for a waiting request: of two, one for the other, at most once."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.pairs: Counter[tuple[str, str]] = Counter()

    def handle(self, event: Event) -> list[Action]:
        actions = super().handle(event)
        for decision in self.why[-1]:
            if decision.step in ("preempt for", "move for"):
                victim, beneficiary = decision.request_ids
                self.pairs[victim, beneficiary] += 1
                assert self.pairs[victim, beneficiary] == 1, "the same way twice"
                assert self.pairs[beneficiary, victim] == 0, "back again"
        for batch in batches(actions):
            for segment in batch.segments:
                assert len(segment.store) == 1 or len(segment.compute) > 1, "a chunk straddles two shards"
        return actions


@pytest.mark.parametrize("policy", POLICIES)
@settings(max_examples=40)
@given(workloads(), cost_models(), settings_of_chunking)
def test_everybody_comes_to_an_end(
    policy: str, workload: Workload, cost_model: FittedCostModel, changes: dict[str, float]
) -> None:
    config = replace(workload.config, tpot_slo_s=changes.pop("tpot_slo_s"), policy=with_options(policy, **changes))
    run(Tally(config, seed=workload.seed, cost_model=cost_model), workload)


class Demanding(Tally):
    """Every request wants something else."""

    def arrive(
        self, prompt: int, max_tokens: int, request_id: str | None = None, service: ServiceLevel = DEFAULT_SERVICE
    ) -> list[Action]:
        times = (None, 1e-4, 0.1, 100.0)
        service = ServiceLevel(self.rng.choice(times), self.rng.choice(times), self.rng.randint(-1, 1))
        return super().arrive(prompt, max_tokens, request_id, service)


@settings(max_examples=80)
@given(workloads(), cost_models(), settings_of_chunking)
def test_service_levels_of_all_kinds(
    workload: Workload, cost_model: FittedCostModel, changes: dict[str, float]
) -> None:
    config = replace(workload.config, tpot_slo_s=changes.pop("tpot_slo_s"), policy=with_options("medha", **changes))
    run(Demanding(config, seed=workload.seed, cost_model=cost_model), workload)


@settings(max_examples=120)
@given(
    prompts=st.lists(st.integers(20, 60), min_size=2, max_size=6),
    shard=st.sampled_from([None, 4, 10]),
    seed=st.integers(0, 2**32),
)
def test_growing_requests_in_a_full_pool_never_block_each_other(
    prompts: list[int], shard: int | None, seed: int
) -> None:
    """Each grows over several of the three instances, and any two are more than the pool."""
    config = configured(
        "medha", num_instances=3, kv_tokens=21, decode_headroom=2, max_batch_tokens=4, kvp_tokens_per_shard=shard
    )
    driver = Tally(config, seed=seed, cost_model=scaling_model(3))
    for prompt in prompts:
        driver.arrive(prompt, 2)
    driver.finish(in_order=False)


@settings(max_examples=40)
@given(data=st.data())
def test_a_request_that_can_win_waits_for_one_batch_at_most(data: st.DataObject) -> None:
    """There is room, and nobody is more urgent: its first chunk is in the first batch issued from its arrival on,
    when one that ran then is done: in no more than the target, or a smallest chunk's time."""
    instances = data.draw(st.integers(1, 3))
    model = scaling_model(instances)
    config = SchedulerConfig(num_instances=instances, kv_tokens=200_000, policy="medha")
    longs = data.draw(st.lists(st.tuples(st.floats(0, 5), st.integers(2_000, 60_000)), min_size=1, max_size=6))
    at = data.draw(st.floats(0.0, 20.0))
    arrivals = [
        (when, RequestArrived(f"long {number}", tokens, 8, ServiceLevel(ttft_s=1e5)))
        for number, (when, tokens) in enumerate(longs)
    ]
    urgent = RequestArrived("urgent", data.draw(st.integers(1, 2_000)), 1, ServiceLevel(ttft_s=0.01))
    timed: list[tuple[float, RunBatch]] = []

    def on_step(now: float, event: Event, actions: list[Action]) -> None:
        timed.extend((now, batch) for batch in batches(actions))

    def seconds(work: Work) -> float:
        assert isinstance(work, RunBatch), "nobody need move"
        return batch_seconds(work, model)

    play(Scheduler(config, cost_model=model), [*arrivals, (at, urgent)], seconds, on_step)
    began = min(now for now, batch in timed if any(s.request_id == "urgent" for s in batch.segments))
    longest = max((seconds(batch) for now, batch in timed if now <= at), default=0.0)
    assert began - at <= longest + 1e-9
    target = max(config.tpot_slo_s, model.prefill((), 1) / MAX_FIXED_SHARE)
    smallest = Predictor(model, config).floor
    alone = model.prefill((Chunk(smallest, 60_000),), 1) - model.prefill((), 1)
    assert longest <= target + alone


def test_a_long_prompt_half_done_gives_way_for_memory() -> None:
    """One instance, a long prompt that has reserved nearly all of it: a short one must not wait for its end."""
    config = SchedulerConfig(num_instances=1, kv_tokens=1000, policy="medha", tpot_slo_s=1e-3, max_batch_tokens=50)
    model = scaling_model(1, fixed=0.0, fixed_step=0.0, per_token=1e-4)
    driver = Driver(config, cost_model=model)
    driver.arrive(900, 5, "long", service=ServiceLevel(ttft_s=1e6))
    driver.complete()
    driver.arrive(300, 5, "short", service=ServiceLevel(ttft_s=1e-3))
    actions = driver.complete()
    assert [a for a in actions if isinstance(a, FreeKV | StopRequest)] == freed(0, "long", (0,), "preempted")
    assert driver.scheduler.stats().num_preemptions == 1
    driver.finish()
    assert driver.scheduler.stats().num_preemptions == 1


def test_it_gives_way_only_if_it_can_afford_to_begin_again() -> None:
    """A token takes 1 ms, an iteration 50. The short one is above the long one from its arrival on, but above the long
    one undone only from 0.65 s on: slack over work is (3.44 - t) / 0.3 against (9.1 - t) / 0.9."""
    model = scaling_model(
        1, fixed=0.0, fixed_step=0.0, per_token=1e-3, per_pair=0.0, decode_fixed=0.0, decode_step=0.0, per_request=0.0
    )
    config = SchedulerConfig(num_instances=1, kv_tokens=1000, policy="medha", tpot_slo_s=0.05001)
    times: list[float] = []

    def on_step(now: float, event: Event, actions: list[Action]) -> None:
        times.extend(now for _ in preempted(actions))

    played = play(
        Scheduler(config, cost_model=model),
        [
            (0.0, RequestArrived("long", 900, 1, ServiceLevel(ttft_s=10.0))),
            (0.44, RequestArrived("short", 300, 1, ServiceLevel(ttft_s=3.30))),
        ],
        lambda work: batch_seconds(work, model) if isinstance(work, RunBatch) else 0.0,
        on_step,
    )
    assert times == [pytest.approx(0.65)]
    assert all(request.ended for request in played.values())


def test_of_two_one_gives_way_once_and_the_other_never() -> None:
    state = Driver(SchedulerConfig(num_instances=1)).scheduler._state
    concessions = Concessions()
    a, b, c = (Request(name, 10, 1, 0.0, number) for number, name in enumerate("abc"))
    for request in (a, b, c):
        state.waiting.add(request)
    assert concessions.allow(a, b)
    concessions.note(a, b, state)
    assert not concessions.allow(a, b) and not concessions.allow(b, a)
    assert concessions.allow(a, c) and concessions.allow(b, c)


def test_it_is_moved_where_another_instance_has_room() -> None:
    """Two instances. Together they have room for the short prompt, alone neither: a half-done one moves aside."""
    config = SchedulerConfig(
        num_instances=2, kv_tokens=1000, policy="medha", max_batch_tokens=50, decode_headroom=0, lookahead=False
    )
    driver = Driver(config, cost_model=scaling_model(2))
    driver.arrive(400, 5, "a", service=ServiceLevel(ttft_s=1e6))
    driver.arrive(450, 5, "b", service=ServiceLevel(ttft_s=1e6))
    driver.complete()
    driver.complete()
    driver.arrive(900, 5, "short", service=ServiceLevel(ttft_s=1.0))
    while driver.scheduler.stats().num_migrations == 0:
        driver.complete()
    (move,) = [a for _, _, actions in driver.log for a in actions if isinstance(a, MigrateKV)]
    assert move.request_id in ("a", "b")
    driver.finish()
    assert driver.scheduler.stats().num_preemptions == 0
    short = [s for _, _, actions in driver.log for batch in batches(actions) for s in batch.segments]
    assert {s.store[0].instance for s in short if s.request_id == "short" and s.length > 1} == {move.source}


def test_a_policy_remembers_nobody_who_has_ended() -> None:
    """Who gave way to whom is kept for the living alone."""
    policy = Medha()
    config = SchedulerConfig(num_instances=1, kv_tokens=1000, tpot_slo_s=1e-3, max_batch_tokens=50)
    driver = Driver(config, policy, cost_model=scaling_model(1, fixed=0.0, fixed_step=0.0, per_token=1e-4))
    for number in range(20):
        driver.arrive(900, 2, f"long {number}", service=ServiceLevel(ttft_s=1e6))
        driver.complete()
        driver.arrive(300, 2, f"short {number}", service=ServiceLevel(ttft_s=1e-3))
        driver.finish()
    assert driver.scheduler.stats().num_preemptions == 20
    assert len(policy._concessions._beneficiaries) <= 1
