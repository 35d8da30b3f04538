"""What becomes of requests when an instance is lost, joins or leaves: step by step."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from longspan.config import SchedulerConfig
from longspan.core.actions import (
    Action,
    CancelBatch,
    FreeKV,
    InstanceDrained,
    MigrateKV,
    RunBatch,
    Segment,
    StopRequest,
)
from longspan.core.decision import EXTRAPOLATED
from longspan.core.events import FleetEvent, InstanceJoined, InstanceLeaving, InstanceLost
from longspan.core.internal_error import InternalError
from longspan.core.scheduler import Scheduler
from longspan.metrics.event_log import EventLogWriter, read_event_log, replay
from longspan.service_level import ServiceLevel

from .cost_models import scaling_model
from .driver import Driver
from .reading import batches, preempted
from .test_fleet_properties import disturb

MODEL = scaling_model(
    3, fixed=0.02, fixed_step=0.001, per_token=1e-3, per_pair=0.0, decode_fixed=5e-4, decode_step=0.0,
    per_request=1e-4, migration_per_token=1e-6,
)  # fmt: skip


def of(request_id: str, actions: list[Action]) -> list[Segment]:
    return [segment for batch in batches(actions) for segment in batch.segments if segment.request_id == request_id]


def since(driver: Driver, place: int) -> list[Action]:
    return [action for _, _, actions in driver.log[place:] for action in actions]


def spread(policy: str = "elastic_fcfs", kv_tokens: int = 30, **settings: object) -> Driver:
    """A request of 45 tokens on several of three instances, with its first token."""
    config = SchedulerConfig(
        policy=policy, num_instances=3, kv_tokens=kv_tokens, min_tokens_per_instance=1, decode_headroom=0,
        max_batch_tokens=8, **settings,  # type: ignore[arg-type]  # of any kind
    )
    driver = Driver(config, cost_model=MODEL)
    driver.arrive(45, 8, "a")
    while driver.lives["a"].outputs == 0:
        driver.complete()
    return driver


@pytest.mark.parametrize("policy", ["elastic_fcfs", "loongserve", "medha", "longspan"])
def test_only_what_is_gone_is_computed_again(policy: str) -> None:
    driver = spread(policy, overload="off")
    residence = driver.model.residences["a"][0][0]
    first = residence.owner[0]
    lost = sorted(token for token, owner in residence.owner.items() if owner == first)
    assert 0 < len(lost) < 45
    in_flight = [segment.start for work in driver.model.started for segment in work.segments]  # type: ignore[union-attr]  # batches
    place = len(driver.log)
    driver.lose(first)
    driver.finish()
    computed = of("a", since(driver, place))
    again = [token for each in computed for token in range(each.start, each.end) if each.start < min(in_flight)]
    assert again == lost, "the lowest first, each once, and nothing else"
    assert not any(segment.emits for segment in computed if segment.end <= lost[-1] + 1)
    assert not any(isinstance(action, StopRequest) and action.reason == "preempted" for action in since(driver, place))
    assert driver.lives["a"].outputs == 8


def test_a_hole_is_filled_one_range_an_iteration_with_what_is_before_it() -> None:
    driver = spread()
    driver.lose(driver.model.residences["a"][0][0].owner[0])
    driver.finish()
    filled = [segment for segment in of("a", since(driver, 0)) if not segment.emits]
    assert len(filled) > 1 and any(len(segment.compute) > 1 for segment in filled)
    for segment in filled:
        assert len(segment.store) == 1 and segment.store[0].instance in segment.compute
        assert sum(tokens for _, tokens in segment.context) == segment.start, "what is behind it takes no part"
        assert segment.residence == 0
        assert segment.length <= driver.config.max_batch_tokens


def test_whole_requests_are_computed_anew_if_that_is_asked_for() -> None:
    driver = spread(repair_kv=False)
    place = len(driver.log)
    driver.lose(driver.model.residences["a"][0][0].owner[0])
    driver.finish()
    assert any(isinstance(action, StopRequest) and action.reason == "preempted" for action in since(driver, place))
    assert min(segment.start for segment in of("a", since(driver, place))) == 0


SHARDS = SchedulerConfig(
    policy="longspan:kvp_tokens_per_shard=24", num_instances=3, kv_tokens=80, min_tokens_per_instance=1,
    decode_headroom=0, max_batch_tokens=8, overload="off",
)  # fmt: skip


def half_done(ttft_s: float, num_others: int = 6) -> Driver:
    """A prompt `a`, due within so many seconds, of which one of three instances is lost that has its first tokens; and
    others, due much later, that wait."""
    driver = Driver(SHARDS, cost_model=MODEL)
    driver.arrive(66, 4, "a", ServiceLevel(ttft_s=ttft_s))
    while len(driver.model.residences["a"][0][0].owner) < 64:
        driver.complete()
    for number in range(num_others):
        driver.arrive(7, 1, f"r{number}", ServiceLevel(ttft_s=1000.0))
    driver.lose(driver.model.residences["a"][0][0].owner[0])
    return driver


def begun(driver: Driver) -> list[str]:
    """The requests of the batches since the last instance was lost, in order."""
    place = max(number for number, (_, event, _) in enumerate(driver.log) if isinstance(event, InstanceLost))
    return [segment.request_id for batch in batches(since(driver, place)) for segment in batch.segments]


def test_a_prompt_that_can_be_in_time_is_repaired_at_once() -> None:
    assert begun(half_done(1e3))[0] == "a"


def test_a_hopeless_prompt_is_repaired_when_those_before_it_in_rank_are_through() -> None:
    driver = half_done(1e-3)
    driver.finish()
    names = begun(driver)
    assert names.index("a") > max(names.index(f"r{number}") for number in range(6))


def test_a_hopeless_prompt_does_not_wait_for_ever() -> None:
    driver = half_done(1e-3)
    for number in range(6, 200):
        driver.arrive(7, 1, f"r{number}", ServiceLevel(ttft_s=1000.0))
        while driver.scheduler.stats().num_waiting > 4:
            driver.complete()
    assert "a" in begun(driver), "though others come all the while"


def test_streams_that_have_begun_are_repaired_first() -> None:
    driver = Driver(SHARDS, cost_model=MODEL)
    driver.arrive(66, 4, "prompt", ServiceLevel(ttft_s=1e3))
    driver.arrive(40, 40, "stream", ServiceLevel(ttft_s=1.0))
    residences = driver.model.residences
    while driver.lives["stream"].outputs == 0 or len(residences["prompt"][0][0].owner) < 56:
        driver.complete()
    assert driver.lives["prompt"].outputs == 0
    held = [set(residences[name][0][0].owner.values()) for name in ("prompt", "stream")]
    driver.lose(min(set.intersection(*held)))
    driver.finish()
    assert begun(driver).index("stream") < begun(driver).index("prompt")


def sharing(policy: str = "longspan:kvp_tokens_per_shard=16", **settings: object) -> Driver:
    """Three streams whose prompts begin with the same 48 tokens, which lie on three instances if rooms are small."""
    config = SchedulerConfig(
        policy=policy, min_tokens_per_instance=1, decode_headroom=0, overload="off", prefix_block=4,
        **{"num_instances": 3, "kv_tokens": 60, "max_batch_tokens": 8, **settings},  # type: ignore[arg-type]  # of any kind
    )  # fmt: skip
    driver = Driver(config, cost_model=MODEL)
    for number, name in enumerate("abc"):
        driver.arrive([*range(48), *[number] * (number + 1)], 9, name)
        while not driver.lives[name].outputs:
            driver.complete()
    assert len(driver.model.residences["b"]) == len(driver.model.residences["c"]) == 2
    return driver


@pytest.mark.parametrize("policy", ["medha", "longspan"])
def test_a_repair_and_those_who_decode_beside_it_take_turns(policy: str) -> None:
    config = SchedulerConfig(
        policy=f"{policy}:kvp_tokens_per_shard=40", num_instances=3, kv_tokens=400, min_tokens_per_instance=1,
        decode_headroom=0, max_batch_tokens=8, overload="off",
    )  # fmt: skip
    driver = Driver(config, cost_model=MODEL)
    driver.arrive(90, 8, "a")
    others = [f"other{number}" for number in range(6)]
    for name in others:
        driver.arrive(6, 200, name)
    while min(life.outputs for life in driver.lives.values()) == 0:
        driver.complete()
    before = sum(driver.lives[each].outputs for each in others)
    driver.lose(driver.model.residences["a"][0][0].owner[0])
    while driver.lives["a"].outputs == 1:
        driver.complete()
    batches_of_repairs = 40 // 8
    meanwhile = sum(driver.lives[each].outputs for each in others) - before
    assert 6 <= meanwhile <= 6 * 2 * (batches_of_repairs + 1), "a batch or two of theirs after each of its own"


def test_what_several_share_is_computed_again_once() -> None:
    driver = sharing()
    shared, _, _ = driver.model.residences["a"][0]
    first = shared.owner[0]
    lost = {(shared.number, token) for token, owner in shared.owner.items() if owner == first}
    for name in "bc":
        own, _, _ = driver.model.residences[name][1]
        last = driver.lives[name].known - 1  # that is the policy's
        lost |= {(own.number, token) for token, owner in own.owner.items() if owner == first and token < last}
    place = len(driver.log)
    driver.lose(first)
    driver.finish()
    actions = since(driver, place)
    segments = [segment for batch in batches(actions) for segment in batch.segments]
    again = [(each.residence, token) for each in segments for token in range(each.start, each.end) if not each.emits]
    assert sorted(again) == sorted(lost)
    assert not any(isinstance(action, StopRequest) and action.reason == "preempted" for action in actions)
    assert [life.outputs for life in driver.lives.values()] == [9, 9, 9]


def test_others_repair_what_one_was_to_that_ends() -> None:
    driver = sharing()
    driver.lose(driver.model.residences["a"][0][0].owner[0])
    driver.abort("a")
    place = len(driver.log)
    driver.finish()
    assert next(segment.start for segment in of("b", since(driver, place)) if not segment.emits) <= 8
    assert not any(
        isinstance(action, StopRequest) and action.reason == "preempted" for action in since(driver, place)
    )
    assert [driver.lives[name].outputs for name in "bc"] == [9, 9]


def test_a_prefix_is_found_again_once_it_is_whole() -> None:
    driver = sharing()
    driver.lose(driver.model.residences["a"][0][0].owner[0])
    has = driver.lives["a"].outputs
    while driver.lives["a"].outputs == has:
        driver.complete()
    driver.arrive([*range(48), 8], 2, "late")
    driver.finish()
    assert min(segment.start for segment in of("late", since(driver, 0))) == 48


@pytest.mark.parametrize("policy", ["elastic_fcfs", "longspan:kvp_tokens_per_shard=16"])
def test_who_begins_while_a_prefix_is_computed_again_waits_for_that(policy: str) -> None:
    driver = sharing(policy)
    shared, place = driver.model.residences["a"][0][0], len(driver.log)
    lost = [token for token in range(48) if shared.owner[token] == shared.owner[0]]
    driver.lose(shared.owner[0])
    driver.arrive([*range(48), 8], 2, "late")
    driver.finish()
    assert computed(since(driver, place), 48) == lost


def test_those_that_begin_again_compute_what_they_share_once() -> None:
    driver = sharing("elastic_fcfs", num_instances=1, kv_tokens=200, max_batch_tokens=200)
    place = len(driver.log)
    driver.lose(0)
    driver.join(0)
    assert preempted(since(driver, place)) == ["a", "b", "c"], "nothing is left of them"
    driver.finish()
    assert computed(since(driver, place), 48) == [*range(48)]


def computed(actions: list[Action], most: int) -> list[int]:
    """The positions below `most` that batches compute, each as often as they do."""
    segments = [segment for batch in batches(actions) for segment in batch.segments]
    return sorted(token for each in segments for token in range(each.start, min(each.end, most)))


def test_who_has_nothing_there_goes_on() -> None:
    config = SchedulerConfig(policy="static_tp", num_instances=2, kv_tokens=40)
    driver = Driver(config)
    driver.arrive(5, 9, "a")
    driver.arrive(5, 9, "b")
    driver.complete()
    driver.complete()
    actions = driver.lose(1)
    (cancel,) = (action for action in actions if isinstance(action, CancelBatch))
    assert cancel.instances == ()
    assert [action.request_id for action in actions if isinstance(action, StopRequest)] == ["b"]
    driver.finish()
    assert (driver.lives["a"].outputs, driver.lives["b"].outputs) == (9, 9)
    assert sum(segment.length for segment in of("a", since(driver, 0))) == 5 + 8


@pytest.mark.parametrize("policy", ["elastic_fcfs", "vllm", "longspan", "distserve"])
def test_who_leaves_is_emptied_while_requests_go_on(policy: str) -> None:
    driver = Driver(SchedulerConfig(policy=policy, num_instances=3, kv_tokens=60, overload="off"), cost_model=MODEL)
    for number in range(6):
        driver.arrive(6, 12, f"r{number}")
    while any(life.outputs < 2 for life in driver.lives.values()):
        driver.complete(driver.rng.choice(driver.model.started))
    place, instance = len(driver.log), max(range(3), key=lambda number: driver.model.used[number])
    driver.leave(instance)
    while instance not in driver.drained:
        driver.complete(driver.rng.choice(driver.model.started))
    actions = since(driver, place)
    assert any(isinstance(action, MigrateKV) and action.source == instance for action in actions)
    assert not any(isinstance(action, StopRequest) and action.reason == "preempted" for action in actions)
    assert not all(life.ended for life in driver.lives.values())
    driver.lose(instance, returns=False)
    driver.finish()
    assert [life.outputs for life in driver.lives.values()] == [12] * 6
    assert sum(isinstance(action, InstanceDrained) for action in actions) == 1


def test_nothing_begins_where_nothing_is_to_begin() -> None:
    driver = Driver(SchedulerConfig(policy="elastic_fcfs", num_instances=2, kv_tokens=60))
    assert InstanceDrained(1) in driver.leave(1)
    driver.arrive(40, 4, "a")
    driver.arrive(40, 4, "b")
    driver.finish()
    assert {number for batch in batches(since(driver, 0)) for number in batch.group} == {0}


def test_more_instances_than_were_measured_are_extrapolated_and_told() -> None:
    driver = Driver(SchedulerConfig(policy="loongserve", num_instances=3, kv_tokens=20), cost_model=MODEL)
    driver.join(3)
    assert [why.step for why in driver.why[-1]] == [EXTRAPOLATED]
    driver.join(4)
    driver.arrive(90, 5)
    driver.finish()
    assert max(len(batch.group) for batch in batches(since(driver, 0))) > 3
    one, three, five = (MODEL.prefill([(1000, 0)], number) for number in (1, 3, 5))
    assert one > three > five > MODEL.prefill((), 5) > MODEL.prefill((), 3)


def test_each_node_hears_of_its_own() -> None:
    config = SchedulerConfig(policy="elastic_fcfs", num_instances=4, kv_tokens=30, node_instances=2)
    driver = Driver(config, cost_model=MODEL)
    for number in range(6):
        driver.arrive(8, 6, f"r{number}")
    driver.complete()
    driver.lose(0)
    driver.lose(1)
    place = len(driver.log)
    driver.arrive(8, 6, "new")
    driver.arrive(35, 6, "longer")
    begun = {number for batch in batches(since(driver, place)) for number in batch.group}
    assert begun <= {2, 3}, "who comes goes to where instances serve"
    assert driver.scheduler.stats().instances == (0, 1, 2, 3)
    driver.join(1)
    driver.join(4)
    assert driver.scheduler.stats().instances == (0, 1, 2, 3, 4)
    assert driver.scheduler.request_limit == 90
    driver.arrive(70, 6, "longest")
    driver.finish()
    assert all(life.ended == "length" for life in driver.lives.values())
    assert 4 in {number for batch in batches(since(driver, place)) for number in batch.group}


def test_a_log_with_losses_replays(tmp_path: Path) -> None:
    config = SchedulerConfig(
        policy="longspan", num_instances=3, kv_tokens=60, prefix_block=4, min_tokens_per_instance=4, overload="off"
    )
    driver = Driver(config, seed=4, cost_model=MODEL)
    rng = random.Random(4)
    with EventLogWriter(tmp_path / "log", config, MODEL, max_bytes=20_000) as writer:
        for number in range(60):
            driver.arrive(rng.choice((3, 20, 100)), rng.randint(1, 30), f"request-{number}")
            while driver.model.started and rng.random() < 0.8:
                driver.complete(rng.choice(driver.model.started), stop=0.05)
            disturb(driver, 0.3, leaves=True)
        driver.finish(in_order=False)
        for (now, event, actions), why in zip(driver.log, driver.why, strict=True):
            writer.write(now, event, actions, why)
    kinds = {type(action) for action in since(driver, 0)}
    assert kinds >= {CancelBatch, InstanceDrained, MigrateKV, FreeKV, RunBatch}
    assert [list(record.actions) for record in read_event_log(tmp_path / "log")] == [each[2] for each in driver.log]
    assert replay(tmp_path / "log") is None


@pytest.mark.parametrize("event", [InstanceJoined(0, 60), InstanceLost(7), InstanceLeaving(7)])
def test_what_cannot_be_is_an_error(event: FleetEvent) -> None:
    scheduler = Scheduler(SchedulerConfig(policy="elastic_fcfs", num_instances=2, kv_tokens=60))
    with pytest.raises(InternalError, match=f"instance {event.instance}"):
        scheduler.handle(event, 0.0)
