"""A tiny grid: every policy and shape gets the same, nobody is above the bound, and what is done is not done again."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from benchmarks.policy import grid
from benchmarks.policy.grid_run import BOUND, Task, digest, run
from benchmarks.policy.grid_summary import summary
from benchmarks.policy.grid_workloads import FLOORS_S, SHAPES, WORKLOADS, workload, yardsticks

DATA = Path(__file__).parents[1] / "data"
NAME, REQUESTS = "loongserve_mixed_a800", 30


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("traces")
    shutil.copy(DATA / "loongserve_mixed_200.csv.gz", folder / "loongserve_mixed.csv.gz")
    return str(folder)


def task(policy: str, shape: str = "replicas", load: float = 0.7) -> Task:
    return Task(workload=NAME, shape=shape, k=5.0, load=load, policy=policy, seed=0, requests=REQUESTS)


@pytest.mark.parametrize("load", [0.3, 1.1])
def test_load_is_work_over_time(traces: str, load: float) -> None:
    found = workload(NAME, load, 5.0, 0, REQUESTS, traces)
    work, alone = yardsticks(WORKLOADS[NAME])
    span_s = (found.requests[-1].arrived_at_s or 0.0) * len(found.requests) / (len(found.requests) - 1)
    assert sum(map(work.whole, found.requests)) / span_s == pytest.approx(load)
    assert sum((r.arrived_at_s or 0.0) >= found.counted_from_s for r in found.requests) == REQUESTS
    for request in found.requests:
        assert work.prompt(request) <= alone(request.num_prompt_tokens)
        assert request.service.ttft_s == max(FLOORS_S[5.0], 5.0 * alone(request.num_prompt_tokens))


def test_nobody_is_above_the_bound(traces: str) -> None:
    found = {policy: run(task(policy), traces) for policy in (BOUND, "srpt", "vllm", "nobody")}
    found["spp"] = run(task("srpt", "spp"), traces)
    assert "there is no policy" in found["nobody"]["skipped"]
    assert 0.0 < found["srpt"]["attainment"] <= found[BOUND]["attainment"] + 1e-9
    assert found["srpt"]["counted"] == found["vllm"]["counted"] == found["spp"]["counted"]
    assert sum(found["srpt"]["counted"].values()) == REQUESTS
    told = summary([run | {"digest": ""} for run in found.values()])
    assert told["above_bound"] == [] and len(told["without_figures"]) == 1
    assert [(cell["shape"], cell["bound"]) for cell in told["cells"]] == [
        (shape, found[BOUND]["attainment"]) for shape in SHAPES
    ]


def test_a_refused_request_is_not_in_time(traces: str) -> None:
    """No instance holds the longest alone, and vllm keeps each on one."""
    found = run(task("vllm", load=0.05), traces)
    assert found["refused"]["L"] > 0
    assert found["by_class"]["L"] <= 1.0 - found["refused"]["L"] / found["counted"]["L"]


def test_how_ours_stands() -> None:
    def one(policy: str, attainment: float, seed: int = 0) -> dict[str, object]:
        return {
            "key": f"{policy}{seed}", "workload": NAME, "shape": "spp", "k": 5.0, "load": 0.9, "policy": policy,
            "seed": seed, "requests": REQUESTS, "attainment": attainment, "balanced": attainment, "wall_s": 1.0,
            "by_class": {"L": attainment}, "counted": {"L": 2}, "refused": {"L": 1}, "ttft_s": {}, "tpot_s": None,
            "tpot_met": 1.0, "worst_slowdown": 1.0, "simulated_s": 1.0, "events": 1, "digest": "",
        }  # fmt: skip

    runs = [one(BOUND, 1.0), one(BOUND, 0.5, 1), one("longspan", 0.9), one("longspan", 0.1, 1), one("medha", 0.8),
            one("vllm", 0.6), one("srpt", 0.95)]  # fmt: skip
    told = summary(runs)
    (cell,) = told["cells"]
    assert cell["best"] == "medha" and cell["margin"] == pytest.approx(0.1)  # on the seed that both have
    assert cell["gap_closed"] == pytest.approx(0.5)
    assert told["longspan"]["below_best"] == [] and told["longspan"]["at_least_orders"] == 0.0
    assert told["longspan"]["longs_refused"] == {"0.9": 0.5}


def test_the_grid_has_the_first_seeds_first() -> None:
    every = list(grid._once(grid.tasks(["medha", "srpt"], [], 3, quick=False)))
    assert [t.seed for t in every] == sorted(t.seed for t in every)
    cells = len(WORKLOADS) * len(SHAPES) * sum(map(len, grid.LOADS.values()))
    assert len(every) == cells * (3 + 1) + cells // len(SHAPES) * 3
    assert all(t.cell.startswith("medha_5/spp") for t in grid.tasks(["medha"], ["medha_5/spp"], 1, quick=True))


def test_a_run_depends_on_its_own_policy_only() -> None:
    assert digest("medha") == digest("medha:max_space_share=0.2") and len(digest("longspan")) == 16
