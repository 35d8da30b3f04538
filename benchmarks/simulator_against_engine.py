"""The simulator beside the engine on this machine: same trace, policy and cost model, two instances, the real model.

The engine is played requests open loop, and writes an event log. The simulator gets the log's configuration and cost
model, and this machine as the profile shows it (`sib:FILE`); outputs are limited to their own lengths in both. Compared
are mean and p90 of TTFT and of TPOT. Each log is also replayed in a fresh scheduler, which must decide the same.

Lengths are multiplied by one factor for each trace, so that its longest request has so many tokens, and arrivals are
Poisson.

    python benchmarks/simulator_against_engine.py --traces DIR --sib sib.json [--policies loongserve,medha]
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import arguments, save, say
from longspan.config import EngineConfig
from longspan.metrics.event_log import EventLog, read_event_log, replay
from longspan.metrics.request_metrics import Distribution, RequestRecord
from longspan.sib import ScalingInformationBase, read_sib
from longspan.simulator.cost import IterationCost
from longspan.simulator.fleet import Fleet
from longspan.simulator.load import offered_load
from longspan.simulator.measured import measured_machine, measured_model
from longspan.simulator.simulator import Simulator
from longspan.workload.arrivals import poisson
from longspan.workload.traces import TraceRequest, read_trace
from longspan.workload.transforms import first_seconds, scaled_to, with_arrivals
from open_loop import serve, shape

POLICIES = "loongserve,medha,static_sp,replicated"
KV_TOKENS = 16_384


@dataclass(frozen=True, slots=True)
class Load:
    """rate: requests a second. longest: tokens of prompt and output together, of the longest request."""

    trace: str
    rate: float
    longest: int


LOADS = (Load("azure_conv_2023", 1.5, 2048), Load("loongserve_mixed", 0.5, 6000))


def workload(load: Load, folder: Path, seconds: float) -> list[TraceRequest]:
    rows = read_trace(folder / f"{load.trace}.csv.gz")
    return scaled_to(list(first_seconds(with_arrivals(rows, poisson(load.rate, seed=0)), seconds)), load.longest)


def engine_config(policy: str, sib: ScalingInformationBase, path: Path, log: Path) -> EngineConfig:
    """The deployment that was profiled."""
    there = sib.deployment
    return EngineConfig(
        model=there.model, instances=there.instances, tp=there.tp, dtype=there.dtype, quantization=there.quantization,
        device=there.device, executor=there.executor, threads_per_device=there.threads_per_device, kv_tokens=KV_TOKENS,
        policy=policy, sib=path, event_log=log,
    )  # fmt: skip


def simulate(log: EventLog, fleet: Fleet, requests: Sequence[TraceRequest]) -> list[RequestRecord]:
    simulator = Simulator(log.config, IterationCost(fleet), cost_model=log.cost_model, limit="exact")
    return simulator.run(requests).records()


def replayed(log: EventLog) -> dict[str, Any]:
    difference = replay(log.path)
    return {
        "events": sum(1 for _ in log),
        "identical": difference is None,
        "first_difference_in_line": None if difference is None else difference.line,
    }


def compare(engine: Sequence[RequestRecord], simulator: Sequence[RequestRecord]) -> dict[str, Any]:
    """Seconds of each side, and how much the simulator's are above the engine's, relative to those."""
    found: dict[str, Any] = {}
    for name in ("ttft", "tpot"):
        sides = [Distribution.of(getattr(record, f"{name}_s") for record in side) for side in (engine, simulator)]
        assert sides[0] is not None and sides[1] is not None
        found[name] = {
            statistic: {
                "engine_s": getattr(sides[0], statistic),
                "simulator_s": getattr(sides[1], statistic),
                "difference": getattr(sides[1], statistic) / getattr(sides[0], statistic) - 1.0,
            }
            for statistic in ("mean", "p50", "p90")
        }
    return found


def measured_fleet(sib: ScalingInformationBase, path: Path) -> Fleet:
    there = sib.deployment
    machine = measured_machine(sib, path)
    return Fleet(machine=machine, model=measured_model(there), instances=there.instances, tp=there.tp)


def run(config: EngineConfig, fleet: Fleet, requests: list[TraceRequest]) -> dict[str, Any]:
    """Both sides, and the replay."""
    records = asyncio.run(serve(config, requests))
    assert config.event_log is not None
    log = read_event_log(config.event_log)
    return {
        "finished": sum(record.finished for record in records),
        "offered_load": offered_load(requests, IterationCost(fleet), log.config),
        **compare(records, simulate(log, fleet, requests)),
        "replay": replayed(log),
    }


def main() -> None:
    options = arguments(
        __doc__ or "",
        [("traces", "", "folder of traces"), ("sib", "", "file of `longspan profile`, on this machine"),
         ("policies", POLICIES, "with commas"), ("seconds", 60.0, "of each trace"),
         ("name", "simulator_against_engine", "result")],
    )  # fmt: skip
    path = Path(options.sib)
    sib = read_sib(path)
    fleet = measured_fleet(sib, path)
    results: dict[str, Any] = {}
    shapes = {}
    for load in LOADS:
        requests = workload(load, Path(options.traces), options.seconds)
        shapes[load.trace] = shape(requests) | {"rate": load.rate, "longest": load.longest}
        for policy in options.policies.split(","):
            with tempfile.TemporaryDirectory() as folder:
                found = run(engine_config(policy, sib, path, Path(folder, "events.jsonl")), fleet, requests)
            results.setdefault(load.trace, {})[policy] = found
            differences = ", ".join(
                f"{name.upper()} {statistic} {found[name][statistic]['difference']:+.1%}"
                for name in ("ttft", "tpot") for statistic in ("mean", "p90")
            )  # fmt: skip
            same = "replays the same" if found["replay"]["identical"] else "REPLAYS OTHERWISE"
            say(f"{load.trace}, {policy}, {found['finished']} of {len(requests)}: {differences}; {same}")
    save(options.name, {"model": sib.deployment.model, "instances": sib.deployment.instances,
                        "seconds": options.seconds, "workloads": shapes, "policies": results})  # fmt: skip


if __name__ == "__main__":
    main()
