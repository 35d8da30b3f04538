"""Medha's evaluation in simulation: Llama-3-8B on 16 A100, many short requests and a few very long ones.

The set-ups are the paper's: one instance of two stages of eight devices (TP8, SPP2), and for LoongServe eight instances
of two, with its published plans and with those of the released code, which never split a batch. Shorts are rows of
sharegpt_openchat4, at most 8,192 tokens, as in the paper; longs are log-uniform in [128K, 1M], for Medha-SWE was never
released: half of them are below 371K, a tenth above 852K, the paper's below 393K and above 839K. Arrivals are Poisson
for WINDOW_S, and every request is served to its end (the paper cuts after 60 minutes). An iteration may take 50 ms. A
request is in time if its first token comes within max(1.5 T(n), 0.5 s), T(n) being what `medha` predicts for its prompt
alone, chunk by chunk, as in the published code; and each further one within 100 ms, for in a pipeline it waits for a
stage as well.

Then single prompts of 1M and 10M tokens on up to 128 H100: pipeline stages (SPP) against a ring of instances, and the
decode that follows over 1 to 4 instances that share its KV (KVP); medha_scaling.py.

    python -m benchmarks.paper.medha --traces DIR [--rates 0.25,0.75,1.25,1.75] [--shares 0,0.01,0.05] [--seconds 600]
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from benchmarks.common import arguments, save, say
from benchmarks.paper import medha_scaling
from benchmarks.paper.simulated import Deployed, System, in_parallel
from longspan.core.policies.chunked.predictor import Predictor
from longspan.metrics.request_metrics import ClassMetrics, Distribution, measure
from longspan.simulator.load import offered_load
from longspan.simulator.slo import LengthAwareSLO
from longspan.workload.generator import medha_mix
from longspan.workload.traces import TraceRequest, read_trace
from longspan.workload.transforms import first_seconds

HARDWARE, MODEL, SEED = "a100-80g", "llama-3-8b", 0
LONG_FROM = 65_536
# The paper's headlines at 0.75 a second: LoongServe over Medha, of all requests together. The tail is the 99th
# percentile in the abstract, and the 90th in figure 1 and section 6.4.
HEADLINES = (
    (0.05, "ttft_s", "p50", 30.0), (0.05, "ttft_s", "p90", 174.0), (0.05, "ttft_s", "p99", 174.0),
    (0.01, "ttft_s", "p50", 8.0), (0.0, "ttft_s", "p50", 2.0), (0.05, "tpot_s", "p50", 5.0),
)  # fmt: skip
HEADLINE_RATE = 0.75
# Whose figures are divided by medha's. The first is the released code, all of whose plans are one batch.
OVER_MEDHA = ("loongserve_never_splits", "loongserve")
WINDOW_S = 600.0
TPOT_S = 0.1
_PROMISE = {"ttft_slo_factor": 1.5, "ttft_slo_floor_s": 0.5}  # the published code's
_PIPELINED: dict[str, Any] = {"instances": 1, "tp": 8, "pp": 2, "settings": _PROMISE}
SYSTEMS = {
    **{policy: System(policy=policy, **_PIPELINED) for policy in ("medha", "fcfs", "edf", "least_slack")},
    **{f"sarathi {n}": System(policy=f"sarathi:chunk_size={n}", **_PIPELINED) for n in (512, 2048)},
    **{
        policy: System(policy=policy, instances=8, tp=2, settings={"max_batch_tokens": 62_500, **_PROMISE})
        for policy in ("loongserve", "loongserve_never_splits")
    },
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    system: str
    rate: float
    long_share: float
    seconds: float
    traces: str

    def __str__(self) -> str:
        return f"{self.rate} requests/s, {self.long_share:.0%} long: {self.system}"


@lru_cache(maxsize=1)
def shorts(folder: str) -> list[TraceRequest]:
    return read_trace(Path(folder) / "sharegpt_openchat4.csv.gz")


@lru_cache(maxsize=1)
def slo() -> LengthAwareSLO:
    deployed = Deployed(SYSTEMS["medha"], HARDWARE, MODEL)
    config, predictor = deployed.config, Predictor(deployed.cost_model, deployed.config)
    return LengthAwareSLO(
        tpot_s=TPOT_S, factor=config.ttft_slo_factor, floor_s=config.ttft_slo_floor_s,
        alone=lru_cache(maxsize=1 << 16)(predictor.prefill),
    )  # fmt: skip


def simulate(task: Task) -> dict[str, Any]:
    mix = medha_mix(task.rate, SEED, long_share=task.long_share, shorts=shorts(task.traces))
    requests = list(first_seconds(mix, task.seconds))
    deployed = Deployed(SYSTEMS[task.system], HARDWARE, MODEL)
    simulation = deployed.run(requests)
    metrics = measure(simulation.records(), slo=slo(), long_threshold=LONG_FROM)
    return {
        "system": task.system,
        "rate": task.rate,
        "long_share": task.long_share,
        "offered_load": offered_load(requests, deployed.cost, deployed.config),
        "simulated_s": simulation.ended_s,
        "iterations": simulation.num_batches,
        "preemptions": sum(request.num_preemptions for request in simulation.requests),
        "classes": {name: _summary(group) for name, group in metrics.classes.items()},
    }


def headlines(runs: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """As many of them as were simulated. ours: by system and class; `all` is the paper's way to count."""
    every = {(run["system"], run["long_share"]): run["classes"] for run in runs if run["rate"] == HEADLINE_RATE}
    for share, figure, percentile, paper in HEADLINES:
        if all((system, share) in every for system in ("medha", *OVER_MEDHA)):
            ours = {
                f"{system}, {group}": every[system, share][group][figure][percentile]
                / every["medha", share][group][figure][percentile]
                for system in OVER_MEDHA
                for group in ("all", "short")
            }
            name = figure.removesuffix("_s").upper()
            yield {"what": f"{name} {percentile}, {share:.0%} long", "paper": paper, "ours": ours}


def _summary(group: ClassMetrics) -> dict[str, Any]:
    return {
        "requests": group.num_requests,
        "refused": group.num_refused,
        "ttft_s": _percentiles(group.ttft_s),
        "tpot_s": _percentiles(group.tpot_s),
        "itl_s": _percentiles(group.itl_s),
        "attainment": group.slo_attainment,
    }


def _percentiles(values: Distribution | None) -> dict[str, float] | None:
    return None if values is None else asdict(values)


def main() -> None:
    options = arguments(
        __doc__ or "",
        [("traces", "", "folder of traces"), ("rates", "0.25,0.75,1.25,1.75", "requests/s, with commas"),
         ("shares", "0,0.01,0.05", "of long requests, with commas"), ("systems", ",".join(SYSTEMS), "with commas"),
         ("seconds", WINDOW_S, "in which requests arrive"), ("jobs", 0, "processes; 0: as many as cores"),
         ("name", "paper_medha", "result")],
    )  # fmt: skip
    tasks = [
        Task(system=system, rate=float(rate), long_share=float(share), seconds=options.seconds, traces=options.traces)
        for share in reversed(options.shares.split(","))
        for rate in reversed(options.rates.split(","))
        for system in options.systems.split(",")
    ]
    runs = in_parallel(simulate, tasks, options.jobs)
    for run in runs:
        shown = ", ".join(f"{name} {_shown(group)}" for name, group in run["classes"].items() if name != "all")
        load = f"{run['rate']:.2f}/s, {run['long_share']:.0%} long, load {run['offered_load']:.2f}"
        say(f"{load}, {run['system']}: {shown}")
    alone = in_parallel(medha_scaling.time_prompt, medha_scaling.prompts(), options.jobs) + medha_scaling.ring()
    scaling = {"hardware": medha_scaling.HARDWARE, "prompts": alone, "kvp": medha_scaling.kvp()}
    save(options.name, {"hardware": HARDWARE, "model": MODEL, "seed": SEED, "window_s": options.seconds,
                        "tpot_s": TPOT_S, "long_from": LONG_FROM, "runs": runs, "cells": list(headlines(runs)),
                        "scaling": scaling})  # fmt: skip


def _shown(group: dict[str, Any]) -> str:
    ttft = group["ttft_s"]
    if ttft is None:
        return "none finished"
    return f"TTFT p50 {ttft['p50']:.2f} p99 {ttft['p99']:.2f} s, {group['attainment']:.0%} in time"


if __name__ == "__main__":
    main()
