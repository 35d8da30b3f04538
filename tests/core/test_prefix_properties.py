"""Whatever is asked again, in whatever order work completes: what a request takes over was computed for its own tokens.

The worker model knows for whom each slot was filled, and which are free. Prompts go on from those before them, fork,
and come again while the first still runs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longspan.config import SchedulerConfig
from longspan.core.actions import FreeKV, RunBatch
from longspan.core.costs.cost_model import FittedCostModel

from .cost_models import cost_models
from .driver import Driver
from .random_policy import RandomPolicy
from .settings import EVERY_POLICY, with_options
from .test_medha_properties import settings_of_chunking
from .test_properties import configs


@dataclass
class Talk:
    """Requests that have to do with each other. alphabet: so many tokens there are, so that prompts meet by chance."""

    config: SchedulerConfig
    num_requests: int
    alphabet: int
    anew: float
    arrival: float
    abort: float
    stop: float
    seed: int


@st.composite
def talks(draw: st.DrawFn) -> Talk:
    return Talk(
        config=replace(draw(configs), prefix_block=draw(st.sampled_from([1, 1, 2, 3, 7]))),
        num_requests=draw(st.integers(1, 16)),
        alphabet=draw(st.sampled_from([1, 2, 50])),
        anew=draw(st.sampled_from([0.1, 0.5])),
        arrival=draw(st.sampled_from([0.05, 0.3, 1.0])),
        abort=draw(st.sampled_from([0.0, 0.0, 0.15])),
        stop=draw(st.sampled_from([0.0, 0.1, 0.5])),
        seed=draw(st.integers(0, 2**32)),
    )


def prompt(driver: Driver, talk: Talk) -> list[int]:
    """A new one, or what another request had so far, or some of it, and a few tokens more."""
    rng, longest = driver.rng, max(1, talk.config.total_kv_tokens // 2)
    before: list[int] = []
    if driver.model.tokens and rng.random() > talk.anew:
        before = rng.choice(list(driver.model.tokens.values()))
        before = before[: rng.choice((len(before), rng.randint(0, len(before))))]
    more = rng.choices(range(talk.alphabet), k=rng.randint(0 if before else 1, min(12, longest)))
    return [*before, *more][: max(1, talk.config.total_kv_tokens - 12)]


def run(driver: Driver, talk: Talk) -> None:
    rng, left = driver.rng, talk.num_requests
    while left:
        if not driver.model.started or rng.random() < talk.arrival:
            driver.arrive(prompt(driver, talk), rng.randint(1, 12))
            left -= 1
        else:
            driver.complete(rng.choice(driver.model.started), stop=talk.stop)
        if rng.random() < talk.abort:
            driver.abort(rng.choice(list(driver.lives)))
    driver.finish(stop=talk.stop, in_order=False)


@settings(max_examples=250)
@given(talks())
def test_an_arbitrary_policy(talk: Talk) -> None:
    run(Driver(talk.config, RandomPolicy(talk.seed), seed=talk.seed), talk)


@pytest.mark.parametrize("policy", EVERY_POLICY)
@settings(max_examples=25)
@given(talks(), cost_models(), settings_of_chunking)
def test_everybody_comes_to_an_end(
    policy: str, talk: Talk, cost_model: FittedCostModel, chunking: dict[str, Any]
) -> None:
    config = replace(talk.config, policy=with_options(policy, **chunking), overload="off")
    if policy == "distserve":  # which wants both kinds
        config = replace(config, num_instances=max(2, config.num_instances))
    run(Driver(config, seed=talk.seed, cost_model=cost_model), replace(talk, config=config))


def reused(driver: Driver) -> int:
    """Tokens that requests did not compute, since others had."""
    begun: set[str] = set()
    count = 0
    for _, _, actions in driver.log:
        for action in actions:
            if isinstance(action, RunBatch):
                for segment in action.segments:
                    count += segment.start if segment.request_id not in begun else 0
                    begun.add(segment.request_id)
    return count


def test_they_do_meet() -> None:
    """The runs above reuse, share and evict, or they would show nothing."""
    config = SchedulerConfig(num_instances=3, kv_tokens=60, prefix_block=2)
    tokens = evictions = 0
    for seed in range(30):
        talk = Talk(config, 14, 50, 0.2, 0.2, 0.05, 0.2, seed)
        driver = Driver(config, RandomPolicy(seed), seed=seed)
        run(driver, talk)
        tokens += reused(driver)
        frees = [each for _, _, actions in driver.log for each in actions if isinstance(each, FreeKV)]
        evictions += len(frees)
    assert tokens > 1000 and evictions > 100
