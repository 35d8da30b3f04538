"""`longspan plan`: which policy, on how many instances of how many devices, bears most, or is enough."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import msgspec
from rich.table import Table

from longspan import __version__
from longspan.core.policies import create_policy, told_of_alias
from longspan.entrypoints.bench.options import ArrivalOptions, LengthOptions
from longspan.entrypoints.bench.requests import make_requests
from longspan.entrypoints.bench.tables import console
from longspan.entrypoints.plan.doubts import doubts
from longspan.entrypoints.plan.options import PlanOptions, Split
from longspan.entrypoints.simulate.command import make_slo, scheduler_config
from longspan.entrypoints.simulate.fleet import make_fleet
from longspan.errors import ConfigError, LongspanError
from longspan.interrupts import interrupts_held_back
from longspan.profiler.simulated import fit_simulated
from longspan.simulator.capacity import Goal, Trial, faster, fewest, highest
from longspan.simulator.cost import IterationCost
from longspan.simulator.load import offered_load
from longspan.simulator.pool_sizes import PoolSizes
from longspan.worker.parent import end_with_parent
from longspan.workload.traces import TraceRequest

FAILED = 1
_FIRST_LOAD = 0.5  # of capacity: where the search for a rate begins


@dataclass(frozen=True, slots=True)
class Answer:
    """One policy on one way to cut up the devices. rate: requests a second, 0 if none is slow enough.

    devices: that are in use; 0 if all of them are not enough. The others: at that rate, on these devices. num_late:
    requests that are refused since their first token would come later than is promised. hit_rate: see `Trial`.
    kv_slots: of all instances.
    """

    policy: str
    tp: int
    pp: int
    devices: int
    rate: float
    attainment: float | None = None
    load: float | None = None
    num_late: int | None = None
    hit_rate: float | None = None
    kv_slots: int | None = None


def plan(lengths: LengthOptions, arrivals: ArrivalOptions, options: PlanOptions) -> int:
    """Search, print a table, write the file; returns the exit code: 1 if nothing is good enough.

    Raises ConfigError, ModelError, TraceError; LongspanError: a process was ended from outside.
    """
    for name in options.policy_names:
        create_policy(name)
        if told := told_of_alias(name):
            print(f"longspan: {told}", file=sys.stderr)
    requests = make_requests(lengths, arrivals)
    splits = _possible(options)
    tasks = [(policy, split) for policy in options.policy_names for split in splits]
    answers = _solve_all(tasks, splits, requests, options)
    best_first = sorted(answers, key=_goodness)
    _print(best_first, requests, options)
    best = best_first[0]
    pools = PoolSizes(requests, options.prefix_block) if best.hit_rate is not None else None
    if pools is not None and best.kv_slots is not None:
        console().print(f"\nof the best: {pools.told(best.kv_slots)}")
    found = list(doubts(requests, options.attainment, options.long_threshold, best.load if best.devices else None))
    for doubt in found:
        print(f"longspan: {doubt}", file=sys.stderr)
    if options.json is not None:
        settings = {**msgspec.to_builtins(lengths, enc_hook=str), **msgspec.to_builtins(arrivals, enc_hook=str)}
        settings |= msgspec.to_builtins(options, enc_hook=str)
        settings.pop("json")
        settings.pop("jobs")  # neither of them changes an answer
        content = {"longspan": __version__, "settings": settings, "doubts": found,
                   "answers": [asdict(a) | _pools(a, pools) for a in best_first]}  # fmt: skip
        options.json.write_bytes(msgspec.json.format(msgspec.json.encode(content), indent=1) + b"\n")
    return 0 if best_first[0].devices and best_first[0].rate else FAILED


def _pools(answer: Answer, pools: PoolSizes | None) -> dict[str, Any]:
    """What pools of other sizes would find."""
    if pools is None or answer.kv_slots is None:
        return {}
    return {"pools": [{"times": times, "hit_rate": rate} for times, rate in pools.table(answer.kv_slots).items()]}


def _goodness(answer: Answer) -> tuple[object, ...]:
    none = answer.devices == 0 or answer.rate == 0
    return (none, answer.devices, -answer.rate, answer.policy, answer.tp, answer.pp)


def _possible(options: PlanOptions) -> list[Split]:
    """Ways to make an instance with which the model fits. Raises ConfigError: none."""
    possible, reason = [], ""
    for split in options.splits:
        try:
            scheduler_config(options, _cost(options, split, options.devices).fleet)
            possible.append(split)
        except ConfigError as error:
            reason = str(error)
    if not possible:
        raise ConfigError(reason)
    return possible


def _cost(options: PlanOptions, split: Split, devices: int) -> IterationCost:
    instances = devices // split.devices
    return IterationCost(make_fleet(options.hardware, options.model, instances, split.tp, split.pp))


def _solve_all(
    tasks: Sequence[tuple[str, Split]], splits: list[Split], requests: list[TraceRequest], options: PlanOptions
) -> list[Answer]:
    """On all cores. Answers come in the order of their tasks, however long each takes."""
    answers: dict[tuple[str, Split], Answer] = {}
    jobs = min(len(tasks), options.jobs or len(os.sched_getaffinity(0)))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, initializer=end_with_parent) as pool, _ended_if_interrupted():
        with interrupts_held_back():
            running = {pool.submit(_solve, *task, splits, requests, options): task for task in tasks}
        for number, future in enumerate(as_completed(running), start=1):
            answers[running[future]] = answer = future.result()
            print(
                f"{number} of {len(tasks)}: {answer.policy}, tp {answer.tp}, pp {answer.pp}: {answer.rate:.3g} "
                f"requests/s on {answer.devices} devices",
                file=sys.stderr, flush=True,
            )  # fmt: skip
    return [answers[task] for task in tasks]


@contextmanager
def _ended_if_interrupted() -> Iterator[None]:
    """The pool would wait for what runs: minutes, that nobody needs any more.

    Raises LongspanError: one of its processes was ended from outside.
    """
    try:
        yield
    except BaseException as error:
        for child in multiprocessing.active_children():
            child.terminate()
        if isinstance(error, BrokenProcessPool):
            raise LongspanError(
                "a process that simulated was ended from outside, perhaps for want of memory; with fewer --jobs they "
                "need less"
            ) from error
        raise


def _solve(
    policy: str, split: Split, splits: list[Split], requests: list[TraceRequest], options: PlanOptions
) -> Answer:
    search = _Search(policy, split, splits, requests, options)
    return search.highest_rate() if options.find == "rate" else search.fewest_devices()


class _Search:
    """One policy and way to make an instance.

    What a prompt takes alone is the same for all: on the best way to cut up all devices.
    """

    def __init__(
        self, policy: str, split: Split, splits: list[Split], requests: list[TraceRequest], options: PlanOptions
    ) -> None:
        self.policy = policy
        self.split = split
        self.requests = requests
        self.options = options
        costs = [_cost(options, other, options.devices) for other in splits]
        config = scheduler_config(options, costs[0].fleet)
        self.goal = Goal(
            slo=make_slo(options.slo, config, costs), attainment=options.attainment,
            long_threshold=options.long_threshold,
        )  # fmt: skip
        span_s = (requests[-1].arrived_at_s or 0.0) - (requests[0].arrived_at_s or 0.0)
        if not span_s:
            raise ConfigError("all requests arrive at once: a plan needs at least two, at different times")
        self.rate = (len(requests) - 1) / span_s

    def highest_rate(self) -> Answer:
        size = self.split.devices
        devices = self.options.devices // size * size
        guess = self.rate * _FIRST_LOAD / self._load(self.rate, devices)
        rate = highest(lambda rate: self._holds(rate, devices), guess)
        return self._answer(rate, devices)

    def fewest_devices(self) -> Answer:
        size = self.split.devices
        instances = fewest(lambda number: self._holds(self.rate, number * size), self.options.devices // size)
        return self._answer(self.rate, (instances or 0) * size)

    def _answer(self, rate: float, devices: int) -> Answer:
        if not rate or not devices:
            return Answer(self.policy, self.split.tp, self.split.pp, devices, rate)
        trial, load = self._tried(rate, devices), self._load(rate, devices)
        slots = scheduler_config(self.options, _cost(self.options, self.split, devices).fleet).total_kv_tokens
        return Answer(
            self.policy, self.split.tp, self.split.pp, devices, rate, trial.attainment, load, trial.num_late,
            trial.hit_rate, slots,
        )  # fmt: skip

    def _holds(self, rate: float, devices: int) -> bool:
        return self._tried(rate, devices).attainment >= self.goal.attainment

    def _tried(self, rate: float, devices: int) -> Trial:
        cost = _cost(self.options, self.split, devices)
        config = replace(scheduler_config(self.options, cost.fleet), policy=self.policy)
        model = fit_simulated(cost, config, cost.fleet.model.max_model_len)
        return self.goal.try_out(self._at(rate), config, cost, model, self.options.output_limit)

    def _load(self, rate: float, devices: int) -> float:
        cost = _cost(self.options, self.split, devices)
        return offered_load(self._at(rate), cost, scheduler_config(self.options, cost.fleet)) or 1.0

    def _at(self, rate: float) -> list[TraceRequest]:
        return faster(self.requests, rate / self.rate)


def _print(answers: Sequence[Answer], requests: Sequence[TraceRequest], options: PlanOptions) -> None:
    out = console()
    fleet = _cost(options, Split(answers[0].tp, answers[0].pp), options.devices).fleet
    asked = "highest rate" if options.find == "rate" else "fewest devices"
    out.print(
        f"{fleet.model.name}, {options.devices} x {fleet.machine.name}: {asked} at which {options.attainment:.0%} of "
        f"short and of long requests are within the SLO; {len(requests)} requests each",
        markup=False,
    )
    table = Table("policy", "instances x pp x tp", box=None, pad_edge=False)
    has_prefixes = any([answer.hit_rate is not None for answer in answers])
    for title in ("devices", "requests/s", "load", "attained", "late", *(["found"] if has_prefixes else [])):
        table.add_column(title, justify="right")
    for a in answers:
        good = bool(a.devices and a.rate)
        cells: tuple[str, ...] = ("none",)
        if good:
            cells = (str(a.devices), f"{a.rate:.3f}", f"{a.load:.2f}", f"{a.attainment:.1%}", str(a.num_late),
                     *([] if a.hit_rate is None else [f"{a.hit_rate:.1%}"]))  # fmt: skip
        instances = (a.devices or options.devices) // (a.pp * a.tp)
        table.add_row(a.policy, f"{instances} x {a.pp} x {a.tp}", *cells)
    out.print(table)

