"""What `against_version` measures, of the version of longspan that is on the path; older ones, too.

It reads names of measurements and answers each with a line of JSON: seconds of CPU time, by figure. So it uses only
what both versions have, and asks where they differ.
"""

from __future__ import annotations

import gc
import json
import random
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from longspan.config import SchedulerConfig
from longspan.core.actions import KVRange, RunBatch, Segment
from longspan.distributed.local import LocalTransport, LocalWorld
from longspan.profiler.simulated import fit_simulated
from longspan.sampling_params import SamplingParams
from longspan.simulator.cost import IterationCost
from longspan.simulator.fleet import Fleet
from longspan.simulator.hardware import known_machine
from longspan.simulator.models import known_model
from longspan.simulator.simulator import Simulator
from longspan.worker import worker as worker_module
from longspan.worker.messages import AllocateKV, Run
from longspan.worker.sampling_state import SamplingState
from longspan.worker.worker import Worker
from longspan.workload.traces import TraceRequest

WorkerSpec = vars(worker_module)["WorkerSpec"]  # versions keep it in different places
NAMES_RESIDENCES = "residence" in Segment.__struct_fields__
CONTEXT, STEPS = 128, 10
DECIDING, SIMULATED, TURNS = 1000, 400, 3  # requests, requests, times


def crowd(number: int, spread_s: float) -> list[TraceRequest]:
    """Prompts log-uniform from 100 to 100,000 tokens, outputs from 10 to 300."""
    draw = random.Random(1)
    times = sorted(draw.uniform(0.0, spread_s) for _ in range(number))
    return [TraceRequest(at, int(100 * 1000 ** draw.random()), draw.randint(10, 300)) for at in times]


def simulator(policy: str, instances: int, requests: int) -> Simulator:
    fleet = Fleet(machine=known_machine("a800-80g"), model=known_model("lwm-1m"), instances=instances)
    config = SchedulerConfig(
        num_instances=instances, kv_tokens=fleet.kv_tokens_that_fit(), policy=policy, max_waiting=requests
    )
    cost = IterationCost(fleet)
    return Simulator(config, cost, cost_model=fit_simulated(cost, config, fleet.model.max_model_len))


def deciding(policy: str, instances: int) -> dict[str, float]:
    """Of each call of `Scheduler.handle`, with a thousand requests that came almost at once: the least of some turns,
    for the calls are the same each time, and what others do on the machine only adds."""
    turns = [_times_of_calls(policy, instances) for _ in range(TURNS)]
    quantiles = statistics.quantiles(map(min, *turns), n=100)
    return {"p50": quantiles[49], "p99": quantiles[98]}


def _times_of_calls(policy: str, instances: int) -> list[float]:
    sim, times = simulator(policy, instances, DECIDING), []
    handle, clock = sim.scheduler.handle, time.thread_time

    def timed(event: Any, now: float) -> Any:
        begin = clock()
        actions = handle(event, now)
        times.append(clock() - begin)
        return actions

    sim.scheduler.handle = timed  # type: ignore[method-assign]  # a simulator makes its own scheduler, in both versions
    sim.run(crowd(DECIDING, 1.0))
    return times


def simulating(policy: str) -> dict[str, float]:
    took = []
    for _ in range(TURNS):
        sim, requests = simulator(policy, 8, SIMULATED), crowd(SIMULATED, 400.0)
        begin = time.process_time()
        result = sim.run(requests)
        took.append((time.process_time() - begin) / result.num_events)
    return {"an event": min(took)}


class Instance:
    """One instance of one thread, whose pool is filled anew for each measurement."""

    def __init__(self, model: str, slots: int) -> None:
        spec = WorkerSpec(
            model_path=model, instance=0, tp_rank=0, num_instances=1, tp=1, dtype="auto", device="cpu", threads=1
        )
        self.worker = Worker(spec, LocalTransport(LocalWorld(1, tp_size=1), 0))
        self.worker.execute(AllocateKV(slots))
        assert self.worker.runner is not None
        self.runner = self.worker.runner
        self.num_batches = 0

    def run(self, segments: list[Segment], token_ids: dict[str, bytes]) -> float:
        self.num_batches += 1
        begin = time.process_time()
        self.worker.execute(Run(RunBatch(self.num_batches, (0,), tuple(segments)), token_ids, {}))
        return time.process_time() - begin

    def decode(self, batch: int) -> dict[str, float]:
        """A step, the median of some."""
        for number in range(batch):
            self.runner.pool.allocate(key(number), 0, CONTEXT)
            self.runner.last_token[f"r{number}"] = 100 + number
            self.runner.sampling[f"r{number}"] = SamplingState.start(SamplingParams(temperature=0.0), seed=0)
        took = [self.run([segment(n, CONTEXT + step, 1) for n in range(batch)], {}) for step in range(STEPS)]
        self._free(batch)
        return {"a step": statistics.median(took[1:])}

    def prefill(self, length: int) -> dict[str, float]:
        state = SamplingState.start(SamplingParams(temperature=0.0), seed=0)
        self.runner.sampling["r0"] = state
        ids = torch.arange(length, dtype=torch.int32) % 1000 + 100
        took = self.run([segment(0, 0, length)], {"r0": ids.numpy().tobytes()})
        self._free(1)
        return {"a prompt": took}

    def _free(self, batch: int) -> None:
        for number in range(batch):
            self.runner.pool.free(key(number))


def key(number: int) -> Any:
    """What the pool knows a request's KV by."""
    return number if NAMES_RESIDENCES else f"r{number}"


def segment(number: int, start: int, length: int) -> Segment:
    named: dict[str, Any] = {"residence": number} if NAMES_RESIDENCES else {}
    context = ((0, start),) if start else ()
    return Segment(f"r{number}", start, length, (0,), (KVRange(0, start, start + length),), context, **named)


def main() -> None:
    instance = Instance(sys.argv[1], slots=256 * (CONTEXT + STEPS + 1))
    kinds: dict[str, Callable[..., dict[str, float]]] = {
        "deciding": lambda policy, instances: deciding(policy, int(instances)),
        "simulating": simulating,
        "decode": lambda batch: instance.decode(int(batch)),
        "prefill": lambda length: instance.prefill(int(length)),
    }
    print("ready", flush=True)
    gc.disable()  # a full collection takes as long as the decisions that a p99 is about, and falls among them by chance
    for line in sys.stdin:
        kind, *arguments = line.split()
        print(json.dumps(kinds[kind](*arguments)), flush=True)
        gc.collect()


if __name__ == "__main__":
    main()
