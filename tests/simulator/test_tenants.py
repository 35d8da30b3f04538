"""Tenants in simulations: one that sends ten times his share does not make the others late."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

from longspan.config import SchedulerConfig
from longspan.metrics.event_log import EventLogWriter, replay
from longspan.metrics.request_metrics import SLO
from longspan.profiler.simulated import fit_simulated
from longspan.simulator.cost import IterationCost
from longspan.simulator.fleet import Fleet
from longspan.simulator.hardware import A800_80G
from longspan.simulator.models import MODELS
from longspan.simulator.simulator import Simulation, Simulator
from longspan.workload.arrivals import poisson
from longspan.workload.traces import TraceRequest, read_trace
from longspan.workload.transforms import first_seconds, merged, of_tenant, with_arrivals

TRACE = read_trace(Path(__file__).parents[1] / "data" / "azure_conv_2023_200.csv.gz")
SECONDS = 30.0
SHARE = 1.35
"""Requests a second. Two instances serve four that send as many each, but not ten times as many beside them."""


def sent_by(tenant: str, rate: float) -> list[TraceRequest]:
    seed = sum(map(ord, tenant))
    rows = TRACE[seed % 100 :] + TRACE[: seed % 100]
    again = [row for _ in range(10) for row in rows]
    return list(of_tenant(first_seconds(with_arrivals(again, poisson(rate, seed)), SECONDS), tenant))


@cache
def world() -> tuple[SchedulerConfig, IterationCost]:
    cost = IterationCost(Fleet(machine=A800_80G, model=MODELS["lwm-1m"], instances=2))
    return SchedulerConfig(num_instances=2, kv_tokens=200_000, max_waiting=10**6, tpot_slo_s=0.1), cost


def simulated(policy: str, requests: list[TraceRequest], log: EventLogWriter | None = None) -> Simulation:
    config, cost = world()
    cost_model = fit_simulated(cost, config, 16_000)
    return Simulator(replace(config, policy=policy), cost, cost_model=cost_model, event_log=log).run(requests)


def in_time(simulation: Simulation) -> dict[bool, float]:
    """The share of requests in time: of the greedy one's, and of the others'."""
    slo, found = SLO(ttft_s=2.0, tpot_s=0.1), dict[bool, list[bool]]()
    for request in simulation.requests:
        found.setdefault(request.tenant == "greedy", []).append(slo.met_by(request.record))
    return {greedy: sum(met) / len(met) for greedy, met in found.items()}


def test_who_sends_ten_times_his_share_makes_nobody_late() -> None:
    others = list(merged(*(sent_by(f"t{number}", SHARE) for number in range(4))))
    everybody = list(merged(others, sent_by("greedy", 10 * SHARE)))
    alone = in_time(simulated("longspan", others))[False]
    unshared = in_time(simulated("longspan", everybody))
    shared = in_time(simulated("longspan:fair_shares=true", everybody))
    assert alone > 0.97
    assert shared[False] > 0.96 * alone
    assert unshared[False] < 0.85 * alone, "or there is nothing to share"
    assert shared[True] > 0.15, "he has his own share"


def test_tenants_are_those_of_the_trace_in_order_of_arrival() -> None:
    requests = list(merged(sent_by("a", 0.3), sent_by("b", 0.2), of_tenant(sent_by("c", 0.1), None)))
    times = [request.arrived_at_s or 0.0 for request in requests]
    assert times == sorted(times)
    simulation = simulated("longspan:fair_shares=true", requests)
    expected = {request.arrived_at_s: request.service.tenant for request in requests}
    assert {request.record.arrived_s: request.tenant for request in simulation.requests} == expected
    assert set(expected.values()) == {"a", "b", None}


def test_shares_replay(tmp_path: Path) -> None:
    requests = list(merged(sent_by("a", 4.0), sent_by("b", 2.0)))
    config, cost = world()
    config = replace(config, policy="longspan:fair_shares=true:tenant_weights=a=3,b=0.5:closed_to_long=0.1")
    with EventLogWriter(tmp_path / "log.jsonl", config, fit_simulated(cost, config, 16_000)) as log:
        simulated(config.policy, requests, log)
    assert log.path is not None
    assert replay(log.path) is None
