"""The published baselines under any workload, in any order of completion: everyone gets an end, and nobody goes round
in circles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longspan.core.actions import Action, MigrateKV
from longspan.core.costs.cost_model import FittedCostModel
from longspan.core.events import Event
from longspan.core.policies.base import Policy
from longspan.core.policies.distserve import DistServe
from longspan.core.policies.fastserve import FastServe
from longspan.core.policies.speculative.alise import Alise
from longspan.core.policies.speculative.ssjf import Ssjf
from longspan.core.policies.splitfuse import SplitFuse
from longspan.core.policies.vllm import Vllm

from .cost_models import cost_models
from .driver import Driver
from .reading import batches, preempted
from .settings import with_options
from .test_properties import FirstComeFirstServed, Workload, run, workloads

budgets = st.sampled_from([1, 3, 7, 2048])
times = st.sampled_from([0.0, 0.05, 3.0])
POLICIES: dict[str, st.SearchStrategy[Policy]] = {
    "vllm": st.builds(Vllm, token_budget=budgets),
    "splitfuse": st.builds(SplitFuse, chunk_size=st.sampled_from([1, 5, 512])),
    "distserve": st.builds(DistServe),
    "fastserve": st.builds(FastServe, quantum_s=st.sampled_from([1e-4, 0.01, 1.0]), starvation_s=times),
    "ssjf": st.builds(Ssjf, token_budget=budgets, starvation_s=times),
    "alise": st.builds(Alise, token_budget=budgets),
}


class OnOneInstanceEach(Driver):
    """A request computes, stores and has its context on one instance, that of the batch."""

    def handle(self, event: Event) -> list[Action]:
        actions = super().handle(event)
        for batch in batches(actions):
            (instance,) = batch.group
            assert all(segment.compute == (instance,) for segment in batch.segments)
        self.check(event, actions)
        return actions

    def check(self, event: Event, actions: list[Action]) -> None:
        """What else must hold of a policy."""


class NeverTheOldest(OnOneInstanceEach):
    """Only a request that arrived later than another one on its instance is ever preempted."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.home: dict[str, int] = {}

    def check(self, event: Event, actions: list[Action]) -> None:
        order = {request_id: place for place, request_id in enumerate(self.lives)}
        for request_id in preempted(actions):
            others = [
                other
                for other in self.alive()
                if self.home.get(other) == self.home[request_id] and order[other] < order[request_id]
            ]
            assert others, f"{request_id} was preempted for later ones"
            del self.home[request_id]
        for batch in batches(actions):
            self.home |= {segment.request_id: batch.group[0] for segment in batch.segments}


class TokenEachBatch(OnOneInstanceEach):
    """Every batch generates a token for each request in it; so preemption costs work, and never progress."""

    def check(self, event: Event, actions: list[Action]) -> None:
        assert all(segment.emits for batch in batches(actions) for segment in batch.segments)


class InPhases(TokenEachBatch):
    """Prompts in one half, decodes in the other, and one migration in between; one instance alone does both."""

    def check(self, event: Event, actions: list[Action]) -> None:
        super().check(event, actions)
        half = self.config.num_instances // 2
        for action in actions:
            assert not isinstance(action, MigrateKV) or action.source < half <= action.target
        for batch in batches(actions):
            assert not half or all((segment.start == 0) == (batch.group[0] < half) for segment in batch.segments)


class GivesWayOnce(OnOneInstanceEach):
    """One preemption of each for a waiting one; more are for decodes that lack slots, and these get on by that."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.num_preempted = 0

    def check(self, event: Event, actions: list[Action]) -> None:
        self.num_preempted += len(preempted(actions))
        tokens = sum(life.outputs for life in self.lives.values())
        assert self.num_preempted <= len(self.lives) + 2 * tokens, "work is lost again and again, and for nothing"


SIDES: dict[str, Callable[..., Driver]] = {
    "vllm": NeverTheOldest,
    "splitfuse": NeverTheOldest,
    "distserve": InPhases,
    "fastserve": TokenEachBatch,
    "ssjf": NeverTheOldest,
    "alise": GivesWayOnce,
}


@pytest.mark.parametrize("policy", POLICIES)
@settings(max_examples=60)
@given(data=st.data(), workload=workloads(), cost_model=cost_models())
def test_everybody_comes_to_an_end(
    policy: str, data: st.DataObject, workload: Workload, cost_model: FittedCostModel
) -> None:
    config = replace(workload.config, policy=policy)
    by = data.draw(POLICIES[policy])
    run(SIDES[policy](config, by, seed=workload.seed, cost_model=cost_model), workload)


@pytest.mark.parametrize("policy", ["vllm", "splitfuse", "distserve"])
@settings(max_examples=40)
@given(workload=workloads(), instances=st.integers(1, 3))
def test_first_come_first_served(policy: str, workload: Workload, instances: int) -> None:
    """Of all where there is one queue: on one instance, or before DistServe's prefill instances."""
    instances = instances if policy == "distserve" else 1
    config = replace(workload.config, policy=with_options(policy, chunk_size=5), num_instances=instances)
    run(FirstComeFirstServed(config, seed=workload.seed), workload)
