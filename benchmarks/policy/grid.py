"""Policies on a grid of workloads, shapes, loads and deadlines, in simulation: how many requests are served in time.

Every workload runs on all of its devices as instances (replicas), and as the stages of one (spp), with the same
requests, arrivals and deadlines. grid_workloads.py says what a load and a deadline are, grid_run.py what is counted,
grid_bound.py what no policy could exceed.

    python -m benchmarks.policy.grid --traces DIR              all; many hours, and it can be broken off at any time
    python -m benchmarks.policy.grid --traces DIR --quick      a part, in a quarter of an hour on two cores
    python -m benchmarks.policy.grid --traces DIR --policies medha,longspan --cells mooncake_conversation/spp/k5/0.7
    python -m benchmarks.policy.grid --summary                 grid.json of the runs that there are

Each run is a line of benchmarks/results/grid/NAME.jsonl as soon as it ends. A run that is there already, of the same
source (`digest`), is not run again unless --again says so. At the end the newest line of each run is summed up.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import product

from benchmarks.common import arguments, save, say
from benchmarks.policy.grid_run import BOUND, Task, run
from benchmarks.policy.grid_summary import summary
from benchmarks.policy.grid_workloads import SHAPES, WORKLOADS
from benchmarks.policy.kept_runs import FOLDER, carry_out, digests, read, undone
from longspan.core.policies import create_policy
from longspan.errors import ConfigError

POLICIES = {
    "longspan": 3, "loongserve": 3, "medha": 3,
    "sarathi": 1, "static_sp": 1, "vllm": 1, "srpt": 1, "edf": 1, "elastic_fcfs": 1, "fcfs": 1,
}  # fmt: skip
"""How many seeds each has."""
QUICK = ("longspan", "loongserve", "medha", "sarathi", "vllm", "srpt", "edf")
LOADS = {5.0: (0.7, 0.9, 0.5, 1.1, 0.3), 1.5: (0.5, 0.9), 25.0: (0.5, 0.9)}
"""By k, in the order in which they are run."""
QUICK_LOADS = {5.0: (0.5, 0.9)}
REQUESTS, QUICK_REQUESTS = 2000, 400


def tasks(policies: Sequence[str], cells: Sequence[str], most_seeds: int, quick: bool) -> Iterator[Task]:
    """Yield what shall be run: all cells with the first seed, then with the next.

    cells: beginnings of their names; none stands for all.
    """
    requests = QUICK_REQUESTS if quick else REQUESTS
    levels = [(k, load) for k, loads in (QUICK_LOADS if quick else LOADS).items() for load in loads]
    seeds = {policy: POLICIES.get(policy.partition(":")[0], 1) for policy in policies}
    seeds = {BOUND: max(seeds.values(), default=1)} | seeds
    for seed in range(min(most_seeds, seeds[BOUND])):
        for (k, load), workload, shape, policy in product(levels, WORKLOADS, SHAPES, seeds):
            task = Task(workload=workload, shape=shape, k=k, load=load, policy=policy, seed=seed, requests=requests)
            if seed < seeds[policy] and task.cell.startswith(tuple(cells) or ""):
                yield task


def known(policies: Iterable[str]) -> Iterator[str]:
    for policy in policies:
        try:
            create_policy(policy)
        except ConfigError as error:
            say(f"left out: {error}")
        else:
            yield policy


def main() -> None:
    options = arguments(
        __doc__ or "",
        [("traces", "", "folder of traces"), ("quick", False, "fewer requests, loads and policies, one seed"),
         ("policies", "", "with commas, options as in medha:max_space_share=0.3; all of the grid by default"),
         ("cells", "", "beginnings of cells' names, as in medha_5/spp/k5, with commas; all by default"),
         ("seeds", 0, "at most so many; 0: as many as each policy has, 1 with --quick"),
         ("jobs", 0, "processes; 0: as many as cores"), ("again", False, "run also what has been run"),
         ("summary", False, "run nothing"), ("name", "grid", "result")],
    )  # fmt: skip
    name = f"{options.name}_quick" if options.quick else options.name
    path = FOLDER / f"{name}.jsonl"
    policies = list(known(_split(options.policies) or (QUICK if options.quick else POLICIES)))
    most_seeds = options.seeds or (1 if options.quick else max(POLICIES.values()))
    wanted = list(_once(tasks(policies, _split(options.cells), most_seeds, options.quick)))
    sources = digests((BOUND, *policies))
    todo = wanted if options.again else undone(wanted, read(path), sources)
    say(f"{len(wanted)} runs, of which {len(wanted) - len(todo)} are done")
    if todo and not options.summary:
        carry_out(todo, partial(run, traces=options.traces), sources, path, options.jobs)
    save(name, summary(list(read(path).values())))


def _split(text: str) -> list[str]:
    return [word for word in text.split(",") if word]


def _once(wanted: Iterable[Task]) -> Iterator[Task]:
    """The bound is the same on every shape."""
    seen = set()
    for task in wanted:
        what = (task.workload, task.k, task.load, task.seed, task.policy == BOUND or task)
        if what not in seen:
            seen.add(what)
            yield task


if __name__ == "__main__":
    main()
