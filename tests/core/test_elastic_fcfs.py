"""The policy `elastic_fcfs`, decision by decision. Each test is one short story told by events and
actions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from longspan.config import SchedulerConfig
from longspan.core.actions import Action, FreeKV, KVRange, RefuseRequest, RunBatch
from longspan.core.policies.parts.sharing import share_evenly

from .driver import Driver
from .reading import batches, freed


def driver(**changes: Any) -> Driver:
    """Four instances of 100 slots; a prefill takes one instance for each 10 tokens. No lookahead, for
    brevity."""
    settings: dict[str, Any] = {
        "num_instances": 4,
        "kv_tokens": 100,
        "min_tokens_per_instance": 10,
        "decode_headroom": 4,
        "max_requests_per_master": 4,
        "lookahead": False,
    }
    return Driver(SchedulerConfig(policy="elastic_fcfs", **(settings | changes)))


def batch(actions: Sequence[Action]) -> RunBatch:
    """The only action, which is a batch."""
    (action,) = actions
    assert isinstance(action, RunBatch)
    return action


def masters(action: Action) -> dict[str, int]:
    assert isinstance(action, RunBatch)
    return {segment.request_id: segment.compute[0] for segment in action.segments}


# prefill


def test_a_prefill_takes_as_many_instances_as_it_can_use() -> None:
    d = driver()
    prefill = batch(d.arrive(35, 5, "a"))
    (segment,) = prefill.segments
    assert prefill.group == segment.compute == (0, 1, 2)  # 35 tokens keep three instances busy with 10 each
    assert (segment.start, segment.length, segment.emits) == (0, 35, True)


def test_it_scales_down_to_the_fewest_instances_that_hold_the_kv() -> None:
    d = driver()
    prefill = batch(d.arrive(35, 5, "a"))
    assert prefill.segments[0].store == (KVRange(0, 0, 35),)  # planned before the batch runs
    decode = batch(d.complete())
    assert decode.group == (0,)
    assert decode.segments[0].store == (KVRange(0, 35, 36),)
    assert decode.segments[0].context == ((0, 35),)


def test_only_the_total_of_free_slots_counts() -> None:
    d = driver()
    prefill = batch(d.arrive(250, 5, "long"))  # no instance holds that alone
    (segment,) = prefill.segments
    assert [(kept.instance, kept.length) for kept in segment.store] == [(0, 84), (1, 85), (2, 81)]
    decode = batch(d.complete())
    assert decode.group == (0, 1, 2)
    assert decode.segments[0].compute == (1,)  # one master: who holds most and has room
    assert decode.segments[0].context == ((0, 84), (1, 85), (2, 81))


def test_requests_that_arrived_together_share_a_prefill_and_decode_apart() -> None:
    d = driver(num_instances=2)
    d.arrive(20, 9, "first")
    for name in ("a", "b", "c"):
        assert d.arrive(12, 3, name) == []  # both instances are busy
    prefill = batch(d.complete(stop={"first"})[2:])
    assert [segment.request_id for segment in prefill.segments] == ["a", "b", "c"]
    # Stripes start at another instance for each request; KV goes whole to the emptiest instance.
    assert [segment.compute for segment in prefill.segments] == [(0, 1), (1, 0), (0, 1)]
    assert [segment.store[0].instance for segment in prefill.segments] == [0, 1, 0]
    decodes = d.complete()
    assert [masters(action) for action in decodes] == [{"a": 0, "c": 0}, {"b": 1}]


def test_a_batch_is_limited_in_tokens_but_a_longer_prompt_runs_alone() -> None:
    d = driver(num_instances=1, kv_tokens=200, max_batch_tokens=20)
    d.arrive(5, 1)
    for prompt in (50, 10, 10, 10):
        d.arrive(prompt, 1)
    lengths = []
    while d.model.started:
        lengths += [[segment.length for segment in batch.segments] for batch in batches(d.complete())]
    assert lengths == [[50], [10, 10], [10]]


def test_idle_instances_that_remain_take_the_next_request() -> None:
    d = driver()
    assert batch(d.arrive(12, 5, "a")).group == (0,)
    assert batch(d.arrive(25, 5, "b")).group == (1, 2)
    assert batch(d.arrive(80, 5, "c")).group == (3,)  # more would be useful, but prefills may take long


def test_a_long_prompt_waits_for_decoding_instances_to_come_back() -> None:
    d = driver(num_instances=2)
    d.arrive(12, 9, "a")
    d.complete()  # a decodes on instance 0
    assert d.arrive(30, 5, "long") == []  # instance 1 is idle, but 0 is back in a moment
    assert batch(d.complete()).group == (0, 1)


def test_a_short_prompt_takes_the_idle_instance_at_once() -> None:
    d = driver(num_instances=2)
    d.arrive(12, 9, "a")
    d.complete()
    assert batch(d.arrive(12, 5, "short")).group == (1,)


def test_first_come_first_served_also_when_a_later_one_would_fit() -> None:
    d = driver(num_instances=1)
    d.arrive(60, 3, "a")
    d.arrive(50, 3, "big")
    d.arrive(5, 3, "small")
    order = [s.request_id for _ in range(3) for s in batch(d.complete()[-1:]).segments]
    assert order == ["a", "a", "big", "small"]  # `small` had room all along
    d.finish()


def test_the_slots_promised_to_running_requests_are_not_given_away() -> None:
    d = driver(num_instances=1, decode_headroom=10)
    d.arrive(70, 20, "a")
    d.arrive(15, 6, "b")  # 70 + 10 promised + 15 + 5 to come: exactly 100
    assert masters(batch(d.complete())) == {"b": 0}
    d = driver(num_instances=1, decode_headroom=10)
    d.arrive(70, 20, "a")
    d.arrive(15, 7, "b")
    assert masters(batch(d.complete())) == {"a": 0}


def test_decodes_get_their_turn_under_a_stream_of_prefills() -> None:
    d = driver(num_instances=1, kv_tokens=1000, max_batch_tokens=1)
    d.arrive(10, 50, "a")
    for _ in range(20):
        d.arrive(10, 1)
    prefills_before = 0
    while "a" not in masters(batch(batches(d.complete()))):
        prefills_before += 1
    assert prefills_before == 5  # PATIENCE of 4, and not one more


# decode


def test_one_master_while_requests_are_few_then_all_share_evenly() -> None:
    d = driver(num_instances=2, max_requests_per_master=2, kv_tokens=200)
    d.arrive(1, 1)
    for name in ("long", "a", "b"):
        d.arrive({"long": 250}.get(name, 20), 9, name)
    prefill = batch(d.complete()[2:])
    assert len(prefill.segments) == 3
    decode = batch(d.complete())  # `long` lives on both, so all three are one group
    assert decode.group == (0, 1)
    assert sorted(masters(decode).values()) in ([0, 0, 1], [0, 1, 1])
    decode = batch(d.complete(stop={"a"})[2:])
    assert len(set(masters(decode).values())) == 1  # two are few enough for one master


def test_scale_up_by_threshold() -> None:
    d = driver(num_instances=2, max_requests_per_master=3, min_tokens_per_instance=1000)
    d.arrive(5, 1, "x")
    d.arrive(5, 1, "y")
    for name in "abcd":
        d.arrive(5, 9, name)
    x, y = d.model.started
    assert len(batch(d.complete(y)[2:]).segments) == 4  # a to d in one prefill on instance 1
    assert d.complete(x) == freed(0, "x", (0,), "finished")
    decode = batch(d.complete())
    assert decode.group == (0, 1)
    assert sorted(masters(decode).values()) == [0, 0, 1, 1]


def test_scale_up_by_memory_takes_a_spare_instance() -> None:
    d = driver(num_instances=2, kv_tokens=20, decode_headroom=0)
    d.arrive(20, 5, "a")
    decode = batch(d.complete())
    assert decode.group == (0, 1)
    assert decode.segments[0].store == (KVRange(1, 20, 21),)
    assert decode.segments[0].context == ((0, 20),)  # no KV moved; instance 0 answers queries


def test_without_a_spare_it_joins_a_group_that_has_room() -> None:
    d = driver(num_instances=2, kv_tokens=20, decode_headroom=0, min_tokens_per_instance=100)
    d.arrive(20, 9, "full")
    d.arrive(5, 9, "easy")
    (decode,) = d.complete(d.model.started[1])
    d.complete(d.model.started[0])
    joined = batch(d.complete())
    assert masters(decode) == {"easy": 1}
    assert joined.group == (0, 1)
    assert masters(joined) == {"full": 1, "easy": 1}


def test_others_stop_looking_ahead_for_a_request_that_needs_their_room() -> None:
    d = driver(num_instances=2, kv_tokens=20, decode_headroom=0, min_tokens_per_instance=100, lookahead=True)
    d.arrive(20, 9, "full")
    d.arrive(2, 15, "easy")
    d.complete(d.model.started[1])  # `easy` decodes, one iteration ahead
    assert d.complete(d.model.started[0]) == []  # `full` has no slot left, and no idle instance has
    assert d.complete() == []
    assert masters(batch(d.complete()[:1])) == {"full": 1, "easy": 1}


def test_instances_out_of_step_wait_for_each_other_once() -> None:
    d = driver(num_instances=2, min_tokens_per_instance=1000)
    d.arrive(150, 20, "wide")
    d.arrive(10, 20, "near")
    d.complete()  # `near` is prefilled on instance 0, so `wide`, on both, stands still
    assert batch(d.complete()).group == (0, 1)  # then they decode together
    d.arrive(5, 20, "other")
    prefill, decode = d.complete()
    assert isinstance(prefill, RunBatch) and prefill.group == (1,)
    assert isinstance(decode, RunBatch) and masters(decode) == {"near": 0}  # instance 0 goes on meanwhile
    assert d.complete(prefill) == []  # `wide` needs both, and 0 is back in a moment
    assert masters(batch(d.complete(decode))).keys() == {"wide", "near", "other"}


def test_nobody_is_preempted_while_a_busy_instance_has_room() -> None:
    d = driver(num_instances=2, kv_tokens=20, decode_headroom=0, min_tokens_per_instance=100)
    d.arrive(1, 1, "x")
    d.arrive(5, 9, "easy")
    for name in "ab":
        d.arrive(10, 9, name)
    x, easy = d.model.started
    both = batch(d.complete(x)[2:])
    d.complete(easy)
    assert d.complete(both) == []  # instance 0 is full; 1 decodes, and has room for two
    assert masters(batch(d.complete())) == {"a": 1, "b": 1, "easy": 1}


def test_a_lone_request_waits_for_the_others_rather_than_preempt_itself() -> None:
    d = driver(num_instances=2, kv_tokens=20, decode_headroom=0, min_tokens_per_instance=100)
    d.arrive(20, 9, "a")
    d.arrive(20, 9, "b")
    assert d.complete() == []
    assert d.complete()[:2] == freed(1, "b", (1,), "preempted")


def test_preemption_drops_the_latest_and_computes_it_again() -> None:
    d = driver(num_instances=1, kv_tokens=20, decode_headroom=0)
    d.arrive(9, 8, "old")
    d.arrive(8, 8, "young")
    d.complete()
    actions: list[Action] = []
    while not any(isinstance(action, FreeKV) for action in actions):
        actions = d.complete()
    assert actions[:2] == freed(1, "young", (0,), "preempted")
    assert masters(actions[2]) == {"old": 0}
    assert d.scheduler.stats().num_preemptions == 1
    while "young" not in masters(actions[-1]):
        actions = d.complete()
    (segment,) = batch(actions[-1:]).segments
    assert (segment.start, segment.length) == (0, d.lives["young"].known)  # prompt and output, at once
    d.finish()


def test_a_request_alone_always_has_room() -> None:
    d = driver(num_instances=3, kv_tokens=10, decode_headroom=0)
    d.arrive(20, 10, "all of it")
    d.finish()
    assert d.scheduler.stats().num_preemptions == 0


def test_decode_batches_are_limited_and_taken_in_turn() -> None:
    d = driver(num_instances=1, max_batch_requests=2, lookahead=True)
    d.arrive(1, 1)
    for name in "abc":
        d.arrive(5, 3, name)
    d.complete()
    turns = [sorted(masters(batch(d.complete()[-1:]))) for _ in range(3)]
    assert turns == [["a", "b"], ["a", "c"], ["b", "c"]]
    d.finish()


# refusal


def test_what_can_never_fit_is_refused_with_both_numbers() -> None:
    (refusal,) = driver().arrive(300, 101)
    assert isinstance(refusal, RefuseRequest) and refusal.reason == "too_long"
    assert "300" in refusal.message and "101" in refusal.message and "400" in refusal.message
    assert driver().arrive(300, 100) != [refusal]


def test_a_full_queue_turns_new_requests_away() -> None:
    d = driver(num_instances=1, max_waiting=1)
    d.arrive(5, 5)
    d.arrive(5, 5)
    (refusal,) = d.arrive(5, 5)
    assert isinstance(refusal, RefuseRequest) and refusal.reason == "queue_full"
    assert refusal.message == "1 requests are waiting, and at most 1 may."
    d.finish()


def test_share_evenly() -> None:
    assert share_evenly(9, [5, 5, 5]) == [3, 3, 3]
    assert share_evenly(8, [5, 1, 5]) == [3, 1, 4]
    assert share_evenly(0, [0, 2]) == [0, 0]
