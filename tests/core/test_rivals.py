"""QoServe, FSP and PREFLOW: who goes first, beside models of each that share nothing with it."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longspan.config import SchedulerConfig
from longspan.core.actions import Action, RunBatch
from longspan.core.costs.load import batch_seconds
from longspan.core.events import BatchCompleted, Event, RequestArrived
from longspan.core.policies import create_policy
from longspan.core.policies.chunked.policy import ChunkedPrefill
from longspan.core.policies.chunked.ranking import Ranking
from longspan.core.policies.rivals.sharing import VirtualSharing
from longspan.core.scheduler import Scheduler
from longspan.core.state import SchedulerState
from longspan.service_level import ServiceLevel
from longspan.simulator.driver import Work
from longspan.simulator.playback import Played, play

from .cost_models import scaling_model
from .driver import Driver
from .medha import driver, model
from .reading import batches, lengths
from .settings import configured

RIVALS = ["fsp", "preflow", "qoserve"]
jobs = st.lists(st.tuples(st.floats(0.0, 2.0), st.integers(1, 400)), min_size=1, max_size=10)


def order(actions: list[Action]) -> list[str]:
    """The prompts of the batch, in order of rank."""
    return [segment.request_id for batch in batches(actions) for segment in batch.segments if segment.length > 1]


def on_one_instance(policy: str, arrivals: list[tuple[float, RequestArrived]], on_step: Any) -> dict[str, Played]:
    """A token takes 1 ms, an iteration 50 of them."""
    config = configured(policy, num_instances=1, kv_tokens=10**5, tpot_slo_s=0.0505, decode_headroom=0)

    def seconds(work: Work) -> float:
        assert isinstance(work, RunBatch)
        return batch_seconds(work, model())

    return play(Scheduler(config, cost_model=model()), arrivals, seconds, on_step)


@pytest.mark.parametrize("policy", [*RIVALS, "longspan"])
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32), factor=st.sampled_from([1.0, 1.5, 20.0]))
def test_the_waiting_are_ranked_as_one_by_one(policy: str, seed: int, factor: float) -> None:
    """In columns as alone, whatever was done, preempted and aborted before."""
    made = create_policy(policy)
    assert isinstance(made, ChunkedPrefill)
    rank, compared = made._ranking, []

    def ranking(state: SchedulerState, now: float) -> Ranking:
        found = rank(state, now)
        keys = [candidate.key for candidate in found.waiting(lambda: None)]
        assert keys == sorted(keys)
        compared.append(len(keys))
        return found

    made._ranking = ranking  # type: ignore[method-assign]  # the only place where all of a ranking is to be seen
    config = SchedulerConfig(
        num_instances=2, kv_tokens=100, decode_headroom=1, policy=policy, max_batch_tokens=16, ttft_slo_factor=factor,
        ttft_slo_floor_s=0.01, overload="off",
    )  # fmt: skip
    d = Driver(config, made, seed=seed, cost_model=scaling_model(2, per_token=1e-3))
    for _ in range(30):
        level = ServiceLevel(d.rng.choice([None, 0.01, 3.0]), None, d.rng.choice([0, 0, 1]))
        d.arrive(d.rng.randint(1, 90), d.rng.randint(1, 20), service=level)
        if d.rng.random() < 0.7 and d.model.started:
            d.complete(d.rng.choice(d.model.started))
        if d.rng.random() < 0.1:
            d.abort(d.rng.choice(list(d.lives)))
    d.finish(in_order=False)
    assert max(compared) > 3


@pytest.mark.parametrize("policy", RIVALS)
@pytest.mark.parametrize("pp", [1, 2])
def test_nobody_who_has_ended_is_remembered(policy: str, pp: int) -> None:
    """Neither the finished nor the refused, nor who was given up while a batch ran."""
    made = create_policy(policy)
    assert isinstance(made, ChunkedPrefill)
    config = SchedulerConfig(num_instances=2, pp=pp, kv_tokens=100, max_waiting=4, policy=policy)
    d = Driver(config, made, seed=3, cost_model=scaling_model(2, per_token=1e-3))
    for _ in range(60):
        d.arrive(d.rng.randint(1, 190), d.rng.randint(1, 20))
        while d.model.started and d.rng.random() < 0.7:
            d.complete(d.rng.choice(d.model.started))
        if d.rng.random() < 0.2:
            d.abort(d.rng.choice(list(d.lives)))
    d.finish(in_order=False)
    by_request = [kept for part in (made, made._known) for kept in vars(part).values() if isinstance(kept, dict | set)]
    assert len(by_request) >= 3 and not any(by_request)


# preflow


class Ages:
    """PREFLOW as its pull request has it, token by token, with a token's work alike anywhere."""

    def __init__(self, doubling: float) -> None:
        self.doubling = doubling
        self.prompts: dict[str, int] = {}
        self.done: dict[str, int] = {}
        self.ages: dict[str, float] = {}

    def arrive(self, name: str, prompt: int) -> None:
        self.prompts[name], self.done[name], self.ages[name] = prompt, 0, 0.0

    def ran(self, chunks: dict[str, int]) -> None:
        for name, prompt in self.prompts.items():
            self.ages[name] += sum(chunks.values()) / prompt

    def priority(self, name: str) -> float:
        left = self.prompts[name] - self.done[name]
        return float(2.0 ** (self.ages[name] / self.doubling) / (self.prompts[name] * left))


@settings(max_examples=30, deadline=None)
@given(jobs, st.sampled_from([0.5, 2.0, 8.0]))
def test_preflow_goes_by_slowdown_and_work(drawn: list[tuple[float, int]], doubling: float) -> None:
    ages, running = Ages(doubling), dict[int, dict[str, int]]()

    def on_step(now: float, event: Event, actions: list[Action]) -> None:
        if isinstance(event, RequestArrived):
            ages.arrive(event.request_id, event.num_prompt_tokens)
        else:
            assert isinstance(event, BatchCompleted)
            ages.ran(running.pop(event.batch_id))
        for batch in batches(actions):
            chunks = {segment.request_id: segment.length for segment in batch.segments}
            # A prompt's last token, alone, is like a decode: those go before.
            ranks = [ages.priority(name) for name in chunks if ages.prompts[name] - ages.done[name] > 1]
            left_out = [
                ages.priority(name)
                for name in ages.prompts
                if name not in chunks and ages.done[name] < ages.prompts[name]
            ]
            assert all(ahead >= behind * (1 - 1e-9) for ahead, behind in pairwise(ranks))
            assert min(ranks, default=math.inf) >= max(left_out, default=0.0) * (1 - 1e-9)
            for name, length in chunks.items():
                ages.done[name] += length
            running[batch.batch_id] = chunks

    arrivals = [(at, RequestArrived(f"r{n}", 1 + size, 1)) for n, (at, size) in enumerate(drawn)]
    played = on_one_instance(f"preflow:age_priority_double={doubling}", arrivals, on_step)
    assert all(one.ended for one in played.values())


def test_preflow_lets_a_long_prompt_catch_up_with_short_ones() -> None:
    """Ten times their work, 100 times their P R: it is ahead of newcomers once 2 ** (age / 2) is 100, and takes turns
    with them then. Not under overload, in which they age faster."""

    def ttft_s(policy: str, every_s: float = 0.1) -> float:
        shorts = [(every_s * n, RequestArrived(f"short {n}", 100, 1)) for n in range(400)]
        played = on_one_instance(policy, [(0.0, RequestArrived("long", 1000, 1)), *shorts], lambda *_: None)
        return played["long"].ttft_s

    assert ttft_s("srpt") > 39.0  # when there are no more
    assert 2 * math.log2(100) < ttft_s("preflow") < 20.0
    assert ttft_s("preflow:age_priority_double=0.5") < 2 * math.log2(100)
    assert ttft_s("preflow", every_s=0.08) > 39.0


# fsp


def shared(given_jobs: list[tuple[Fraction, Fraction, int]]) -> list[Fraction]:
    """When processor sharing by weights ends jobs of (arrival, size, weight), worked out step by step."""
    left, ends, now = {n: job[1] for n, job in enumerate(given_jobs)}, [Fraction(0)] * len(given_jobs), Fraction(0)
    while left:
        here = [n for n in left if given_jobs[n][0] <= now]
        coming = [given_jobs[n][0] for n in left if given_jobs[n][0] > now]
        if not here:
            now = min(coming)
            continue
        weights = sum(given_jobs[n][2] for n in here)
        step = min([left[n] * weights / given_jobs[n][2] for n in here] + [at - now for at in coming])
        for n in here:
            left[n] -= step * given_jobs[n][2] / weights
            if not left[n]:
                ends[n] = now + step
                del left[n]
        now += step
    return ends


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 40), st.sampled_from([1, 2, 4])), min_size=1, max_size=10))
def test_jobs_end_as_processor_sharing_ends_them(drawn: list[tuple[int, int, int]]) -> None:
    given_jobs = sorted((Fraction(at), Fraction(size), weight) for at, size, weight in drawn)
    ends = shared(given_jobs)
    sharing, found, now = VirtualSharing(), list[str](), 0
    for n, (at, size, weight) in enumerate(given_jobs):
        found += sharing.work(float(at - now))
        sharing.arrive(str(n), float(size), float(weight))
        now = int(at)
    for second in range(now, 1000):
        before = len(found)
        found += sharing.work(1.0)
        assert all(second - 1e-6 <= ends[int(name)] <= second + 1 + 1e-6 for name in found[before:])
    assert len(found) == len(given_jobs)
    assert all(ends[int(a)] <= ends[int(b)] + Fraction(1, 10**6) for a, b in pairwise(found))


@settings(max_examples=30, deadline=None)
@given(jobs)
def test_fsp_ends_nobody_later_than_processor_sharing_does(drawn: list[tuple[float, int]]) -> None:
    """The theorem; but for two iterations: one runs when a request comes, and its work is seen at its end."""
    arrivals = [(at, RequestArrived(f"r{n}", 1 + size, 1)) for n, (at, size) in enumerate(drawn)]
    played = on_one_instance("fsp", arrivals, lambda *_: None)
    ends = shared([(Fraction(at), Fraction(1 + size, 1000), 1) for at, size in drawn])
    for n, end in enumerate(ends):
        assert played[f"r{n}"].token_times[0] <= float(end) + 2 * 0.0505


@pytest.mark.parametrize(("tokens", "first"), [(190, "important"), (210, "plain")])
def test_a_priority_is_a_share(tokens: int, first: str) -> None:
    """Twice the share: it would end first with less than twice the work."""
    d = driver(policy="fsp", max_batch_tokens=50)
    d.arrive(50, 1, "running")
    d.arrive(100, 1, "plain")
    d.arrive(tokens, 1, "important", service=ServiceLevel(priority=1))
    assert order(d.complete())[0] == first


def test_late_ones_share_by_turns() -> None:
    """Short prompts are nearly done when they are given up: what was done of them, sharing would have done of others.
    So two long ones are late, and go on side by side, one with twice the share."""
    d = driver(policy="fsp", tpot_slo_s=0.0131, max_batch_tokens=13)
    d.arrive(200, 1, "a")
    d.arrive(400, 1, "b", service=ServiceLevel(priority=1))
    d.arrive(40, 1, "short 0")
    for n in range(16):
        for _ in range(3):
            assert lengths(d.complete()) == {f"short {n}": 13}
        d.arrive(40, 1, f"short {n + 1}")
        d.abort(f"short {n}")
    d.abort("short 16")
    runs: list[str] = []
    while d.model.started:
        runs += order(d.complete())
    alone = len(runs) - runs[::-1].index("a")
    turns = runs[alone - 6 : alone]
    assert turns.count("a") == 2, runs


# qoserve


def waiting(policy: str, **changes: Any) -> Driver:
    d = driver(policy=policy, max_batch_tokens=50, kv_tokens=100_000, **changes)
    d.arrive(50, 1, "running", service=ServiceLevel(ttft_s=50.0))
    return d


def test_alpha_grows_with_the_load() -> None:
    """Equation 4: the deadline decides when little waits, the remaining work when much does."""
    for filler, first in ((0, "long"), (6000, "short")):
        d = waiting("qoserve:alpha_low=0.5:alpha_high=68:full_load_s=6")
        d.arrive(600, 1, "long", service=ServiceLevel(ttft_s=100.0))
        d.arrive(30, 1, "short", service=ServiceLevel(ttft_s=105.0))
        if filler:
            d.arrive(filler, 1, "filler", service=ServiceLevel(ttft_s=1000.0))
        assert order(d.complete())[0] == first


def test_who_cannot_be_in_time_is_relegated_until_its_end() -> None:
    d = waiting("qoserve")
    d.arrive(500, 1, "hopeless", service=ServiceLevel(ttft_s=0.3))
    d.arrive(60, 1, "a", service=ServiceLevel(ttft_s=50.0))
    d.arrive(60, 1, "b", service=ServiceLevel(ttft_s=50.0))
    done: list[str] = []
    while "hopeless" not in done:
        done += order(d.complete())
    assert done.count("a") == done.count("b") == 2 or done.index("hopeless") > done.index("b")
    d.complete()
    d.arrive(40, 1, "late comer", service=ServiceLevel(ttft_s=500.0))
    assert order(d.complete())[0] == "late comer"
    d.finish()


def test_a_prompt_that_a_pause_would_make_late_is_not_paused() -> None:
    """Selective preemption: `begun` has 0.4 s to spare, less than an iteration of 2,500 tokens may take."""
    for ttft_s, first in ((1.4, "begun"), (100.0, "newcomer")):
        d = waiting("qoserve:alpha_low=1000:alpha_high=1000")
        d.arrive(1000, 1, "begun", service=ServiceLevel(ttft_s=ttft_s))
        d.complete()
        d.arrive(30, 1, "newcomer", service=ServiceLevel(ttft_s=3.0))
        assert order(d.complete())[0] == first


def test_chunks_take_the_slack_of_decodes() -> None:
    """Token n is due at arrival + TTFT + (n - 1) TPOT, so early first tokens leave time; 2,500 tokens at most."""
    found: dict[object, int] = {}
    for ttft_s in (0.001, 0.6, 100.0):
        d = driver(policy="qoserve", kv_tokens=100_000, tpot_slo_s=0.05)
        d.arrive(10, 9, "decode", service=ServiceLevel(ttft_s=ttft_s))
        arrived = d.now
        d.arrive(9000, 1, "long", service=ServiceLevel(ttft_s=1e5))
        found[ttft_s] = lengths(d.complete())["long"]
        if ttft_s == 0.6:
            slack_s = arrived + ttft_s + 0.05 - d.now
            assert found[ttft_s] == math.floor(1000 * slack_s * 0.83 - 1)
    assert found[0.001] <= 41 and found[100.0] == pytest.approx(2499, abs=1)
    d = driver(policy="qoserve:spends_early_tokens=false", kv_tokens=100_000, tpot_slo_s=0.05)
    d.arrive(10, 9, "decode", service=ServiceLevel(ttft_s=100.0))
    d.arrive(9000, 1, "long", service=ServiceLevel(ttft_s=1e5))
    assert lengths(d.complete())["long"] == 40
