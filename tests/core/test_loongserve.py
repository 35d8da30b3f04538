"""The policy `loongserve`, its ablations and baselines, in short stories told by events and actions."""

from __future__ import annotations

from typing import Any

import pytest

from longspan.config import SchedulerConfig
from longspan.core.actions import KVRange, MigrateKV, RefuseRequest, RunBatch, StopRequest
from longspan.core.policies import create_policy
from longspan.errors import ConfigError

from .cost_models import scaling_model
from .driver import Driver
from .reading import batches


def driver(policy: str = "loongserve", costs: dict[str, float] | None = None, **changes: Any) -> Driver:
    """Four instances of 1000 slots; a token costs a millisecond of prefill over the instances; all else little."""
    settings: dict[str, Any] = {
        "num_instances": 4,
        "kv_tokens": 1000,
        "min_tokens_per_instance": 1,
        "decode_headroom": 10,
        "lookahead": False,
        "policy": policy,
    }
    config = SchedulerConfig(**(settings | changes))
    cheap = {
        "fixed": 0.02, "fixed_step": 0.001, "per_token": 1e-3, "per_pair": 0.0, "decode_fixed": 0.01,
        "decode_step": 0.0, "per_request": 1e-3, "migration_per_token": 1e-6,
    }  # fmt: skip
    return Driver(config, cost_model=scaling_model(config.num_instances, **(cheap | (costs or {}))))


def who(batch: RunBatch) -> list[str]:
    return [segment.request_id for segment in batch.segments]


def steps(d: Driver) -> list[str]:
    """What the policy explained of its last decisions."""
    return [decision.step for decision in d.why[-1]]


def test_a_prefill_takes_all_instances_and_its_kv_the_fewest() -> None:
    d = driver()
    (prefill,) = batches(d.arrive(800, 5, "a"))
    assert prefill.group == (0, 1, 2, 3)
    assert prefill.segments[0].store == (KVRange(0, 0, 800),)
    assert steps(d) == ["batch", "scale down"]
    (decode,) = batches(d.complete())
    assert decode.group == (0,)


def test_a_batch_of_short_and_long_is_split() -> None:
    d = driver()
    d.arrive(10, 1, "x")
    d.arrive(2500, 5, "long")
    d.arrive(20, 5, "short")
    long, short = batches(d.complete())
    assert (who(long), len(long.group)) == (["long"], 3)
    assert (who(short), len(short.group)) == (["short"], 1)


def test_the_released_plans_never_split() -> None:
    d = driver("loongserve_never_splits")
    d.arrive(10, 1, "x")
    d.arrive(2500, 5, "long")
    d.arrive(20, 5, "short")
    (together,) = batches(d.complete())
    assert (who(together), len(together.group)) == (["long", "short"], 4)


def test_decodes_go_on_beside_a_prefill() -> None:
    d = driver()
    d.arrive(500, 100, "a")
    (decode,) = batches(d.complete())
    (prefill,) = batches(d.arrive(600, 5, "b"))
    assert (decode.group, prefill.group) == ((0,), (1, 2, 3))
    (again,) = batches(d.complete(decode))
    assert (who(again), again.group) == (["a"], (0,))


def test_a_pause_keeps_the_kv_and_resuming_loses_nothing() -> None:
    d = driver(num_instances=1)
    d.arrive(500, 300, "a")
    (decode,) = batches(d.complete())
    assert d.arrive(20, 5, "b") == []  # the iteration ends first
    (prefill,) = batches(d.complete(decode))
    assert who(prefill) == ["b"] and steps(d) == ["pause", "batch"]
    (decode,) = batches(d.complete(prefill))
    assert sorted(who(decode)) == ["a", "b"]
    assert {s.request_id: s.start for s in decode.segments} == {"a": 501, "b": 20}
    d.finish()
    assert d.lives["a"].outputs == 300
    freed = [action for _, _, actions in d.log for action in actions if isinstance(action, StopRequest)]
    assert {action.reason for action in freed} == {"finished"}


def test_decoding_that_loses_more_than_the_prompt_gains_goes_on() -> None:
    d = driver(num_instances=1)
    d.arrive(100, 20, "a")
    d.complete()
    d.arrive(850, 5, "b")  # 0.87 s of prefill against 0.2 s of decoding still to come
    while d.lives["a"].ended is None:
        assert not any("b" in who(batch) for batch in batches(d.complete()) if d.lives["a"].ended is None)
    d.finish()


FAST_DECODES = {"decode_fixed": 5e-4, "per_request": 1e-4}
"""So that a pause for a long prompt costs more than it gains."""


def two_decoding(**costs: float) -> Driver:
    """`a` decodes on instance 0 with 100 tokens, `b` on 1 with 300; two instances, both at work."""
    d = driver(costs=FAST_DECODES | costs, num_instances=2, min_tokens_per_instance=1000)
    d.arrive(100, 800, "a")
    d.arrive(300, 600, "b")
    first, second = list(d.model.started)
    assert (first.group, second.group) == ((0,), (1,))  # type: ignore[union-attr]
    d.complete(first)
    d.complete(second)
    return d


def test_an_instance_is_emptied_for_a_long_prompt() -> None:
    """Equation 4, with real migrations: `a` moves in with `b`, then the prompt has instance 0."""
    d = two_decoding()
    assert d.arrive(600, 5, "long") == []
    assert steps(d) == ["gather", "hold", "hold", "empty"]
    a, b = list(d.model.started)
    assert d.complete(a) == []  # held until the other is at rest too
    (migration,) = d.complete(b)
    assert isinstance(migration, MigrateKV)
    assert (migration.request_id, migration.source, migration.target) == ("a", 0, 1)
    prefill, decode = batches(d.complete())
    assert (who(prefill), prefill.group) == (["long"], (0,))
    assert (sorted(who(decode)), decode.group) == (["a", "b"], (1,))
    assert decode.segments[0].context[0][0] == 1
    d.finish()


def test_several_migrations_empty_one_instance() -> None:
    d = driver(costs=FAST_DECODES, num_instances=2, min_tokens_per_instance=1000)
    d.arrive(1, 1, "x")
    d.arrive(400, 600, "b")
    x, b = list(d.model.started)
    for name in ("a1", "a2", "a3"):
        d.arrive(10, 700, name)
    d.complete(x)
    (together,) = [batch for batch in d.model.started if batch is not b]
    assert who(together) == ["a1", "a2", "a3"]  # type: ignore[arg-type]
    d.complete(together)
    d.complete(b)
    d.arrive(700, 5, "long")
    moved = []
    for _ in range(8):
        for action in d.complete():
            if isinstance(action, MigrateKV):
                moved.append(action.request_id)
            if isinstance(action, RunBatch) and "long" in who(action):
                assert action.group == (0,)
                assert sorted(moved) == ["a1", "a2", "a3"]
                d.finish()
                return
    raise AssertionError(f"moved {moved}, but nothing came of it")


def test_nothing_moves_where_moving_costs_more_than_waiting() -> None:
    d = two_decoding(migration_per_token=1.0)
    d.arrive(600, 5, "long")
    for _ in range(20):
        assert not any(isinstance(action, MigrateKV) for action in d.complete())


def test_an_abort_while_instances_are_gathered() -> None:
    d = two_decoding()
    d.arrive(600, 5, "long")
    a, b = list(d.model.started)
    d.complete(a)
    assert [who(batch) for batch in batches(d.abort("long"))] == [["a"]]  # nobody to hold it for
    d.complete(b)
    d.finish()


def test_scale_up_at_the_compute_threshold() -> None:
    """Two requests cost as much as reading the weights, so three want another master."""
    d = driver(costs={"per_request": 5e-3}, num_instances=2, min_tokens_per_instance=1000)
    d.arrive(5, 1, "x")
    d.arrive(5, 1, "y")
    for name in "abc":
        d.arrive(5, 50, name)
    x, y = list(d.model.started)
    (prefill,) = batches(d.complete(y))
    assert (who(prefill), prefill.group) == (["a", "b", "c"], (1,))
    d.complete(x)
    (decode,) = batches(d.complete())
    assert steps(d) == ["scale up"]
    assert decode.group == (0, 1)
    assert sorted(segment.compute[0] for segment in decode.segments) in ([0, 0, 1], [0, 1, 1])


def full_instance(policy: str) -> Driver:
    d = driver(policy, num_instances=2, kv_tokens=20, decode_headroom=0)
    d.arrive(20, 8, "a")
    return d


def test_scale_up_when_slots_run_out() -> None:
    d = full_instance("loongserve")
    (decode,) = batches(d.complete())
    assert decode.group == (0, 1)
    assert steps(d) == ["scale up"]
    assert decode.segments[0].store == (KVRange(1, 20, 21),)
    d.finish()


# ablations


def test_without_scale_up_the_latest_is_computed_again() -> None:
    d = full_instance("loongserve_no_scale_up")
    actions = d.complete()
    assert actions[1] == StopRequest("a", (0,), "preempted")
    (prefill,) = batches(actions)
    assert [kept.instance for kept in prefill.segments[0].store] == [0, 1]
    d.finish()


def test_reactive_scale_down_migrates_after_the_prefill() -> None:
    d = driver("loongserve_reactive")
    (prefill,) = batches(d.arrive(800, 5, "a"))
    assert [(kept.instance, kept.length) for kept in prefill.segments[0].store] == [(n, 200) for n in range(4)]
    sources = []
    actions = d.complete()
    while isinstance(actions[0], MigrateKV):
        sources.append(actions[0].source)
        actions = d.complete()
    (decode,) = batches(actions)
    assert sorted(sources) == [1, 2, 3]
    assert decode.group == (0,)
    d.finish()


def test_a_single_master_computes_all() -> None:
    groups = {}
    for policy in ("loongserve", "loongserve_single_master"):
        d = driver(policy, num_instances=2, costs={"per_request": 5e-3}, kv_tokens=300)
        d.arrive(350, 30, "wide")
        d.complete()
        for name in "abcd":
            d.arrive(2, 30, name)
        decode: list[RunBatch] = []
        while not any(len(batch.segments) == 5 for batch in decode):
            decode = batches(d.complete())
        groups[policy] = {segment.compute[0] for segment in decode[0].segments}
    assert len(groups["loongserve"]) == 2
    assert len(groups["loongserve_single_master"]) == 1


# baselines


def test_static_sp_is_always_one_group() -> None:
    d = driver("static_sp")
    d.arrive(80, 6, "a")
    d.arrive(40, 6, "b")
    while d.model.started:
        (batch,) = d.model.started
        assert isinstance(batch, RunBatch) and batch.group == (0, 1, 2, 3)
        if batch.segments[0].start == 0:
            assert {kept.instance for segment in batch.segments for kept in segment.store} == {0, 1, 2, 3}
        d.complete()
    d.finish()


def test_replicated_deals_requests_out_in_turn() -> None:
    d = driver("replicated")
    groups = [batches(d.arrive(10, 3))[0].group for _ in range(4)]
    assert groups == [(0,), (1,), (2,), (3,)]
    assert d.arrive(10, 3, "fifth") == []  # belongs to instance 0, and waits for it
    zero = next(batch for batch in d.model.started if batch.group == (0,))  # type: ignore[union-attr]
    assert [(who(batch), batch.group) for batch in batches(d.complete(zero))] == [(["fifth"], (0,))]
    d.finish()


def test_static_tp_gives_the_head_to_the_emptiest() -> None:
    d = driver("static_tp", num_instances=2)
    assert batches(d.arrive(500, 50, "a"))[0].group == (0,)
    assert batches(d.arrive(100, 50, "b"))[0].group == (1,)
    d.complete()
    d.complete()
    d.arrive(10, 5, "c")
    _, one = list(d.model.started)
    (prefill,) = batches(d.complete(one))
    assert (who(prefill), prefill.group) == (["c"], (1,))
    d.finish()


@pytest.mark.parametrize("policy", ["static_tp", "replicated"])
def test_what_one_instance_cannot_hold_is_refused(policy: str) -> None:
    (refusal,) = driver(policy).arrive(995, 7)
    assert isinstance(refusal, RefuseRequest) and refusal.reason == "too_long"
    assert "995" in refusal.message and "1000" in refusal.message and policy in refusal.message
    assert batches(driver(policy).arrive(994, 7))


def test_every_policy_is_found_by_its_name() -> None:
    names = ["loongserve", "replicated", "static_sp", "static_tp"]
    assert [create_policy(name).name for name in names] == names


def test_a_policy_that_predicts_says_that_it_needs_a_cost_model() -> None:
    d = Driver(SchedulerConfig(policy="loongserve"))
    with pytest.raises(ConfigError, match=r"loongserve.*no cost model"):
        d.arrive(1, 1)
