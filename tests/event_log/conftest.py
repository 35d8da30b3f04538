"""Runs that have everything in them, and a log of one."""

from __future__ import annotations

from pathlib import Path

import pytest

from longspan.config import SchedulerConfig
from tests.core.driver import Driver
from tests.event_log.runs import MODEL, a_busy_day, write


@pytest.fixture(scope="module")
def busy_day() -> Driver:
    driver = a_busy_day()
    assert driver.scheduler.stats().num_preemptions > 0
    return driver


@pytest.fixture(scope="module")
def a_day_of_medha() -> Driver:
    """Chunks and decodes in one batch, in two stages, explained."""
    config = SchedulerConfig(num_instances=2, pp=2, kv_tokens=400, policy="medha:kvp_tokens_per_shard=100")
    return a_busy_day(config, 7, MODEL)


@pytest.fixture
def path(busy_day: Driver, tmp_path: Path) -> Path:
    return write(tmp_path / "events.jsonl", busy_day)
