"""What the tests of the event log share: runs that have everything in them, each played once, and only for reading."""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from longspan.config import SchedulerConfig
from longspan.core.actions import (
    Action,
)
from longspan.core.costs.cost_model import FittedCostModel
from longspan.core.decision import Decision
from longspan.core.events import (
    Event,
)
from longspan.metrics.event_log import EventLogWriter, read_event_log
from tests.core.cost_models import scaling_model
from tests.core.driver import Driver
from tests.core.random_policy import RandomPolicy

CONFIG = SchedulerConfig(
    policy="elastic_fcfs", num_instances=4, kv_tokens=60, min_tokens_per_instance=4, max_requests_per_master=2,
    decode_headroom=2,
)  # fmt: skip
MODEL = scaling_model(
    2, fixed=0.02, fixed_step=0.001, per_token=1e-3, per_pair=0.0, decode_fixed=5e-4, decode_step=0.0,
    per_request=1e-4, migration_per_token=1e-6,
)  # fmt: skip

Record = tuple[float, Event, Sequence[Action], Sequence[Decision]]


@functools.cache
def a_busy_day(config: SchedulerConfig = CONFIG, seed: int = 5, model: FittedCostModel | None = None) -> Driver:
    """Prefills, decodes, aborts, preemptions, refusals; names that hash differently in each process."""
    driver = Driver(config, seed=seed, cost_model=model)
    rng = random.Random(seed)
    for number in range(80):
        driver.arrive(rng.choice((3, 20, 150)), rng.randint(1, 100), f"request-{number}")
        if number % 9 == 0:
            driver.abort(f"request-{number // 2}")
        if driver.model.started and number % 3 == 0:
            driver.complete(rng.choice(driver.model.started), stop=0.05)
    driver.finish(stop=0.02, in_order=False)
    return driver


@functools.cache
def a_day_of_talks(seed: int = 3) -> Driver:
    """Prompts that go on from those before, under a policy that migrates and preempts."""
    driver = Driver(replace(CONFIG, prefix_block=4), RandomPolicy(seed), seed=seed)
    for number in range(40):
        known = list(driver.model.tokens.values())
        before = driver.rng.choice(known) if known and number % 4 else []
        prompt = [*before[: driver.rng.choice((len(before), 20))], *driver.rng.choices(range(50), k=6)]
        driver.arrive(prompt[:100], driver.rng.randint(1, 12), f"request-{number}")
        while driver.model.started and driver.rng.random() < 0.6:
            driver.complete(driver.rng.choice(driver.model.started), stop=0.05)
    driver.finish(in_order=False)
    return driver


def records_of(driver: Driver) -> list[Record]:
    return [(now, event, actions, why) for (now, event, actions), why in zip(driver.log, driver.why, strict=True)]


def write(path: Path, driver: Driver, **options: Any) -> Path:
    model = driver.scheduler._state._cost_model
    assert model is None or isinstance(model, FittedCostModel)
    with EventLogWriter(path, driver.config, model, **options) as writer:
        for record in records_of(driver):
            writer.write(*record)
    assert writer.errors == 0 and writer.path is not None
    return writer.path


def read(path: Path) -> list[Record]:
    return [(record.now, record.event, list(record.actions), record.why) for record in read_event_log(path)]


@functools.cache
def a_small_day() -> Driver:
    driver = Driver(CONFIG, seed=3)
    for number in range(20):
        driver.arrive(driver.rng.choice((3, 20, 150)), driver.rng.randint(1, 20))
        if driver.model.started and number % 3 == 0:
            driver.complete(driver.rng.choice(driver.model.started), stop=0.05)
    driver.abort("r18")
    driver.finish(in_order=False)
    return driver
