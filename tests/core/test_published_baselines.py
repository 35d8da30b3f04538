"""The traits of all published baselines, and of those that go by arrival: one short story each, by actions."""

from __future__ import annotations

import pytest

from longspan.core.actions import MigrateKV, RefuseRequest
from longspan.core.policies.distserve import DistServe
from longspan.core.policies.fastserve import FastServe
from longspan.core.policies.parts.data_parallel import DataParallel
from longspan.core.policies.speculative.alise import Alise
from longspan.core.policies.speculative.ssjf import Ssjf
from longspan.core.policies.vllm import Vllm
from longspan.errors import ConfigError

from .published import driver, running
from .reading import batches, lengths, preempted

ON_ONE_INSTANCE_EACH = ["vllm", "splitfuse", "distserve", "fastserve", "ssjf", "alise"]


# all of them


@pytest.mark.parametrize("policy", ON_ONE_INSTANCE_EACH)
def test_what_one_instance_cannot_hold_is_refused(policy: str) -> None:
    (refusal,) = driver(policy, num_instances=4).arrive(995, 7)
    assert isinstance(refusal, RefuseRequest) and refusal.reason == "too_long"
    assert "995" in refusal.message and "1000" in refusal.message and policy in refusal.message
    assert batches(driver(policy, num_instances=4).arrive(994, 7))


@pytest.mark.parametrize("policy", [name for name in ON_ONE_INSTANCE_EACH if name != "distserve"])
def test_newcomers_go_where_load_is_least(policy: str) -> None:
    d = driver(policy, num_instances=2, max_batch_requests=2)
    groups = [batches(d.arrive(10, 50))[0].group for _ in range(2)]
    assert groups == [(0,), (1,)]
    d.arrive(10, 50, "c")  # waits for 0
    d.arrive(10, 50, "d")
    assert "d" in lengths(d.complete(running(d, 1)))
    assert "c" in lengths(d.complete(running(d, 0)))
    d.finish()


@pytest.mark.parametrize("policy", [name for name in ON_ONE_INSTANCE_EACH if name != "distserve"])
def test_nothing_looks_ahead_where_somebody_could_start(policy: str) -> None:
    """The head of all who wait has no room, even on both instances together; one behind it has, on its own."""
    d = driver(policy, num_instances=2, kv_tokens=100, lookahead=True)
    d.arrive(80, 15, "left")
    d.arrive(75, 20, "right")
    d.complete(running(d, 0))
    d.complete(running(d, 1))
    d.arrive(60, 5, "head")
    d.arrive(10, 3, "behind")
    for _ in range(3):
        d.complete(running(d, 1))
    assert "behind" in d.model.residences and "head" not in d.model.residences
    d.finish()


@pytest.mark.parametrize("policy", [name for name in ON_ONE_INSTANCE_EACH if name != "distserve"])
def test_a_policy_remembers_nobody_who_has_ended(policy: str) -> None:
    d = driver(policy, num_instances=2)
    for number in range(6):
        d.arrive(10 + number, 3)
    d.abort("r5")
    d.finish()
    remembered = d.scheduler.policy
    assert isinstance(remembered, DataParallel)
    assert not remembered._lane_of
    assert not any(lane or lane.running for lane in remembered._lanes.values())
    assert not (isinstance(remembered, FastServe) and remembered._jobs)
    assert not (isinstance(remembered, Alise) and remembered._known)


@pytest.mark.parametrize("policy", [Vllm, Ssjf, Alise])
def test_the_only_one_waits_for_slots_of_one_aborted_in_a_later_stage(policy: type[Vllm]) -> None:
    """It lacks one, and would gain nothing by losing its own: those of the aborted come back with the batch."""
    d = driver(policy.name, policy(token_budget=3), kv_tokens=10, pp=2)
    d.arrive(2, 8, "stays")
    d.arrive(7, 2, "goes")
    for _ in range(6):
        d.complete()
    assert lengths(d.model.started) == {"goes": 2} and d.model.used == [10]
    assert d.abort("goes") == []
    assert d.complete() == []  # it leaves the first stage
    assert lengths(d.complete()) == {"stays": 1}
    d.finish()


# vllm


def test_vllm_fills_a_budget_with_decodes_then_chunks_in_order_of_arrival() -> None:
    d = driver("vllm", Vllm(token_budget=8))
    assert lengths(d.arrive(5, 9, "a")) == {"a": 5}
    d.arrive(10, 9, "b")
    d.arrive(9, 9, "c")
    assert lengths(d.complete()) == {"a": 1, "b": 7}
    assert lengths(d.complete()) == {"a": 1, "b": 3, "c": 4}
    assert lengths(d.complete()) == {"a": 1, "b": 1, "c": 5}
    d.finish()


def test_vllm_sends_the_next_chunk_into_a_pipeline_behind_the_last() -> None:
    d = driver("vllm", Vllm(token_budget=8), pp=2)
    assert lengths(d.arrive(20, 3, "a")) == {"a": 8}
    assert lengths(d.complete()) == {"a": 8}  # the first has left the first stage
    d.finish()


def test_vllm_has_the_budget_of_vllm() -> None:
    d = driver("vllm", kv_tokens=10_000)
    assert lengths(d.arrive(5000, 2)) == {"r0": 2048}


def test_vllm_computes_the_latest_arrival_again_when_memory_is_full() -> None:
    d = driver("vllm", kv_tokens=30)
    d.arrive(10, 15, "a")
    d.arrive(10, 15, "b")
    d.arrive(11, 2, "c")  # has no room for its prompt
    while not (gone := preempted(actions := d.complete())):
        assert "c" not in d.model.residences
    assert gone == ["b"]
    assert lengths(actions) == {"a": 1}
    d.finish()
    order = [segment.request_id for _, _, actions in d.log for b in batches(actions) for segment in b.segments]
    assert order.index("c") > len(order) - 1 - order[::-1].index("a")  # in order of arrival, so after b's return
    assert d.scheduler.stats().num_preemptions == 1


@pytest.mark.parametrize("policy", ["vllm", "ssjf"])
def test_nobody_is_admitted_while_somebody_is_preempted(policy: str) -> None:
    """Not even one that is shorter, and has room now."""
    d = driver(policy, kv_tokens=30)
    d.arrive(10, 15, "a")
    d.arrive(10, 15, "b")
    d.complete()
    d.arrive(11, 2, "c")
    while not preempted(actions := d.complete()):
        pass
    assert lengths(actions) == {"a": 1}
    assert ("c" in lengths(d.complete())) == (policy == "ssjf")
    d.finish()


def test_vllm_admits_a_prompt_only_if_all_of_it_has_room() -> None:
    d = driver("vllm", Vllm(token_budget=8), kv_tokens=30)
    d.arrive(20, 5, "a")
    d.arrive(11, 2, "b")
    assert lengths(d.complete()) == {"a": 8}
    assert lengths(d.complete()) == {"a": 4}  # there is budget for 4 tokens of b, and room for 10
    d.finish()


# splitfuse


def test_splitfuse_advances_prompts_side_by_side_and_fills_the_batch_exactly() -> None:
    d = driver("splitfuse", chunk_size=8, max_batch_tokens=20)
    assert lengths(d.arrive(4, 9, "a")) == {"a": 4}
    d.arrive(100, 9, "long")
    d.arrive(16, 9, "b")
    d.arrive(16, 9, "c")
    assert lengths(d.complete()) == {"a": 1, "long": 8, "b": 8, "c": 3}
    assert lengths(d.complete()) == {"a": 1, "long": 8, "b": 8, "c": 3}
    assert lengths(d.complete()) == {"a": 1, "b": 1, "long": 8, "c": 8}
    d.finish()


def test_sarathi_in_the_same_place_does_one_prompt_after_the_other() -> None:
    d = driver("sarathi", chunk_size=8, max_batch_tokens=20)
    d.arrive(4, 9, "a")
    d.arrive(100, 9, "long")
    d.arrive(16, 9, "b")
    assert lengths(d.complete()) == {"a": 1, "long": 7}


def test_splitfuse_admits_only_what_will_have_room_until_its_end() -> None:
    """Two that may grow to 59 tokens each are too much for 100 slots, though both prompts have room."""
    d = driver("splitfuse", kv_tokens=100)
    d.arrive(10, 50, "a")
    d.arrive(10, 50, "b")
    d.arrive(10, 2, "c")  # waits behind b
    for _ in range(8):
        assert lengths(d.complete()) == {"a": 1}
    d.finish()
    assert d.scheduler.stats().num_preemptions == 0


# distserve


def test_distserve_decodes_on_the_decode_pool_only() -> None:
    d = driver("distserve", num_instances=4)
    for number in range(8):
        d.arrive(100 + number, 5)
    d.finish(in_order=False)
    for _, _, actions in d.log:
        for batch in batches(actions):
            (instance,) = batch.group
            assert all((segment.start > 0) == (instance in (2, 3)) for segment in batch.segments)
        for action in actions:
            assert not isinstance(action, MigrateKV) or (action.source in (0, 1) and action.target in (2, 3))
    assert d.scheduler.stats().num_migrations == 8
    assert {batch.group for _, _, actions in d.log for batch in batches(actions)} == {(0,), (1,), (2,), (3,)}


def test_distserve_keeps_a_prompts_kv_until_the_decode_pool_has_room() -> None:
    d = driver("distserve", num_instances=2, kv_tokens=100)
    d.arrive(60, 20, "a")
    (move,) = d.complete()
    assert isinstance(move, MigrateKV) and (move.request_id, move.num_tokens) == ("a", 60)
    d.complete()
    d.arrive(50, 5, "b")
    d.arrive(30, 5, "c")
    prefill = running(d, 0)
    assert prefill.segments[0].request_id == "b"  # type: ignore[union-attr]
    assert lengths(d.complete(prefill)) == {"c": 30}  # b has no room to go to, so the next prompt has its turn
    d.complete(running(d, 0))
    moves: list[str] = []
    while d.model.started:
        moves += [action.request_id for action in d.complete() if isinstance(action, MigrateKV)]
        assert "b" in moves or "a" in d.alive()
    assert moves == ["b", "c"]  # c had room all the time, but b was first
    d.finish()


def test_distserve_lets_kv_and_decodes_take_turns() -> None:
    """A prompt that is done while the target decodes waits for one iteration; those done together move together."""
    d = driver("distserve", num_instances=2)
    d.arrive(10, 50, "a")
    d.complete()
    d.complete()
    for name in "bcd":
        d.arrive(10, 50, name)

    def next_at(instance: int) -> list[str]:
        """What begins when this instance is done: whose KV moves, or who is in the batch."""
        actions = d.complete(running(d, instance))
        return [a.request_id if isinstance(a, MigrateKV) else "".join(lengths([a])) for a in actions]

    assert next_at(0) == []  # b's prompt is done: its KV waits for a's token, and the next prompts for its KV
    assert next_at(1) == ["b"]
    assert next_at(1) == ["cd", "ab"]
    assert next_at(0) == []
    assert [next_at(1) for _ in range(4)] == [["c"], ["d"], ["abcd"], ["abcd"]]
    d.finish()


def test_distserves_decodes_go_first_if_they_have_waited_longer() -> None:
    """While one request's KV moves, the target's decodes wait; so they are next, not KV that was done meanwhile."""
    d = driver("distserve", DistServe(prefill_instances=2), num_instances=3)
    d.arrive(10, 50, "a")
    d.complete()
    d.complete()
    d.arrive(10, 50, "b")
    d.arrive(10, 50, "c")
    d.complete(running(d, 0))
    (move,) = d.complete(running(d, 2))
    assert isinstance(move, MigrateKV) and move.request_id == "b"
    d.complete(running(d, 1))  # c's prompt is done
    assert lengths(d.complete(move)) == {"a": 1, "b": 1}
    (move,) = d.complete(running(d, 2))
    assert isinstance(move, MigrateKV) and move.request_id == "c"
    d.finish()


def test_the_sizes_of_distserves_pools_can_be_chosen() -> None:
    d = driver("distserve", DistServe(prefill_instances=3), num_instances=4)
    groups = [batches(d.arrive(10, 3))[0].group for _ in range(3)]
    assert groups == [(0,), (1,), (2,)]
    d.finish()
    with pytest.raises(ConfigError, match="4 of 4 instances are to prefill: each phase needs at least one"):
        driver("distserve", DistServe(prefill_instances=4), num_instances=4).arrive(1, 1)
