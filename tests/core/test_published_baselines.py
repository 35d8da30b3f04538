"""The trait of each published baseline: one short story each, told by events and actions, or on a clock."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest

from longspan.config import SchedulerConfig
from longspan.core.actions import Action, FreeKV, MigrateKV, RefuseRequest, RunBatch
from longspan.core.decision import Decision
from longspan.core.events import Event, RequestArrived
from longspan.core.load import batch_seconds
from longspan.core.policies.base import Policy
from longspan.core.policies.distserve import DistServe
from longspan.core.policies.fastserve import FastServe
from longspan.core.policies.parts.data_parallel import DataParallel
from longspan.core.policies.speculative.alise import Alise
from longspan.core.policies.speculative.lengths import LearnedLengths
from longspan.core.policies.speculative.ssjf import Ssjf
from longspan.core.policies.vllm import Vllm
from longspan.core.request import Request
from longspan.core.scheduler import Scheduler
from longspan.errors import ConfigError
from longspan.workload.playback import Played, Work, play

from .cost_models import scaling_model
from .driver import Driver
from .worker_model import instances_of

ON_ONE_INSTANCE_EACH = ["vllm", "splitfuse", "distserve", "fastserve", "ssjf", "alise"]


def settings_of(policy: str, changes: dict[str, Any]) -> SchedulerConfig:
    given: dict[str, Any] = {
        "num_instances": 1, "kv_tokens": 1000, "policy": policy, "decode_headroom": 4, "lookahead": False,
    }  # fmt: skip
    return SchedulerConfig(**(given | changes))


MODEL = scaling_model(
    4, fixed=0.0, fixed_step=0.0, per_token=1e-3, per_pair=0.0, decode_fixed=0.01, decode_step=0.0, per_request=0.0
)
"""A prompt's token takes a millisecond, a decode iteration ten."""


def driver(policy: str, by: Policy | None = None, **changes: Any) -> Driver:
    """One instance of 1000 slots."""
    return Driver(settings_of(policy, changes), by, cost_model=MODEL)


def batches(actions: Iterable[Action]) -> list[RunBatch]:
    return [action for action in actions if isinstance(action, RunBatch)]


def lengths(actions: Iterable[Action]) -> dict[str, int]:
    """Request -> tokens, of the only batch."""
    (batch,) = batches(actions)
    return {segment.request_id: segment.length for segment in batch.segments}


def preempted(actions: Iterable[Action]) -> list[str]:
    return [action.request_id for action in actions if isinstance(action, FreeKV) and action.reason == "preempted"]


def running(d: Driver, instance: int) -> RunBatch | MigrateKV:
    return next(work for work in d.model.started if instance in instances_of(work))


@dataclass
class Clock:
    """What happened when. began: when a request's first batch was issued."""

    played: dict[str, Played] = field(default_factory=dict)
    began: dict[str, float] = field(default_factory=dict)
    decisions: list[tuple[float, Decision]] = field(default_factory=list)
    preempted: list[str] = field(default_factory=list)

    def steps(self, request_id: str) -> list[tuple[str, float]]:
        """Decisions about a request, and the queue that each led to."""
        return [
            (decision.step, decision.predicted["queue"])
            for _, decision in self.decisions
            if decision.request_ids == (request_id,)
        ]

    def longest_pause(self, request_id: str) -> float:
        """Between two of its tokens."""
        times = self.played[request_id].token_times
        return max((later - early for early, later in pairwise(times)), default=0.0)


def on_a_clock(
    policy: str,
    arrivals: Iterable[RequestArrived | tuple[float, RequestArrived]],
    by: Policy | None = None,
    **changes: Any,
) -> Clock:
    """One instance, whose batches take what `MODEL` says; requests without a time arrive at 0."""
    scheduler = Scheduler(settings_of(policy, changes), by, MODEL)
    clock = Clock()

    def on_step(now: float, event: Event, actions: list[Action]) -> None:
        scheduler.check_invariants()
        clock.decisions.extend((now, decision) for decision in scheduler.decisions)
        clock.preempted.extend(preempted(actions))
        for batch in batches(actions):
            for segment in batch.segments:
                clock.began.setdefault(segment.request_id, now)

    def seconds(work: Work) -> float:
        return batch_seconds(work, MODEL) if isinstance(work, RunBatch) else MODEL.migration(work.num_tokens)

    timed = [arrival if isinstance(arrival, tuple) else (0.0, arrival) for arrival in arrivals]
    clock.played = play(scheduler, timed, seconds, on_step)
    assert all(request.ended for request in clock.played.values())
    return clock


def stream(every_s: float, until_s: float, prompt: int, max_tokens: int) -> list[tuple[float, RequestArrived]]:
    count = int(until_s / every_s)
    return [(number * every_s, RequestArrived(f"s{number}", prompt, max_tokens)) for number in range(count)]


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
    assert not any(lane or lane.running for lane in remembered._lanes)
    assert not (isinstance(remembered, FastServe) and remembered._jobs)


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


# fastserve


def test_fastserve_lets_a_short_job_pass_a_long_one_whose_kv_stays() -> None:
    d = driver("fastserve", max_batch_requests=1)
    d.arrive(400, 50, "long")  # 0.4 s: queue 6, quantum 0.64 s
    assert lengths(d.complete()) == {"long": 1}
    d.arrive(5, 3, "short")  # 5 ms: queue 0
    assert lengths(d.complete()) == {"short": 5}
    assert "long" in d.model.residences
    d.finish()
    assert d.scheduler.stats().num_preemptions == 0


def test_fastserve_skips_queues_whose_quantum_a_prefill_would_exceed() -> None:
    arrivals = [RequestArrived("s", 10, 1), RequestArrived("m", 11, 1), RequestArrived("l", 300, 1)]
    clock = on_a_clock("fastserve", arrivals)
    assert [clock.steps(name)[0] for name in "sml"] == [("join", 0), ("join", 1), ("join", 5)]


def test_fastserve_sends_jobs_down_as_they_use_up_their_quanta() -> None:
    """10 ms of prefill, then a bit more than 10 ms each; so it leaves queue 0 after two iterations, then after 2, 4."""
    clock = on_a_clock("fastserve", [RequestArrived("a", 10, 12)])
    assert clock.steps("a") == [("join", 0), ("demote", 1), ("demote", 2), ("demote", 3)]
    assert [round(now, 3) for now, decision in clock.decisions if decision.step == "demote"] == [0.02, 0.04, 0.08]


@pytest.mark.parametrize(("starvation_s", "waits"), [(0.5, (0.5, 1.2)), (1e9, (3.5, 8.0))])
@pytest.mark.parametrize("arrived", [0.0, 0.005])
def test_fastserve_starves_nobody(starvation_s: float, waits: tuple[float, float], arrived: float) -> None:
    """One job at a time, and for four seconds more than there is time for, all in the top queue. The long one comes
    before them, and pauses, or after the first, and waits."""
    policy = FastServe(starvation_s=starvation_s)
    arrivals = [(arrived, RequestArrived("long", 200, 20)), *stream(0.009, 4.0, 10, 1)]
    clock = on_a_clock("fastserve", arrivals, policy, max_batch_requests=1, max_waiting=10_000)
    longest = clock.began["long"] if arrived else clock.longest_pause("long")
    assert waits[0] <= longest <= waits[1]


def test_fastserve_defers_a_new_job_without_memory() -> None:
    """Its rank is the highest, but nobody's KV is dropped for it."""
    d = driver("fastserve", kv_tokens=100)
    d.arrive(88, 10, "long")
    d.arrive(9, 10, "short")
    d.arrive(4, 2, "tiny")  # would have room, but waits below the short one
    for _ in range(9):
        assert lengths(d.complete()) == {"long": 1}
    assert set(lengths(d.complete())) == {"short", "tiny"}
    d.finish()
    assert d.scheduler.stats().num_preemptions == 0


# ssjf


def taught(policy: str, by: Policy | None = None, **changes: Any) -> Driver:
    """Prompts of 20 tokens led to 40 tokens of output, those of 100 to 2; though all may have 60."""
    d = driver(policy, by, max_batch_requests=1, **changes)
    for prompt, output in ((20, 40), (100, 2)):
        d.arrive(prompt, 60, f"p{prompt}")
        while d.lives[f"p{prompt}"].ended is None:
            d.complete(stop={f"p{prompt}"} if d.lives[f"p{prompt}"].outputs == output - 1 else set())
    return d


def order_of_starts(d: Driver) -> list[str]:
    return [
        segment.request_id
        for _, _, actions in d.log
        for batch in batches(actions)
        for segment in batch.segments
        if segment.start == 0 and not segment.request_id.startswith("p")
    ]


def test_ssjf_goes_by_predicted_length_once_it_has_learned() -> None:
    untaught = driver("ssjf", max_batch_requests=1)
    for d in (untaught, taught("ssjf")):
        for name, prompt in (("now", 5), ("wordy", 25), ("terse", 90), ("wordy too", 31)):
            d.arrive(prompt, 60, name)
        d.finish()
    assert order_of_starts(untaught) == ["now", "wordy", "terse", "wordy too"]
    assert order_of_starts(d) == ["now", "terse", "wordy", "wordy too"]


def test_ssjf_does_not_stop_what_runs() -> None:
    d = taught("ssjf")
    d.arrive(25, 60, "wordy")
    d.complete()
    d.arrive(90, 60, "terse")
    while "wordy" in d.alive():
        assert "terse" not in d.model.residences
        d.complete()
    d.finish()


def test_lengths_are_learned_by_class_of_prompt() -> None:
    learned = LearnedLengths()

    def request(prompt: int, outputs: int = 0, max_tokens: int = 600) -> Request:
        return Request("r", prompt, max_tokens, 0.0, 0, num_output_tokens=outputs)

    assert learned.left(request(10)) == 512 and learned.left(request(10, max_tokens=7)) == 7
    for outputs in (20, 40):
        learned.learn(request(100, outputs))
    learned.learn(request(3, 60))
    assert learned.left(request(127)) == 30
    assert learned.left(request(2)) == 60
    assert learned.left(request(1000)) == 40  # the mean of all
    assert learned.left(request(100, outputs=10)) == 20
    assert learned.left(request(100, outputs=300)) == 30  # it has outlived the prediction


def test_an_aborted_request_teaches_nothing() -> None:
    d = driver("ssjf")
    d.arrive(20, 60, "a")
    d.complete()
    d.abort("a")
    d.finish()
    assert d.scheduler.policy.lengths.left(Request("r", 20, 600, 0.0, 0)) == 512  # type: ignore[attr-defined]


@pytest.mark.parametrize(("starvation_s", "begins"), [(1.0, (1.0, 1.2)), (1e9, (3.5, 6.0))])
def test_ssjf_starves_nobody(starvation_s: float, begins: tuple[float, float]) -> None:
    """Without its limit a long job waits as long as shorter ones keep coming."""
    policy = Ssjf(starvation_s=starvation_s)
    arrivals = [(0.001, RequestArrived("long", 10, 50)), *stream(0.05, 4.0, 10, 6)]
    clock = on_a_clock("ssjf", arrivals, policy, max_batch_requests=1, max_waiting=10_000)
    assert begins[0] <= clock.began["long"] <= begins[1]


# alise


def test_alise_stops_a_half_done_prompt_for_a_shorter_job() -> None:
    for policy, passes in ((Alise(token_budget=50), True), (Ssjf(token_budget=50), False)):
        d = driver(policy.name, policy)
        d.arrive(600, 5, "long")
        d.arrive(40, 5, "short")
        assert (next(iter(lengths(d.complete()))) == "short") is passes
        d.finish()
        assert d.scheduler.stats().num_preemptions == 0


def test_alise_pauses_decodes_for_a_shorter_job() -> None:
    d = taught("alise")
    d.arrive(25, 60, "wordy")
    assert lengths(d.complete()) == {"wordy": 1}
    d.arrive(90, 60, "terse")
    assert lengths(d.complete()) == {"terse": 90}
    assert "wordy" in d.model.residences
    d.finish()


def test_alise_looks_again_as_tokens_come() -> None:
    """The first has least left when it is nearly done, though it was predicted to take as long as the second."""
    d = taught("alise")
    d.arrive(25, 60, "first")
    for _ in range(30):
        d.complete()
    d.arrive(26, 60, "second")
    while "first" in d.alive() and d.lives["first"].outputs < 38:
        assert lengths(d.complete()) == {"first": 1}
    d.finish()


def test_alise_drops_the_kv_of_the_last_in_rank_once_for_a_shorter_job() -> None:
    d = taught("alise", kv_tokens=120)
    d.arrive(31, 60, "wordy")
    d.complete()
    actions = d.arrive(100, 20, "terse") or d.complete()
    assert preempted(actions) == ["wordy"]
    while "terse" in d.alive():
        d.complete()
    d.complete()
    assert "wordy" in d.model.residences
    d.arrive(100, 20, "terse too")
    assert preempted(d.complete()) == []  # it gave way before
    d.finish()
    assert d.scheduler.stats().num_preemptions == 1


def test_alise_starves_nobody() -> None:
    """0.2 s of work against jobs of 60 ms that take all the time: 1.4 s older, it is no longer behind them."""
    arrivals = [(0.001, RequestArrived("long", 10, 20)), *stream(0.05, 5.0, 10, 6)]
    clock = on_a_clock("alise", arrivals, max_batch_requests=1, max_waiting=10_000)
    assert 1.4 <= clock.began["long"] <= 2.0
    assert clock.played["long"].token_times[-1] <= 4.0
