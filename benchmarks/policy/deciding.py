"""How long the scheduler takes to decide: p50, p99 and mean of `Scheduler.handle`, with a long queue.

    python -m benchmarks.policy.deciding
    python -m benchmarks.policy.deciding --events 2000 --policies loongserve

Pure Python on one core, in CPU time of the thread: what else runs on the machine does not count. No model runs.
Batches complete in virtual time, after what a cost model says they take; whenever a request leaves the
queue another one arrives, so that as many wait as asked for, all the time.
"""

from __future__ import annotations

import gc
import random
import statistics
import time
from collections.abc import Iterator
from typing import Any

from benchmarks import common
from longspan.config import SchedulerConfig
from longspan.core.actions import Action, RunBatch
from longspan.core.costs.batch_shape import BatchShape
from longspan.core.costs.cost_model import CostModel, DecodeCoefficients, FittedCostModel, PrefillCoefficients
from longspan.core.events import Event, RequestArrived, TokenOutput
from longspan.core.scheduler import Scheduler
from longspan.simulator.cost import Seconds
from longspan.simulator.driver import Driver, Work

KV_TOKENS = 210_000
"""Slots of an instance: LWM-1M-Text on two A800, as in LoongServe's evaluation."""


def lwm(num_instances: int) -> FittedCostModel:
    """LWM-1M-Text on instances of two A800 each; on four of them it is fitted to LoongServe's figure 3."""
    numbers = range(1, num_instances + 1)
    return FittedCostModel(
        prefill_coefficients=tuple(
            PrefillCoefficients(num_instances=n, fixed=0.03 + 0.002 * n, per_token=4e-5 / n, per_pair=7.8e-10 / n)
            for n in numbers
        ),
        decode_coefficients=tuple(
            DecodeCoefficients(
                num_instances=n, num_masters=m, fixed=0.012 + 0.001 * n, per_request=1e-4 / m,
                per_context_token=4e-8 / n,
            )
            for n in numbers
            for m in sorted({1, n})
        ),
        migration_fixed=1e-4,
        migration_per_token=1.3e-6,
    )


class TimedScheduler(Scheduler):
    """`handled` has the CPU seconds of each call."""

    def __init__(self, config: SchedulerConfig, cost_model: CostModel) -> None:
        super().__init__(config, cost_model=cost_model)
        self.handled: list[float] = []

    def handle(self, event: Event, now: float) -> list[Action]:
        begin = time.thread_time()
        actions = super().handle(event, now)
        self.handled.append(time.thread_time() - begin)
        return actions


class Crowd(Driver):
    """Work takes what the cost model says, and requests come when they are called."""

    def __init__(self, scheduler: Scheduler, cost_model: CostModel, requests: Iterator[tuple[int, int]]) -> None:
        super().__init__(scheduler, self._predicted)
        self.cost_model = cost_model
        self.requests = requests
        self.left: dict[str, int] = {}

    def arrive(self) -> None:
        prompt, output = next(self.requests)
        name = f"r{len(self.left)}"
        self.left[name] = output
        self.handle(RequestArrived(name, prompt, 2 * output))

    def _predicted(self, work: Work) -> Seconds:
        if isinstance(work, RunBatch):
            return Seconds(0.0, (BatchShape.of(work).predict(self.cost_model),))
        return Seconds(0.0, (self.cost_model.migration(work.num_tokens),))

    def _sample(self, request_id: str) -> TokenOutput:
        self.left[request_id] -= 1
        return TokenOutput(request_id, "stop" if self.left[request_id] == 0 else None)


def prompts(seed: int) -> Iterator[tuple[int, int]]:
    """Prompt and output lengths: prompts log-uniform from 100 to 100,000 tokens, outputs from 10 to 500."""
    draw = random.Random(seed)
    while True:
        yield int(100 * 1000 ** draw.random()), draw.randint(10, 500)


def measure(policy: str, instances: int, waiting: int, events: int) -> dict[str, Any]:
    config = SchedulerConfig(
        num_instances=instances, kv_tokens=KV_TOKENS, policy=policy, max_waiting=2 * waiting, overload="off"
    )
    model = lwm(instances)
    scheduler = TimedScheduler(config, model)
    crowd = Crowd(scheduler, model, prompts(seed=1))
    while len(scheduler.handled) < waiting:
        crowd.arrive()
    scheduler.handled.clear()
    gc.collect()
    while len(scheduler.handled) < events:
        crowd.step()
        while scheduler.stats().num_waiting < waiting:
            crowd.arrive()
    milliseconds = [1e3 * seconds for seconds in scheduler.handled]
    quantiles = statistics.quantiles(milliseconds, n=100)
    return {
        "mean_ms": statistics.mean(milliseconds),
        "p50_ms": quantiles[49],
        "p99_ms": quantiles[98],
        "max_ms": max(milliseconds),
        "events": len(milliseconds),
        "virtual_s": crowd.now,
        "running_at_the_end": scheduler.stats().num_running,
    }


def main() -> None:
    arguments = common.arguments(
        __doc__ or "",
        [
            ("events", 20_000, "calls of handle that are measured"),
            ("waiting", 1000, "requests in the queue"),
            ("instances", "8,64", "numbers of instances"),
            ("policies", "loongserve,elastic_fcfs", "policies"),
        ],
    )
    results = {}
    for instances in map(int, arguments.instances.split(",")):
        for policy in arguments.policies.split(","):
            name = f"{policy}, {instances} instances, {arguments.waiting} waiting"
            found = results[name] = measure(policy, instances, arguments.waiting, arguments.events)
            p50, p99, most = found["p50_ms"], found["p99_ms"], found["max_ms"]
            common.say(f"{name}: p50 {p50:.3f} ms, p99 {p99:.3f} ms, mean {found['mean_ms']:.3f} ms, max {most:.1f} ms")
    common.save("deciding", results)


if __name__ == "__main__":
    main()
