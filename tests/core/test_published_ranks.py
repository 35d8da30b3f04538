"""The traits of the published baselines that do not go by arrival: told by events and actions, or on a clock."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest

from longspan.core.actions import Action, RunBatch
from longspan.core.books.request import Request
from longspan.core.costs.load import batch_seconds
from longspan.core.decision import Decision
from longspan.core.events import Event, RequestArrived
from longspan.core.policies.base import Policy
from longspan.core.policies.fastserve import FastServe
from longspan.core.policies.speculative.alise import Alise
from longspan.core.policies.speculative.lengths import LearnedLengths
from longspan.core.policies.speculative.ssjf import Ssjf
from longspan.core.scheduler import Scheduler
from longspan.simulator.driver import Work
from longspan.simulator.playback import Played, play

from .driver import Driver
from .published import MODEL, driver, settings_of
from .reading import batches, lengths, preempted


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
    policy = Ssjf()
    d = driver("ssjf", policy)
    d.arrive(20, 60, "a")
    d.complete()
    d.abort("a")
    d.finish()
    assert policy.lengths.left(Request("r", 20, 600, 0.0, 0)) == 512


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
