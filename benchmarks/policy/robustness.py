"""What `longspan` and the papers' policies do where the world is not as they think, in simulation.

    python -m benchmarks.policy.robustness --traces DIR
    python -m benchmarks.policy.robustness --traces DIR --requests 2000 --seeds 3

Workloads, loads and deadlines are those of the grid (grid_workloads.py). Runs are kept, as those of ablation.py. The
faults:

    model +20 %, -20 %     whatever policies predict is so much too long, or too short
    noise 10 %, 20 %       what each iteration takes is multiplied by a lognormal factor of mean 1 and this deviation
    slow instance          everything that one of the instances takes part in takes twice as long
    burst                  BURST prompts of more than 65,536 tokens at once, at half time; the others are counted
    greedy tenant          one of five sends ten times what each other sends (tenants.py); the others are counted
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from math import exp, log
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from benchmarks.common import arguments, save
from benchmarks.paper.simulated import in_parallel
from benchmarks.policy import kept_runs, tenants
from benchmarks.policy.grid_run import CLASSES, Task, figures, simulator
from benchmarks.policy.grid_workloads import FLOORS_S, WORKLOADS, Workload, deployed, rows, workload, yardsticks
from longspan.core.actions import MigrateKV, RunBatch
from longspan.core.costs.cost_model import FittedCostModel
from longspan.errors import ConfigError
from longspan.service_level import ServiceLevel
from longspan.simulator.cost import IterationCost, Seconds
from longspan.simulator.fleet import Fleet
from longspan.workload.traces import TraceRequest
from longspan.workload.transforms import merged

Work = RunBatch | MigrateKV
CELLS = (
    ("mooncake_conversation", "replicas", 0.7), ("mooncake_conversation", "spp", 0.7),
    ("loongserve_mixed_a800", "replicas", 0.7),
)  # fmt: skip
POLICIES = ("longspan", "medha", "loongserve")
K = 5.0
MODEL, NOISE = (1.2, 0.8), (0.1, 0.2)
SLOW, TIMES = 0, 2.0
BURST = 50
TENANTS = SimpleNamespace(workload="azure_conv", shape="replicas", load=0.5, seconds=8.0)
FAIR = "longspan:fair_shares=true"
NONE, SLOW_INSTANCE, BURST_OF_LONGS, GREEDY = "none", "slow instance", "burst of long prompts", "greedy tenant"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case(kept_runs.OfTask):
    """What is run, and what is wrong. predicted: over what the cost model says. noise: of iterations, relative."""

    fault: str
    task: Task
    predicted: float = 1.0
    noise: float = 0.0
    has_slow: bool = False
    has_burst: bool = False

    @property
    def key(self) -> str:
        return f"{self.task.key}/{self.fault}"


class Disturbed(IterationCost):
    """Everything takes `factor` times as long as it should; who asks for a batch's duration twice hears two answers."""

    def __init__(self, fleet: Fleet, factor: Callable[[Work], float]) -> None:
        super().__init__(fleet)
        self._factor = factor

    def duration(self, action: Work) -> Seconds:
        seconds, factor = super().duration(action), self._factor(action)
        return Seconds(factor * seconds.host, tuple(factor * stage_s for stage_s in seconds.stages))


def noisy(deviation: float, seed: int) -> Callable[[Work], float]:
    """Return independent factors of mean 1."""
    draw = random.Random(seed)
    sigma = log(1.0 + deviation**2) ** 0.5
    return lambda _: exp(draw.gauss(-(sigma**2) / 2, sigma))


def slow(work: Work) -> float:
    """Return the factor of work that the slow instance takes part in."""
    taking_part = work.group if isinstance(work, RunBatch) else (work.source, work.target)
    return TIMES if SLOW in taking_part else 1.0


def mistaken(model: FittedCostModel, factor: float) -> FittedCostModel:
    """Return one that predicts so many times as long."""

    def scaled(row: Any, *names: str) -> dict[str, Any]:
        return {name: factor * getattr(row, name) for name in names}

    return replace(
        model, **scaled(model, "migration_fixed", "migration_per_token"),
        prefill_coefficients=tuple(
            replace(row, **scaled(row, "fixed", "per_token", "per_pair")) for row in model.prefill_coefficients
        ),
        decode_coefficients=tuple(
            replace(row, **scaled(row, "fixed", "per_request", "per_context_token"))
            for row in model.decode_coefficients
        ),
    )  # fmt: skip


def burst(task: Task, load: Workload, traces: str) -> list[TraceRequest]:
    """Return the long prompts of the same workload that come next, all at the middle of what counts.

    A microsecond lies between two, so that each can be told by its arrival.
    """
    hardware = WORKLOADS[task.workload]
    _, alone = yardsticks(hardware)
    there = deployed(task.workload, task.shape)
    most = min(there.config.total_kv_tokens, there.cost.fleet.model.max_model_len)
    longs = (
        row for row in islice(rows(task.workload, task.seed, Path(traces)), len(load.requests), None)
        if row.num_prompt_tokens > CLASSES["M"] and row.num_tokens <= most
    )  # fmt: skip
    at = (load.counted_from_s + (load.requests[-1].arrived_at_s or 0.0)) / 2
    return [
        replace(
            row, arrived_at_s=at + 1e-6 * number, prefix_block_ids=(),
            service=ServiceLevel(ttft_s=max(task.k * alone(row.num_prompt_tokens), FLOORS_S[task.k])),
        )
        for number, row in enumerate(islice(longs, BURST))
    ]  # fmt: skip


def run(case: Case, traces: str) -> dict[str, Any]:
    """Return the figures of those who would have come anyway; `burst` has those of the others."""
    task, there = case.task, deployed(case.task.workload, case.task.shape)
    load = workload(task.workload, task.load, task.k, task.seed, task.requests, traces)
    cost: IterationCost = there.cost
    if case.noise:
        cost = Disturbed(cost.fleet, noisy(case.noise, task.seed))
    elif case.has_slow:
        cost = Disturbed(cost.fleet, slow)
    others = burst(task, load, traces) if case.has_burst else []
    found: dict[str, Any] = {"fault": case.fault, **asdict(task)}
    try:
        simulation = simulator(task, cost, mistaken(there.cost_model, case.predicted)).run(
            list(merged(load.requests, others))
        )
    except ConfigError as error:
        return found | {"skipped": str(error)}
    due = {request.arrived_at_s: request.service.ttft_s or 0.0 for request in (*load.requests, *others)}
    late = {request.arrived_at_s for request in others}
    counted = [record for record in simulation.records() if record.arrived_s >= load.counted_from_s]
    found |= figures([record for record in counted if record.arrived_s not in late], due, task)
    if others:
        found["burst"] = figures([record for record in counted if record.arrived_s in late], due, task)
    return found


def greedy_tenant(policy: str, options: Any) -> list[dict[str, Any]]:
    """Return what becomes of the four who send no more than their share, without the fifth and with him."""
    name, asked = TENANTS.workload, SimpleNamespace(traces=options.traces, seed=0)
    each = TENANTS.load / 4
    drawn = partial(tenants.requests_of, name, k=K, seconds=TENANTS.seconds, options=asked)
    four = list(merged(*(drawn(f"t{number}", load=each) for number in range(4))))
    greedy = drawn(tenants.GREEDY, load=tenants.TIMES * each)
    runs = []
    for fault, requests in ((NONE, four), (GREEDY, list(merged(four, greedy)))):
        found = tenants.run(name, TENANTS.shape, policy, requests, K)
        runs.append({"fault": fault, "policy": policy, **found["others"], "fifth": found.get(tenants.GREEDY)})
    return runs


def cases(requests: int, seeds: int) -> Iterator[Case]:
    for seed in range(seeds):
        for name, shape, load in CELLS:
            for policy in POLICIES:
                task = Task(workload=name, shape=shape, k=K, load=load, policy=policy, seed=seed, requests=requests)
                yield Case(fault=NONE, task=task)
                for factor in MODEL:
                    yield Case(fault=f"model {100 * (factor - 1):+.0f} %", task=task, predicted=factor)
                for noise in NOISE:
                    yield Case(fault=f"noise {100 * noise:.0f} %", task=task, noise=noise)
                if shape == "replicas":
                    yield Case(fault=SLOW_INSTANCE, task=task, has_slow=True)
                yield Case(fault=BURST_OF_LONGS, task=task, has_burst=True)


def main() -> None:
    options = arguments(
        __doc__ or "",
        [("traces", "", "folder of traces"), ("requests", 400, "that count, of a run"), ("seeds", 1, "runs of each"),
         ("jobs", 0, "processes; 0: as many as cores"), ("name", "robustness", "result")],
    )  # fmt: skip
    todo = list(cases(options.requests, options.seeds))
    runs = kept_runs.all_of(todo, partial(run, traces=options.traces), options.name, options.jobs, Path(__file__))
    some = [*POLICIES[:1], FAIR, *POLICIES[1:]]
    floods: Sequence[Sequence[Mapping[str, Any]]] = in_parallel(
        partial(greedy_tenant, options=options), some, options.jobs
    )
    save(options.name, {
        "k": K, "requests": options.requests, "seeds": options.seeds, "burst": BURST, "runs": runs,
        "tenants": {**vars(TENANTS), "times": tenants.TIMES, "runs": [run for those in floods for run in those]},
    })  # fmt: skip


if __name__ == "__main__":
    main()
