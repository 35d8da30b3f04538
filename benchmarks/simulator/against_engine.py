"""The simulator beside the engine on this machine: same trace, policy and cost model, two instances, the real model.

The engine is played requests open loop, and writes an event log. The simulator gets the log's configuration and cost
model; outputs are limited to their own lengths in both. Compared are mean and p90 of TTFT and of TPOT. Each log is also
replayed in a fresh scheduler, which must decide the same.

The machine is profiled before and after every run, and the run simulated on the mean of both profiles (`sib:FILE`),
since a shared machine is not equally fast all day; how much the two differ is recorded as `drift`. Where that is too
much, nobody knows how fast the machine was in between: such a run counts only where there is no other. Figures are
medians over runs, for what is served twice takes a tenth more or less, and both policies and traces take turns. A run
takes 4 minutes; with `--keep` more can be added another time, and `--runs 0` only evaluates.

Lengths are multiplied by one factor for each trace, so that its longest request has so many tokens, and arrivals are
Poisson. Where a trace's outputs would shrink to nothing by that, only prompts are, and outputs are cut off.

    python -m benchmarks.simulator.against_engine --traces DIR [--keep DIR] [--loads azure_conv_2023] [--policies medha]
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from benchmarks.common import arguments, save, say
from benchmarks.engine.open_loop import serve, shape
from longspan.config import EngineConfig
from longspan.metrics.event_log import EventLog, read_event_log, replay
from longspan.metrics.request_metrics import Distribution, RequestRecord
from longspan.profiler.fit import fit_cost_model
from longspan.profiler.profile import profile
from longspan.sib import Measurements, ScalingInformationBase, read_sib, write_sib
from longspan.simulator.cost import IterationCost
from longspan.simulator.fleet import Fleet
from longspan.simulator.load import offered_load
from longspan.simulator.measured import measured_machine, measured_model
from longspan.simulator.simulator import Simulator
from longspan.workload.arrivals import poisson
from longspan.workload.traces import TraceRequest, read_trace
from longspan.workload.transforms import first_seconds, prompts_scaled_to, scaled_to, with_arrivals

POLICIES = "loongserve,medha,static_sp,replicated"
METRICS = ("ttft", "tpot")
STATISTICS = ("mean", "p50", "p90")
MOST_DRIFT = 0.05


@dataclass(frozen=True, slots=True)
class Load:
    """seconds: of the trace. rate: requests a second. longest: tokens of prompt and output together, of the longest
    request; or of its prompt, where outputs stay as they are, up to `longest_output`."""

    trace: str
    seconds: float
    rate: float
    longest: int
    longest_output: int | None = None


class Served(NamedTuple):
    requests: list[TraceRequest]
    records: list[RequestRecord]


LOADS = (Load("azure_conv_2023", 90.0, 1.5, 2048), Load("loongserve_mixed", 180.0, 0.3, 6000, longest_output=128))
DEPLOYMENT = EngineConfig(
    model="smollm2-135m", instances=2, threads_per_device=1, dtype="bfloat16", kv_tokens=16_384, prefix_cache=False
)


def workload(load: Load, folder: Path) -> list[TraceRequest]:
    rows = read_trace(folder / f"{load.trace}.csv.gz")
    requests = list(first_seconds(with_arrivals(rows, poisson(load.rate, seed=0)), load.seconds))
    if load.longest_output is None:
        return scaled_to(requests, load.longest)
    return [
        replace(request, num_output_tokens=min(request.num_output_tokens, load.longest_output))
        for request in prompts_scaled_to(requests, load.longest)
    ]


def profile_now(budget_s: float) -> ScalingInformationBase:
    return asyncio.run(profile(DEPLOYMENT, budget_s, lambda measured: None))


def joined(before: ScalingInformationBase, after: ScalingInformationBase) -> ScalingInformationBase:
    """Every timing the mean of both; what only one of them has is left out."""
    seconds = {point.shape: point.seconds for point in after.measurements.iterations}
    moved = {point.num_tokens: point.seconds for point in after.measurements.migrations}
    factors = {(one.kind, one.beside): one.factor for one in after.measurements.interference}
    measurements = Measurements(
        iterations=tuple(
            replace(point, seconds=(point.seconds + seconds[point.shape]) / 2)
            for point in before.measurements.iterations if point.shape in seconds
        ),
        migrations=tuple(
            replace(point, seconds=(point.seconds + moved[point.num_tokens]) / 2)
            for point in before.measurements.migrations if point.num_tokens in moved
        ),
        interference=tuple(
            replace(one, factor=(one.factor + factors[one.kind, one.beside]) / 2)
            for one in before.measurements.interference
        ),
        unqueued_s=(before.measurements.unqueued_s + after.measurements.unqueued_s) / 2,
    )  # fmt: skip
    return replace(after, measurements=measurements, cost_model=fit_cost_model(measurements, DEPLOYMENT.instances))


def drift(before: ScalingInformationBase, after: ScalingInformationBase) -> float:
    """How much longer iterations took afterwards, in the median; relative."""
    seconds = {point.shape: point.seconds for point in after.measurements.iterations}
    known = [point for point in before.measurements.iterations if point.shape in seconds]
    return statistics.median(seconds[point.shape] / point.seconds for point in known) - 1.0


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
    for name in METRICS:
        sides = [Distribution.of(getattr(record, f"{name}_s") for record in side) for side in (engine, simulator)]
        assert sides[0] is not None and sides[1] is not None
        found[name] = {
            statistic: {
                "engine_s": getattr(sides[0], statistic),
                "simulator_s": getattr(sides[1], statistic),
                "difference": getattr(sides[1], statistic) / getattr(sides[0], statistic) - 1.0,
            }
            for statistic in STATISTICS
        }
    return found


def measured_fleet(sib: ScalingInformationBase) -> Fleet:
    there = sib.deployment
    machine = measured_machine(sib, Path("sib.json"))
    return Fleet(machine=machine, model=measured_model(there), instances=there.instances, tp=there.tp)


def measure(
    policy: str, requests: list[TraceRequest], before: ScalingInformationBase, budget_s: float, folder: Path
) -> ScalingInformationBase:
    """Serve; returns the profile taken afterwards. The folder gets all that `compared` needs."""
    folder.mkdir(parents=True)
    write_sib(before, folder / "sib.json")
    config = replace(DEPLOYMENT, policy=policy, sib=folder / "sib.json", event_log=folder / "events.jsonl")
    records = asyncio.run(serve(config, requests))
    after = profile_now(budget_s)
    (folder / "requests.json").write_bytes(msgspec.json.encode(Served(requests, records)))
    write_sib(after, folder / "sib_after.json")  # last: now the run is whole
    return after


def compared(folder: Path, requests: Sequence[TraceRequest]) -> dict[str, Any]:
    """One run: both sides, and the replay. requests: what it must have served, or it is of another load."""
    served = msgspec.json.decode((folder / "requests.json").read_bytes(), type=Served)
    if served.requests != requests:
        raise SystemExit(f"{folder} served other requests than this load has now; keep these runs in another folder")
    before, after = read_sib(folder / "sib.json"), read_sib(folder / "sib_after.json")
    log = read_event_log(folder / "events.jsonl")
    there = joined(before, after)
    fleet = measured_fleet(there)
    return {
        "finished": sum(record.finished for record in served.records),
        "offered_load": offered_load(served.requests, IterationCost(fleet), log.config),
        "drift": drift(before, after),
        "interference": {
            f"{one.kind} beside {one.beside}": one.factor for one in there.measurements.interference
        },
        **compare(served.records, simulate(log, fleet, served.requests)),
        "replay": replayed(log),
    }  # fmt: skip


def together(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Medians of those that count; all, one by one, are in `runs`."""
    counting = [run for run in runs if abs(run["drift"]) <= MOST_DRIFT] or runs

    def figure(name: str, statistic: str) -> dict[str, float]:
        found = [run[name][statistic] for run in counting]
        differences = [one["difference"] for one in found]
        medians = {key: statistics.median(one[key] for one in found) for key in found[0]}
        return medians | {"least": min(differences), "most": max(differences)}

    return {
        "counting": len(counting),
        "offered_load": statistics.median(run["offered_load"] for run in counting),
        **{name: {statistic: figure(name, statistic) for statistic in STATISTICS} for name in METRICS},
        "runs": list(runs),
    }


def in_short(found: dict[str, Any]) -> str:
    return ", ".join(
        f"{name.upper()} {statistic} {found[name][statistic]['difference']:+.1%}"
        for name in METRICS for statistic in ("mean", "p90")
    )  # fmt: skip


def main() -> None:
    options = arguments(
        __doc__ or "",
        [("traces", "", "folder of traces"), ("loads", ",".join(load.trace for load in LOADS), "with commas"),
         ("policies", POLICIES, "with commas"), ("budget", 90.0, "seconds of each profile"),
         ("runs", 3, "of each trace and policy, beside those kept"),
         ("keep", "", "folder for logs and profiles; what it has counts too"),
         ("json", "simulator_against_engine", "result")],
    )  # fmt: skip
    known = {load.trace: load for load in LOADS}
    loads = [known[trace] for trace in options.loads.split(",")]
    cells = list(product(loads, options.policies.split(",")))
    with tempfile.TemporaryDirectory() as temporary:
        kept = Path(options.keep or temporary)
        workloads = {load.trace: workload(load, Path(options.traces)) for load in loads}
        found: dict[str, dict[str, list[dict[str, Any]]]] = {}
        for load, policy in cells:
            whole = sorted(path.parent for path in kept.glob(f"{load.trace}-{policy}-*/sib_after.json"))
            runs = [compared(folder, workloads[load.trace]) for folder in whole]
            found.setdefault(load.trace, {})[policy] = runs

        def write() -> None:
            save(options.json, {
                "model": DEPLOYMENT.model, "instances": DEPLOYMENT.instances, "most_drift": MOST_DRIFT,
                "workloads": {load.trace: shape(workloads[load.trace]) | asdict(load) for load in loads},
                "policies": {
                    trace: {policy: together(runs) for policy, runs in of_trace.items() if runs}
                    for trace, of_trace in found.items()
                },
            })  # fmt: skip

        if not options.runs:
            write()
            return
        profiled = profile_now(options.budget)
        for _, (load, policy) in product(range(options.runs), cells):
            folder = kept / f"{load.trace}-{policy}-{datetime.now():%Y%m%d-%H%M%S}"
            profiled = measure(policy, workloads[load.trace], profiled, options.budget, folder)
            runs = found[load.trace][policy]
            runs.append(compared(folder, workloads[load.trace]))
            same = "replays the same" if runs[-1]["replay"]["identical"] else "REPLAYS OTHERWISE"
            say(f"{load.trace}, {policy}: drift {runs[-1]['drift']:+.1%}; {in_short(runs[-1])}; {same}; "
                f"medians so far: {in_short(together(runs))}")  # fmt: skip
            write()


if __name__ == "__main__":
    main()
