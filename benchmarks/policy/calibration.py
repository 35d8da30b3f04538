"""What becomes of the estimates of `longspan`: the first token that a request is told at its arrival, and the real one.

A quote is what 95 of 100 alike should not exceed; it is kept if the first token comes within 1.3 times the quote, or a
second after it. A promise is later by far: who would not have it kept is refused. Workloads, loads and deadlines are
those of the grid (grid_workloads.py).

    python -m benchmarks.policy.calibration --traces DIR
    python -m benchmarks.policy.calibration --traces DIR --requests 2000 --seeds 3
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from benchmarks.common import arguments, save
from benchmarks.paper.simulated import in_parallel
from benchmarks.policy.grid_run import CLASSES, Task, length_class, simulator
from benchmarks.policy.grid_workloads import SHAPES, workload
from longspan.core.actions import Action
from longspan.core.decision import Decision
from longspan.core.events import Event

WORKLOADS = ("medha_5", "loongserve_mixed_a800", "mooncake_conversation")
LOADS = (0.5, 0.7, 0.9, 1.1)
POLICY, K = "longspan", 5.0
FACTOR, MORE_S = 1.3, 1.0
"""Within so many times its quote, or so many seconds after it, a first token is as quoted."""
AIMS = {"all": 0.95, "L": 0.9}
"""How many quotes are to be kept."""


class Told(NamedTuple):
    """A request, what it was told at its arrival, and its first token; None if it was refused. Seconds."""

    prompt: int
    median_s: float
    quote_s: float
    promised_s: float
    ttft_s: float | None


class Listener:
    """An event log in memory, of which only promises are kept, by when they were made."""

    def __init__(self) -> None:
        self.promises: dict[float, Mapping[str, float]] = {}

    def write(self, now: float, event: Event, actions: Sequence[Action], decisions: Sequence[Decision] = ()) -> None:
        for decision in decisions:
            if decision.step == "promise":
                assert now not in self.promises, "two requests came at once"
                self.promises[now] = decision.predicted


def told(task: Task, traces: str) -> list[Told]:
    """Run the task; returns the requests that count."""
    load = workload(task.workload, task.load, task.k, task.seed, task.requests, traces)
    listener = Listener()
    simulation = simulator(task, event_log=listener).run(load.requests)
    found = []
    for record in simulation.records():
        if record.arrived_s >= load.counted_from_s:
            promise = listener.promises[record.arrived_s]
            estimates = promise["median_s"], promise["quote_s"], promise["promised_s"]
            found.append(Told(record.num_prompt_tokens, *estimates, record.ttft_s))
    return found


def judged(those: Sequence[Told]) -> dict[str, Any]:
    served = [(each, each.ttft_s) for each in those if each.ttft_s is not None]
    found: dict[str, Any] = {"requests": len(those), "refused": len(those) - len(served)}
    if served:
        found["quote_over_truth"] = _percentiles([each.quote_s / max(took_s, 1e-9) for each, took_s in served])
        found["median_over_truth"] = _percentiles([each.median_s / max(took_s, 1e-9) for each, took_s in served])
        found["kept"] = _share([took_s <= max(FACTOR * each.quote_s, each.quote_s + MORE_S) for each, took_s in served])
        found["later_than_promised"] = _share([took_s > each.promised_s for each, took_s in served])
    return found


def by_class(those: Sequence[Told]) -> dict[str, Any]:
    """As `judged`, of all and of each class of length that there is."""
    classes = {name: [each for each in those if length_class(each.prompt) == name] for name in CLASSES}
    return {name: judged(some) for name, some in {"all": those, **classes}.items() if some}


def _percentiles(values: Sequence[float]) -> dict[str, float]:
    found = np.percentile(values, (5, 50, 95))
    return {f"p{number}": float(value) for number, value in zip((5, 50, 95), found, strict=True)}


def _share(those: Sequence[bool]) -> float:
    return float(np.mean(those))


def main() -> None:
    options = arguments(
        __doc__ or "",
        [("traces", "", "folder of traces"), ("workloads", ",".join(WORKLOADS), "of the grid, with commas"),
         ("requests", 400, "that count, of a run"), ("seeds", 1, "runs of each, put together"),
         ("jobs", 0, "processes; 0: as many as cores"), ("name", "calibration", "result")],
    )  # fmt: skip
    cells = {
        f"{name}/{shape}/{load:g}": [
            Task(workload=name, shape=shape, k=K, load=load, policy=POLICY, seed=seed, requests=options.requests)
            for seed in range(options.seeds)
        ]
        for name, shape, load in product(options.workloads.split(","), SHAPES, LOADS)
    }
    tasks = [task for those in cells.values() for task in those]
    found = dict(zip(tasks, in_parallel(partial(told, traces=options.traces), tasks, options.jobs), strict=True))
    pooled = {cell: [each for task in those for each in found[task]] for cell, those in cells.items()}
    loads = {
        f"{load:g}": by_class([each for cell in cells if cell.endswith(f"/{load:g}") for each in pooled[cell]])
        for load in LOADS
    }
    save(options.name, {
        "policy": POLICY, "k": K, "requests": options.requests, "seeds": options.seeds, "aims": AIMS,
        "kept_within": {"factor": FACTOR, "more_s": MORE_S}, "loads": loads,
        "cells": {cell: by_class(those) for cell, those in pooled.items()},
        "together": by_class([each for those in pooled.values() for each in those]),
    })  # fmt: skip


if __name__ == "__main__":
    main()
