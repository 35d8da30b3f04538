"""Requests that begin alike and come at once: one computes what they have in common, the others wait for it."""

from __future__ import annotations

from typing import Any

import pytest

from longspan.config import SchedulerConfig
from longspan.core.actions import RunBatch

from .cost_models import scaling_model
from .driver import Driver
from .settings import with_options

COMMON = list(range(4000))
BLOCK = 16


def driver(policy: str = "longspan", **options: Any) -> Driver:
    config = SchedulerConfig(
        policy=with_options(policy, **options), num_instances=2, kv_tokens=20_000, prefix_block=BLOCK, overload="off",
        max_batch_tokens=512,
    )
    return Driver(config, cost_model=scaling_model(2, per_token=2e-4))


def prompt(number: int) -> list[int]:
    return [*COMMON, 10_000 + number, 20_000 + number]


def computed(d: Driver) -> dict[str, int]:
    """Tokens by request."""
    found: dict[str, int] = {}
    for _, _, actions in d.log:
        for action in actions:
            if isinstance(action, RunBatch):
                for segment in action.segments:
                    found[segment.request_id] = found.get(segment.request_id, 0) + segment.length
    return found


@pytest.mark.parametrize("policy", ["longspan", "medha", "edf"])
def test_what_both_have_in_common_is_computed_once(policy: str) -> None:
    d = driver(policy)
    d.arrive(prompt(1), 1, "first")
    d.arrive(prompt(2), 1, "second")
    d.arrive(prompt(3), 1, "third")
    d.finish()
    tokens = computed(d)
    assert tokens["first"] == len(COMMON) + 2
    assert max(tokens["second"], tokens["third"]) < 1024  # what is hardly worth waiting for


def test_those_that_come_in_one_decision_share_as_well() -> None:
    d = driver()
    d.arrive(list(range(30_000, 30_600)), 1, "before")
    d.arrive(list(range(40_000, 40_600)), 1, "beside")
    d.arrive(prompt(1), 1, "first")
    d.arrive(prompt(2), 1, "second")
    d.finish()
    tokens = computed(d)
    assert tokens["first"] + tokens["second"] < len(COMMON) + 1024


def test_without_the_option_nobody_waits() -> None:
    d = driver("medha", wait_for_prefix=False)
    d.arrive(prompt(1), 1, "first")
    d.arrive(prompt(2), 1, "second")
    d.finish()
    tokens = computed(d)
    assert tokens["first"] + tokens["second"] > 1.5 * len(COMMON)


def test_if_the_first_is_aborted_the_second_goes_on_from_there() -> None:
    d = driver()
    d.arrive(prompt(1), 1, "first")
    d.arrive(prompt(2), 1, "second")
    while computed(d)["first"] < len(COMMON) // 2:
        d.complete()
    done = computed(d)["first"]
    assert "second" not in computed(d)
    d.abort("first")
    d.finish()
    assert len(COMMON) + 2 - computed(d)["second"] in range(done - 2 * BLOCK, done + 1)


def test_those_that_have_little_in_common_do_not_wait() -> None:
    d = driver()
    d.arrive(prompt(1), 1, "first")
    d.arrive([*COMMON[:BLOCK], *range(50_000, 50_400)], 1, "other")
    d.finish()
    order = [segment.request_id for _, _, actions in d.log for action in actions if isinstance(action, RunBatch)
             for segment in action.segments]  # fmt: skip
    assert order.index("other") <= 1


@pytest.mark.parametrize("policy", ["longspan", "medha"])
def test_so_many_wait_for_one_instance_that_the_prefix_is_computed_once_more(policy: str) -> None:
    """Else the other one would have nothing to do, however many come."""
    d = driver(policy)
    d.arrive(prompt(0), 1, "first")
    d.finish()
    for number in range(1, 51):
        d.arrive([*prompt(number), *range(100_000 + 200 * number, 100_200 + 200 * number)], 1, f"r{number}")
    d.finish()
    by_instance = {0: 0, 1: 0}
    for _, _, actions in d.log:
        for action in actions:
            for segment in action.segments if isinstance(action, RunBatch) else ():
                by_instance[segment.compute[0]] += segment.length
    tokens = computed(d)
    again = sum(tokens.values()) - tokens["first"] - 50 * (200 + 2)
    assert min(by_instance.values()) > len(COMMON)
    assert again < 2 * len(COMMON)
