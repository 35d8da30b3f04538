"""A tenant that sends ten times his share: what becomes of the others, with and without fair shares, in simulation.

Five tenants may use a fleet alike. Four send `load` together, the fifth ten times what one of them sends; and once more
the four are there without him. Deadlines and loads are those of the grid (grid_workloads.py).

    python -m benchmarks.policy.tenants --traces DIR
    python -m benchmarks.policy.tenants --traces DIR --workloads azure_code --policies longspan:fair_shares=true
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import arguments, save, say
from benchmarks.policy.grid_run import SETTINGS, TPOT_S
from benchmarks.policy.grid_workloads import FLOORS_S, WORKLOADS, deployed, rows, yardsticks
from longspan.metrics.request_metrics import SLO
from longspan.service_level import ServiceLevel
from longspan.simulator.simulator import Simulator
from longspan.workload.arrivals import poisson
from longspan.workload.traces import TraceRequest
from longspan.workload.transforms import first_seconds, merged, of_tenant, with_arrivals

POLICIES = "longspan,longspan:fair_shares=true"
GREEDY = "greedy"
TIMES = 10.0
DRAWN = 2000
"""Requests that tenants draw from."""


def requests_of(name: str, tenant: str, load: float, k: float, seconds: float, options: Any) -> Iterator[TraceRequest]:
    """Draw a tenant's own requests, which make so much load."""
    work, alone = yardsticks(WORKLOADS[name])
    seed = sum(map(ord, tenant)) + options.seed
    pool = list(islice(rows(name, options.seed, Path(options.traces)), DRAWN))
    rate = load * len(pool) / sum(map(work.whole, pool))
    draw = random.Random(seed)
    drawn = (
        replace(
            row, prefix_block_ids=(), service=ServiceLevel(ttft_s=max(k * alone(row.num_prompt_tokens), FLOORS_S[k]))
        )
        for row in iter(lambda: draw.choice(pool), None)
    )
    return of_tenant(first_seconds(with_arrivals(drawn, poisson(rate, seed)), seconds), tenant)


def run(name: str, shape: str, policy: str, requests: Sequence[TraceRequest], k: float) -> dict[str, Any]:
    there = deployed(name, shape)
    config = replace(
        there.config, policy=policy, ttft_slo_factor=k, ttft_slo_floor_s=FLOORS_S[k], tpot_slo_s=TPOT_S,
        **SETTINGS.get(policy.partition(":")[0], {}),
    )  # fmt: skip
    limit = there.cost.fleet.model.max_model_len
    simulation = Simulator(config, there.cost, cost_model=there.cost_model, max_model_len=limit).run(requests)
    due = {request.arrived_at_s: request.service.ttft_s or 0.0 for request in requests}
    tpot, found = SLO(tpot_s=TPOT_S), dict[bool, list[tuple[bool, bool, float]]]()
    for each in simulation.requests:
        record, first_s = each.record, each.record.ttft_s
        met = first_s is not None and first_s <= due[record.arrived_s] and tpot.met_by(record)
        found.setdefault(each.tenant == GREEDY, []).append((met, each.refusal is not None, first_s or 0.0))
    return {
        who: {
            "requests": len(those), "attainment": float(np.mean([met for met, _, _ in those])),
            "refused": float(np.mean([refused for _, refused, _ in those])),
            "ttft_p99_s": float(np.percentile([first_s for _, refused, first_s in those if not refused] or [0.0], 99)),
        }
        for who, those in (("others", found.get(False, [])), (GREEDY, found.get(True, []))) if those
    }  # fmt: skip


def main() -> None:
    options = arguments(
        __doc__ or "",
        [("traces", "", "folder of traces"), ("workloads", "azure_conv", "of the grid, with commas"),
         ("shapes", "replicas,spp", "with commas"), ("policies", POLICIES, "with commas"),
         ("load", 0.5, "of the four together"), ("k", 5.0, "deadlines are so many times what a prompt takes alone"),
         ("seconds", 20.0, "of arrivals"), ("seed", 0, "of all that is drawn"), ("name", "tenants", "result")],
    )  # fmt: skip
    results: dict[str, Any] = {}
    for name in options.workloads.split(","):
        each = options.load / 4
        others = [requests_of(name, f"t{number}", each, options.k, options.seconds, options) for number in range(4)]
        greedy = list(requests_of(name, GREEDY, TIMES * each, options.k, options.seconds, options))
        four = list(merged(*others))
        for shape in options.shapes.split(","):
            for policy in options.policies.split(","):
                for who, requests in (("four", four), ("with the fifth", list(merged(four, greedy)))):
                    found = run(name, shape, policy, requests, options.k)
                    results[f"{name}/{shape}/{policy}/{who}"] = found
                    told = "  ".join(
                        f"{tenant}: {those['attainment']:.3f} of {those['requests']} (refused {those['refused']:.3f}, "
                        f"TTFT p99 {those['ttft_p99_s']:.2f} s)"
                        for tenant, those in found.items()
                    )
                    say(f"{name}/{shape}/{policy}, {who}: {told}")
    save(options.name, {"load": options.load, "times": TIMES, "k": options.k, "runs": results})


if __name__ == "__main__":
    main()
