"""What the benchmarks in simulation share: systems, workloads, runs, and all cores."""

from __future__ import annotations

import csv
import gzip
import multiprocessing
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.common import say
from longspan.config import SchedulerConfig
from longspan.profiler.simulated import fit_simulated
from longspan.simulator.cost import IterationCost
from longspan.simulator.fleet import Fleet
from longspan.simulator.hardware import known_machine
from longspan.simulator.limits import OutputLimit
from longspan.simulator.models import known_model
from longspan.simulator.simulator import Simulation, Simulator
from longspan.worker.parent import end_with_parent
from longspan.workload.arrivals import poisson
from longspan.workload.traces import TraceRequest, read_trace
from longspan.workload.transforms import first_seconds, with_arrivals

T = TypeVar("T")
R = TypeVar("R")

DATASETS = {"sharegpt": "ShareGPT", "leval": "L-Eval", "leval_est": "L-Eval", "lveval_synth": "LV-Eval"}
"""Labels of the trace loongserve_mixed, and what LoongServe calls these rows' source."""


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """A policy, and the instances that it runs on, of `pp` pipeline stages of `tp` devices each.

    kv_tokens: KV slots of an instance; None: what its devices' memory holds. settings: others of `SchedulerConfig`.
    """

    policy: str
    instances: int
    tp: int
    pp: int = 1
    kv_tokens: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    def fleet(self, hardware: str, model: str) -> Fleet:
        return Fleet(
            machine=known_machine(hardware), model=known_model(model), instances=self.instances, tp=self.tp, pp=self.pp
        )


class Deployed:
    """A system on one kind of hardware; what its policy predicts with is fitted as a profile would be."""

    def __init__(self, system: System, hardware: str, model: str) -> None:
        fleet = system.fleet(hardware, model)
        self.cost = IterationCost(fleet)
        self.config = SchedulerConfig(
            num_instances=system.instances, pp=system.pp, kv_tokens=system.kv_tokens or fleet.kv_tokens_that_fit(),
            policy=system.policy, max_waiting=1_000_000, **{"prefix_cache": False, **system.settings},
        )  # fmt: skip
        self.cost_model = fit_simulated(self.cost, self.config, fleet.model.max_model_len)

    def run(self, requests: Sequence[TraceRequest], limit: OutputLimit = "longest", log: Any = None) -> Simulation:
        """log: something with an event log's `write`."""
        simulator = Simulator(
            self.config, self.cost, cost_model=self.cost_model, max_model_len=self.cost.fleet.model.max_model_len,
            limit=limit, event_log=log,
        )  # fmt: skip
        return simulator.run(requests)


def loongserve_datasets(folder: Path) -> dict[str, list[TraceRequest]]:
    """ShareGPT, L-Eval, LV-Eval, and all three as Mixed: the rows of one trace, by their labels."""
    rows = read_trace(folder / "loongserve_mixed.csv.gz")
    with gzip.open(folder / "loongserve_mixed.labels.csv.gz", "rt") as file:
        labels = [row["source"] for row in csv.DictReader(file)]
    found: dict[str, list[TraceRequest]] = {}
    for row, label in zip(rows, labels, strict=True):
        found.setdefault(DATASETS[label], []).append(row)
    return {name: found[name] for name in ("ShareGPT", "L-Eval", "LV-Eval")} | {"Mixed": rows}


def shuffled(rows: Sequence[TraceRequest], seed: int) -> Iterator[TraceRequest]:
    """All rows in a random order, and again in another one, without end."""
    draw = random.Random(seed)
    while True:
        yield from draw.sample(rows, len(rows))


def arriving(rows: Sequence[TraceRequest], rate: float, seconds: float, seed: int) -> list[TraceRequest]:
    """Poisson arrivals for so long. At another rate the same requests come in the same pattern, faster or slower."""
    return list(first_seconds(with_arrivals(shuffled(rows, seed), poisson(rate, seed)), seconds))


def in_parallel(work: Callable[[T], R], tasks: Sequence[T], jobs: int = 0) -> list[R]:
    """On so many cores, all if 0; results in the order of the tasks. Give those that take long first.

    A line is printed for each as it ends.
    """
    results: dict[int, R] = {}
    workers = min(len(tasks), jobs or len(os.sched_getaffinity(0)))
    begin = time.monotonic()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=end_with_parent) as pool:
        places = {pool.submit(work, task): place for place, task in enumerate(tasks)}
        for number, future in enumerate(as_completed(places), start=1):
            place = places[future]
            results[place] = future.result()
            say(f"{time.monotonic() - begin:6.0f} s  {number} of {len(tasks)}: {tasks[place]}")
    return [results[place] for place in range(len(tasks))]
