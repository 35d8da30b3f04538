"""What becomes of requests that the instances that are there have no room for: some wait, some are refused."""

from __future__ import annotations

import pytest

from longspan.config import SchedulerConfig
from longspan.core.actions import MigrateKV, RefuseRequest, RunBatch, StopRequest

from .cost_models import scaling_model
from .driver import Driver
from .settings import configured
from .test_losses import since, spread

SPREAD = ["elastic_fcfs", "longspan", "medha", "loongserve", "static_sp"]


def test_who_does_not_fit_waits_for_instances_to_come_back() -> None:
    driver = spread(kv_tokens=20)
    driver.arrive(3, 3, "b")
    actions = [*driver.lose(0), *driver.lose(1)]
    assert "a" in [action.request_id for action in actions if isinstance(action, StopRequest)]
    while driver.model.started:
        driver.complete()
    assert driver.lives["b"].ended == "length" and driver.lives["a"].ended is None
    assert driver.scheduler.stats().num_waiting == 1
    assert driver.scheduler.request_limit == 60
    driver.join(0)
    assert not driver.model.started
    driver.join(1)
    driver.finish()
    assert driver.lives["a"].outputs == 8


def test_who_does_not_fit_is_refused_if_none_comes_back() -> None:
    driver = spread(kv_tokens=20)
    driver.lose(0)
    driver.lose(1)
    assert not [action for action in since(driver, 0) if isinstance(action, RefuseRequest)]
    driver.lose(0, returns=False)
    (refused,) = (action for action in since(driver, 0) if isinstance(action, RefuseRequest))
    assert (refused.request_id, refused.reason) == ("a", "fleet_too_small")
    assert driver.scheduler.request_limit == 40
    (refused,) = (action for action in driver.arrive(35, 10, "b") if isinstance(action, RefuseRequest))
    assert refused.reason == "fleet_too_small"
    driver.absent.discard(0)
    driver.arrive(15, 5, "c")
    driver.finish()


def refusals(driver: Driver) -> list[tuple[str, str]]:
    found = [action for action in since(driver, 0) if isinstance(action, RefuseRequest)]
    return [(action.request_id, action.reason) for action in found]


def run_out(driver: Driver) -> None:
    while driver.model.started:
        driver.complete()


def pair(policy: str) -> Driver:
    settings = configured(
        policy, num_instances=2, kv_tokens=30, overload="off", decode_headroom=16, max_batch_tokens=64
    )
    return Driver(settings, cost_model=scaling_model(2))


@pytest.mark.parametrize("policy", SPREAD)
@pytest.mark.parametrize("prompt", [25, 40])  # it would fit, but for the room for its tokens; it would not
@pytest.mark.parametrize("leaves", [False, True])
def test_who_waits_in_vain_is_refused_and_holds_up_nobody(policy: str, prompt: int, leaves: bool) -> None:
    driver = pair(policy)
    for name in ("x", "y"):  # they fill both
        driver.arrive(28, 2, name)
    driver.arrive(prompt, 19, "a")
    driver.arrive(5, 3, "b")
    if leaves:
        driver.leave(1)
        while 1 not in driver.drained:
            driver.complete()
    driver.lose(1, returns=False)
    run_out(driver)
    assert refusals(driver) == [("a", "fleet_too_small")]
    assert [driver.lives[name].ended for name in "xyb"] == ["length"] * 3
    (refused,) = (action for action in driver.arrive(25, 19, "c") if isinstance(action, RefuseRequest))
    assert refused.reason == ("too_long" if leaves else "fleet_too_small")
    driver.join(1)
    driver.arrive(25, 19, "d")
    driver.finish()
    assert driver.lives["d"].ended == "length"


@pytest.mark.parametrize("policy", SPREAD)
@pytest.mark.parametrize("prompt", [25, 40])
def test_one_is_lost_while_the_other_is_removed(policy: str, prompt: int) -> None:
    """What begins again may be longer than what is left: it is refused, and nobody waits behind it."""
    driver = pair(policy)
    driver.arrive(prompt, 15, "a")
    while driver.lives["a"].outputs < 2:
        driver.complete()
    driver.arrive(5, 3, "b")
    driver.leave(1)
    driver.lose(0)
    while 1 not in driver.drained:
        driver.complete()
    driver.lose(1, returns=False)
    driver.join(0)
    driver.arrive(5, 3, "c")
    driver.finish()
    assert refusals(driver) in ([], [("a", "fleet_too_small")])
    assert driver.lives["b"].ended == driver.lives["c"].ended == "length"


def test_one_that_has_left_for_good_may_be_told_of_again() -> None:
    """It was to be started again all the same, and was not."""
    driver = pair("elastic_fcfs")
    driver.leave(1)
    for _ in range(2):
        driver.lose(1, returns=False)
    driver.arrive(5, 3, "a")
    driver.finish()
    driver.join(1)
    assert driver.scheduler.request_limit == 60


def test_without_any_instance_requests_wait() -> None:
    config = SchedulerConfig(policy="vllm", num_instances=2, kv_tokens=40)
    driver = Driver(config)
    driver.arrive(5, 9, "a")
    driver.lose(0)
    driver.lose(1)
    driver.arrive(5, 9, "b")
    driver.arrive(5, 9, "c")
    driver.abort("c")
    driver.join(1)
    batches = [work for work in driver.model.started if isinstance(work, RunBatch)]
    assert {segment.request_id for batch in batches for segment in batch.segments} == {"a", "b"}
    driver.finish()


def test_who_never_could_begin_is_refused_though_no_policy_is_asked_any_more() -> None:
    driver = Driver(SchedulerConfig(policy="replicated", num_instances=2, kv_tokens=10))
    driver.lose(0)
    driver.lose(1)
    driver.arrive(6, 9, "long")
    driver.arrive(3, 3, "short")
    driver.lose(0, returns=False)
    assert refusals(driver) == []
    driver.lose(1, returns=False)
    assert sorted(refusals(driver)) == [("long", "fleet_too_small"), ("short", "fleet_too_small")]
    driver.finish()


def test_what_belonged_to_an_instance_that_is_let_go_begins_elsewhere() -> None:
    """`replicated` deals requests out over those that serve; one is let go after the policy has had its turn."""
    driver = Driver(SchedulerConfig(policy="replicated", num_instances=2, kv_tokens=16, prefix_block=1))
    driver.arrive(list(range(8)), 1, "on 0")
    driver.arrive(list(range(20, 29)), 1, "on 1")
    driver.finish()
    driver.leave(0)  # not all that is cached there has room on the other
    assert isinstance(driver.model.started[0], MigrateKV)
    driver.arrive(3, 6, "waits for 0")
    driver.finish()
    assert driver.lives["waits for 0"].outputs == 6
