"""What deciding costs in large fleets, and what nodes cost in attainment.

    python -m benchmarks.policy.scale --traces DIR              all parts, half an hour on two cores
    python -m benchmarks.policy.scale --traces DIR --parts waiting,nodes

Workloads, deadlines and loads are the grid's (grid_workloads.py), on as many instances as are asked for: the same
requests, that much faster. Seconds are CPU time of the thread, so that others on the machine do not count. A *share* is
the time that deciding takes of one core: events that a scheduler hears in a second, times its mean.

flat: one scheduler for 64 instances. waiting: the same with 1,000 requests waiting all the time (deciding.py).
nodes: 1,024 instances as nodes of 64; each node's scheduler, and the router. attainment: 64 instances as one node, and
as several. queue: how many wait under `loongserve` on its own mix, over time.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from benchmarks.common import arguments, save, say
from benchmarks.paper.simulated import Deployed, System, in_parallel
from benchmarks.policy.deciding import measure
from benchmarks.policy.grid_run import TPOT_S, Task, figures
from benchmarks.policy.grid_workloads import FLOORS_S, WORKLOADS, workload
from longspan.core.actions import Action
from longspan.core.events import BatchCompleted, Event, RequestArrived
from longspan.core.hierarchy import HierarchicalScheduler
from longspan.simulator.load import offered_load
from longspan.simulator.simulator import Simulation, Simulator
from longspan.workload.arrivals import poisson
from longspan.workload.traces import TraceRequest, read_trace
from longspan.workload.transforms import with_arrivals

MIXES = ("medha_5", "mooncake_conversation")
LOAD, K = 0.8, 5.0
NODE = 64
WAITING = 1000
SAMPLES = 12


@dataclass(frozen=True, slots=True)
class Run:
    """One simulation. node: instances of a node, 0 for one scheduler. timed: whether its decisions are."""

    part: str
    workload: str
    instances: int
    node: int
    requests: int
    policy: str = "longspan"
    seed: int = 0
    timed: bool = False

    @property
    def key(self) -> str:
        shape = f"nodes of {self.node}" if self.node else "flat"
        return f"{self.workload}, {self.instances} instances, {shape}, {self.policy}, seed {self.seed}"


class Clock:
    """Times the calls of `handle` of one scheduler, while requests arrive."""

    def __init__(self, handle: Callable[[Event, float], list[Action]], until_s: float) -> None:
        self._handle = handle
        self._until_s = until_s
        self.seconds: dict[str, list[float]] = {"arrival": [], "completion": [], "other": []}

    def __call__(self, event: Event, now: float) -> list[Action]:
        begin = time.thread_time()
        actions = self._handle(event, now)
        took_s = time.thread_time() - begin
        if now <= self._until_s:
            kind = "arrival" if isinstance(event, RequestArrived) else "completion"
            self.seconds[kind if isinstance(event, RequestArrived | BatchCompleted) else "other"].append(took_s)
        return actions

    @property
    def every(self) -> list[float]:
        return [seconds for those in self.seconds.values() for seconds in those]

    def figures(self) -> dict[str, float]:
        every = self.every
        return {
            "events_per_s": len(every) / self._until_s,
            "mean_ms": 1e3 * statistics.mean(every),
            "p99_ms": 1e3 * statistics.quantiles(every, n=100)[98],
            "share": sum(every) / self._until_s,
        }


def simulate(run: Run, traces: str) -> dict[str, Any]:
    if run.part == "waiting":
        return measure(run.policy, run.instances, WAITING, run.requests)
    if run.part == "queue":
        return _queue(run, Path(traces))
    base = WORKLOADS[run.workload]
    load = workload(run.workload, LOAD * run.instances / base.parts, K, run.seed, run.requests, traces)
    deployed = _deployed(run, base.machine, base.model, base.tp)
    config = replace(
        deployed.config, ttft_slo_factor=K, ttft_slo_floor_s=FLOORS_S[K], tpot_slo_s=TPOT_S,
    )  # fmt: skip
    simulator = Simulator(
        config, deployed.cost, cost_model=deployed.cost_model, max_model_len=deployed.cost.fleet.model.max_model_len
    )
    until_s = load.requests[-1].arrived_at_s or 0.0
    clocks = _time(simulator, until_s) if run.timed else {}
    found = _attained(simulator.run(load.requests), load.requests, load.counted_from_s, run)
    return found | {name: those for name, those in _deciding(clocks).items() if those}


def _deployed(run: Run, machine: str, model: str, tp: int) -> Deployed:
    settings = {"node_instances": run.node or None}
    return Deployed(System(policy=run.policy, instances=run.instances, tp=tp, settings=settings), machine, model)


def _time(simulator: Simulator, until_s: float) -> dict[str, list[Clock]]:
    """From now on."""
    scheduler = simulator.scheduler
    nodes = scheduler.nodes if isinstance(scheduler, HierarchicalScheduler) else []
    clocks = {"nodes": [Clock(node.handle, until_s) for node in nodes]}
    for node, clock in zip(nodes, clocks["nodes"], strict=True):
        node.handle = clock  # type: ignore[method-assign]  # around what each node decides
    clocks["whole"] = [Clock(scheduler.handle, until_s)]
    scheduler.handle = clocks["whole"][0]  # type: ignore[method-assign]  # and around all of it
    return clocks


def _deciding(clocks: dict[str, list[Clock]]) -> dict[str, Any]:
    if not clocks:
        return {}
    whole, nodes = clocks["whole"][0], clocks["nodes"]
    if not nodes:
        return {"deciding": whole.figures()}
    busiest = max(nodes, key=lambda node: node.figures()["share"])
    router_s = sum(whole.every) - sum([sum(node.every) for node in nodes])
    return {
        "busiest_node": busiest.figures(),
        "all_nodes": {"share": sum([node.figures()["share"] for node in nodes]),
                      "p99_ms": max([node.figures()["p99_ms"] for node in nodes])},
        "router": {"mean_ms": 1e3 * router_s / len(whole.every), "events_per_s": whole.figures()["events_per_s"],
                   "share": router_s / whole._until_s},
    }  # fmt: skip


def _attained(
    simulation: Simulation, requests: Sequence[TraceRequest], counted_from_s: float, run: Run
) -> dict[str, Any]:
    due = {request.arrived_at_s: request.service.ttft_s or 0.0 for request in requests}
    counted = [record for record in simulation.records() if record.arrived_s >= counted_from_s]
    task = Task(
        workload=run.workload, shape="replicas", k=K, load=LOAD, policy=run.policy, seed=run.seed,
        requests=run.requests,
    )  # fmt: skip
    found = figures(counted, due, task)
    return {name: found[name] for name in ("attainment", "balanced", "by_class", "refused", "counted")}


def _queue(run: Run, traces: Path) -> dict[str, Any]:
    """LoongServe's mix on A800, at the simulator's offered load."""
    deployed = _deployed(run, "a800-80g", "lwm-1m", 1)
    lengths = list(islice(cycle(read_trace(traces / f"{run.workload}.csv.gz")), run.requests))
    random.Random(run.seed).shuffle(lengths)
    requests = list(with_arrivals(lengths, poisson(1.0, run.seed)))
    slower = (offered_load(requests, deployed.cost, deployed.config) or 1.0) / LOAD
    requests = [replace(request, arrived_at_s=(request.arrived_at_s or 0.0) * slower) for request in requests]
    simulator = Simulator(
        deployed.config, deployed.cost, cost_model=deployed.cost_model,
        max_model_len=deployed.cost.fleet.model.max_model_len,
    )  # fmt: skip
    until_s = requests[-1].arrived_at_s or 0.0
    waiting: list[int] = []
    handle = simulator.scheduler.handle

    def watched(event: Event, now: float) -> list[Action]:
        actions = handle(event, now)
        while len(waiting) < SAMPLES and now >= until_s * (len(waiting) + 1) / SAMPLES:
            waiting.append(simulator.scheduler.stats().num_waiting)
        return actions

    simulator.scheduler.handle = watched  # type: ignore[method-assign]  # to look at the queue in between
    simulation = simulator.run(requests)
    return {
        "waiting": waiting, "span_s": until_s, "ended_s": simulation.ended_s,
        "refused": sum([request.refusal is not None for request in simulation.requests]),
    }  # fmt: skip


def runs(parts: Sequence[str], scale: float) -> list[Run]:
    """Those that take long first."""
    def some(number: int) -> int:
        return max(100, round(scale * number))

    found = [Run("nodes", mix, 1024, NODE, some(10_000), timed=True) for mix in reversed(MIXES)]
    found += [Run("queue", "loongserve_mixed", 1024, node, some(16_000), "loongserve") for node in (8, NODE)]
    found += [Run("queue", "loongserve_mixed", 256, 0, some(5000), f"loongserve{options}")
              for options in ("", ":min_efficiency=0")]  # fmt: skip
    found += [Run("flat", mix, NODE, 0, some(4000), timed=True) for mix in MIXES]
    found += [Run("attainment", mix, NODE, node, some(4000)) for mix in MIXES for node in (0, 32, 16, 8)]
    found += [Run("waiting", "log-uniform", NODE, 0, some(8000))]
    return [run for run in found if run.part in parts]


@dataclass(frozen=True)
class Simulate:
    """A run, elsewhere."""

    traces: str

    def __call__(self, run: Run) -> dict[str, Any]:
        return simulate(run, self.traces)


def main() -> None:
    options = arguments(
        __doc__ or "",
        [("traces", "", "folder of traces"), ("parts", "flat,waiting,nodes,attainment,queue", "with commas"),
         ("scale", 1.0, "of the numbers of requests"), ("jobs", 0, "processes; 0: as many as cores"),
         ("name", "scale", "result")],
    )  # fmt: skip
    todo = runs(options.parts.split(","), options.scale)
    results: dict[str, Any] = {}
    for run, found in zip(todo, in_parallel(Simulate(options.traces), todo, options.jobs), strict=True):
        say(f"{run.part}: {run.key}: {found}")
        results.setdefault(run.part, {})[run.key] = found
    save(options.name, results)


if __name__ == "__main__":
    main()
