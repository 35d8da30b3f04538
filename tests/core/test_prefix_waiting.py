"""Requests that begin alike and come at once: one computes what they have in common, the others wait for it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest

from longspan.config import SchedulerConfig
from longspan.core.actions import Action, RunBatch, Segment

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


# who waits for it, and for how long


class _Steady(random.Random):
    """What happens next happens a millisecond later."""

    def choice(self, seq: Sequence[Any]) -> Any:
        return 0.001


def quick(policy: str) -> Driver:
    """A prompt's token takes 0.1 ms, a decode 30 ms, and an idle instance's iteration may take 50 ms or more."""
    config = SchedulerConfig(
        policy=with_options(policy, team=1), num_instances=2, kv_tokens=20_000, prefix_block=BLOCK, overload="off",
    )  # fmt: skip
    model = scaling_model(
        2, fixed=0.005, fixed_step=0.0, per_token=1e-4, per_pair=0.0, decode_fixed=0.03, decode_step=0.0,
        per_request=0.0,
    )  # fmt: skip
    d = Driver(config, cost_model=model)
    d.rng = _Steady()
    return d


def segments(actions: list[Action], name: str) -> list[Segment]:
    batches = [action for action in actions if isinstance(action, RunBatch)]
    return [each for batch in batches for each in batch.segments if each.request_id == name]


def between_turns(d: Driver, tokens: int) -> list[int]:
    """Have a first turn end while the iteration that was queued behind its last one begins; return the second turn."""
    d.arrive(list(range(tokens)), 50, "turn 1")
    while d.lives["turn 1"].outputs < 3:
        d.complete()
    d.complete(stop={"turn 1"})
    assert d.lives["turn 1"].ended == "stop" and d.model.started
    return [*d.model.tokens["turn 1"], *range(50_000, 50_150)]


@pytest.mark.parametrize("policy", ["longspan", "medha", "edf"])
def test_the_next_turn_waits_for_an_iteration_that_is_nearly_over(policy: str) -> None:
    """That takes 28 ms more, and the first turn's tokens 40 ms."""
    d = quick(policy)
    second = between_turns(d, 400)
    assert not segments(d.arrive(second, 2, "turn 2"), "turn 2")
    (segment,) = segments(d.complete(), "turn 2")
    assert segment.compute == (0,) and segment.start == 400
    d.finish()


@pytest.mark.parametrize("policy", ["longspan", "medha", "edf"])
def test_but_not_for_less_than_that_takes(policy: str) -> None:
    """The first turn's tokens would take 16 ms."""
    d = quick(policy)
    (segment,) = segments(d.arrive(between_turns(d, 160), 2, "turn 2"), "turn 2")
    assert segment.compute == (1,) and segment.start == 0
    d.finish()


@pytest.mark.parametrize(("tokens", "waits"), [(400, False), (1000, True)])
def test_decodes_that_go_on_there_count_as_well(tokens: int, waits: bool) -> None:
    """Two iterations are under way for them, of 30 ms each, and the chunk's own takes 25 ms longer."""
    d = quick("longspan")
    d.arrive(list(range(90_000, 90_016)), 500, "another")
    d.arrive(list(range(80_000, 80_400)), 1, "beside")
    d.arrive(list(range(tokens)), 500, "turn 1")
    while d.lives["turn 1"].outputs < 3:
        d.complete()
    (batch,) = [work for work in d.model.started if isinstance(work, RunBatch)]
    assert {each.request_id for each in batch.segments} == {"another", "turn 1"}
    holder = batch.group
    d.complete(stop={"turn 1"})
    second = [*d.model.tokens["turn 1"], *range(50_000, 50_150)]
    begun = segments(d.arrive(second, 2, "turn 2"), "turn 2")
    assert (not begun) == waits
    assert waits or begun[0].compute != holder
    d.finish()


@pytest.mark.parametrize(("begun_s", "waits"), [(0.0, False), (0.04, True)])
def test_who_begins_alike_waits_for_a_chunk_that_is_nearly_over(begun_s: float, waits: bool) -> None:
    """It takes 45 ms, of which so much is over. Its prompt's last one it is."""
    d = quick("longspan")
    d.arrive(list(range(401)), 1, "first")
    d.now += begun_s
    begun = segments(d.arrive([*range(400), 7, 7], 1, "second"), "second")
    assert (not begun) == waits
    d.finish()
    assert computed(d)["second"] == (2 if waits else 402)
