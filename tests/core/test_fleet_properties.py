"""Instances are lost, join and leave, whenever: nobody's request is, and nothing reads KV that is gone.

The worker model knows what each instance holds, and says by itself which work is void when one is lost.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longspan.core.actions import RefuseRequest
from longspan.core.costs.cost_model import FittedCostModel
from longspan.core.policies import create_policy
from longspan.core.policies.chunked.policy import ChunkedPrefill

from .cost_models import cost_models
from .driver import Driver
from .random_policy import RandomPolicy
from .settings import EVERY_POLICY, with_options
from .test_medha_properties import settings_of_chunking
from .test_prefix_properties import Talk, prompt, talks
from .test_properties import Workload, workloads

rates = st.sampled_from([0.02, 0.1, 0.3])
CHUNKED = [policy for policy in EVERY_POLICY if isinstance(create_policy(policy), ChunkedPrefill)]
"""They have one frame in common, and their runs take long."""


def disturb(driver: Driver, rate: float, *, leaves: bool = False, for_good: bool = False) -> None:
    """Maybe an instance is lost, or one joins; no more than twice as many as there were at first.

    leaves: or one leaves. for_good: and some do not come back.
    """
    rng = driver.rng
    if rng.random() >= rate:
        return
    serving, known = sorted(driver.model.serving), len(driver.model.used)
    if driver.drained and rng.random() < 0.3:
        driver.lose(min(driver.drained), returns=not for_good)
        return
    if for_good and len(driver.absent) + len(serving) > 1 and driver.absent and rng.random() < 0.2:
        driver.lose(rng.choice(sorted(driver.absent)), returns=False)
        return
    if driver.absent and (not serving or rng.random() < 0.5):
        driver.join(rng.choice(sorted(driver.absent)))
    elif rng.random() < 0.1 and known < 2 * driver.config.num_instances:
        driver.join(known)
    elif serving:
        staying = sorted(set(serving) - driver.leaving)
        if leaves and staying and rng.random() < 0.4:
            driver.leave(rng.choice(staying))
        else:
            driver.lose(rng.choice(serving))


def run(
    driver: Driver, workload: Workload, rate: float, *, leaves: bool = False, for_good: bool = False
) -> None:
    rng, arrivals = driver.rng, list(workload.requests)
    while arrivals or (driver.model.started and rng.random() < 0.95):
        if arrivals and (not driver.model.started or rng.random() < workload.arrival):
            driver.arrive(*arrivals.pop())
        elif driver.model.started:
            driver.complete(rng.choice(driver.model.started), stop=workload.stop)
        if rng.random() < workload.abort:
            driver.abort(rng.choice([*driver.lives, "nobody"]))
        disturb(driver, rate, leaves=leaves, for_good=for_good)
    driver.finish(stop=workload.stop, in_order=False)
    if for_good:
        return
    refusals = [each for _, _, actions in driver.log for each in actions if isinstance(each, RefuseRequest)]
    assert all(each.reason != "fleet_too_small" for each in refusals), "all were expected back"


@settings(max_examples=80)
@given(workloads(), rates, st.booleans())
def test_an_arbitrary_policy(workload: Workload, rate: float, leaves: bool) -> None:
    driver = Driver(workload.config, RandomPolicy(workload.seed), seed=workload.seed)
    run(driver, workload, rate, leaves=leaves)


def nobody_is_lost(
    policy: str, workload: Workload, cost_model: FittedCostModel, rate: float, leaves: bool, chunking: dict[str, Any]
) -> None:
    config = replace(workload.config, policy=with_options(policy, **chunking), overload="off")
    if policy == "distserve":  # which wants both kinds
        config = replace(config, num_instances=max(2, config.num_instances))
    driver = Driver(config, seed=workload.seed, cost_model=cost_model)
    run(driver, replace(workload, config=config), rate, leaves=leaves)


@pytest.mark.parametrize("policy", EVERY_POLICY)
@settings(max_examples=6)
@given(workloads(), cost_models(), rates)
def test_who_needs_what_does_not_come_back_is_refused(
    policy: str, workload: Workload, cost_model: FittedCostModel, rate: float
) -> None:
    """And nobody waits for that, nor behind who does."""
    least = 2 if policy == "distserve" else 1
    config = replace(
        workload.config, policy=policy, overload="off", num_instances=max(least, workload.config.num_instances)
    )
    driver = Driver(config, seed=workload.seed, cost_model=cost_model)
    run(driver, replace(workload, config=config), rate, leaves=True, for_good=True)


@pytest.mark.parametrize("policy", [policy for policy in EVERY_POLICY if policy not in CHUNKED])
@settings(max_examples=20)
@given(workloads(), cost_models(), rates, st.booleans())
def test_nobody_is_lost(
    policy: str, workload: Workload, cost_model: FittedCostModel, rate: float, leaves: bool
) -> None:
    nobody_is_lost(policy, workload, cost_model, rate, leaves, {})


@pytest.mark.parametrize("policy", CHUNKED)
@settings(max_examples=6)
@given(workloads(), cost_models(), rates, st.booleans(), settings_of_chunking)
def test_nobody_is_lost_whose_prompt_is_cut_up(
    policy: str, workload: Workload, cost_model: FittedCostModel, rate: float, leaves: bool, chunking: dict[str, Any]
) -> None:
    nobody_is_lost(policy, workload, cost_model, rate, leaves, chunking)


def about(driver: Driver, talk: Talk, document: list[int]) -> list[int]:
    """A prompt of a few tokens behind one that all have in common, which may be long, and lie on several instances."""
    question = driver.rng.choices(range(talk.alphabet), k=driver.rng.randint(1, 8))
    return [*document, *question][: max(1, talk.config.total_kv_tokens - 12)]


def talk_on(driver: Driver, talk: Talk, rate: float, *, leaves: bool) -> None:
    rng, left = driver.rng, talk.num_requests
    document = rng.choices(range(50), k=rng.randint(0, talk.config.total_kv_tokens // 3))
    while left:
        if not driver.model.started or rng.random() < talk.arrival:
            asked = about(driver, talk, document) if rng.random() < 0.5 else prompt(driver, talk)
            driver.arrive(asked, rng.randint(1, 12))
            left -= 1
        else:
            driver.complete(rng.choice(driver.model.started), stop=talk.stop)
        if rng.random() < talk.abort:
            driver.abort(rng.choice(list(driver.lives)))
        disturb(driver, rate, leaves=leaves)
    driver.finish(stop=talk.stop, in_order=False)


@settings(max_examples=80)
@given(talks(), rates, st.booleans())
def test_cached_prefixes_are_cut_to_what_is_whole(talk: Talk, rate: float, leaves: bool) -> None:
    talk_on(Driver(talk.config, RandomPolicy(talk.seed), seed=talk.seed), talk, rate, leaves=leaves)


@pytest.mark.parametrize("policy", EVERY_POLICY)
@settings(max_examples=12)
@given(talks(), cost_models(), rates, st.booleans())
def test_nobody_is_lost_who_shares_a_prefix(
    policy: str, talk: Talk, cost_model: FittedCostModel, rate: float, leaves: bool
) -> None:
    config = replace(talk.config, policy=with_options(policy), overload="off")
    if policy == "distserve":  # which wants both kinds
        config = replace(config, num_instances=max(2, config.num_instances))
    talk_on(
        Driver(config, seed=talk.seed, cost_model=cost_model), replace(talk, config=config), rate, leaves=leaves
    )
