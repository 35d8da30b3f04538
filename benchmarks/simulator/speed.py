"""How fast the simulator is: requests of one trace on eight instances, one core, the scheduler included.

    python -m benchmarks.simulator.speed --trace loongserve_mixed.csv.gz --json simulator_speed

Seconds are of this process's CPU time, so that others on the machine do not count.
"""

from __future__ import annotations

import random
import resource
import time
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from benchmarks.common import arguments, save, say
from longspan.config import SchedulerConfig
from longspan.profiler.simulated import fit_simulated
from longspan.simulator.cost import IterationCost
from longspan.simulator.fleet import Fleet
from longspan.simulator.hardware import known_machine
from longspan.simulator.load import offered_load
from longspan.simulator.models import known_model
from longspan.simulator.simulator import Simulator
from longspan.workload.arrivals import poisson
from longspan.workload.traces import TraceRequest, read_trace
from longspan.workload.transforms import with_arrivals

OPTIONS = (
    ("trace", "", "file with lengths"),
    ("policies", "elastic_fcfs", "names, joined by commas"),
    ("requests", 10_000, "how many; the trace is repeated as often as needed, and shuffled"),
    ("rate", 0.3, "requests a second"),
    ("instances", 8, "of one device each"),
    ("hardware", "a800-80g", "as for `longspan simulate`"),
    ("model", "lwm-1m", "as for `longspan simulate`"),
    ("seed", 0, "of order and arrivals"),
    ("json", "", "name of the result to save"),
)


def main() -> None:
    options = arguments("Measure the simulator's speed.", OPTIONS)
    requests = make_requests(Path(options.trace), options.requests, options.rate, options.seed)
    fleet = Fleet(
        machine=known_machine(options.hardware), model=known_model(options.model), instances=options.instances
    )
    results = {policy: run(policy, fleet, requests) for policy in options.policies.split(",")}
    if options.json:
        save(options.json, results)


def make_requests(trace: Path, number: int, rate: float, seed: int) -> list[TraceRequest]:
    lengths = list(islice(cycle(read_trace(trace)), number))
    random.Random(seed).shuffle(lengths)
    return list(with_arrivals(lengths, poisson(rate, seed)))


def run(policy: str, fleet: Fleet, requests: list[TraceRequest]) -> dict[str, Any]:
    config = SchedulerConfig(
        num_instances=fleet.instances, kv_tokens=fleet.kv_tokens_that_fit(), policy=policy, max_waiting=len(requests)
    )
    cost = IterationCost(fleet)
    cost_model = fit_simulated(cost, config, fleet.model.max_model_len)
    began, told = time.process_time(), 0

    def progress(num_ended: int, now: float) -> None:
        nonlocal told
        if (tenths := 10 * num_ended // len(requests)) > told:
            told = tenths
            say(f"{policy}: {num_ended:,} requests in {time.process_time() - began:,.0f} s")

    result = Simulator(config, cost, cost_model=cost_model, on_progress=progress).run(requests)
    seconds = time.process_time() - began
    tokens = sum(request.record.num_output_tokens for request in result.requests)
    figures = {
        "requests": len(result.requests),
        "offered_load": offered_load(requests, cost, config),
        "simulated_s": result.ended_s,
        "cpu_s": seconds,
        "events": result.num_events,
        "output_tokens": tokens,
        "events_per_s": result.num_events / seconds,
        "output_tokens_per_s": tokens / seconds,
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    say(f"{policy}: " + ", ".join(f"{name} {value:,.2f}" for name, value in figures.items()))
    return figures


if __name__ == "__main__":
    main()
