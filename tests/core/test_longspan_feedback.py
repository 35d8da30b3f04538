"""The policy `longspan`: what iterations take corrects what is predicted, and decodes keep their pace."""

from __future__ import annotations

import random
from statistics import mean, median
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longspan.config import SchedulerConfig
from longspan.core.actions import RunBatch, Segment
from longspan.core.news import News
from longspan.core.policies import create_policy
from longspan.core.policies.chunked.feedback import Feedback, Kind
from longspan.core.policies.longspan.policy import Longspan

from .cost_models import scaling_model
from .driver import Driver
from .longspan import Arrival, Run, arrival, plain, played

AIM = 0.88


def busy(num: int = 1) -> list[Arrival]:
    """Someone decodes all the while, and prompts never run out."""
    prompts = [arrival(0.2 * n, f"prompt {n}", 6000) for n in range(10 * num)]
    return [*[arrival(0.0, f"decode {n}", 1, 600) for n in range(num)], *prompts]


def full(run: Run) -> list[tuple[float, RunBatch, float]]:
    """Iterations with decodes and a chunk that is not the last of its prompt."""
    mixed = [one for one in run.took if any(s.start and s.length == 1 for s in one[1].segments)]
    return [one for one in mixed if any(s.length > 1 and not s.emits for s in one[1].segments)]


@pytest.mark.parametrize("factor", [0.8, 1.0, 1.25, 2.0])
def test_an_iteration_takes_what_it_should_whatever_the_model_says(factor: float) -> None:
    """The aim of the TPOT: also where each takes a fifth more or less than predicted."""
    run = played(busy(), plain(), slowdown=lambda batch: factor, policy="longspan:burst=1", overload="off")
    taken = [took for _, _, took in full(run)]
    assert len(taken) > 80
    assert taken[60:] == pytest.approx([AIM * 0.1] * len(taken[60:]), rel=0.03)


def test_without_feedback_the_model_is_believed() -> None:
    run = played(busy(), plain(), slowdown=lambda _: 1.25, policy="longspan:burst=1:feedback=0", overload="off")
    taken = [took for _, _, took in full(run)]
    assert taken == pytest.approx([1.25 * AIM * 0.1] * len(taken), rel=0.03)


def test_a_slow_instance_gets_smaller_chunks() -> None:
    """One of two takes twice as long: so much less is asked of it, and both keep the pace."""

    def slowdown(batch: RunBatch) -> float:
        return 2.0 if 1 in batch.group else 1.0

    policy = "longspan:burst=1:team=1"
    run = played(busy(2), plain(2), slowdown=slowdown, num_instances=2, policy=policy, overload="off")
    chunks: dict[int, list[int]] = {0: [], 1: []}
    taken: dict[int, list[float]] = {0: [], 1: []}
    for _, batch, took in full(run):
        (number,) = batch.group
        chunks[number].append(max(segment.length for segment in batch.segments))
        taken[number].append(took)
    fast, slow = median(chunks[0][-60:]), median(chunks[1][-60:])
    assert (slow + 10) / (fast + 10) == pytest.approx(0.5, rel=0.15)
    for number in taken:
        assert 0.8 * AIM * 0.1 < median(taken[number][-60:]) < 1.05 * AIM * 0.1


# the averages alone


def batch(number: int, group: tuple[int, ...], request_id: str | None = None) -> RunBatch:
    segments = () if request_id is None else (Segment(request_id, 5, 1, group, ()),)
    return RunBatch(number, group, segments)


@settings(max_examples=15, deadline=None)
@given(
    factors=st.lists(st.floats(0.5, 2.0), min_size=2, max_size=5),
    kinds=st.tuples(st.floats(0.7, 1.4), st.floats(0.7, 1.4)),
    noise=st.sampled_from([0.0, 0.1, 0.2]),
    seed=st.integers(0, 2**32),
)
def test_instances_and_kinds_are_told_apart(
    factors: list[float], kinds: tuple[float, float], noise: float, seed: int
) -> None:
    """Whatever runs where, alone or together with slower ones: nothing drifts. It errs on the safe side."""
    rng, feedback, now, numbers = random.Random(seed), Feedback(0.1, len(factors)), 0.0, range(len(factors))
    known: dict[tuple[int, int], list[float]] = {}
    names: tuple[Kind, Kind] = ("mixed", "prefill")
    for step in range(4000):
        group = tuple(sorted(rng.sample(numbers, rng.choice([1, 1, 2, len(factors)]))))
        of = rng.randrange(2)
        kind = names[of]
        feedback.expect(step, now, 0.05, kind)
        now += 0.05 * kinds[of] * max(factors[n] for n in group) * (1.0 + noise * rng.uniform(-1.0, 1.0))
        feedback.learn(News((), (), (batch(step, group),)), lambda _: (), now)
        if step >= 2000:
            for n in numbers:
                scale = feedback.scale(kind, (n,))
                known.setdefault((of, n), []).append(scale / (kinds[of] * factors[n]))
    for relative in known.values():
        assert 0.97 < mean(relative) < 1.03 + noise / 2
        assert 0.9 - noise < min(relative) and max(relative) < 1.1 + 2 * noise


def test_a_batch_that_was_queued_behind_another_is_measured_from_its_end() -> None:
    feedback = Feedback(0.1, 1)
    feedback.expect(0, 0.0, 0.05, "decode")
    for number, now in enumerate((0.1, 0.2, 0.3, 0.4)):
        feedback.learn(News((), (), (batch(number, (0,)),)), lambda _: (), now)
    assert feedback.scale("decode") == pytest.approx(2.0 - 0.88**4)


@pytest.mark.parametrize("pp", [1, 2, 4])
def test_nobody_who_has_ended_is_remembered(pp: int) -> None:
    """Also who is given up while a batch with it, or several, are on their way; or is preempted, or refused."""
    policy = create_policy("longspan")
    assert isinstance(policy, Longspan)
    config = SchedulerConfig(num_instances=3, pp=pp, kv_tokens=100, max_waiting=4, policy="longspan")
    d = Driver(config, policy, seed=3, cost_model=scaling_model(3, per_token=1e-3))
    for _ in range(300):
        d.arrive(d.rng.randint(1, 190), d.rng.randint(1, 20))
        while d.model.started and d.rng.random() < 0.7:
            d.complete(d.rng.choice(d.model.started))
        if d.rng.random() < 0.4:
            d.abort(d.rng.choice(d.alive() or ["nobody"]))
    d.finish(in_order=False)
    predictor = policy._known
    assert predictor is not None
    parts = (policy, predictor, predictor.feedback, policy.width, policy._promises, policy._sharing, policy._unserved)
    kept = {
        (type(part).__name__, name): len(value)
        for part in parts
        for name, value in vars(part).items()
        if isinstance(value, dict | set | list)
    }
    for name in ("_kinds", "_instances", "_latest", "took_s"):
        assert kept.pop(("Feedback", name)) <= 4
    for name in ("_efficiency", "_iteration_s", "sizes", "_beside"):  # of the deployment
        assert kept.pop(("ElasticWidth", name)) <= 2
    assert kept.pop(("Promises", "_due")) <= 64 and kept.pop(("Promises", "doubt")) == 2
    for name in ("_ends", "_seconds", "sizes"):
        kept.pop(("ElasticPredictor", name))
    assert len(kept) >= 10 and not any(kept.values()), kept


# the pace


@settings(max_examples=20, deadline=None)
@given(
    prompts=st.lists(st.tuples(st.floats(0.0, 20.0), st.integers(1, 12_000)), min_size=1, max_size=12),
    decodes=st.lists(st.tuples(st.floats(0.0, 10.0), st.integers(11, 150)), min_size=1, max_size=8),
    tpot_s=st.sampled_from([0.05, 0.1, 0.3]),
    burst=st.sampled_from([1.0, 2.5, 10.0]),
    pairs=st.sampled_from([0.0, 1e-8]),
)
def test_the_mean_pace_of_decodes_is_kept(
    prompts: list[tuple[float, int]], decodes: list[tuple[float, int]], tpot_s: float, burst: float, pairs: float
) -> None:
    """Whatever prompts come beside: with costs as predicted, each request of more than ten tokens has its TPOT."""
    arrivals = [arrival(at, f"prompt {n}", tokens) for n, (at, tokens) in enumerate(prompts)]
    arrivals += [arrival(at, f"decode {n}", 1, outputs) for n, (at, outputs) in enumerate(decodes)]
    policy = f"longspan:burst={burst}"
    run = played(arrivals, plain(per_pair=pairs), policy=policy, overload="off", tpot_slo_s=tpot_s)
    for n in range(len(decodes)):
        times = run.played[f"decode {n}"].token_times
        assert (times[-1] - times[0]) / (len(times) - 1) <= tpot_s * (1 + 1e-9)


# where no pace can be kept


def crowded(decode_s: float, slowdown: float = 1.0, **changes: Any) -> Run:
    """Twelve decode, which alone take so long, as predicted; after two seconds a prompt of a second's work comes, and a
    short one behind it."""
    arrivals = [arrival(0.0, f"decode {n}", 1, 400) for n in range(12)]
    arrivals += [arrival(2.0, "prompt", 1000), arrival(2.01, "short", 50)]
    model = plain(per_request=(decode_s - 0.01) / 12)
    return played(arrivals, model, slowdown=lambda _: slowdown, overload="off", **changes)


@pytest.mark.parametrize(("decode_s", "slowdown"), [(0.12, 1.0), (0.2, 1.0), (0.04, 4.0), (0.05, 2.5)])
def test_a_prompt_gets_its_part_of_a_machine_whose_decodes_alone_are_late(decode_s: float, slowdown: float) -> None:
    """A quarter of each iteration: it takes four times as long as alone, and what is before it; not a hundred times."""
    run = crowded(decode_s, slowdown)
    assert run.played["prompt"].token_times[0] - 2.0 < 5.0 * slowdown + 1.0
    assert run.played["short"].token_times[0] - 2.01 < 2.0 * slowdown
    chunks = [sum([s.length for s in batch.segments if s.length > 1]) for _, batch, _ in full(run)]
    assert median(chunks) > 0.3 * 1e3 * decode_s


@pytest.mark.parametrize("decode_s", [0.065, 0.08, 0.085])
def test_decodes_that_can_keep_their_pace_do(decode_s: float) -> None:
    """Also while they are behind: what lets them catch up is not there for chunks."""
    run = crowded(decode_s)
    for n in range(12):
        times = run.played[f"decode {n}"].token_times
        assert (times[-1] - times[0]) / (len(times) - 1) <= 0.1 * (1 + 1e-9)
