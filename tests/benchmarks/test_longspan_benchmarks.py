"""The benchmarks of the default policy: faults are what they are called, and quotes are judged as it is said."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev

import pytest

from benchmarks.policy import ablation, robustness
from benchmarks.policy.calibration import Told, by_class, told
from benchmarks.policy.grid_run import CLASSES, Task
from benchmarks.policy.grid_workloads import deployed, workload
from longspan.core.actions import MigrateKV, RunBatch
from longspan.core.costs.cost_model import Chunk
from longspan.core.policies import create_policy

ROOT = Path(__file__).parents[2]
NAME, REQUESTS = "loongserve_mixed_a800", 30
TASK = Task(workload=NAME, shape="replicas", k=5.0, load=0.7, policy="longspan", seed=0, requests=REQUESTS)


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("traces")
    shutil.copy(ROOT / "tests/data/loongserve_mixed_200.csv.gz", folder / "loongserve_mixed.csv.gz")
    return str(folder)


@pytest.mark.parametrize("factor", [0.8, 1.0, 1.2])
def test_a_mistaken_model_is_wrong_by_a_factor_in_all_that_it_says(factor: float) -> None:
    right = deployed(NAME, "replicas").cost_model
    wrong = robustness.mistaken(right, factor)
    chunks = [Chunk(4000, 1000), Chunk(700)]
    for n in range(1, right.max_instances + 1):
        assert wrong.prefill(chunks, n) == pytest.approx(factor * right.prefill(chunks, n))
        assert wrong.mixed(chunks, 40, 90_000, n) == pytest.approx(factor * right.mixed(chunks, 40, 90_000, n))
        assert wrong.decode(300, 900_000, n, n) == pytest.approx(factor * right.decode(300, 900_000, n, n))
    assert wrong.migration(5000) == pytest.approx(factor * right.migration(5000))


@pytest.mark.parametrize("deviation", [0.1, 0.2])
def test_noise_has_mean_1_and_the_deviation_and_is_the_same_again(deviation: float) -> None:
    work = MigrateKV(0, "r0", 0, 1, ((0, 5),))
    factor, again = robustness.noisy(deviation, 3), robustness.noisy(deviation, 3)
    drawn = [factor(work) for _ in range(20_000)]
    assert (mean(drawn), stdev(drawn)) == pytest.approx((1.0, deviation), rel=0.05)
    assert drawn == [again(work) for _ in drawn] and drawn[0] != drawn[1]


def test_what_the_slow_instance_takes_part_in_takes_twice_as_long() -> None:
    fleet = deployed(NAME, "replicas").cost.fleet
    cost = robustness.Disturbed(fleet, robustness.slow)
    undisturbed = deployed(NAME, "replicas").cost
    for source, target, times in ((0, 1, 2.0), (1, 0, 2.0), (1, 2, 1.0)):
        work = MigrateKV(0, "r0", source, target, ((0, 5000),))
        assert cost.duration(work).total == pytest.approx(times * undisturbed.duration(work).total)
    assert [robustness.slow(RunBatch(0, group, ())) for group in ((0,), (1,), (2, 3), (0, 1))] == [2.0, 1.0, 1.0, 2.0]


def test_a_burst_is_of_long_prompts_in_the_middle_and_others_are_counted(traces: str) -> None:
    load = workload(NAME, TASK.load, TASK.k, 0, REQUESTS, traces)
    some = robustness.burst(TASK, load, traces)
    times = [request.arrived_at_s or 0.0 for request in some]
    assert len(set(times)) == robustness.BURST and max(times) - min(times) < 1e-3
    assert load.counted_from_s < times[0] < times[-1] < (load.requests[-1].arrived_at_s or 0.0)
    assert min(request.num_prompt_tokens for request in some) > CLASSES["M"]
    task = replace(TASK, policy="loongserve")
    found = {
        fault: robustness.run(robustness.Case(fault=fault, task=task, has_burst=fault == "burst"), traces)
        for fault in ("none", "burst")
    }
    assert found["burst"]["counted"] == found["none"]["counted"]
    assert sum(found["burst"]["burst"]["counted"].values()) == robustness.BURST
    assert found["burst"]["attainment"] < found["none"]["attainment"]


def test_faults_are_there_once_for_each_policy_and_none_beside_them() -> None:
    cases = list(robustness.cases(10, 2))
    assert len({(case.fault, case.task) for case in cases}) == len(cases)
    assert {case.task for case in cases if case.fault == "none"} == {case.task for case in cases}


def test_quotes_are_judged() -> None:
    those = [
        Told(100, 1.0, 2.0, 15.0, 3.0),  # a second later, and kept
        Told(100, 1.0, 2.0, 15.0, 3.1),  # not
        Told(100, 1.0, 20.0, 25.0, 25.9),  # kept, being within 1.3 times; but later than promised
        Told(70_000, 1.0, 2.0, 15.0, None),
    ]
    found = by_class(those)
    assert (found["S"]["kept"], found["S"]["later_than_promised"]) == pytest.approx((2 / 3, 1 / 3))
    assert found["S"]["quote_over_truth"]["p50"] == pytest.approx(2 / 3)
    assert found["L"] == {"requests": 1, "refused": 1} and "M" not in found
    assert (found["all"]["requests"], found["all"]["refused"]) == (4, 1)


def test_each_request_that_counts_was_told_something(traces: str) -> None:
    found = told(TASK, traces)
    assert len(found) == REQUESTS
    for each in found:
        assert 0.0 < each.median_s <= each.quote_s and each.promised_s >= 15.0
        assert each.ttft_s is not None and each.ttft_s > 0.0


def test_variants_differ_and_can_be_run() -> None:
    for variant in ablation.VARIANTS:
        assert create_policy(variant.policy).name == "longspan"
    assert len({(variant.policy, str(variant.settings)) for variant in ablation.VARIANTS}) == len(ablation.VARIANTS)
