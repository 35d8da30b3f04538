"""`longspan simulate`: from options to a report."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import msgspec

from longspan.config import SchedulerConfig
from longspan.core.policies import create_policy, told_of_alias
from longspan.entrypoints.bench.options import ArrivalOptions, LengthOptions, parse_slo
from longspan.entrypoints.bench.requests import make_requests
from longspan.entrypoints.plan.options import PlanOptions
from longspan.entrypoints.simulate import plot
from longspan.entrypoints.simulate.fleet import kv_tokens_of, make_fleet
from longspan.entrypoints.simulate.options import SimulateOptions
from longspan.entrypoints.simulate.progress import progress
from longspan.entrypoints.simulate.report import SimulationReport
from longspan.metrics.event_log import EventLogWriter
from longspan.metrics.request_metrics import SLO
from longspan.profiler.check import check_predictions
from longspan.profiler.fit import fit_cost_model
from longspan.profiler.simulated import measure_simulated
from longspan.simulator.cost import IterationCost
from longspan.simulator.fleet import Fleet
from longspan.simulator.fleet_events import FleetTimes, draw_fleet_events, read_fleet_events
from longspan.simulator.load import offered_load
from longspan.simulator.pool_sizes import PoolSizes
from longspan.simulator.simulator import Simulator
from longspan.simulator.slo import LengthAwareSLO
from longspan.workload.traces import TraceRequest

FAILED = 1


def simulate(lengths: LengthOptions, arrivals: ArrivalOptions, options: SimulateOptions) -> int:
    """Runs it, prints what came out, writes the files; the exit code: 1 if nothing finished.

    Raises:
        LongspanError: an option, the trace or the set-up does not allow to begin.
    """
    if options.plot is not None:
        plot.check_available()
    requests = make_requests(lengths, arrivals)
    began = time.perf_counter()
    report = run(requests, options, settings=_settings(lengths, arrivals, options), seed=lengths.seed)
    seconds = time.perf_counter() - began
    report.print()
    print(
        f"simulated in {seconds:.1f} s, {report.simulation.num_events / seconds:,.0f} events/s", file=sys.stderr
    )
    if options.json is not None:
        report.write_json(options.json)
    if options.plot is not None:
        plot.write(report, options.plot)
    return 0 if report.metrics.classes["all"].num_finished else FAILED


def run(
    requests: list[TraceRequest], options: SimulateOptions, settings: dict[str, Any] | None = None, seed: int = 0
) -> SimulationReport:
    """seed: of losses that are drawn. Raises ConfigError, ModelError."""
    create_policy(options.policy)  # before anything that takes time
    if told := told_of_alias(options.policy):
        print(f"longspan: {told}", file=sys.stderr)
    fleet = make_fleet(options.hardware, options.model, options.instances, options.tp, options.pp)
    config = scheduler_config(options, fleet)
    fleet_events = _fleet_events(options, config, requests, seed)
    max_model_len = options.max_model_len or fleet.model.max_model_len
    cost = IterationCost(fleet)
    measurements = measure_simulated(cost, config, max_model_len)
    cost_model = fit_cost_model(measurements, config.of_node().num_instances)
    log = (
        nullcontext()
        if options.event_log is None
        else EventLogWriter(options.event_log, config, cost_model, run="simulated", waits=True)
    )
    if isinstance(log, EventLogWriter):
        shown = str(log.path).encode("utf-8", "backslashreplace").decode()  # a name may be no text
        print(f"longspan: the event log is {shown}", file=sys.stderr)
    with log as event_log, progress(len(requests)) as report:
        simulator = Simulator(
            config,
            cost,
            cost_model=cost_model,
            max_model_len=max_model_len,
            limit=options.output_limit,
            event_log=event_log,
            on_progress=report,
            fleet_events=fleet_events,
        )
        simulation = simulator.run(requests)
    return SimulationReport(
        fleet=fleet,
        config=config,
        settings=settings or {},
        cost_model=cost_model,
        prediction_error=check_predictions(cost_model, measurements).summary(),
        offered_load=offered_load(requests, cost, config),
        slo=make_slo(options.slo, config, [cost]),
        long_threshold=options.long_threshold,
        simulation=simulation,
        pools=PoolSizes.of(requests, config),
    )


def _fleet_events(
    options: SimulateOptions, config: SchedulerConfig, requests: list[TraceRequest], seed: int
) -> FleetTimes:
    """When instances are lost, and join again; drawn losses end with the arrivals."""
    if options.fleet_events is not None:
        return read_fleet_events(options.fleet_events, config.num_instances, config.kv_tokens)
    if options.mtbf is None:
        return ()
    last_s = max([request.arrived_at_s or 0.0 for request in requests], default=0.0)
    return draw_fleet_events(
        options.mtbf, options.mttr, config.num_instances, config.kv_tokens, last_s, seed
    )


def scheduler_config(options: SimulateOptions | PlanOptions, fleet: Fleet) -> SchedulerConfig:
    """Return the knobs, and what the fleet says."""
    kv_tokens = kv_tokens_of(fleet, options.kv_tokens)
    return SchedulerConfig.of(options, num_instances=fleet.instances, pp=fleet.pp, kv_tokens=kv_tokens)


def make_slo(text: str | None, config: SchedulerConfig, costs: Sequence[IterationCost]) -> SLO:
    """Return what was asked for, or else what policies with deadlines go by."""
    promises = parse_slo(text)
    if promises:
        return SLO(ttft_s=promises.get("ttft"), tpot_s=promises.get("tpot"))
    return LengthAwareSLO.of(config, costs)


def _settings(*options: LengthOptions | ArrivalOptions | SimulateOptions) -> dict[str, Any]:
    """As given, less where the results go: that changes none of them."""
    settings: dict[str, Any] = {}
    for group in options:
        settings |= msgspec.to_builtins(group, enc_hook=str)
    return {name: value for name, value in settings.items() if name not in ("json", "event_log", "plot")}
