"""LoongServe's figures 10 to 13 in simulation: how many requests a second each system bears, and the ratios.

Its testbed, LWM-1M-Text on 8 A800 (16 for figure 11), with the KV slots and limits of its scripts. The datasets are the
rows of the trace loongserve_mixed, which is not the authors' file, in random order; arrivals are Poisson. Every rate is
tried for the same time, WINDOW_S (the paper's runs have requests for 1000 s, most of them), and until the last one has
ended. A limit that nobody exceeds but by waiting for more than a quarter of that is left out: --stretch helps.

    figures 10, 11  the rate at which the mean of a normalised latency meets 25 times what it is without load.
                    Per token: end to end over prompt + output; input: first token over prompt. Also at the limits in
                    milliseconds that the paper's scripts have, where rates tried have them between them.
    figure 12       the rate at which 90 % of requests have their first token within max(25 T(n), 15 s), T(n) alone on
                    4 instances of 2 devices, and further tokens within 50 ms; prompts of a Zipf distribution
    figure 13       the same on ShareGPT, with and without scale-up; and scale-ups in 10 s at 25 requests a second

    python -m benchmarks.paper.loongserve --traces DIR [--figures 10,11,12,13] [--stretch 1.0] [--jobs 0]
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.common import arguments, save, say
from benchmarks.paper import loongserve_figures as paper
from benchmarks.paper.rate_search import Search
from benchmarks.paper.simulated import Deployed, System, arriving, in_parallel, loongserve_datasets, shuffled
from longspan.core.costs.batch_shape import BatchShape
from longspan.core.costs.cost_model import Chunk
from longspan.metrics.request_metrics import measure
from longspan.simulator.cost import IterationCost
from longspan.simulator.fleet import Fleet
from longspan.simulator.hardware import known_machine
from longspan.simulator.models import known_model
from longspan.simulator.slo import LengthAwareSLO
from longspan.simulator.spread import evenly_spread
from longspan.workload.arrivals import interval
from longspan.workload.generator import loongserve_zipf
from longspan.workload.traces import TraceRequest
from longspan.workload.transforms import with_arrivals

HARDWARE, MODEL, SEED = "a800-80g", "lwm-1m", 0
ZIPF_EXPONENTS, ZIPF_PROMPTS = (1.0, 1.2, 1.4), 20_000
WINDOW_S = {
    "ShareGPT": 30.0, "L-Eval": 500.0, "LV-Eval": 2000.0, "Mixed": 1000.0, "Zipf 1.0": 400.0, "Zipf 1.2": 200.0,
    "Zipf 1.4": 80.0,
}  # fmt: skip
MOST_WAIT = 0.25  # of a window
ALONE, ALONE_EVERY_S = 100, 3600.0  # requests without load, one by one
SOME = 200  # requests, for a first look at the load
IN_GROUPS = ("loongserve", "loongserve_never_splits", "loongserve_no_scale_up", "static_sp")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Systems that are compared. A figure of a mean, or of goodput."""

    name: str
    figure: int
    dataset: str
    policies: tuple[str, ...]
    devices: int = 8

    @property
    def of_means(self) -> bool:
        return self.figure in (10, 11)


_FIGURE_10 = ("loongserve", "loongserve_never_splits", "static_tp", "vllm", "splitfuse", "distserve")
_FIGURE_12 = ("loongserve", "static_tp", "static_sp", "replicated")
CASES = (
    *(Case(name=name, figure=10, dataset=name, policies=_FIGURE_10) for name in paper.RUNNING),
    Case(name="Mixed, 16 GPUs", figure=11, dataset="Mixed", devices=16,
         policies=("loongserve", "static_tp", "vllm", "splitfuse")),
    *(Case(name=f"Zipf {x}", figure=12, dataset=f"Zipf {x}", policies=_FIGURE_12) for x in ZIPF_EXPONENTS),
    Case(name="ShareGPT, goodput", figure=13, dataset="ShareGPT", policies=("loongserve", "loongserve_no_scale_up")),
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One system in one case. limits_s: on means, by metric; none for a goodput."""

    case: Case
    policy: str
    traces: str
    stretch: float
    limits_s: Mapping[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"figure {self.case.figure}, {self.case.name}: {self.policy}"

    @property
    def rows(self) -> list[TraceRequest]:
        return datasets(self.traces)[self.case.dataset]

    @property
    def window_s(self) -> float:
        return self.stretch * WINDOW_S[self.case.dataset]

    def arriving(self, rate: float) -> list[TraceRequest]:
        return arriving(self.rows, rate, self.window_s, SEED)

    def deployed(self) -> Deployed:
        return Deployed(system(self.policy, self.case.dataset, self.case.devices), HARDWARE, MODEL)


@lru_cache(maxsize=1)
def datasets(folder: str) -> dict[str, list[TraceRequest]]:
    """With the Zipf mixes, which are drawn out of all of them."""
    found = loongserve_datasets(Path(folder))
    for exponent in ZIPF_EXPONENTS:
        draws = loongserve_zipf(found["Mixed"], exponent, SEED)
        found[f"Zipf {exponent}"] = list(islice(draws, ZIPF_PROMPTS))
    return found


def system(policy: str, dataset: str, devices: int) -> System:
    """As each is cut up in the paper: DistServe has one half of the devices for prompts and one for decodes, and those
    without sequence parallelism take eight devices for an instance, but for `replicated`.
    """
    tp = 2 if policy in (*IN_GROUPS, "replicated") else 4 if policy == "distserve" else 8
    instances = devices // tp
    batch_tokens = paper.BATCH_TOKENS.get(policy, paper.ELSE_BATCH_TOKENS)
    settings: dict[str, Any] = {
        # counted for each instance of a group
        "max_batch_tokens": batch_tokens // instances if policy in IN_GROUPS else batch_tokens,
        "max_batch_requests": paper.SYSTEMS_RUNNING.get(policy, paper.RUNNING.get(dataset, paper.ELSE_RUNNING)),
        "max_requests_per_master": paper.REQUESTS_PER_MASTER,
    }
    if policy == "splitfuse":
        policy = f"splitfuse:chunk_size={paper.CHUNKS[dataset]}"
    return System(policy=policy, instances=instances, tp=tp, kv_tokens=paper.SLOTS[tp], settings=settings)


def goodput_slo() -> LengthAwareSLO:
    machine, model = known_machine(HARDWARE), known_model(MODEL)
    cost = IterationCost(Fleet(machine=machine, model=model, instances=4, tp=2))

    @lru_cache(maxsize=1 << 16)
    def alone(tokens: int) -> float:
        return cost.batch(evenly_spread(BatchShape(num_instances=4, chunks=(Chunk(tokens),)))).total

    return LengthAwareSLO(tpot_s=paper.TPOT_S, factor=paper.SLO_SCALE, floor_s=paper.TTFT_FLOOR_S, alone=alone)


# what a process does


def measure_alone(task: Task) -> dict[str, float]:
    """Normalised latencies without load, seconds a token."""
    rows = islice(shuffled(task.rows, SEED), ALONE)
    requests = list(with_arrivals(rows, interval(ALONE_EVERY_S)))
    metrics = measure(task.deployed().run(requests).records()).classes["all"]
    assert metrics.per_token_s is not None and metrics.input_s is not None
    return {"per_token": metrics.per_token_s, "input": metrics.input_s}


def search(task: Task) -> dict[str, Any]:
    """Rates, and every point that was tried."""
    search = Search(task.deployed(), task.arriving, goodput_slo())
    some_rate = SOME / task.window_s
    if task.case.of_means:
        slo = {
            metric: search.highest(f"{metric}_s", limit, some_rate)
            for metric, limit in task.limits_s.items()
            if wait_s(task.rows, metric, limit) <= MOST_WAIT * task.window_s
        }
        papers = paper.SLO_S[task.case.name].items()
        rates = {
            "slo": slo,
            "papers_slo": {metric: search.interpolated(f"{metric}_s", limit) for metric, limit in papers},
        }
    else:
        rates = {"slo": {"goodput": search.highest("late", 1.0 - paper.ATTAINMENT, some_rate)}}
    return {"rates": rates, "points": [asdict(search.points[rate]) for rate in sorted(search.points)]}


def wait_s(rows: Sequence[TraceRequest], metric: str, limit: float) -> float:
    """How long all requests wait if their mean latency, normalised, is this limit."""
    tokens = [row.num_tokens if metric == "per_token" else row.num_prompt_tokens for row in rows]
    return limit / statistics.mean(1 / number for number in tokens)


class _Steps:
    """An event log that only counts what a policy explains."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def write(self, now: float, event: object, actions: object, why: Sequence[Any] = ()) -> None:
        self.counts.update(decision.step for decision in why)


def count_scale_ups(task: Task) -> float:
    """In 10 s, from the first arrival to the last end."""
    steps = _Steps()
    ended_s = task.deployed().run(task.arriving(paper.SCALE_UP_RATE), log=steps).ended_s
    return 10.0 * steps.counts["scale up"] / ended_s


# all of it


def main() -> None:
    options = arguments(
        __doc__ or "",
        [("traces", "", "folder of traces"), ("figures", "10,11,12,13", "with commas"),
         ("stretch", 1.0, "times WINDOW_S"), ("jobs", 0, "processes; 0: as many as cores"),
         ("name", "paper_loongserve", "result")],
    )  # fmt: skip
    figures = {int(number) for number in options.figures.split(",")}
    cases = [case for case in CASES if case.figure in figures]
    given = {"traces": options.traces, "stretch": options.stretch}

    of_means = [case for case in cases if case.of_means]
    alone = in_parallel(
        measure_alone, [Task(case=case, policy="loongserve", **given) for case in of_means], options.jobs
    )
    limits = {
        case.name: {
            "alone_s": figures_s,
            "slo_s": {metric: paper.SLO_SCALE * seconds for metric, seconds in figures_s.items()},
            "papers_slo_s": paper.SLO_S[case.name],
        }
        for case, figures_s in zip(of_means, alone, strict=True)
    }
    tasks = []
    for case in cases:
        of_case = limits[case.name]["slo_s"] if case.of_means else {}
        tasks += [Task(case=case, policy=policy, limits_s=of_case, **given) for policy in case.policies]
    found = in_parallel(search, tasks, options.jobs)
    results: dict[str, Any] = {}
    for task, answer in zip(tasks, found, strict=True):
        case = task.case
        entry = results.setdefault(
            case.name,
            {"figure": case.figure, "devices": case.devices, "window_s": options.stretch * WINDOW_S[case.dataset],
             "limits": limits.get(case.name), "systems": {}},
        )  # fmt: skip
        entry["systems"][task.policy] = answer
    rates = {
        name: {policy: answer["rates"]["slo"] for policy, answer in entry["systems"].items()}
        for name, entry in results.items()
    }
    cells = list(paper.cells(rates))
    for cell in cells:
        shown = {side: "-" if cell[side] is None else f"{cell[side]:.2f}" for side in ("paper", "ours")}
        say(f"{cell['case']}, {cell['metric']}: loongserve over {cell['over']} {shown['ours']}, paper {shown['paper']}")
    content = {"hardware": HARDWARE, "model": MODEL, "seed": SEED, "cases": results, "cells": cells}
    if 13 in figures:
        (counted,) = in_parallel(
            count_scale_ups, [Task(case=CASES[-1], policy="loongserve", **given)], options.jobs
        )
        content["scale_ups_in_10_s"] = {"paper": paper.SCALE_UPS_IN_10_S, "ours": counted}
    save(options.name, content)


if __name__ == "__main__":
    main()
