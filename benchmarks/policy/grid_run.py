"""One run of the grid: a policy on a shape, under a workload; and what came of it.

The scheduler is told what is due: k, its floor and the TPOT as its defaults, and each request's own due time with its
arrival. Of outputs it hears the longest of the workload alone. A request is in time if its first token is, and if its
further ones took TPOT_S each on average. Who is refused is not in time, whoever refuses.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import longspan
from benchmarks.policy.grid_bound import Ask, most_value
from benchmarks.policy.grid_workloads import FLOORS_S, WORKLOADS, Workload, deployed, workload, yardsticks
from longspan.core.costs.cost_model import FittedCostModel
from longspan.errors import ConfigError
from longspan.metrics.request_metrics import SLO, RequestRecord
from longspan.simulator.cost import IterationCost
from longspan.simulator.simulator import Simulator

BOUND = "bound"
"""Stands in a policy's place, and on any shape."""
TPOT_S = 0.1
CLASSES = {"S": 8192, "M": 65_536, "L": 1 << 40}
"""Prompts of at most so many tokens."""
WHOLE_PROMPTS = {"max_batch_tokens": 62_500}
"""Of policies that do not cut prompts, as in the papers' evaluations."""
SETTINGS: dict[str, dict[str, Any]] = {"loongserve": WHOLE_PROMPTS, "static_sp": WHOLE_PROMPTS}
MOST_S = 900.0
"""Of a core's time for one run, so that a busy machine fails nobody. Who takes longer has failed."""
_SOURCE = Path(longspan.__file__).parent
_OURS = "longspan"


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What is run. policy: with its options."""

    workload: str
    shape: str
    k: float
    load: float
    policy: str
    seed: int
    requests: int

    @property
    def cell(self) -> str:
        return f"{self.workload}/{self.shape}/k{self.k:g}/{self.load:g}"

    @property
    def key(self) -> str:
        return f"{self.cell}/{self.policy}/seed{self.seed}/{self.requests}"


def digest(policy: str) -> str:
    """Return what a run's figures follow from, beside its key: the scheduler's and simulator's source, and the grid's.

    Other policies do not depend on the folder and the registration of the one that is being worked on.
    """
    files = [path for name in ("core", "simulator") for path in (_SOURCE / name).rglob("*.py")]
    files += [Path(__file__).with_name(f"grid_{name}.py") for name in ("bound", "run", "workloads")]
    policies = _SOURCE / "core" / "policies"
    left_out = [policies / "__init__.py"]
    if policy.partition(":")[0] != _OURS:
        left_out += [policies / f"{_OURS}.py", policies / _OURS]
    found = hashlib.sha256()
    for path in sorted(files):
        if not any(path.is_relative_to(out) for out in left_out):
            found.update(path.name.encode() + path.read_bytes())
    return found.hexdigest()[:16]


def run(task: Task, traces: str) -> dict[str, Any]:
    """Return what stands in a line of the file of runs. `skipped` or `failed` says why there are no figures."""
    begin, begin_cpu = time.monotonic(), time.process_time()
    load = workload(task.workload, task.load, task.k, task.seed, task.requests, traces)
    found: dict[str, Any] = {"key": task.key, **asdict(task), "cut": load.num_cut}
    try:
        found |= _bound(task, load) if task.policy == BOUND else _simulate(task, load, begin_cpu)
    except ConfigError as error:
        found["skipped"] = str(error)
    except Exception as error:  # a policy's fault, which must not end the others' runs
        found["failed"] = f"{type(error).__name__}: {error}"
    return found | {"wall_s": round(time.monotonic() - begin, 2)}


def _simulate(task: Task, load: Workload, begin_cpu: float) -> dict[str, Any]:
    def give_up(num_ended: int, now: float) -> None:
        if time.process_time() - begin_cpu > MOST_S:
            raise TimeoutError(f"{num_ended} requests had ended after {MOST_S:.0f} s of a core's time")

    simulation = simulator(task, on_progress=give_up).run(load.requests)
    due = {request.arrived_at_s: request.service.ttft_s or 0.0 for request in load.requests}
    counted = [record for record in simulation.records() if record.arrived_s >= load.counted_from_s]
    return {
        **figures(counted, due, task),
        "simulated_s": simulation.ended_s,
        "events": simulation.num_events,
        "iterations": simulation.num_batches,
        "preemptions": sum(request.num_preemptions for request in simulation.requests),
    }


def simulator(
    task: Task, cost: IterationCost | None = None, cost_model: FittedCostModel | None = None,
    settings: Mapping[str, Any] | None = None, **further: Any,
) -> Simulator:  # fmt: skip
    """Return one for the task. cost: what takes how long, and cost_model: what the policy predicts with, if they are
    others than those of the fleet. settings: of `SchedulerConfig`. further: arguments of `Simulator`.
    """
    there = deployed(task.workload, task.shape)
    config = replace(
        there.config, policy=task.policy, ttft_slo_factor=task.k, ttft_slo_floor_s=FLOORS_S[task.k], tpot_slo_s=TPOT_S,
        **SETTINGS.get(task.policy.partition(":")[0], {}), **settings or {},
    )  # fmt: skip
    return Simulator(
        config, cost or there.cost, cost_model=cost_model or there.cost_model,
        max_model_len=there.cost.fleet.model.max_model_len, **further,
    )  # fmt: skip


def figures(counted: Sequence[RequestRecord], due: dict[float | None, float], task: Task) -> dict[str, Any]:
    _, alone = yardsticks(WORKLOADS[task.workload])
    tpot = SLO(tpot_s=TPOT_S)
    met = {name: [] for name in CLASSES}  # type: dict[str, list[bool]]
    ttft = {name: [] for name in CLASSES}  # type: dict[str, list[float]]
    refused = dict.fromkeys(CLASSES, 0)
    slowdowns = [0.0]
    for record in counted:
        name = length_class(record.num_prompt_tokens)
        first_s = record.ttft_s
        met[name].append(first_s is not None and first_s <= due[record.arrived_s] and tpot.met_by(record))
        refused[name] += not record.finished
        if first_s is not None:
            ttft[name].append(first_s)
            slowdowns.append(first_s / alone(record.num_prompt_tokens))
    by_class = {name: float(np.mean(those)) for name, those in met.items() if those}
    tpots = [record.tpot_s for record in counted if record.tpot_s is not None]
    return {
        "attainment": float(np.mean([one for those in met.values() for one in those])),
        "balanced": float(np.mean(list(by_class.values()))),
        "by_class": by_class,
        "counted": {name: len(those) for name, those in met.items()},
        "refused": refused,
        "ttft_s": {name: _percentiles(those, 50, 99) for name, those in ttft.items() if those},
        "tpot_s": _percentiles(tpots, 50, 90, 99) if tpots else None,
        "tpot_met": float(np.mean([tpot.met_by(record) for record in counted])),
        "worst_slowdown": max(slowdowns),
    }


def _bound(task: Task, load: Workload) -> dict[str, Any]:
    """Of requests that count; the others could have been left out."""
    work, _ = yardsticks(WORKLOADS[task.workload])
    asks: dict[str, list[Ask]] = {}
    for request in load.requests:
        arrived_s, within_s = request.arrived_at_s or 0.0, request.service.ttft_s or 0.0
        if arrived_s >= load.counted_from_s:
            last_s = within_s + TPOT_S * (request.num_output_tokens - 1)
            asks.setdefault(length_class(request.num_prompt_tokens), []).append(
                Ask(arrived_s, arrived_s + within_s, arrived_s + last_s, work.prompt(request), work.decodes(request))
            )
    every = [ask for those in asks.values() for ask in those]
    balanced = [replace(ask, value=1.0 / len(those) / len(asks)) for those in asks.values() for ask in those]
    return {"attainment": most_value(every) / len(every), "balanced": most_value(balanced)}


def length_class(num_prompt_tokens: int) -> str:
    return next(name for name, most in CLASSES.items() if num_prompt_tokens <= most)


def _percentiles(values: Sequence[float], *which: int) -> dict[str, float]:
    found = np.percentile(values, which)
    return {f"p{number}": float(value) for number, value in zip(which, found, strict=True)}
