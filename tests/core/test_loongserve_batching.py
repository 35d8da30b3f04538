"""The dynamic program of LoongServe's batching step: exact, against every possible plan."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longspan.core.policies.loongserve.batching import (
    GREEDY,
    Batching,
    BatchPlan,
    Objective,
    Prompts,
    plan_batches,
    plan_one_batch,
)
from longspan.core.policies.loongserve.prefill_times import PrefillTimes

from .cost_models import scaling_model


@dataclass
class Problem:
    """Prompts by length, longest first, and instances by room, most first, with times of either shape or none."""

    lengths: list[int]
    needs: list[int]
    rooms: list[int]
    fixed: list[float]
    work: list[list[float]]
    max_batch_tokens: int = 10**9
    min_tokens_per_instance: int = 0
    objective: Objective = "latency"

    def plan(self, batching: Batching = plan_batches) -> BatchPlan | None:
        return batching(
            Prompts(self.lengths, self.needs, self.work),
            self.rooms,
            self.fixed,
            self.max_batch_tokens,
            self.min_tokens_per_instance,
            self.objective,
        )

    def cost(self, j: int, i: int, l: int, k: int) -> float:  # noqa: E741
        """Of the batch of prompts [j, i) on instances [l, k), said once more and plainly."""
        n, tokens = k - l, sum(self.lengths[j:i])
        if sum(self.needs[j:i]) > sum(self.rooms[l:k]):
            return math.inf
        if i - j > 1 and tokens > self.max_batch_tokens * n:
            return math.inf
        if n > 1 and tokens < self.min_tokens_per_instance * n:
            return math.inf
        seconds = self.fixed[n - 1] + sum(row[n - 1] for row in self.work[j:i])
        return seconds * sum(1.0 if self.objective == "latency" else 1.0 / length for length in self.lengths[j:i])

    def brute_force(self) -> float:
        """The least cost of any way to cut prompts and instances into batches; instances may be left over anywhere."""
        R, E = len(self.lengths), len(self.rooms)

        def costs(j: int, first_free: int) -> Iterator[float]:
            if j == R:
                yield 0.0
            for i in range(j + 1, R + 1):
                for l in range(first_free, E):  # noqa: E741
                    for k in range(l + 1, E + 1):
                        here = self.cost(j, i, l, k)
                        if here < math.inf:
                            yield here + min(costs(i, k), default=math.inf)

        return min(costs(0, 0), default=math.inf)


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """Times scale as instances do, or are drawn freely: the program must be exact for whatever was measured."""
    count, instances = draw(st.integers(1, 8)), draw(st.integers(1, 5))
    lengths = sorted(draw(st.lists(st.integers(1, 200), min_size=count, max_size=count)), reverse=True)
    seconds = st.floats(0, 10, allow_nan=False)
    if draw(st.booleans()):
        fixed = draw(st.lists(seconds, min_size=instances, max_size=instances))
        rates = draw(st.lists(seconds, min_size=instances, max_size=instances))
        work = [[rate * length for rate in rates] for length in lengths]
    else:
        some = st.sampled_from([0.0, 0.1, 1.0])
        model = scaling_model(instances, fixed=draw(some), fixed_step=draw(some), per_token=0.01, per_pair=1e-4)
        times = PrefillTimes(model, instances)
        fixed, work = times.fixed, [times.work(length) for length in lengths]
    return Problem(
        lengths=lengths,
        needs=[length + draw(st.integers(0, 5)) for length in lengths],
        rooms=sorted(draw(st.lists(st.integers(0, 600), min_size=instances, max_size=instances)), reverse=True),
        fixed=fixed,
        work=work,
        max_batch_tokens=draw(st.sampled_from([20, 150, 10**9])),
        min_tokens_per_instance=draw(st.sampled_from([0, 10, 100])),
        objective=draw(st.sampled_from(["latency", "normalised"])),
    )


@settings(max_examples=500)
@given(problems())
def test_exact_whatever_the_limits(problem: Problem) -> None:
    plan, least = problem.plan(), problem.brute_force()
    if plan is None:
        assert least == math.inf
        return
    assert plan.cost == pytest.approx(least, rel=1e-9)
    # The plan is what it says: every prompt once, instances once, and the costs add up.
    assert [batch.first for batch in plan.batches] == [0, *(batch.last for batch in plan.batches[:-1])]
    assert plan.batches[-1].last == len(problem.lengths)
    ends = [0, *(batch.end for batch in plan.batches)]
    assert all(end <= batch.begin < batch.end for end, batch in zip(ends, plan.batches, strict=False))
    costs = [problem.cost(batch.first, batch.last, batch.begin, batch.end) for batch in plan.batches]
    assert sum(costs) == pytest.approx(plan.cost)


@st.composite
def crowds_of_instances(draw: st.DrawFn) -> Problem:
    """So many that most of them are of no use; times have a least number or fall for ever, or are drawn freely."""
    count, instances = draw(st.integers(1, 4)), draw(st.integers(17, 70))
    lengths = sorted(draw(st.lists(st.integers(1, 200), min_size=count, max_size=count)), reverse=True)
    if draw(st.booleans()):
        seconds = random.Random(draw(st.integers(0, 1000)))
        fixed = [seconds.random() for _ in range(instances)]
        work = [[seconds.random() for _ in range(instances)] for _ in lengths]
    else:
        step = draw(st.sampled_from([0.0, 0.001, 0.05]))
        times = PrefillTimes(scaling_model(instances, fixed=0.1, fixed_step=step, per_token=0.01), instances)
        fixed, work = times.fixed, [times.work(length) for length in lengths]
    most = draw(st.sampled_from([5, 40, 1000]))
    rooms = draw(st.lists(st.integers(most // 2, most), min_size=instances, max_size=instances))
    empty = draw(st.integers(0, instances // 2))
    return Problem(
        lengths=lengths,
        needs=lengths,
        rooms=sorted([*rooms[empty:], *[0] * empty], reverse=True),
        fixed=fixed,
        work=work,
        max_batch_tokens=draw(st.sampled_from([20, 10**9])),
        min_tokens_per_instance=draw(st.sampled_from([0, 10, 100])),
    )


@settings(max_examples=150)
@given(crowds_of_instances())
def test_exact_among_many_instances(problem: Problem) -> None:
    """Equation 5 over all instances, said plainly."""
    R, E = len(problem.lengths), len(problem.rooms)
    f = {(0, 0): 0.0}
    for i in range(1, R + 1):
        for k in range(1, E + 1):
            f[i, k] = min(
                f.get((j, l), math.inf) + problem.cost(j, i, l, k)
                for j in range(i)
                for l in range(k)  # noqa: E741
            )
    least, plan = min(f[R, k] for k in range(1, E + 1)), problem.plan()
    assert (math.inf if plan is None else plan.cost) == pytest.approx(least, rel=1e-9)
    if plan is not None:
        costs = [problem.cost(batch.first, batch.last, batch.begin, batch.end) for batch in plan.batches]
        assert sum(costs) == pytest.approx(plan.cost)


def test_among_a_thousand_instances_it_compares_few() -> None:
    times = PrefillTimes(scaling_model(1024, fixed_step=0.03), 1024)
    lengths = [3000, 2000, 1000]
    plan = Problem(lengths, lengths, [5000] * 1024, times.fixed, [times.work(length) for length in lengths]).plan()
    assert plan is not None and plan.cells <= 9 * 16 * 17 // 2


@given(problems())
def test_one_batch_is_the_best_of_all_that_are_one(problem: Problem) -> None:
    """What `loongserve_never_splits` plans."""
    plan = problem.plan(plan_one_batch)
    R, E = len(problem.lengths), len(problem.rooms)
    least = min(problem.cost(0, R, 0, n) for n in range(1, E + 1))
    assert (math.inf if plan is None else plan.cost) == pytest.approx(least, rel=1e-9)
    if plan is not None:
        (batch,) = plan.batches
        assert (batch.first, batch.last, batch.begin) == (0, R, 0)
        assert problem.cost(0, R, 0, batch.end) == pytest.approx(plan.cost, rel=1e-9)


@given(problems())
def test_it_compares_no_more_cells_than_it_says(problem: Problem) -> None:
    plan = problem.plan()
    R, E = len(problem.lengths), len(problem.rooms)
    assert plan is None or plan.cells <= R * R * E * (E + 1) // 2


def lwm(lengths: Sequence[int], instances: int, room: int = 210_000, objective: Objective = "latency") -> Problem:
    times = PrefillTimes(scaling_model(instances), instances)
    work = [times.work(length) for length in lengths]
    return Problem(list(lengths), list(lengths), [room] * instances, times.fixed, work, objective=objective)


@pytest.mark.parametrize("objective", ["latency", "normalised"])
def test_a_short_prompt_gets_an_instance_beside_a_long_one(objective: Objective) -> None:
    """The released code puts both into one batch on four instances."""
    plan = lwm([150_000, 500], 4, objective=objective).plan()
    assert plan is not None
    assert [(batch.last - batch.first, batch.num_instances) for batch in plan.batches] == [(1, 3), (1, 1)]
    long, short = plan.batches
    assert long.seconds > 100 * short.seconds


def test_the_normalised_objective_starves_the_long() -> None:
    """Which is why it is not the default."""
    lengths = [100_000, 1000, 1000, 1000, 1000, 1000, 1000]
    latency, normalised = lwm(lengths, 8).plan(), lwm(lengths, 8, objective="normalised").plan()
    assert latency is not None and normalised is not None
    assert latency.batches[0].num_instances > normalised.batches[0].num_instances


def test_short_prompts_share_what_a_batch_costs_anyway() -> None:
    plan = lwm([200, 200, 200, 200, 200], 1).plan()
    assert plan is not None and len(plan.batches) == 1
    plan = lwm([200, 200, 200, 200, 200], 2).plan()
    assert plan is not None and [batch.num_instances for batch in plan.batches] == [1, 1]


def test_instances_that_speed_nothing_up_stay_free() -> None:
    times = PrefillTimes(scaling_model(8, fixed_step=0.03), 8)
    plan = Problem([1000], [1000], [5000] * 8, times.fixed, [times.work(1000)]).plan()
    assert plan is not None and plan.batches[0].num_instances == 1


def pruned_by_equation_6(problem: Problem) -> float:
    """With the paper's lower bounds: split_req[i][k-1] <= split_req[i][k], split_ins[i-1][k] <= split_ins[i][k].

    Its upper bounds prune still more.
    """
    R, E = len(problem.lengths), len(problem.rooms)
    f = [[math.inf] * (E + 1) for _ in range(R + 1)]
    f[0][0] = 0.0
    split_req = [[0] * (E + 1) for _ in range(R + 1)]
    split_ins = [[0] * (E + 1) for _ in range(R + 1)]
    for k in range(1, E + 1):
        for i in range(1, R + 1):
            for j in range(split_req[i][k - 1], i):
                for l in range(split_ins[i - 1][k], k):  # noqa: E741
                    cost = f[j][l] + problem.cost(j, i, l, k)
                    if cost < f[i][k]:
                        f[i][k], split_req[i][k], split_ins[i][k] = cost, j, l
    return min(f[R][1:])


def test_the_papers_pruning_misses_the_optimum() -> None:
    """Why `plan_batches` looks at every cell: with D <= V, or with the fixed cost of a batch, equation 6 fails."""
    draw = random.Random(0)
    missed = {"roomy": 0, "tight": 0}
    for _ in range(300):
        lengths = sorted((int(10 ** draw.uniform(1, 5.2)) for _ in range(draw.randint(2, 8))), reverse=True)
        for name, room in (("roomy", 10**9), ("tight", max(lengths[0], sum(lengths) // 3))):
            problem = lwm(lengths, 4, room)
            plan = problem.plan()
            assert plan is not None
            missed[name] += pruned_by_equation_6(problem) > plan.cost * (1 + 1e-9)
    assert missed["roomy"] > 0 and missed["tight"] > 0, missed


@settings(max_examples=200)
@given(
    st.lists(st.integers(100, 200_000), min_size=1, max_size=4), st.integers(GREEDY + 1, 40),
    st.sampled_from([0.0, 0.3, 0.5, 0.9]), st.sampled_from([0.0, 0.002, 0.05]),
)  # fmt: skip
def test_more_than_eight_instances_are_not_wasted(
    lengths: list[int], instances: int, min_efficiency: float, fixed_step: float
) -> None:
    """And a plan that wastes nothing is what it would be anyway."""
    lengths.sort(reverse=True)
    times = PrefillTimes(scaling_model(instances, fixed_step=fixed_step), instances)
    prompts = Prompts(lengths, lengths, [times.work(tokens) for tokens in lengths])

    def planned(least: float) -> BatchPlan:
        plan = plan_batches(prompts, [10**6] * instances, times.fixed, 10**9, 0, "latency", least)
        assert plan is not None
        return plan

    def is_wasteful(first: int, last: int, taken: int) -> bool:
        spent = [n * times.batch(lengths[first:last], n) for n in range(1, instances + 1)]
        return taken > GREEDY and min_efficiency * spent[taken - 1] > min(spent) * (1 + 1e-9)

    greedy, frugal = planned(0.0), planned(min_efficiency)
    assert not any(is_wasteful(batch.first, batch.last, batch.num_instances) for batch in frugal.batches)
    if not any(is_wasteful(batch.first, batch.last, batch.num_instances) for batch in greedy.batches):
        assert frugal == greedy
    assert frugal.cost >= greedy.cost
