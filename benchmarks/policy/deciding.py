"""How long the scheduler takes to decide: p50, p99 and mean of `Scheduler.handle`, with a long queue.

    python -m benchmarks.policy.deciding
    python -m benchmarks.policy.deciding --events 2000 --policies loongserve --cached 0
    python -m benchmarks.policy.deciding --policies none --cached-policies longspan --talks with --name deciding_cached

Pure Python on one core, in CPU time of the thread: what else runs on the machine does not count. No model runs.
Batches complete in virtual time, after what a cost model says they take; whenever a request leaves the
queue another one arrives, so that as many wait as asked for, all the time.

With a prefix cache (--cached residences on 8 instances): prompts go on from earlier ones, or begin as they do.
The pool holds hardly more than that, so that what starts evicts.
"""

from __future__ import annotations

import gc
import random
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import common
from longspan.config import SchedulerConfig
from longspan.core.actions import Action, KVRange, RunBatch
from longspan.core.costs.batch_shape import BatchShape
from longspan.core.costs.cost_model import CostModel, DecodeCoefficients, FittedCostModel, PrefillCoefficients
from longspan.core.events import Event, RequestArrived, TokenOutput
from longspan.core.kv.residence import Residence
from longspan.core.prefixes.index import PrefixIndex
from longspan.core.prefixes.node import Node
from longspan.core.scheduler import Scheduler
from longspan.metrics.event_log import EventLogWriter
from longspan.prefix_keys import KEY_BYTES
from longspan.simulator.cost import Seconds
from longspan.simulator.driver import Driver, Work

KV_TOKENS = 210_000
"""Slots of an instance: LWM-1M-Text on two A800, as in LoongServe's evaluation."""
_SYSTEMS, _SYSTEM_TOKENS = 100, 2048
_NEW_TALKS, _FORKS = 0.25, 0.1
_FEW_WAITING = 32
_TALK_TOKENS = 120  # of its own, roughly
_CACHED_INSTANCES = 8


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
        self.ask(*next(self.requests))

    def ask(self, prompt: int, output: int, keys: bytes = b"") -> None:
        name = f"r{len(self.left)}"
        self.left[name] = output
        self.handle(RequestArrived(name, prompt, 2 * output, prefix_keys=keys))

    def _predicted(self, work: Work) -> Seconds:
        if isinstance(work, RunBatch):
            return Seconds(0.0, (BatchShape.of(work).predict(self.cost_model),))
        return Seconds(0.0, (self.cost_model.migration(work.num_tokens),))

    def _sample(self, request_id: str) -> TokenOutput:
        self.left[request_id] -= 1
        return TokenOutput(request_id, "stop" if self.left[request_id] == 0 else None)


class Talkers(Crowd):
    """Prompts that go on from earlier ones: each talk begins with one of some system prompts.

    New tokens are as many as other prompts have. An answer has keys, too; one turn in ten goes on from the middle of
    an earlier one. shown: whether the scheduler sees any keys.
    """

    def __init__(self, scheduler: Scheduler, cost_model: CostModel, block: int, seed: int, shown: bool) -> None:
        super().__init__(scheduler, cost_model, prompts(seed))
        self.shown = shown
        self.block = block
        self.draw = random.Random(seed)
        self.systems = [self.draw.randbytes(KEY_BYTES * _SYSTEM_TOKENS // block) for _ in range(_SYSTEMS)]
        self.talks: list[bytes] = []

    def fill(self, residences: int) -> None:
        """Let so many short talks have one turn, a few at a time."""
        while len(self.talks) < residences:
            while self.scheduler.stats().num_waiting < _FEW_WAITING:
                self.begin(self.draw.randint(2, 10), 1)
            self.step()

    def begin(self, blocks: int, output: int) -> None:
        """Begin a talk whose first prompt has so many blocks behind the system prompt."""
        self.say(self.draw.choice(self.systems), blocks, output)

    def say(self, before: bytes, blocks: int, output: int) -> None:
        keys = before + self.draw.randbytes(KEY_BYTES * blocks)
        self.talks.append(keys)
        tokens = len(keys) // KEY_BYTES * self.block + self.draw.randrange(1, self.block)
        self.ask(tokens, output, keys if self.shown else b"")

    def arrive(self) -> None:
        length, output = next(self.requests)
        if self.draw.random() < _NEW_TALKS:
            self.begin(length // self.block, output)
            return
        before = self.talks[self.draw.randrange(len(self.talks))]
        if self.draw.random() < _FORKS:
            before = before[: KEY_BYTES * self.draw.randrange(len(before) // KEY_BYTES)]
        self.say(before, length // self.block, output)

    def _sample(self, request_id: str) -> TokenOutput:
        output = super()._sample(request_id)
        if output.finish_reason is None and self.left[request_id] % self.block == 0:
            key = self.draw.randbytes(KEY_BYTES)
            return TokenOutput(request_id, None, key if self.shown else b"")
        return output


def prompts(seed: int) -> Iterator[tuple[int, int]]:
    """Prompt and output lengths: prompts log-uniform from 100 to 100,000 tokens, outputs from 10 to 500."""
    draw = random.Random(seed)
    while True:
        yield int(100 * 1000 ** draw.random()), draw.randint(10, 500)


def measure(policy: str, instances: int, waiting: int, events: int) -> dict[str, Any]:
    scheduler, model = make(policy, instances, waiting, KV_TOKENS)
    return timed(scheduler, Crowd(scheduler, model, prompts(seed=1)), waiting, events)


def measure_cached(
    policy: str, instances: int, waiting: int, events: int, cached: int, shown: bool = True
) -> dict[str, Any]:
    """cached: residences, when the requests come that are counted. shown: False: the same without a cache."""
    scheduler, model = make(policy, instances, waiting, KV_TOKENS + cached * _TALK_TOKENS // instances)
    crowd = Talkers(scheduler, model, scheduler.config.prefix_block, 1, shown)
    crowd.fill(cached)
    nodes = scheduler._ledger.prefixes.nodes
    before = len(nodes)
    found = timed(scheduler, crowd, waiting, events)
    told = {"residences_before": before, "residences_after": len(nodes)}
    return found | told | {"cached_tokens": sum(scheduler.stats().kv_tokens_cached)}


def index_bytes(block: int, residences: int = 500, blocks: int = 64) -> float:
    """Return the bytes of memory that a cached token's place in the index, and its residence, take."""
    draw = random.Random(1)
    tracemalloc.start()
    index, nodes = PrefixIndex(block), []
    for number in range(residences):
        residence = Residence(number)
        residence.append([KVRange(0, 0, blocks * block)])
        nodes.append(Node(residence, None, str(number)))
        for _ in range(blocks):
            key = draw.randbytes(KEY_BYTES)
            nodes[-1].keys.append(key)
            index.add([key], nodes[-1])
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return size / (residences * blocks * block)


def log_bytes(block: int, tokens: int = 1_000_000) -> int:
    """Return the bytes that the keys of such a prompt take in an event log."""
    sizes = []
    with tempfile.TemporaryDirectory() as folder:
        for keys in (b"", random.Random(1).randbytes(KEY_BYTES * (tokens // block))):
            path = Path(folder, str(len(keys)))
            with EventLogWriter(path, SchedulerConfig(prefix_block=block)) as writer:
                writer.write(0.0, RequestArrived("r", tokens, 1, prefix_keys=keys), [])
            sizes.append(path.stat().st_size)
    return sizes[1] - sizes[0]


def make(policy: str, instances: int, waiting: int, kv_tokens: int) -> tuple[TimedScheduler, FittedCostModel]:
    config = SchedulerConfig(
        num_instances=instances, kv_tokens=kv_tokens, policy=policy, max_waiting=2 * waiting, overload="off"
    )
    model = lwm(instances)
    return TimedScheduler(config, model), model


def timed(scheduler: TimedScheduler, crowd: Crowd, waiting: int, events: int) -> dict[str, Any]:
    scheduler.handled.clear()
    while scheduler.stats().num_waiting < waiting:
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
            ("policies", "loongserve,elastic_fcfs", "policies; none: without talks none is measured"),
            ("cached", 100_000, "cached residences; 0: without a prefix cache only"),
            ("cached-policies", "longspan,loongserve,elastic_fcfs", "policies that have them"),
            ("talks", "without,with", "whether the talks of these have a cache: without, with, or both"),
            ("name", "deciding", "of the result"),
        ],
    )
    gc.collect()
    gc.freeze()  # as the server does when it has started: what imports have left is none of its collections'
    results = {}
    for instances in map(int, arguments.instances.split(",")):
        for policy in arguments.policies.split(",") if arguments.policies != "none" else ():
            name = f"{policy}, {instances} instances, {arguments.waiting} waiting"
            results[name] = measure(policy, instances, arguments.waiting, arguments.events)
            tell(name, results[name])
    instances = _CACHED_INSTANCES
    for policy in arguments.cached_policies.split(",") if arguments.cached else ():
        for shown in [talks == "with" for talks in arguments.talks.split(",")]:
            cached = f"{arguments.cached} cached residences" if shown else "talks without a cache"
            name = f"{policy}, {instances} instances, {arguments.waiting} waiting, {cached}"
            results[name] = measure_cached(
                policy, instances, arguments.waiting, arguments.events, arguments.cached, shown
            )
            tell(name, results[name])
    block = SchedulerConfig().prefix_block
    results["memory"] = {"index_bytes_per_token": index_bytes(block), "log_bytes_of_a_million_tokens": log_bytes(block)}
    common.say(str(results["memory"]))
    common.save(arguments.name, results)


def tell(name: str, found: dict[str, Any]) -> None:
    p50, p99, most = found["p50_ms"], found["p99_ms"], found["max_ms"]
    common.say(f"{name}: p50 {p50:.3f} ms, p99 {p99:.3f} ms, mean {found['mean_ms']:.3f} ms, max {most:.1f} ms")


if __name__ == "__main__":
    main()
