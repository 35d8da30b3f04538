"""What each part of `longspan` is worth: attainment without it, in simulation.

    python -m benchmarks.policy.ablation --traces DIR
    python -m benchmarks.policy.ablation --traces DIR --requests 2000 --seeds 3

Workloads, loads and deadlines are those of the grid (grid_workloads.py). It can be broken off at any time: each run is
a line of benchmarks/results/grid/NAME.jsonl as soon as it ends, and is not run again (kept_runs.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from benchmarks.common import arguments, save
from benchmarks.policy import kept_runs
from benchmarks.policy.grid_run import Task, figures, simulator
from benchmarks.policy.grid_workloads import workload

POLICY, K = "longspan", 5.0
CELLS = (
    ("medha_5", "replicas", 0.9),
    ("loongserve_mixed_a800", "replicas", 0.9),
    ("loongserve_mixed", "replicas", 0.9),
    ("mooncake_conversation", "replicas", 0.5),
    ("mooncake_conversation", "replicas", 0.9),
    ("mooncake_conversation", "spp", 0.7),
    ("mooncake_conversation", "spp", 0.9),
)


@dataclass(frozen=True, slots=True)
class Variant:
    """The policy with other options, or under other settings of `SchedulerConfig`."""

    name: str
    options: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def policy(self) -> str:
        return f"{POLICY}:{self.options}" if self.options else POLICY

    @property
    def told(self) -> str:
        """As one would give it: options of the policy, or of the server."""
        return self.options or ", ".join(f"{name}={value}" for name, value in self.settings.items())


VARIANTS = (
    Variant("the whole"),
    Variant("no feedback", "feedback=0"),
    Variant("by deadline alone", "c=0"),
    Variant("shortest remaining first", "c=1e6"),
    Variant("aim at the TPOT itself", "aim=1"),
    Variant("no longer iterations where decodes are ahead", "burst=1"),
    Variant("short iterations where nobody decodes", "idle_fixed_share=1"),
    Variant("one instance a prompt", "team=1"),
    Variant("teams of two", "team=2"),
    Variant("teams that do not save up", "team_burst=1:team_fixed_share=1"),
    Variant("no least share of a chunk", "least_share=0"),
    Variant("decodes of a pipeline stay together", "spread_decodes=false"),
    Variant("nothing closed to the long", "closed_to_long=0"),
    Variant("late ones do not go by their promise", "at_risk_share=0"),
    Variant("nobody is refused", settings={"overload": "off"}),
)


@dataclass(frozen=True, slots=True)
class Asked(kept_runs.OfTask):
    """One run."""

    task: Task
    variant: Variant

    @property
    def key(self) -> str:
        settings = "".join(f"/{name}={value}" for name, value in self.variant.settings.items())
        return f"{self.task.key}{settings}"


def run(asked: Asked, traces: str) -> dict[str, Any]:
    task = asked.task
    load = workload(task.workload, task.load, task.k, task.seed, task.requests, traces)
    simulation = simulator(task, settings=asked.variant.settings).run(load.requests)
    due = {request.arrived_at_s: request.service.ttft_s or 0.0 for request in load.requests}
    counted = [record for record in simulation.records() if record.arrived_s >= load.counted_from_s]
    found = figures(counted, due, task)
    return {**asdict(task), "cell": task.cell, "variant": asked.variant.name, **found}


def main() -> None:
    options = arguments(
        __doc__ or "",
        [("traces", "", "folder of traces"), ("requests", 400, "that count, of a run"), ("seeds", 1, "runs of each"),
         ("jobs", 0, "processes; 0: as many as cores"), ("name", "ablation", "result")],
    )  # fmt: skip
    todo = [
        Asked(
            Task(
                workload=name, shape=shape, k=K, load=load, policy=variant.policy, seed=seed, requests=options.requests
            ),
            variant,
        )
        for seed in range(options.seeds)
        for name, shape, load in CELLS
        for variant in VARIANTS
    ]
    runs = kept_runs.all_of(todo, partial(run, traces=options.traces), options.name, options.jobs)
    save(options.name, {
        "k": K, "requests": options.requests, "seeds": options.seeds,
        "variants": {variant.name: variant.told for variant in VARIANTS}, "runs": runs,
    })  # fmt: skip


if __name__ == "__main__":
    main()
