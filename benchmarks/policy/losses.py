"""What losing instances costs a large fleet: beside none lost, and beside a server that computes whole requests anew.

    python -m benchmarks.policy.losses                   three simulations of an hour
    python -m benchmarks.policy.losses --hours 0.1 --every 120 --name tried

128 instances (LWM-7B on one A800 each), the default policy, and prompts from 2,000 to 500,000 tokens, log-uniformly
distributed, the longest of which no single instance holds. Each loss hits an instance at random, which serves again,
empty, five minutes later. Latencies and goodput are those of all requests; hit are those of which something was
computed again. Good is a request whose first token comes within so many times what the prompt takes alone, or a second,
and whose tokens come at the pace that the policy keeps, or a fifth slower.

At this load an hour takes a core some minutes; how long rises faster than the load, for each decision looks at all
prompts that are being computed.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from benchmarks.common import arguments, save, say
from benchmarks.paper.simulated import Deployed, System, in_parallel
from longspan.core.events import FleetEvent, InstanceJoined, InstanceLost
from longspan.metrics.request_metrics import Distribution, measure
from longspan.simulator.fleet_events import FleetTimes
from longspan.simulator.load import offered_load
from longspan.simulator.simulator import Simulation, Simulator
from longspan.simulator.slo import LengthAwareSLO
from longspan.workload.arrivals import poisson
from longspan.workload.traces import TraceRequest
from longspan.workload.transforms import with_arrivals

SHORTEST, LONGEST = 2_000, 500_000
OUTPUTS = (16, 96)
AWAY_S = 300.0
PREFILL_FACTOR, PACE_FACTOR = 25.0, 1.2


@dataclass(frozen=True, slots=True)
class Run:
    """losses: whether there are any. repairs: whether only what is gone is computed again."""

    name: str
    losses: bool
    repairs: bool
    instances: int
    seconds: float
    every_s: float
    load: float
    seed: int


def simulate(run: Run) -> dict[str, Any]:
    settings = {"repair_kv": run.repairs, "overload": "off", "ttft_slo_factor": PREFILL_FACTOR}
    system = System(policy="longspan", instances=run.instances, tp=1, settings=settings)
    deployed = Deployed(system, "a800-80g", "lwm-1m")
    requests = _requests(run, deployed)
    events = _losses(run, deployed.config.kv_tokens) if run.losses else ()
    simulator = Simulator(
        deployed.config, deployed.cost, cost_model=deployed.cost_model,
        max_model_len=deployed.cost.fleet.model.max_model_len, limit="exact", fleet_events=events,
    )  # fmt: skip
    return _figures(simulator.run(requests), deployed)


def _requests(run: Run, deployed: Deployed) -> list[TraceRequest]:
    """As many as arrive in the time at this load."""
    draw = random.Random(run.seed)

    def one() -> TraceRequest:
        length = math.exp(draw.uniform(math.log(SHORTEST), math.log(LONGEST)))
        return TraceRequest(None, round(length), draw.randint(*OUTPUTS))

    sample = list(with_arrivals([one() for _ in range(2000)], poisson(1.0, run.seed)))
    rate = run.load / (offered_load(sample, deployed.cost, deployed.config) or 1.0)
    lengths = [one() for _ in range(round(run.seconds * rate))]
    return list(with_arrivals(lengths, poisson(rate, run.seed)))


def _losses(run: Run, kv_tokens: int) -> FleetTimes:
    draw, events = random.Random(run.seed + 1), list[tuple[float, FleetEvent]]()
    for number in range(int(run.seconds / run.every_s)):
        at, instance = (number + 0.5) * run.every_s, draw.randrange(run.instances)
        back = at + min(AWAY_S, 0.9 * run.every_s)
        events += [(at, InstanceLost(instance)), (back, InstanceJoined(instance, kv_tokens))]
    return sorted(events, key=lambda event: event[0])


def _figures(simulation: Simulation, deployed: Deployed) -> dict[str, Any]:
    slo = LengthAwareSLO.of(deployed.config, [deployed.cost])
    slo = replace(slo, tpot_s=PACE_FACTOR * slo.tpot_s)
    metrics = measure(simulation.records(), slo=slo, long_threshold=LONGEST).classes["all"]
    hit = [request.record for request in simulation.requests if request.num_recomputed]
    losses = simulation.losses
    return {
        "requests": len(simulation.requests), "refused": metrics.num_refused, "lost": losses.num_lost,
        "void_batches": losses.num_void, "recomputed_tokens": losses.recomputed,
        "goodput": metrics.goodput, "slo_attainment": metrics.slo_attainment,
        "ttft_p50_s": _at(metrics.ttft_s, 0.5), "ttft_p99_s": _at(metrics.ttft_s, 0.99),
        "hit": len(hit), "hit_in_time": sum([slo.met_by(record) for record in hit]),
        "longest_pause_s": max([max(gaps) for record in hit if (gaps := _gaps(record.token_times_s))], default=None),
        "preempted": sum([request.num_preemptions > 0 for request in simulation.requests]),
        "ended_s": simulation.ended_s,
    }  # fmt: skip


def _at(distribution: Distribution | None, share: float) -> float | None:
    if distribution is None:
        return None
    return {0.5: distribution.p50, 0.99: distribution.p99}[share]


def _gaps(times_s: Sequence[float]) -> list[float]:
    return [late - early for early, late in pairwise(times_s)]


def main() -> None:
    options = arguments(
        __doc__ or "",
        [("instances", 128, "of the fleet"), ("hours", 1.0, "of arrivals"), ("every", 1200.0, "seconds between losses"),
         ("load", 0.4, "of what the fleet can do"), ("seed", 0, "of requests and losses"),
         ("jobs", 0, "processes; 0: as many as cores"), ("name", "losses", "result")],
    )  # fmt: skip
    seconds = 3600.0 * options.hours
    base = Run("none lost", False, True, options.instances, seconds, options.every, options.load, options.seed)
    runs = [
        base, replace(base, name="lost, repaired", losses=True),
        replace(base, name="lost, whole requests computed anew", losses=True, repairs=False),
    ]  # fmt: skip
    results = dict(zip([run.name for run in runs], in_parallel(simulate, runs, options.jobs), strict=True))
    for name, found in results.items():
        say(f"{name}: {found}")
    save(options.name, {
        "instances": options.instances, "hours": options.hours, "every_s": options.every, "load": options.load,
        "runs": results,
    })  # fmt: skip


if __name__ == "__main__":
    main()
