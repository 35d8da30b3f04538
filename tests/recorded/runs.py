"""The runs that are recorded: each policy under driver, simulator and engine, and the tests' own policies."""

from __future__ import annotations

import asyncio
import random
import zlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from longspan.config import SchedulerConfig
from longspan.core.actions import Action
from longspan.core.policies.base import Policy
from longspan.metrics.event_log import EventLogWriter
from longspan.profiler.simulated import fit_simulated
from longspan.sampling_params import SamplingParams
from longspan.service_level import DEFAULT_SERVICE, ServiceLevel
from longspan.simulator.cost import IterationCost
from longspan.simulator.fleet import Fleet
from longspan.simulator.hardware import A800_80G
from longspan.simulator.models import MODELS
from longspan.simulator.simulator import Simulator
from longspan.workload.arrivals import gamma
from longspan.workload.traces import TraceRequest, read_trace
from longspan.workload.transforms import scaled_to, with_arrivals
from tests.core.cost_models import scaling_model
from tests.core.driver import Driver
from tests.core.random_policy import RandomPolicy
from tests.core.settings import EVERY_POLICY, configured
from tests.exactness.cells import FORCED, Cell
from tests.exactness.serving import engine_config, lengths, params_of, policy_of, serve

DATA = Path(__file__).parents[1] / "data"
RANDOM = "random"
"""The tests' own policy, `RandomPolicy`."""


class Course(ABC):
    """A way to run any policy."""

    @abstractmethod
    def record(self, run: Run, path: Path, model: Path) -> None:
        """Write the run's log. model: a folder with a tiny one, for an engine."""


@dataclass(frozen=True)
class Run:
    """One log. policy: its name. seed: of all that is drawn."""

    policy: str
    course: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.policy}-{self.course}"

    def record(self, path: Path, model: Path) -> None:
        COURSES[self.course].record(self, path, model)

    def configured(self, settings: Mapping[str, Any]) -> SchedulerConfig:
        """settings: of the scheduler and of policies."""
        if self.policy == RANDOM:
            names = {field.name for field in fields(SchedulerConfig)}
            return SchedulerConfig(**{name: value for name, value in settings.items() if name in names})
        return configured(self.policy, **settings)

    def own_policy(self) -> Policy | None:
        """A fresh one; None: it is known by its name."""
        if self.policy == FORCED:
            course = COURSES[self.course]
            assert isinstance(course, Served)
            return policy_of(course.cell(self.policy))
        return RandomPolicy(self.seed) if self.policy == RANDOM else None


@dataclass(frozen=True)
class Driven(Course):
    """The tests' driver: arrivals, ends and aborts at random, and what runs ends in random order.

    prompts: the shortest and the longest of each kind. arrival, abort: probabilities, at each step. stop, late_stop: of
    a token, to be the last one, while requests arrive, and afterwards.
    """

    config: Mapping[str, Any]
    requests: int
    prompts: Sequence[tuple[int, int]]
    arrival: float
    cost: Mapping[str, float] = field(default_factory=dict)
    longest_answer: int = 12
    abort: float = 0.05
    stop: float = 0.03
    late_stop: float = 0.03

    def record(self, run: Run, path: Path, model: Path) -> None:
        config = run.configured(self.config)
        cost_model = scaling_model(config.num_instances, **self.cost)
        driver = _Demanding(config, run.own_policy(), seed=run.seed, cost_model=cost_model)
        self._play(driver)
        with EventLogWriter(path, config, cost_model, policy=run.own_policy(), run="driver") as writer:
            for (now, event, actions), why in zip(driver.log, driver.why, strict=True):
                writer.write(now, event, actions, why)

    def _play(self, driver: Driver) -> None:
        rng, model = driver.rng, driver.model
        left = self.requests
        while left:
            if not model.started or rng.random() < self.arrival:
                driver.arrive(rng.randint(*rng.choice(self.prompts)), rng.randint(1, self.longest_answer))
                left -= 1
            else:
                driver.complete(rng.choice(model.started), stop=self.stop)
            if rng.random() < self.abort:
                driver.abort(rng.choice([*driver.lives, "nobody"]))
        driver.finish(stop=self.late_stop, in_order=False)


class _Demanding(Driver):
    """Every request wants something else."""

    def arrive(
        self, prompt: int, max_tokens: int, request_id: str | None = None, service: ServiceLevel = DEFAULT_SERVICE
    ) -> list[Action]:
        ttft_s, tpot_s = (self.rng.choice((None, None, 1e-4, 0.1, 100.0)) for _ in range(2))
        service = ServiceLevel(ttft_s, tpot_s, self.rng.choice((0, 0, 0, -1, 1)))
        return super().arrive(prompt, max_tokens, request_id, service)


@dataclass(frozen=True)
class Simulated(Course):
    """The simulator, with a trace's lengths, scaled down, and arrivals in bursts. rate: arrivals a second."""

    config: Mapping[str, Any]
    trace: str
    requests: int
    longest: int
    rate: float
    most_outputs: int = 12

    def record(self, run: Run, path: Path, model: Path) -> None:
        config = run.configured(self.config)
        cost = IterationCost(
            Fleet(machine=A800_80G, model=MODELS["lwm-1m"], instances=config.num_instances, pp=config.pp)
        )
        cost_model = fit_simulated(cost, config, self.longest)
        with EventLogWriter(path, config, cost_model, run="simulator") as writer:
            Simulator(config, cost, cost_model=cost_model, event_log=writer).run(self._workload(run.seed))

    def _workload(self, seed: int) -> list[TraceRequest]:
        requests = scaled_to(read_trace(DATA / self.trace), self.longest)
        chosen = random.Random(seed).sample(requests, self.requests)
        short = [replace(r, num_output_tokens=min(r.num_output_tokens, self.most_outputs)) for r in chosen]
        return list(with_arrivals(short, gamma(self.rate, 4.0, seed)))


@dataclass(frozen=True)
class Served(Course):
    """The real engine, in threads, with a tiny random model, as a cell of tests/exactness says."""

    settings: Mapping[str, Any]

    def cell(self, policy: str) -> Cell:
        forced: dict[str, Any] = {"migrates": True, "preempts": True} if policy == FORCED else {}
        return Cell(policy=policy, **self.settings, **forced)

    def record(self, run: Run, path: Path, model: Path) -> None:
        cell = self.cell(run.policy)
        draw = random.Random(run.seed)
        requests: list[tuple[list[int], SamplingParams]] = [
            (draw.choices(range(3, 101), k=length), params_of(cell)) for length in lengths(cell)
        ]
        config = replace(engine_config(cell, model, path), decode_headroom=0)  # as of the matrix's small pools
        asyncio.run(serve(cell, config, requests))


COURSES: dict[str, Course] = {
    "alone": Driven(
        {"num_instances": 1, "kv_tokens": 60, "max_waiting": 4, "decode_headroom": 1, "max_batch_tokens": 16,
         "chunk_size": 5, "max_batch_requests": 6, "tpot_slo_s": 0.01},
        requests=24, prompts=[(1, 7), (1, 23), (1, 70)], arrival=0.25,
        cost={"fixed": 1e-4, "fixed_step": 0.0, "per_token": 1e-3},
    ),
    "crowd": Driven(
        {"num_instances": 3, "kv_tokens": 50, "max_waiting": 4, "decode_headroom": 2, "max_batch_tokens": 24,
         "min_tokens_per_instance": 4, "max_requests_per_master": 2, "max_batch_requests": 6, "chunk_size": 7,
         "kvp_tokens_per_shard": 16, "tpot_slo_s": 0.01},
        requests=32, prompts=[(1, 17), (1, 56), (1, 170)], arrival=0.35,
        cost={"fixed": 1e-3, "fixed_step": 1e-4, "per_token": 1e-3, "per_pair": 1e-6, "decode_fixed": 1e-3,
              "per_request": 1e-2},
    ),
    "roomy": Driven(
        {"num_instances": 4, "kv_tokens": 400, "decode_headroom": 8, "max_batch_tokens": 512,
         "min_tokens_per_instance": 32, "max_requests_per_master": 3, "chunk_size": 64},
        requests=26, prompts=[(1, 90), (1, 300), (1, 900)], arrival=0.15,
        cost={"decode_fixed": 5e-4, "decode_step": 0.0},
    ),
    "stages": Driven(
        {"num_instances": 2, "pp": 2, "kv_tokens": 80, "max_waiting": 8, "decode_headroom": 1, "max_batch_tokens": 24,
         "min_tokens_per_instance": 4, "max_requests_per_master": 2, "max_batch_requests": 5, "chunk_size": 9,
         "kvp_tokens_per_shard": 30, "tpot_slo_s": 0.01},
        requests=24, prompts=[(1, 18), (1, 60), (1, 180)], arrival=0.25,
        cost={"fixed": 1e-3, "fixed_step": 1e-4, "per_token": 1e-3, "per_pair": 1e-6, "decode_fixed": 1e-3},
    ),
    "half_done": Driven(
        {"num_instances": 2, "kv_tokens": 100, "decode_headroom": 0, "max_batch_tokens": 10},
        requests=16, prompts=[(35, 45), (80, 95)], arrival=0.15,
        cost={"fixed": 0.0, "fixed_step": 0.0, "per_token": 1e-3},
    ),
    "long_prompts": Driven(
        {"num_instances": 2, "kv_tokens": 6000, "decode_headroom": 1, "max_waiting": 8},
        requests=16, prompts=[(1, 300), (1500, 3500), (2500, 6100)], arrival=0.25,
        cost={"decode_fixed": 1e-3},
    ),
    "long_prompts_stages": Driven(
        {"num_instances": 2, "pp": 2, "kv_tokens": 6000, "decode_headroom": 1},
        requests=16, prompts=[(1, 300), (1500, 3500), (2500, 6100)], arrival=0.2,
        cost={"decode_fixed": 1e-3},
    ),
    "surprise": Driven(
        {"num_instances": 2, "kv_tokens": 60, "decode_headroom": 1, "min_tokens_per_instance": 4},
        requests=24, prompts=[(1, 12)], arrival=0.3, longest_answer=100, stop=0.5, late_stop=0.0,
        cost={"fixed": 1e-3, "fixed_step": 1e-4, "per_token": 1e-3, "decode_fixed": 1e-3},
    ),
    "simulator": Simulated(
        {"num_instances": 4, "kv_tokens": 6000, "decode_headroom": 16, "max_requests_per_master": 4,
         "kvp_tokens_per_shard": 4000},
        "loongserve_mixed_200.csv.gz", requests=20, longest=20_000, rate=3.0,
    ),
    "simulator_stages": Simulated(
        {"num_instances": 8, "pp": 2, "kv_tokens": 3000, "decode_headroom": 16, "max_requests_per_master": 4},
        "azure_conv_2023_200.csv.gz", requests=16, longest=4000, rate=60.0, most_outputs=6,
    ),
    "engine": Served({"instances": 2, "pool": "small", "chunk": 7, "shard": 16, "aborts": "middle"}),
    "engine_stages": Served({"instances": 2, "stages": 2, "chunk": 64, "aborts": "beside", "arrivals": "in_turn"}),
}  # fmt: skip
SPECIAL: dict[str, Sequence[str]] = {
    "half_done": ["edf", "fcfs", "least_slack", "longspan", "medha", "preflow", "qoserve", "srpt"],
    "long_prompts": ["alise", "ssjf", "vllm"],
    "long_prompts_stages": ["alise", "ssjf", "vllm"],
    "surprise": ["loongserve", "loongserve_never_splits", "loongserve_reactive", "loongserve_single_master"],
}
"""Courses for some policies alone, who do there what they hardly ever do elsewhere: half-done prompts move aside for
others; prompts have more tokens than batches; answers are longer than those seen before, so that slots run out."""
SPARED: dict[str, Sequence[str]] = {
    "roomy": ["fsp", "preflow", "qoserve"],
    "simulator_stages": ["fsp", "preflow", "qoserve"],
}
"""Courses without some policies: logs are to stay few, and theirs reach everything without these."""
SEEDS: dict[str, int] = {
    **{f"{policy}-half_done": 18 for policy in SPECIAL["half_done"]},
    **{f"{policy}-surprise": 4 for policy in SPECIAL["surprise"]},
    "fsp-crowd": 24,
    "longspan-half_done": 9,
    "loongserve-crowd": 9,
    "preflow-crowd": 2,
    "splitfuse-crowd": 9,
}
"""By the name of the log, where a seed drawn from that does not reach what the tests require."""


def _runs() -> dict[str, Run]:
    pairs = [
        (policy, name)
        for policy in EVERY_POLICY
        for name in COURSES
        if policy in SPECIAL.get(name, EVERY_POLICY) and policy not in SPARED.get(name, ())
    ]
    pairs += [(RANDOM, name) for name, course in COURSES.items() if isinstance(course, Driven) and name not in SPECIAL]
    pairs += [(FORCED, name) for name, course in COURSES.items() if isinstance(course, Served)]
    runs = [Run(*pair, zlib.crc32("-".join(pair).encode())) for pair in pairs]
    return {run.name: replace(run, seed=SEEDS.get(run.name, run.seed)) for run in runs}


RUNS = _runs()
"""By the name of the log."""
